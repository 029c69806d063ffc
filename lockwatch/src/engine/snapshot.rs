//! The facts of one reading of the kernel's lock tables, as a source hands them to the engine.
//!
//! Refuses to conclude anything: what follows from the facts is the engine's work. Whatever a
//! source could not read is `None` here or an entry of [`Snapshot::limits`], never a default.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::bytes;
use super::identity::{
    Access, BootTime, Dev, LockKind, Owner, Pid, ProcessId, Range, RecordedPid, Size, StartTime,
};
use super::shared::Shared;

/// Everything that one reading found.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Snapshot {
    /// Files that carry a lock or a queued request; others refer to them by index.
    pub files: Shared<File>,
    /// Granted locks.
    pub locks: Shared<Lock>,
    /// Queued requests.
    pub waiters: Vec<Waiter>,
    /// Everything that was found to refer to an open file description or fd table of interest.
    pub references: Shared<Reference>,
    /// Where descriptions live on without a descriptor. Looked for only where a lock is unexplained
    /// without.
    pub places: Vec<Place>,
    /// Where such places were looked for.
    pub search: Search,
    /// The processes that `references` and `places` name, and the acquirers and waiters that still exist.
    /// A process that is not here does not exist, unless `limits` says that it was not looked up.
    pub processes: BTreeMap<Pid, Process>,
    /// How the processes ended that took a lock which is still there, as far as history knows.
    pub deaths: Vec<Death>,
    /// True where a history of the machine's locks was read with the snapshot.
    pub history: bool,
    /// Processes that were on their way out already a grace period before this reading.
    pub stuck: BTreeSet<ProcessId>,
    /// How births can be ordered by pid.
    pub births: Births,
    /// What could not be read.
    pub limits: Vec<Limit>,
    /// True where [`Owner`] tokens stay the same from one snapshot to the next.
    pub stable_owners: bool,
    /// True where the reader sees the processes of its own pid namespace only, and that is not the
    /// initial one: an acquirer that is not here may live outside.
    pub nested: bool,
}

/// Index into [`Snapshot::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileIx(pub u32);

/// A file: (device, inode). The path is only a label on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The device of the inode, as the kernel's `s_dev`.
    pub dev: Dev,
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: Option<Size>,
    /// The path by which it was opened, as the reader's root shows it; without the kernel's
    /// " (deleted)". Any bytes but NUL.
    #[serde(default, with = "bytes::optional")]
    pub path: Option<Arc<[u8]>>,
    /// True where the inode has no name left (`i_nlink` is 0).
    pub deleted: Option<bool>,
    /// True where `path` now names another inode.
    pub replaced: Option<bool>,
}

/// One granted lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// The kernel's entry, by a token of the source's choice, unique in the snapshot. Like
    /// [`Owner`] it may be a kernel pointer and is never shown.
    pub entry: u64,
    /// The file that it locks.
    pub file: FileIx,
    /// Its kind.
    pub kind: LockKind,
    /// Shared or exclusive.
    pub access: Access,
    /// The bytes that it covers.
    pub range: Range,
    /// The description or fd table that it belongs to, where the source can tell.
    pub owner: Option<Owner>,
    /// Who took it.
    pub acquirer: RecordedPid,
    /// A lease that is being broken: what its holder has been asked to come down to.
    pub breaking_to: Option<Access>,
    /// When and by whom it was taken, as history has it. `None` where nobody watched then.
    pub taken: Option<Taken>,
}

impl Lock {
    /// True where all is the same that the kernel's list tells, whatever history knows of it.
    pub fn is_same(&self, other: &Self) -> bool {
        let Self { entry, file, kind, access, range, owner, acquirer, breaking_to, taken: _ } =
            self;
        (entry, file, kind, access) == (&other.entry, &other.file, &other.kind, &other.access)
            && (range, owner, acquirer) == (&other.range, &other.owner, &other.acquirer)
            && *breaking_to == other.breaking_to
    }
}

/// The taking of a lock, as it was seen when it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// When. Of a range that the kernel merged: when the oldest of its bytes was taken.
    pub at: BootTime,
    /// By whom; shared by the locks of one process, of which there may be many.
    pub by: Arc<Remembered>,
}

/// A process, as it was at one moment that history saw.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// Which.
    pub id: ProcessId,
    /// `comm` at that moment, at most 15 bytes, any but NUL.
    #[serde(with = "bytes")]
    pub comm: Box<[u8]>,
    /// Its pid in its own (innermost) pid namespace.
    pub ns_pid: Option<Pid>,
    /// Inode number of its pid namespace.
    pub pid_ns: Option<u64>,
    /// Executable: its path, where somebody looked while the process lived.
    #[serde(default, with = "bytes::optional")]
    pub exe: Option<Box<[u8]>>,
    /// Control group path, where it could be told from the group's number.
    #[serde(default, with = "bytes::optional")]
    pub cgroup: Option<Box<[u8]>>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Death {
    /// Which.
    pub process: ProcessId,
    /// When its last thread began to exit, before anything of it was given back.
    pub at: BootTime,
    /// The code that it exited with; `None` where a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl Death {
    /// True where it exited with code 0.
    pub fn is_clean(&self) -> bool {
        self.code == Some(0) && self.signal.is_none()
    }
}

/// One queued request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiter {
    /// The entry of the granted lock at the root of the queue in which the request waits.
    /// `None` where the source could not tell.
    pub behind: Option<u64>,
    /// The file.
    pub file: FileIx,
    /// The kind of lock that is asked for.
    pub kind: LockKind,
    /// Shared or exclusive.
    pub access: Access,
    /// The bytes that are asked for.
    pub range: Range,
    /// The description or fd table that asks. A lease breaker has none.
    pub owner: Option<Owner>,
    /// Who asks.
    pub requester: RecordedPid,
    /// Since when, as history has it.
    pub since: Option<BootTime>,
}

/// What keeps a description or an fd table alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// A descriptor in an fd table.
    Fd,
    /// The fd table itself, as the owner of a POSIX lock.
    Files,
    /// A descriptor in flight in a unix socket.
    ScmRights,
    /// A file registered with io_uring.
    IoUring,
    /// A memory mapping.
    Mmap,
    /// The kernel itself: loop device, swap, a stacked file system.
    Kernel,
}

impl Via {
    /// The name in the JSON's `via`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fd => "fd",
            Self::Files => "files",
            Self::ScmRights => "scm_rights",
            Self::IoUring => "io_uring",
            Self::Mmap => "mmap",
            Self::Kernel => "kernel",
        }
    }
}

/// One reference to a description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// The thread-group id of whoever refers.
    pub pid: Pid,
    /// The thread through which it was found: the leader's id unless a thread has an fd table of
    /// its own or the leader has exited.
    pub tid: Pid,
    /// How it refers; [`Via::Fd`] for every descriptor, also of the owner of POSIX locks.
    pub via: Via,
    /// The descriptor's number, where there is one. 0 is a number like any other.
    pub fd: Option<u32>,
    /// The file behind the description.
    pub file: FileIx,
    /// The description.
    pub description: Option<Owner>,
    /// The fd table that the descriptor is in.
    pub table: Option<Owner>,
    /// True where the process opened the description itself and has not exec'd since: it had it
    /// before anybody could lock it.
    pub opener: Option<bool>,
    /// True where the description was opened for writing.
    pub writes: Option<bool>,
}

/// A place where a description lives on, in no fd table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The description.
    pub description: Owner,
    /// What kind of place it is.
    pub kind: PlaceKind,
    /// Who has the place: the socket or ring that it is in, or the mapping itself.
    pub owners: Vec<PlaceOwner>,
}

/// What kind of place it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PlaceKind {
    /// The receive queue of a unix socket.
    Queue {
        /// Inode number of the socket, as `socket:[…]` shows it. `None` where it has no file yet
        /// because nobody accepted it.
        socket: Option<u64>,
        /// The name that it is bound to; one of the abstract namespace begins with NUL.
        #[serde(default, with = "bytes::optional")]
        name: Option<Box<[u8]>>,
        /// Sockets and rings around it that are not in an fd table either.
        depth: u32,
    },
    /// The table of registered files of an io_uring.
    Ring {
        /// Place in the table.
        slot: u32,
        /// As for a queue.
        depth: u32,
    },
    /// A mapping.
    Mapping {
        /// First address.
        start: u64,
        /// First address behind it.
        end: u64,
        /// As `/proc/PID/maps` shows it: `rw-s`.
        protection: [u8; 4],
    },
    /// A part of the kernel.
    Kernel {
        /// Which: `/dev/loop0`.
        what: String,
    },
}

impl Place {
    /// How the description is referred to.
    pub fn via(&self) -> Via {
        match self.kind {
            PlaceKind::Queue { .. } => Via::ScmRights,
            PlaceKind::Ring { .. } => Via::IoUring,
            PlaceKind::Mapping { .. } => Via::Mmap,
            PlaceKind::Kernel { .. } => Via::Kernel,
        }
    }
}

/// A process that has a [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceOwner {
    /// Its pid.
    pub pid: Pid,
    /// The thread through which it was found.
    pub tid: Pid,
    /// Its descriptor of the socket or ring (the outermost one), where there is one.
    pub fd: Option<u32>,
    /// True where the process opened the description itself and has not exec'd since.
    pub opener: Option<bool>,
}

/// Where places were looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// Kinds of places that were searched.
    pub searched: Vec<Via>,
    /// Kinds that were not, or not to the end, and why.
    pub gaps: Vec<(Via, String)>,
}

impl Search {
    /// The kinds of places that there are.
    pub const ALL: [Via; 4] = [Via::ScmRights, Via::IoUring, Via::Mmap, Via::Kernel];

    /// Nothing was searched.
    pub fn none(why: &str) -> Self {
        Self { searched: Vec::new(), gaps: Self::ALL.map(|via| (via, why.to_owned())).into() }
    }
}

/// A process, as it was when the snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// Start, with the pid its identity. `None` where it could not be read.
    pub start: Option<StartTime>,
    /// Its pid in the reader's own pid namespace, where it has one there and it differs.
    pub reader_pid: Option<Pid>,
    /// Its pid in its own (innermost) pid namespace.
    pub ns_pid: Option<Pid>,
    /// Inode number of its pid namespace.
    pub pid_ns: Option<u64>,
    /// Depth of its pid namespace below the initial one.
    pub ns_level: Option<u32>,
    /// `comm`, at most 15 bytes, any but NUL.
    #[serde(with = "bytes")]
    pub comm: Box<[u8]>,
    /// Parent's thread-group id.
    pub parent: Option<Pid>,
    /// Process group id, in the namespace of `/proc`.
    pub group: Option<Pid>,
    /// Session id, in the namespace of `/proc`.
    pub session: Option<Pid>,
    /// True where it has not exec'd since it was forked (`PF_FORKNOEXEC`).
    pub forked_no_exec: Option<bool>,
    /// True of a thread of the kernel's own (`PF_KTHREAD`): it has no descriptors, and takes locks
    /// for others.
    pub kernel_thread: bool,
    /// True where it is on its way out but may still hold what it held (`PF_EXITING`).
    pub exiting: bool,
    /// True where nothing of it is left but its exit status (no live thread).
    pub zombie: bool,
    /// Threads, where it was looked up.
    pub threads: Option<u64>,
    /// Executable, where it was looked up.
    #[serde(default, with = "bytes::optional")]
    pub exe: Option<Box<[u8]>>,
    /// Control group path, where it was looked up.
    #[serde(default, with = "bytes::optional")]
    pub cgroup: Option<Box<[u8]>>,
}

/// What is known about the order in which pids were given out.
///
/// The kernel gives them out in rising order and begins anew at `pid_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Births {
    /// Tasks created since boot (`processes` in `/proc/stat`).
    pub forks: Option<u64>,
    /// `kernel.pid_max`.
    pub pid_max: Option<u64>,
    /// The pid that was given out last (`/proc/loadavg`).
    pub last_pid: Option<Pid>,
    /// When this was read, nanoseconds of `CLOCK_BOOTTIME`.
    pub now: Option<StartTime>,
}

/// What could not be read, and what that hides.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// What was not read, and why, in one clause.
    pub what: String,
    /// What may be missing because of it.
    pub hides: Hides,
}

/// What a limit may hide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hides {
    /// Nothing that this source could show on another kernel or for another user.
    Nothing,
    /// Holders, never a lock.
    Holders,
    /// Locks, and with them everything.
    Locks,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
