//! What the engine tells, as it happens.
//!
//! Refuses to be text: sinks write it down.

use serde::{Deserialize, Serialize};

use super::bytes;
use super::classify::Verdict;
use super::id::LockId;
use super::identity::{BootTime, Pid, StartTime};
use super::input::{LockName, Moment, Outcome};
use super::reclaim::plan::Method;
use super::reclaim::progress::{Asker, HookEnd};
use super::snapshot::{Death, Process, Remembered, Via};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number: one more than that of the event before.
    pub seq: u64,
    /// When it was told; the moments of what happened are in `kind`.
    pub at: Moment,
    /// What it is about, where it is about one lock.
    pub lock: Option<Told>,
    /// What happened.
    pub kind: Kind,
}

/// A lock, as an event names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Which.
    pub lock: LockName,
    /// The path of its file, where a view has shown one.
    #[serde(default, with = "bytes::optional")]
    pub path: Option<Box<[u8]>>,
    /// The name of its watch, where it has one.
    pub watch: Option<String>,
    /// Who took it, where that is known.
    pub acquirer: Option<Party>,
    /// How who took it ended, where that was seen.
    pub death: Option<Death>,
    /// When it was taken, where that is known.
    pub taken_at: Option<BootTime>,
}

/// A process, as an event names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Party {
    /// Its pid, counted as [`Pid`] says.
    pub pid: Pid,
    /// Its start; with the pid its identity.
    pub start: Option<StartTime>,
    /// `comm`, at most 15 bytes, any but NUL.
    #[serde(default, with = "bytes::optional")]
    pub comm: Option<Box<[u8]>>,
    /// Its pid in its own (innermost) pid namespace.
    pub ns_pid: Option<Pid>,
    /// Inode number of its pid namespace.
    pub pid_ns: Option<u64>,
    /// Executable.
    #[serde(default, with = "bytes::optional")]
    pub exe: Option<Box<[u8]>>,
    /// Control group path.
    #[serde(default, with = "bytes::optional")]
    pub cgroup: Option<Box<[u8]>>,
}

impl Party {
    /// A process of a snapshot; `None` where the snapshot does not have it.
    pub fn of(pid: Pid, process: Option<&Process>) -> Self {
        Self {
            pid,
            start: process.and_then(|process| process.start),
            comm: process.map(|process| process.comm.clone()),
            ns_pid: process.and_then(|process| process.ns_pid),
            pid_ns: process.and_then(|process| process.pid_ns),
            exe: process.and_then(|process| process.exe.clone()),
            cgroup: process.and_then(|process| process.cgroup.clone()),
        }
    }
}

impl From<&Remembered> for Party {
    fn from(process: &Remembered) -> Self {
        Self {
            pid: process.id.pid,
            start: Some(process.id.start),
            comm: Some(process.comm.clone()),
            ns_pid: process.ns_pid,
            pid_ns: process.pid_ns,
            exe: process.exe.clone(),
            cgroup: process.cgroup.clone(),
        }
    }
}

/// One way in which an orphan is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// By whom, where it is anybody.
    pub by: Option<Party>,
    /// How.
    pub via: Via,
    /// With which descriptor of the file, or of the socket or ring that it is in.
    pub fd: Option<u32>,
}

/// What happened. The names are those of the contract's `kind`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The watch began.
    Started {
        /// Whether the kernel went on recording since the daemon before.
        continued: bool,
        /// The number that the daemon before gave last: an event with it that nobody has seen was
        /// lost with that daemon.
        last_seq: Option<u64>,
        /// lockwatch's version.
        version: String,
        /// The kernel's release.
        kernel: String,
    },
    /// A lock outlived everybody who was meant to hold it.
    Orphaned {
        /// The verdict.
        verdict: Verdict,
        /// Who holds it: the first of them, by pid and descriptor.
        holders: Vec<Holding>,
        /// How many more hold it.
        more: usize,
    },
    /// An orphan is one no longer.
    Recovered {
        /// How.
        how: Recovery,
    },
    /// An exclusive lock ended by its owner's crash, and another took it at once.
    CrashHandoff {
        /// The crash.
        death: Death,
        /// When the lock was given back by the kernel.
        released_at: BootTime,
        /// Who has it now.
        to: Party,
        /// Since when.
        acquired_at: BootTime,
        /// Whether the dead owner wrote the file while it had the lock.
        written: Option<bool>,
    },
    /// Another tried for the lock while its owner was already exiting.
    ExitRace {
        /// The owner's death.
        death: Death,
        /// Who tried.
        by: Party,
        /// When.
        at: BootTime,
        /// How that ended.
        outcome: Outcome,
    },
    /// The recorded pid of a live lock was given to another process.
    PidRecycled {
        /// Who has it now.
        to: Party,
    },
    /// Two inodes that had the same path are exclusively locked at the same time: what the event is
    /// about is on the one that has lost the path.
    LockReplaced {
        /// The lock on the other one.
        new: Told,
    },
    /// A non-blocking attempt met a watched or orphaned lock.
    Refused {
        /// Who tried.
        by: Party,
        /// When.
        at: BootTime,
    },
    /// A wait passed its threshold.
    LongWait {
        /// Who waits, where it is a process of this machine.
        by: Option<Party>,
        /// Since when; `None` where that was not seen: then at least since the threshold.
        since: Option<BootTime>,
        /// For which locks.
        blocked_by: Vec<LockId>,
    },
    /// Waiters that wait for each other.
    Deadlock {
        /// The processes of the cycle, each blocked by a lock of the next.
        members: Vec<Member>,
    },
    /// A lock is about to be reclaimed.
    ReclaimPlanned {
        /// Who has it done.
        by: Asker,
        /// How.
        method: Method,
        /// Without an orphan's verdict.
        forced: bool,
        /// The process through which it is done.
        through: Party,
        /// What whoever has it done should know.
        warnings: Vec<String>,
    },
    /// It was released, which was verified, and every hook succeeded.
    ReclaimDone {
        /// Who had it done.
        by: Asker,
        /// How.
        method: Method,
        /// Who has the lock now.
        taken_by: Vec<Party>,
        /// Nanoseconds from the decision to the verified release.
        took: Option<u64>,
        /// The hooks that were run.
        hooks: Vec<HookEnd>,
    },
    /// It was not released, or a hook failed.
    ReclaimFailed {
        /// Who had it done.
        by: Asker,
        /// How; `None` where there was no plan.
        method: Option<Method>,
        /// What happened to the lock.
        result: String,
        /// Why that is a failure.
        why: String,
        /// The hooks that were run.
        hooks: Vec<HookEnd>,
    },
    /// What was planned was not so any more, and nothing was done; or who lost the lock wrote to the
    /// file afterwards.
    ReclaimRace {
        /// Who had it done.
        by: Asker,
        /// How.
        method: Option<Method>,
        /// The name of what changed.
        race: String,
        /// What changed.
        why: String,
        /// Who wrote, where it is that.
        writer: Option<Party>,
        /// The hooks that were run.
        hooks: Vec<HookEnd>,
    },
    /// Records of the moment were lost, and the tables were read anew.
    Lost {
        /// How many.
        records: u64,
    },
    /// The last orphan is gone.
    AllClear,
    /// (verbose) a lock was taken.
    Acquired {
        /// By whom.
        by: Party,
        /// When.
        at: BootTime,
    },
    /// (verbose) a lock was given up.
    Released {
        /// By whom.
        by: Party,
        /// When.
        at: BootTime,
    },
    /// (verbose) an attempt waits.
    Blocked {
        /// Who.
        by: Party,
        /// Since when.
        at: BootTime,
    },
}

/// One process of a deadlock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub process: Party,
    /// The lock that it waits for, which the next member has.
    pub waits_for: Told,
}

/// How an orphan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The lock is gone.
    Released,
    /// The lock is there, and no orphan by what is known now.
    Reclassified,
}

/// Every name that [`Kind::name`] gives.
pub const NAMES: [&str; 19] = [
    "started",
    "orphaned",
    "recovered",
    "crash_handoff",
    "exit_race",
    "pid_recycled",
    "lock_replaced",
    "refused",
    "long_wait",
    "deadlock",
    "reclaim_planned",
    "reclaim_done",
    "reclaim_failed",
    "reclaim_race",
    "lost",
    "all_clear",
    "acquired",
    "released",
    "blocked",
];

impl Kind {
    /// The contract's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Started { .. } => "started",
            Self::Orphaned { .. } => "orphaned",
            Self::Recovered { .. } => "recovered",
            Self::CrashHandoff { .. } => "crash_handoff",
            Self::ExitRace { .. } => "exit_race",
            Self::PidRecycled { .. } => "pid_recycled",
            Self::LockReplaced { .. } => "lock_replaced",
            Self::Refused { .. } => "refused",
            Self::LongWait { .. } => "long_wait",
            Self::Deadlock { .. } => "deadlock",
            Self::ReclaimPlanned { .. } => "reclaim_planned",
            Self::ReclaimDone { .. } => "reclaim_done",
            Self::ReclaimFailed { .. } => "reclaim_failed",
            Self::ReclaimRace { .. } => "reclaim_race",
            Self::Lost { .. } => "lost",
            Self::AllClear => "all_clear",
            Self::Acquired { .. } => "acquired",
            Self::Released { .. } => "released",
            Self::Blocked { .. } => "blocked",
        }
    }
}
