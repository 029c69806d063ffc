//! What was told and is not to be told again while it lasts, also by a daemon that goes on where
//! another one ended.
//!
//! Refuses to be a table of locks: whether what is remembered is still there, the next reading says.

use serde::{Deserialize, Serialize};

use super::event::{Event, Kind, Told};
use super::id::LockId;
use super::identity::{BootTime, Pid, ProcessId, StartTime};
use super::input::FileId;

/// Something that was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Memory {
    /// An orphan.
    Orphan {
        /// The lock, as it was told.
        told: Box<Told>,
        /// True where its owner was only stuck in its exit.
        exiting: bool,
    },
    /// That the recorded pid of a lock was given to another process.
    Recycled {
        /// The lock.
        lock: LockId,
        /// The other process.
        process: ProcessId,
    },
    /// That a locked file was made anew.
    Replaced {
        /// The file that lost its path.
        old: FileId,
        /// The one that is locked with it.
        new: FileId,
    },
    /// Who waits for each other. Starts are those of the clock tick.
    Deadlock {
        /// The members, in order.
        members: Vec<ProcessId>,
    },
    /// A wait.
    LongWait {
        /// On which file.
        file: FileId,
        /// Who.
        pid: Pid,
        /// Since when.
        since: BootTime,
    },
}

impl Memory {
    /// What is to be remembered of an event; `None` where that is nothing.
    pub fn of(event: &Event) -> Option<Self> {
        let told = event.lock.as_ref();
        Some(match &event.kind {
            Kind::Orphaned { verdict, .. } => Self::Orphan {
                told: Box::new(told?.clone()),
                exiting: verdict.reason == Some(super::classify::Reason::Exiting),
            },
            Kind::PidRecycled { to } => Self::Recycled {
                lock: told?.lock.id.key(),
                process: ProcessId { pid: to.pid, start: to.start? },
            },
            Kind::LockReplaced { new } => {
                Self::Replaced { old: told?.lock.file, new: new.lock.file }
            }
            Kind::Deadlock { members } => {
                let process = |of: &super::event::Party| {
                    let start = StartTime::from_ticks(of.start?.ticks());
                    Some(ProcessId { pid: of.pid, start })
                };
                let members: Option<Vec<ProcessId>> =
                    members.iter().map(|member| process(&member.process)).collect();
                let mut members = members?;
                members.sort();
                Self::Deadlock { members }
            }
            Kind::LongWait { by, since, .. } => {
                Self::LongWait { file: told?.lock.file, pid: by.as_ref()?.pid, since: (*since)? }
            }
            _ => return None,
        })
    }

    /// The lock whose [`Self::Orphan`] is no memory any more after an event.
    pub fn ended_by(event: &Event) -> Option<LockId> {
        let is_end = matches!(event.kind, Kind::Recovered { .. });
        event.lock.as_ref().filter(|_| is_end).map(|told| told.lock.id.key())
    }

    /// The lock of an orphan.
    pub fn orphan(&self) -> Option<LockId> {
        match self {
            Self::Orphan { told, .. } => Some(told.lock.id.key()),
            _ => None,
        }
    }

    /// The same without what has no bounds: names of files and of groups.
    pub fn shortened(mut self) -> Self {
        if let Self::Orphan { told, .. } = &mut self {
            told.path = None;
            if let Some(acquirer) = &mut told.acquirer {
                (acquirer.exe, acquirer.cgroup) = (None, None);
            }
        }
        self
    }
}
