//! What may influence the engine, and what it may ask for.
//!
//! Refuses any other way in: whatever is not an [`Input`] cannot change what the engine says, so a
//! recorded list of inputs gives the same outputs again.

use serde::{Deserialize, Serialize};

use super::bytes;
use super::event::Event;
use super::id::LockId;
use super::identity::{Access, BootTime, Dev, LockKind, ProcessId, Range};
use super::memory::Memory;
use super::reclaim::progress::{Evicted, Order, Planned, Reclaimed};
use super::snapshot::{Death, FileIx, Remembered, Snapshot};

/// A moment by both clocks, read together. Engine time is the boot clock; the other is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moment {
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub boot: BootTime,
    /// Nanoseconds since 1970, UTC.
    pub unix: u64,
}

/// A file: device and inode number. Its path is only a label, found in the newest view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// The device, as the kernel's `s_dev`.
    pub dev: Dev,
    /// Inode number.
    pub ino: u64,
}

/// A lock, as the records of the moment name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockName {
    /// Its id: the one that it has in every snapshot while it lives.
    pub id: LockId,
    /// Its file.
    pub file: FileId,
    /// Its kind.
    pub kind: LockKind,
    /// Shared or exclusive.
    pub access: Access,
    /// Its bytes.
    pub range: Range,
}

/// A file that the configuration watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watched {
    /// The name in the configuration.
    pub name: String,
    /// The path in the configuration.
    #[serde(with = "bytes")]
    pub path: Box<[u8]>,
    /// What is there now; `None` where nothing is.
    pub file: Option<FileId>,
}

/// What the engine is told once, before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// From an owner's death to calling its lock orphaned, nanoseconds.
    pub grace: u64,
    /// Between two full reconciliations, nanoseconds.
    pub gc_interval: u64,
    /// From one owner's crash to another's acquisition, nanoseconds, within which it is a
    /// [`crash hand-off`](super::event::Kind::CrashHandoff).
    pub handoff_window: u64,
    /// From when on a wait is a long one, nanoseconds.
    pub long_wait: u64,
    /// Whether acquisitions, releases and blocked attempts are events, too.
    pub verbose: bool,
    /// What is reclaimed without anybody's asking.
    #[serde(default, skip_serializing_if = "Policy::is_usual")]
    pub reclaim: Policy,
}

/// What is reclaimed without anybody's asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Whether anything is; also what the switch is at first.
    pub automatic: bool,
    /// Whether only what a watch that allows it names.
    pub only_watched: bool,
    /// Reclaims in a minute after which orphans are told only.
    pub per_minute: u32,
    /// From a failure to the next attempt on the same file, nanoseconds; twice as long after each
    /// further one.
    pub retry: u64,
    /// What each watch says.
    pub watches: Vec<Permission>,
}

/// Whether the locks of a watched file may be reclaimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permission {
    /// The path in the configuration.
    #[serde(with = "bytes")]
    pub path: Box<[u8]>,
    /// Whether they may.
    pub allowed: bool,
    /// Whether also those that are only likely orphaned.
    #[serde(default)]
    pub likely: bool,
}

impl Policy {
    /// Traces of who reclaims nothing can be read by whoever knows nothing of it.
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            automatic: false,
            only_watched: true,
            per_minute: 6,
            retry: 30_000_000_000,
            watches: Vec::new(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        const SECOND: u64 = 1_000_000_000;
        Self {
            grace: SECOND / 4,
            gc_interval: 2 * SECOND,
            handoff_window: 5 * SECOND,
            long_wait: 30 * SECOND,
            verbose: false,
            reclaim: Policy::default(),
        }
    }
}

/// One reading of the kernel's tables, with the ids of its locks in their order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// When it was begun: what happened later it may or may not show.
    pub begun: BootTime,
    /// The facts.
    pub snapshot: Snapshot,
    /// The id of each lock.
    pub ids: Vec<LockId>,
}

impl Reading {
    /// Whether its parts fit together, as every source's do.
    ///
    /// # Errors
    /// Where an index leads nowhere, or locks and ids differ in number.
    pub fn check(&self) -> Result<(), Misfit> {
        let Snapshot { files, locks, waiters, references, .. } = &self.snapshot;
        if locks.len() != self.ids.len() {
            return Err(Misfit::Ids { locks: locks.len(), ids: self.ids.len() });
        }
        let of_locks = locks.iter().map(|lock| lock.file);
        let of_waiters = waiters.iter().map(|waiter| waiter.file);
        let of_references = references.iter().map(|reference| reference.file);
        let named = of_locks.chain(of_waiters).chain(of_references);
        let lost = named.map(|FileIx(ix)| ix).find(|&ix| ix as usize >= files.len());
        if let Some(index) = lost {
            return Err(Misfit::File { index, files: files.len() });
        }
        let strange = locks.iter().zip(&self.ids).position(|(lock, id)| {
            let file = &files[lock.file.0 as usize];
            (file.dev, file.ino) != (id.dev, id.ino)
        });
        strange.map_or(Ok(()), |lock| Err(Misfit::Id { lock }))
    }
}

/// Why the parts of a reading do not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Locks and ids differ in number.
    #[error("{locks} locks and {ids} ids")]
    Ids {
        /// How many locks.
        locks: usize,
        /// How many ids.
        ids: usize,
    },
    /// Something is on a file that is not there.
    #[error("file {index} of {files}")]
    File {
        /// The index, from 0.
        index: u32,
        /// How many files.
        files: usize,
    },
    /// An id names another file than its lock is on.
    #[error("the id of lock {lock} is one of another file")]
    Id {
        /// The lock, from 0.
        lock: usize,
    },
}

/// A lock that ended while the process that took it was dying, or after that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// Which.
    pub lock: LockName,
    /// Who had taken it.
    pub by: Remembered,
    /// When it had been taken.
    pub taken_at: BootTime,
    /// When it ended.
    pub at: BootTime,
    /// In whose context: its owner's, in its exit; that of another who had it and let it go; or a
    /// worker's of the kernel that closed it for either.
    pub ended_by: Remembered,
    /// The death of who had taken it.
    pub death: Death,
    /// Whether the file was written between the taking and the end; `None` where its time of
    /// modification cannot tell.
    pub written: Option<bool>,
    /// Which of the files it is that have or had this inode number, where the file system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// Nanoseconds after a death within which a worker of the kernel closes what the dead had.
const BY_WORKER: u64 = 1_000_000_000;

impl Ended {
    /// True where it ended because its owner died, and not because an heir let it go later.
    pub fn is_by_death(&self) -> bool {
        // What is closed too late for the dying task's own list of work, a worker closes within a tick or
        // so. What one closes much later an heir has let go.
        let by_worker = self.ended_by.comm.starts_with(b"kworker/");
        self.ended_by.id == self.by.id || by_worker && self.at <= self.death.at.after(BY_WORKER)
    }

    /// Its taking, of which there may be no record: no attention was paid to the file yet.
    pub fn taking(&self) -> Acquired {
        let Self { lock, by, taken_at, generation, .. } = self;
        Acquired { lock: lock.clone(), by: by.clone(), at: *taken_at, generation: *generation }
    }
}

/// A lock that was taken on a file to which attention is paid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acquired {
    /// Which.
    pub lock: LockName,
    /// By whom.
    pub by: Remembered,
    /// When.
    pub at: BootTime,
    /// Which of the files it is that have or had this inode number, where the file system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
}

/// A lock that was given up by a living process, on a file to which attention is paid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Released {
    /// Which.
    pub lock: LockName,
    /// By whom.
    pub by: Remembered,
    /// When.
    pub at: BootTime,
}

/// How an attempt failed to get the lock at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// `EAGAIN`: it did not want to wait.
    Refused,
    /// It waits.
    Blocked,
}

/// An attempt that met a lock: on a file to which attention is paid, or whose owner was already on
/// its way out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// What it met.
    pub met: LockName,
    /// Who tried.
    pub by: Remembered,
    /// What it asked for.
    pub access: Access,
    /// For which bytes.
    pub range: Range,
    /// When.
    pub at: BootTime,
    /// How it ended.
    pub outcome: Outcome,
    /// The owner of what it met, where that was already exiting and had not yet released it.
    pub exiting: Option<Death>,
}

/// A pid that was given to a new process although a lock of the one that had it before is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PidReused {
    /// The new process.
    pub process: ProcessId,
    /// When it was forked.
    pub at: BootTime,
}

/// A process that lost a lock by a reclaim wrote to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wrote {
    /// The file.
    pub file: FileId,
    /// Who.
    pub process: ProcessId,
    /// When that was heard of.
    pub at: BootTime,
}

/// The beginning of the daemon's watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    /// The number of the last event of the daemon before, where its count goes on.
    pub last_seq: Option<u64>,
    /// What it had told and would not have told again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told: Vec<Memory>,
    /// True where the kernel went on recording while no daemon ran.
    pub continued: bool,
    /// lockwatch's version.
    pub version: String,
    /// The kernel's release.
    pub kernel: String,
}

/// Everything that may influence the engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Comes first.
    Started(Started),
    /// The files that are watched from now on, instead of those before.
    Watch(Vec<Watched>),
    /// A reading: the truth.
    Reading(Box<Reading>),
    /// A process that had taken a lock which is still there is dying.
    Died(Death),
    /// A lock ended with or after its owner.
    Ended(Ended),
    /// Attention: a lock was taken.
    Acquired(Acquired),
    /// Attention: a lock was given up.
    Released(Released),
    /// An attempt met a lock.
    Attempt(Attempt),
    /// A recorded pid has a new owner.
    PidReused(PidReused),
    /// So many records of the moment were lost: the next reading must mend it.
    Lost(u64),
    /// Time passed.
    Tick,
    /// Reconcile now (the tree's `gc`).
    Reconcile,
    /// Reconcile every so many nanoseconds from now on (the tree's `gc_interval_ms`).
    GcInterval(u64),
    /// Reclaims are allowed, or not (the tree's `reclaim_enabled`).
    ReclaimEnabled(bool),
    /// A reclaim is about to be carried out.
    Planned(Planned),
    /// A reclaim has ended.
    Reclaimed(Reclaimed),
    /// Who had lost the lock wrote.
    Wrote(Wrote),
}

/// What the engine wants to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell this.
    Event(Box<Event>),
    /// Take a reading now and hand it in.
    Read,
    /// Have every taking, giving up and attempt on these files recorded from now on, on no others.
    Attend(Vec<FileId>),
    /// Have this reclaimed, and tell what comes of it.
    Reclaim(Order),
    /// Have it told when one of these, who have lost a lock on the file, writes to it.
    WatchWrites(FileId, Vec<Evicted>),
    /// Let every reclaim that is under way release nothing more.
    StopReclaims,
    /// There were too many reclaims: the switch is off now.
    SwitchedOff,
}
