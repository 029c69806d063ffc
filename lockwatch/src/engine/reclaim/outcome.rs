//! What came of a plan: step by step, and in the end.
//!
//! Refuses to call a lock released that the kernel's tables were not seen without.

use serde::{Deserialize, Serialize};

use super::recheck::Race;
use crate::engine::bytes;
use crate::engine::id::LockId;
use crate::engine::identity::Pid;

/// One thing that was done for a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its name, of a fixed list.
    pub name: &'static str,
    /// Nanoseconds from the decision to its end.
    pub at: u64,
    /// What was seen or done.
    pub what: String,
}

/// A process that has the lock now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Successor {
    /// The id of its lock.
    pub lock: LockId,
    /// Its pid as a reader knows it, where it is a local process.
    pub pid: Option<Pid>,
    /// Its command, where it could be read.
    #[serde(with = "bytes::optional")]
    pub comm: Option<Box<[u8]>>,
}

/// How it ended for one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The kernel's tables were read, and it is not there any more.
    Released {
        /// Who took it in the meantime.
        taken_by: Vec<Successor>,
    },
    /// It was unlocked, and it is still there.
    StillHeld,
    /// It was unlocked, and what came of it could not be read.
    Unverified {
        /// Why.
        why: String,
    },
    /// Something was not as planned any more: nothing was done.
    Race(Race),
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
    /// A step before it failed: nothing was done.
    NotTried {
        /// Which.
        why: String,
    },
}

impl End {
    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Released { taken_by } if taken_by.is_empty() => "released",
            Self::Released { .. } => "taken_by",
            Self::StillHeld => "still_held",
            Self::Unverified { .. } => "unverified",
            Self::Race(_) => "race",
            Self::Failed { .. } => "failed",
            Self::NotTried { .. } => "not_tried",
        }
    }

    /// True where the lock is seen to be gone.
    pub fn is_released(&self) -> bool {
        matches!(self, Self::Released { .. })
    }
}

/// What was done for one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Which.
    pub lock: LockId,
    /// How it ended.
    pub end: End,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// Nanoseconds from the decision to the verified release, where it came to that.
    pub took: Option<u64>,
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookStatus {
    /// By itself, with this code.
    Exited(i32),
    /// By a signal of somebody else's.
    Signalled(i32),
    /// Its time was up, and it was ended.
    TimedOut,
    /// lockwatch itself was told to end, and ended it.
    Interrupted,
    /// It could not be started, or not be watched to its end.
    NotRun(String),
}

impl HookStatus {
    /// True where it did what it was for.
    pub fn is_success(&self) -> bool {
        *self == Self::Exited(0)
    }
}

impl std::fmt::Display for HookStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Signalled(signal) => write!(f, "was ended by signal {signal}"),
            Self::TimedOut => f.write_str("took too long and was ended"),
            Self::Interrupted => f.write_str("was interrupted"),
            Self::NotRun(why) => write!(f, "was not run: {why}"),
        }
    }
}

/// What a hook wrote, its beginning and its end where it was too much.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// The beginning.
    pub head: Vec<u8>,
    /// The end, where the two do not meet.
    pub tail: Vec<u8>,
    /// All bytes that it wrote.
    pub bytes: u64,
}

/// One run of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRun {
    /// `drain`, `canary` or `resume`.
    pub name: &'static str,
    /// Its program.
    pub program: String,
    /// How it ended.
    pub status: HookStatus,
    /// Nanoseconds that it took.
    pub took: u64,
    /// Processes of it that were still there when it had ended or its time was up, and were ended.
    pub leftovers: u32,
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
}
