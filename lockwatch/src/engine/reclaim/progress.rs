//! What a run of `lockwatch reclaim` tells the daemon that has it done: what it is about to do, and
//! what came of it.
//!
//! Refuses to be an account for people: that is the sink's. It is part of a trace, so nothing in it
//! leads to the kernel's pointers.

use serde::{Deserialize, Serialize};

use super::outcome::{End, HookRun, Outcome, Successor};
use super::plan::{Holder, Method, Plan};
use super::recheck::Race;
use super::refusal::Refusal;
use crate::engine::bytes;
use crate::engine::classify::Confidence;
use crate::engine::id::LockId;
use crate::engine::identity::{Pid, ProcessId};
use crate::engine::input::{FileId, LockName};

/// Bytes of what a hook wrote that an event repeats: its end.
const SAID: usize = 512;

/// Who has a lock reclaimed through the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// The configuration (`[reclaim] mode`).
    Policy,
    /// Somebody who wrote into the tree.
    Tree,
}

impl Asker {
    /// The name in events, in the record and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Tree => "tree",
        }
    }
}

/// One line of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Nothing is done yet.
    Planned(Planned),
    /// It is over.
    Done(Done),
}

/// What a run is about to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// Who has it done.
    pub by: Asker,
    /// Each lock.
    pub locks: Vec<PlannedLock>,
}

/// What is about to be done about one lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedLock {
    /// Which.
    pub lock: LockName,
    /// The path of its file.
    #[serde(with = "bytes::optional")]
    pub path: Option<Box<[u8]>>,
    /// How.
    pub method: Method,
    /// Without an orphan's verdict.
    pub forced: bool,
    /// The process through which it is done.
    pub through: Evicted,
    /// Every process that holds it.
    pub holders: Vec<Evicted>,
    /// What whoever has it done should know.
    pub warnings: Vec<String>,
}

/// A process that is about to lose a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evicted {
    /// Which.
    pub process: ProcessId,
    /// Its pid as lockwatch knows it.
    pub reader_pid: Pid,
    /// Its command.
    #[serde(with = "bytes")]
    pub comm: Box<[u8]>,
    /// Its descriptor of the file.
    pub fd: Option<u32>,
    /// Whether it has the file open for writing; `None` where that is not known.
    pub writes: Option<bool>,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Done {
    /// Of each lock.
    pub outcomes: Vec<Ended>,
    /// Of each hook that was run.
    pub hooks: Vec<HookEnd>,
}

/// What came of one lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Which.
    pub lock: LockName,
    /// The path of its file.
    #[serde(with = "bytes::optional")]
    pub path: Option<Box<[u8]>>,
    /// How it was to be released; `None` where there was no plan.
    pub method: Option<Method>,
    /// What happened.
    pub ending: Ending,
    /// Nanoseconds from the decision to the verified release.
    pub took: Option<u64>,
}

/// How it ended for one lock: [`End`] and [`Refusal`], as they are told on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The tables were read, and it is not there any more.
    Released {
        /// Who took it in the meantime.
        taken_by: Vec<Successor>,
    },
    /// Something was not as planned any more: nothing was done.
    Race {
        /// Its name.
        race: String,
        /// What.
        why: String,
    },
    /// Nothing was done, or it did not help.
    Failed {
        /// What it is called: `refused` where there was no plan, otherwise as in [`End::name`].
        result: String,
        /// Why.
        why: String,
    },
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookEnd {
    /// `drain`, `canary` or `resume`.
    pub hook: String,
    /// Whether it did what it was for.
    pub ok: bool,
    /// How it ended, in words.
    pub status: String,
    /// The end of what it wrote: to standard error where it wrote there, else to standard output.
    pub said: String,
    /// Nanoseconds that it took.
    pub took: u64,
}

impl Planned {
    /// What a run with these plans is about to do.
    pub fn of(by: Asker, plans: &[Plan]) -> Self {
        Self { by, locks: plans.iter().map(PlannedLock::of).collect() }
    }
}

impl PlannedLock {
    fn of(plan: &Plan) -> Self {
        let writes = |pid: Pid| {
            let writers = plan.writers.as_ref()?;
            Some(writers.iter().any(|writer| writer.pid == pid))
        };
        let evicted = |holder: &Holder| Evicted {
            process: holder.process,
            reader_pid: holder.reader_pid,
            comm: holder.comm.clone(),
            fd: holder.fd,
            writes: writes(holder.reader_pid),
        };
        Self {
            lock: plan.lock.clone(),
            path: plan.path.clone(),
            method: plan.method,
            forced: plan.forced,
            through: evicted(&plan.through),
            holders: plan.holders.iter().map(evicted).collect(),
            warnings: plan.warnings.clone(),
        }
    }
}

impl Done {
    /// What came of a run. `refused` are the locks for which there was no plan, with their files'
    /// paths.
    pub fn of<'a>(
        plans: &[Plan],
        outcomes: &[Outcome],
        hooks: &[HookRun],
        refused: impl Iterator<Item = (LockName, Option<Box<[u8]>>, &'a Refusal)>,
    ) -> Self {
        let ended = |(outcome, plan): (&Outcome, &Plan)| Ended {
            lock: plan.lock.clone(),
            path: plan.path.clone(),
            method: Some(plan.method),
            ending: Ending::from(&outcome.end),
            took: outcome.took,
        };
        let refused = refused.map(|(lock, path, refusal)| Ended {
            lock,
            path,
            method: None,
            ending: Ending::refused(refusal),
            took: None,
        });
        Self {
            outcomes: outcomes.iter().zip(plans).map(ended).chain(refused).collect(),
            hooks: hooks.iter().map(HookEnd::from).collect(),
        }
    }

    /// True where every lock was released and every hook succeeded.
    pub fn is_success(&self) -> bool {
        self.outcomes.iter().all(|ended| matches!(ended.ending, Ending::Released { .. }))
            && self.hooks.iter().all(|hook| hook.ok)
    }
}

impl Ending {
    /// Of a lock for which there is no plan.
    pub fn refused(refusal: &Refusal) -> Self {
        Self::Failed { result: "refused".into(), why: refusal.to_string() }
    }
}

impl From<&End> for Ending {
    fn from(end: &End) -> Self {
        let failed = |why: &str| Self::Failed { result: end.name().into(), why: why.to_owned() };
        match end {
            End::Released { taken_by } => Self::Released { taken_by: taken_by.clone() },
            End::Race(race) => Self::Race { race: Race::name(race).into(), why: race.to_string() },
            End::StillHeld => failed("it was unlocked, and is still there"),
            End::Unverified { why } | End::Failed { why } | End::NotTried { why } => failed(why),
        }
    }
}

impl From<&HookRun> for HookEnd {
    fn from(run: &HookRun) -> Self {
        let wrote = if run.stderr.bytes > 0 { &run.stderr } else { &run.stdout };
        let wrote = if wrote.tail.is_empty() { &wrote.head } else { &wrote.tail };
        let end = &wrote[wrote.len().saturating_sub(SAID)..];
        Self {
            hook: run.name.into(),
            ok: run.status.is_success(),
            status: run.status.to_string(),
            said: String::from_utf8_lossy(end).into_owned(),
            took: run.took,
        }
    }
}

/// A reclaim that the engine wants: all orphans of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// On which file.
    pub file: FileId,
    /// The path of the watch that names it now, where one does.
    pub path: Option<Box<[u8]>>,
    /// Which locks.
    pub locks: Vec<LockId>,
    /// How sure the verdict on each must be at least.
    pub at_least: Confidence,
}

/// The end of what was ordered, or asked for in the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reclaimed {
    /// Who had it done.
    pub by: Asker,
    /// On which file, where that was known.
    pub file: Option<FileId>,
    /// Which locks were meant.
    pub locks: Vec<LockId>,
    /// What came of it.
    pub done: Done,
    /// Why it could not be done to its end.
    pub error: Option<String>,
}
