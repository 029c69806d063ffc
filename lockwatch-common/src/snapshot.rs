//! The records of a snapshot, and the window through which they pass.
//!
//! The iterator program appends records to a window that user space maps, and stops where the next
//! one would not fit; user space drains it and lets the iterator go on where it stopped.

/// The name of the map that holds the [`Window`].
pub const WINDOW_MAP: &str = "WINDOW";
/// The name of the map of inodes whose lists were walked already; a power of two of buckets.
pub const WALKED_MAP: &str = "WALKED";
/// Inodes in one of its buckets: a cache line.
pub const WALKED_WAYS: usize = 8;
/// The name of the global that holds the number of its buckets less one.
pub const WALKED_MASK: &str = "WALKED_MASK";
/// Bytes for records in a [`Window`].
pub const WINDOW_BYTES: usize = 512 * 1024;
/// The longest path that is written, with its closing NUL (`PATH_MAX`).
pub const PATH_MAX: usize = 4096;
/// Bytes that are read of one kernel lock entry; every member of interest lies within.
pub const LOCK_SPAN: usize = 256;
/// Steps of a list walk in one run of the program. A longer list is continued in the next run, so
/// the verifier has little to prove and no kernel needs `bpf_loop`.
pub const STEPS_PER_RUN: u32 = 4;
/// Steps that are spent on one inode before its walk is cut.
pub const STEPS_PER_INODE: u32 = 4_000_000;
/// Times that a walk is begun anew after its list changed underfoot, before it is cut.
pub const RESTARTS_PER_INODE: u32 = 64;

/// What the program and user space share: its place in the iteration, then the records.
#[repr(C, align(8))]
pub struct Window {
    /// The program's place and its counters.
    pub state: State,
    /// Records, each beginning with a [`Header`], `state.used` bytes of them.
    pub records: [u8; WINDOW_BYTES],
}

/// The place of the program in the iteration, and its counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Bytes of records in the window. User space sets it to 0 when it has drained them.
    pub used: u64,
    /// The inode whose lists are being walked, or 0.
    pub inode: u64,
    /// The entry at which the walk stands.
    pub cursor: u64,
    /// Where the entry says that it is linked from, as long as the list is as it was read: the link
    /// before it.
    pub behind: u64,
    /// Address of the head of the list that is being walked.
    pub head: u64,
    /// Which list: 0 flock, 1 posix, 2 lease.
    pub list: u32,
    /// Depth below the granted lock in the tree of requests that wait for it.
    pub depth: u32,
    /// 1 where the subtree under `cursor` is done and the walk is on its way up.
    pub ascending: u32,
    /// Steps spent on this inode.
    pub steps: u32,
    /// Times that the walk of this inode was begun anew.
    pub restarts: u32,
    /// The thread whose [`TaskRecord`] was written last.
    pub tid: i32,
    /// Start of that thread.
    pub tid_start: u64,
    /// Walks that were cut short: something may be missing.
    pub cut: u64,
    /// Walks that were begun anew because a list changed underfoot. Nothing is missing.
    pub restarted: u64,
    /// Descriptors that were visited.
    pub visited: u64,
    /// What the program is to do: one of the `MODE_` constants. Written by user space.
    pub mode: u64,
    /// The seed whose CPU's list is being walked, or 0.
    pub seed: u64,
    /// The entry of that list at which the walk stands.
    pub chain: u64,
    /// Where the next one is linked, as that entry said when it was read; 0 at the end.
    pub chain_next: u64,
    /// The CPU of that list.
    pub chain_cpu: u64,
    /// Entries of that list that were passed.
    pub chain_steps: u64,
    /// Times that the walk of that list was begun anew.
    pub chain_restarts: u64,
    /// CPUs whose list was walked to its end.
    pub chains: u64,
    /// Copy of the kernel's entry that is being looked at.
    pub scratch: [u64; LOCK_SPAN / 8],
}

/// [`State::mode`]: every descriptor and the locks behind it.
pub const MODE_DESCRIPTORS: u64 = 0;
/// [`State::mode`]: every lock of the machine, from the seeds on.
pub const MODE_ALL_LOCKS: u64 = 1;

/// The beginning of every record.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of the `KIND_` constants.
    pub kind: u32,
    /// Length of the record with this header, a multiple of 8.
    pub len: u32,
}

/// `PF_EXITING` of `include/linux/sched.h`.
pub const PF_EXITING: u32 = 0x4;
/// `PF_FORKNOEXEC` of `include/linux/sched.h`.
pub const PF_FORKNOEXEC: u32 = 0x40;

/// A [`TaskRecord`].
pub const KIND_TASK: u32 = 1;
/// An [`InodeRecord`] and its path.
pub const KIND_INODE: u32 = 2;
/// A [`LockRecord`] of a granted lock.
pub const KIND_LOCK: u32 = 3;
/// A [`LockRecord`] of a queued request.
pub const KIND_WAITER: u32 = 4;
/// A [`ReferenceRecord`].
pub const KIND_REFERENCE: u32 = 5;
/// A [`TargetRecord`].
pub const KIND_TARGET: u32 = 6;

/// A [`NameRecord`].
pub const KIND_NAME: u32 = 7;
/// The longest name of one component, with its closing NUL (`NAME_MAX`).
pub const NAME_MAX: usize = 256;
/// Components of a path that are told of a file that no descriptor leads to.
pub const NAMES: usize = 24;
/// Entries of one CPU's list that are passed before the walk is cut.
pub const STEPS_PER_CHAIN: u64 = 64_000_000;
/// Times that the walk of one CPU's list is begun anew before it is cut.
pub const RESTARTS_PER_CHAIN: u64 = 256;
/// The name of the global that holds the descriptor of the seeds.
pub const SEED_FD: &str = "SEED_FD";

/// One component of the path of a file that no descriptor leads to; the last comes first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameRecord {
    /// Kind and length.
    pub header: Header,
    /// The kernel's inode.
    pub inode: u64,
    /// The component, closed by NUL.
    pub name: [u8; NAME_MAX],
}

/// A task that refers to a locked file; followed by its references.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskRecord {
    /// Kind and length.
    pub header: Header,
    /// Start of the thread group's leader, ns of `CLOCK_BOOTTIME`.
    pub start: u64,
    /// Thread-group id in the initial pid namespace.
    pub tgid: i32,
    /// Thread id in the initial pid namespace.
    pub tid: i32,
    /// Thread-group id of the real parent in the initial pid namespace.
    pub parent: i32,
    /// `task_struct.flags` (`PF_*`): of the thread, but `PF_FORKNOEXEC` of the group's leader,
    /// because every thread is born with it.
    pub flags: u32,
    /// Process id in the task's own pid namespace.
    pub ns_pid: i32,
    /// Process id in the reader's pid namespace.
    pub reader_pid: i32,
    /// Inode number of the task's own pid namespace.
    pub pid_ns: u32,
    /// Its depth below the initial one.
    pub ns_level: u32,
    /// `task_struct.comm` of the thread.
    pub comm: [u8; 16],
}

/// A file with locks; its path follows the record, `path_len` bytes without NUL.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeRecord {
    /// Kind and length.
    pub header: Header,
    /// The kernel's inode.
    pub inode: u64,
    /// Inode number.
    pub ino: u64,
    /// `i_size`, bytes.
    pub size: i64,
    /// `s_dev`.
    pub dev: u32,
    /// `i_nlink`.
    pub nlink: u32,
    /// 1 where the name by which it was opened is gone from its folder.
    pub unlinked: u32,
    /// Length of the path that follows; 0 where the kernel gave none.
    pub path_len: u32,
}

/// A granted lock or a queued request.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRecord {
    /// Kind and length.
    pub header: Header,
    /// The kernel's entry.
    pub entry: u64,
    /// The kernel's inode.
    pub inode: u64,
    /// `flc_owner`.
    pub owner: u64,
    /// `flc_file`; 0 for a lease breaker.
    pub file: u64,
    /// `flc_blocker`: what a queued request waits behind.
    pub blocker: u64,
    /// First byte.
    pub start: i64,
    /// Last byte; `i64::MAX` is the end of the file.
    pub end: i64,
    /// `flc_flags` (`FL_*`).
    pub flags: u32,
    /// `flc_type` (`F_RDLCK` …).
    pub access: u32,
    /// `flc_pid`.
    pub pid: i32,
    /// Which list: 0 flock, 1 posix, 2 lease.
    pub list: u32,
}

/// One descriptor that refers to a locked file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceRecord {
    /// Kind and length.
    pub header: Header,
    /// The open file description.
    pub file: u64,
    /// The kernel's inode.
    pub inode: u64,
    /// The fd table.
    pub files: u64,
    /// Thread-group id in the initial pid namespace.
    pub tgid: i32,
    /// Thread id in the initial pid namespace.
    pub tid: i32,
    /// The descriptor.
    pub fd: u32,
    /// `f_mode`.
    pub mode: u32,
    /// 1 where the description was opened with the very credentials that the task has now: each
    /// fork and each exec makes new ones, so it opened the file itself and has not exec'd since.
    pub opener: u32,
    /// 0.
    pub reserved: u32,
}

/// A descriptor of lockwatch itself: how it learns the kernel's identity of a file that it was
/// asked about, also where stat(2) shows another device than the kernel's (btrfs, overlayfs).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetRecord {
    /// Kind and length.
    pub header: Header,
    /// Inode number.
    pub ino: u64,
    /// `s_dev`.
    pub dev: u32,
    /// The descriptor.
    pub fd: u32,
}

const _: () = {
    assert!(size_of::<Header>() == 8);
    assert!(size_of::<TaskRecord>() == 64);
    assert!(size_of::<InodeRecord>() == 48);
    assert!(size_of::<LockRecord>() == 80);
    assert!(size_of::<ReferenceRecord>() == 56);
    assert!(size_of::<TargetRecord>() == 24);
    assert!(size_of::<NameRecord>() == 16 + NAME_MAX);
    assert!(size_of::<State>() == 8 * 5 + 4 * 6 + 8 * 12 + LOCK_SPAN);
    assert!(size_of::<Window>() == size_of::<State>() + WINDOW_BYTES);
};

// SAFETY: `repr(C)`, integers alone, no padding (the sizes above are the sums of the members).
unsafe impl crate::wire::Wire for Header {}
// SAFETY: as for `Header`.
unsafe impl crate::wire::Wire for TaskRecord {}
// SAFETY: as for `Header`.
unsafe impl crate::wire::Wire for InodeRecord {}
// SAFETY: as for `Header`.
unsafe impl crate::wire::Wire for LockRecord {}
// SAFETY: as for `Header`.
unsafe impl crate::wire::Wire for ReferenceRecord {}
// SAFETY: as for `Header`.
unsafe impl crate::wire::Wire for TargetRecord {}
// SAFETY: as for `Header`.
unsafe impl crate::wire::Wire for State {}
// SAFETY: as for `Header`.
unsafe impl crate::wire::Wire for NameRecord {}
