//! The tables of the history, and the records of the moment.
//!
//! The programs keep, for every lock, who took it and when; user space reads the tables when it
//! wants to know, and is woken only by a [`MomentRecord`], [`DiedRecord`] or [`ReusedRecord`].

use crate::wire::Wire;

/// Number of this layout. Tables of another number are not taken over.
pub const LAYOUT: u64 = 8;

/// Name of the map of [`Globals`].
pub const GLOBALS_MAP: &str = "GLOBALS";
/// Name of the map [`Key`] → [`Entry`]: every lock that was taken and not given up, and a few that
/// were given up last ([`Entry::access`]).
pub const LOCKS_MAP: &str = "LOCKS";
/// Name of the map [`OwnerKey`] → [`Owner`]: owners whose ranges were merged, split or cut.
pub const OWNERS_MAP: &str = "OWNERS";
/// Name of the map [`OperationKey`] → [`Operation`]: what those owners did since.
pub const OPERATIONS_MAP: &str = "OPERATIONS";
/// Name of the map thread id → [`Wait`].
pub const WAITERS_MAP: &str = "WAITERS";
/// Name of the map [`ProcessKey`] → [`Ending`]; the oldest make room.
pub const DEAD_MAP: &str = "DEAD";
/// Name of the map [`ProcessKey`] → [`Ending`] of those who left locks behind, of which none makes
/// room for another. User space fills it out of [`DEAD_MAP`], and that again out of it; no program
/// reads or writes it.
pub const SURVIVED_MAP: &str = "SURVIVED";
/// Elements of [`SURVIVED_MAP`].
pub const SURVIVED: u32 = 1 << 14;
/// Name of the map [`FileKey`] → when attention ends, ns of `CLOCK_BOOTTIME`, or [`FOREVER`].
pub const ATTENDED_MAP: &str = "ATTENDED";
/// Name of the array of [`Held`], by [`held_of`].
pub const HELD_MAP: &str = "HELD";
/// Name of the array of [`Slot`], by [`slot_of`] modulo its length.
pub const SLOTS_MAP: &str = "SLOTS_TABLE";
/// Name of the per-CPU array of [`Counters`].
pub const COUNTERS_MAP: &str = "COUNTERS";
/// Name of the ring buffer of records of the moment.
pub const MOMENTS_MAP: &str = "MOMENTS";
/// Name of the global that holds the number of elements of [`HELD_MAP`] less one.
pub const HELD_MASK: &str = "HELD_MASK";
/// Name of the global that is 1 where there are second programs.
pub const TWICE: &str = "TWICE";

/// Elements of [`SLOTS_MAP`].
pub const SLOTS: u32 = 1 << 16;
/// Refused attempts that are remembered; they share places by [`refusal_of`].
pub const REFUSALS: u32 = 1 << 12;
/// Places that each CPU has for a program's own notes: since 7.0 a program may be interrupted by
/// another, but never by itself, so each has its own.
pub const SEATS: u32 = 9;
/// The seat of `flock_lock_inode`.
pub const SEAT_FLOCK: u32 = 0;
/// The seat of `posix_lock_inode`.
pub const SEAT_POSIX: u32 = 1;
/// The seat of `generic_add_lease`.
pub const SEAT_ADD_LEASE: u32 = 2;
/// The seat of `generic_delete_lease`.
pub const SEAT_DELETE_LEASE: u32 = 3;
/// The seat of `sched_process_exit`.
pub const SEAT_EXIT: u32 = 4;
/// The seat of `sched_process_fork`.
pub const SEAT_FORK: u32 = 5;
/// The seat of the second program on `flock_lock_inode`.
pub const SEAT_FLOCK_AGAIN: u32 = 6;
/// The seat of the second program on `sched_process_exit`.
pub const SEAT_EXIT_AGAIN: u32 = 7;
/// The seat of the second program on `sched_process_fork`.
pub const SEAT_FORK_AGAIN: u32 = 8;
/// CPUs that keep the places of locks that were given up (`NR_CPUS` of the distributions' kernels).
pub const CPUS: u32 = 8192;
/// For so many nanoseconds after a refused attempt of a thread on a lock was told, its next ones on
/// the same lock are counted alone.
pub const REFUSAL_WINDOW: u64 = 100_000_000;
/// For so many nanoseconds after the death of a process that had locks it is looked whether an attempt
/// meets one of them. Whatever is left of it by then is an orphan, and its file has attention.
pub const DYING_WINDOW: u64 = 10_000_000_000;
/// Name of the table of [`Note`]s.
pub const TOLD_MAP: &str = "TOLD";
/// Notes that are kept; the oldest make room.
pub const NOTES: u32 = 2048;
/// Attention that does not end.
pub const FOREVER: u64 = u64::MAX;

/// [`Key::class`]: flocks.
pub const CLASS_FLOCK: u32 = 0;
/// [`Key::class`]: POSIX and OFD locks, which are in one list.
pub const CLASS_POSIX: u32 = 1;
/// [`Key::class`]: leases, delegations and layouts.
pub const CLASS_LEASE: u32 = 2;

/// `F_RDLCK` of `include/uapi/asm-generic/fcntl.h`.
pub const F_RDLCK: u32 = 0;
/// `F_WRLCK`.
pub const F_WRLCK: u32 = 1;
/// `F_UNLCK`.
pub const F_UNLCK: u32 = 2;
/// `FL_ACCESS` of `include/linux/filelock.h`: a test, not an attempt.
pub const FL_ACCESS: u32 = 8;
/// `FL_CLOSE`: given up because a descriptor is closed, not because somebody asked for it.
pub const FL_CLOSE: u32 = 64;
/// `FL_OFDLCK`.
pub const FL_OFDLCK: u32 = 1024;

/// [`Entry::merged`]: the kernel made it one with what the owner had before, or had it take that's
/// place.
pub const MERGED: u32 = 1;
/// [`Entry::merged`]: it is what earlier operations came to; written by user space.
pub const RESTORED: u32 = 2;

/// [`Entry::merged`] of a lock that was given up and whose place is kept: this and the number of who
/// keeps it, which is the CPU's times [`SEATS`] and the seat's.
pub const KEPT_ON: u32 = 16;

/// [`Owner::told`]: whether it came with a death is not known yet.
pub const TO_BE_TOLD: u32 = 1;
/// [`Owner::told`]: it did, and there is a record of [`KIND_CLEARED`].
pub const TOLD: u32 = 2;

/// What is shared by all programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Globals {
    /// [`LAYOUT`].
    pub layout: u64,
    /// When the programs were attached and every lock that was there before had been marked, ns of
    /// `CLOCK_BOOTTIME`; 0 until then. What was taken earlier is not known.
    pub begun: u64,
    /// Greater than 0 where [`OWNERS_MAP`] has entries.
    pub owners: u64,
    /// Files with attention that does not end. Written by user space alone.
    pub attended: u64,
    /// Until when some file has attention that ends, ns of `CLOCK_BOOTTIME`.
    pub attended_until: u64,
    /// How long attention lasts after an owner's crash, ns. Written by user space alone.
    pub handoff_window: u64,
    /// Number of the event that a daemon told last. Written by user space alone.
    pub last_seq: u64,
    /// The process that reads the kernel's lists time and again: its OFD locks, which are nothing but
    /// the places from which it begins, are not noted. 0 where there is none. Written by user space
    /// alone.
    pub reader: u64,
    /// Until when attempts may meet a lock whose taker is dying, ns of `CLOCK_BOOTTIME`.
    pub dying_until: u64,
    /// Odd while what owners did is being replaced by what it came to: who goes through the tables
    /// meanwhile may find neither. Greater by two after each time. Written by user space alone.
    pub tidied: u64,
}

/// A process or thread, as it was when it did something.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Party {
    /// Start of the thread group's leader, ns of `CLOCK_BOOTTIME`.
    pub start: u64,
    /// Number of its control group in the unified hierarchy.
    pub cgroup: u64,
    /// Inode number of its executable; 0 where it has none.
    pub exe_ino: u64,
    /// Thread-group id in the initial pid namespace.
    pub tgid: i32,
    /// Thread id in the initial pid namespace.
    pub tid: i32,
    /// `s_dev` of its executable.
    pub exe_dev: u32,
    /// Inode number of its own pid namespace.
    pub pid_ns: u32,
    /// Process id in its own pid namespace.
    pub ns_pid: i32,
    /// The lower half of the thread's `self_exec_id`, which changes with each exec; 0 where the kernel
    /// is older than 5.12.
    pub exec_id: u32,
    /// `comm` of the thread.
    pub comm: [u8; 16],
}

/// Which lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The kernel's inode.
    pub inode: u64,
    /// `flc_owner`.
    pub owner: u64,
    /// First byte; 0 for flocks and leases.
    pub start: i64,
    /// One of the `CLASS_` constants.
    pub class: u32,
    /// 0.
    pub reserved: u32,
}

/// A lock that was taken.
///
/// It is written in place while others read it: who writes begins with [`Self::sealed_at`] and ends
/// with [`Self::written_at`]; who reads goes from the first member to the last, and has it whole
/// where the two are the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When this was written, ns of `CLOCK_BOOTTIME`.
    pub written_at: u64,
    /// When it was taken, by the same clock; 0 where nobody watched.
    pub taken_at: u64,
    /// Last byte; `i64::MAX` is the end of the file.
    pub end: i64,
    /// Inode number.
    pub ino: u64,
    /// `i_mtime`, seconds, when it was taken.
    pub mtime_sec: i64,
    /// `i_mtime`, nanoseconds.
    pub mtime_nsec: u32,
    /// [`F_RDLCK`], [`F_WRLCK`]. [`F_UNLCK`] of an [`Operation`] that gave a range up, and of a lock
    /// that was given up and whose place is kept for its owner's next one.
    pub access: u32,
    /// `flc_flags`.
    pub flags: u32,
    /// `flc_pid`.
    pub recorded: i32,
    /// `s_dev`.
    pub dev: u32,
    /// [`MERGED`], [`RESTORED`] or 0; of a lock that was given up see [`KEPT_ON`].
    pub merged: u32,
    /// By whom.
    pub by: Party,
    /// The same as [`Self::written_at`].
    pub sealed_at: u64,
}

/// Whose locks on which inode.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerKey {
    /// The kernel's inode.
    pub inode: u64,
    /// `flc_owner`.
    pub owner: u64,
}

/// An owner of POSIX or OFD locks of which [`LOCKS_MAP`] alone does not tell the truth: what it
/// does is an [`Operation`] each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Since when, ns of `CLOCK_BOOTTIME`.
    pub since: u64,
    /// When it gave up everything last, or 0: whatever is older is no more.
    pub cleared_at: u64,
    /// When it gave up everything the time before, or 0.
    pub cleared_before: u64,
    /// When an operation could not be written last, or 0.
    pub lost_at: u64,
    /// When it did anything last.
    pub last_at: u64,
    /// Start of the process that counts as its, ns of `CLOCK_BOOTTIME`; 0 where none does.
    pub start: u64,
    /// The process that counts as its, also in [`HELD_MAP`].
    pub tgid: i32,
    /// [`TO_BE_TOLD`] or [`TOLD`] where it gave up everything last without having asked for it, else 0.
    pub told: u32,
    /// How many of its operations were written down since it gave up everything last; [`WRITTEN`] where
    /// there are more.
    pub count: u32,
    /// 0.
    pub reserved: u32,
    /// Which these are. For the programs alone: user space may have taken them away.
    pub written: [Written; WRITTEN],
}

/// Operations of an owner that the programs know one by one.
pub const WRITTEN: usize = 16;

/// The rest of an [`OperationKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// When, ns of `CLOCK_BOOTTIME`.
    pub at: u64,
    /// First byte.
    pub start: i64,
}

/// Which operation.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OperationKey {
    /// The kernel's inode.
    pub inode: u64,
    /// `flc_owner`.
    pub owner: u64,
    /// When, ns of `CLOCK_BOOTTIME`.
    pub at: u64,
    /// First byte.
    pub start: i64,
}

/// A range set or given up; [`Entry::access`] says which.
pub type Operation = Entry;

/// A request that waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What for.
    pub key: Key,
    /// Last byte.
    pub end: i64,
    /// Since when, ns of `CLOCK_BOOTTIME`; 0 where the thread does not wait, and the place is kept for
    /// when it does. Written first with 0 and last with the truth, so that who reads from the first
    /// member on never has it with another wait's key.
    pub since: u64,
    /// Inode number.
    pub ino: u64,
    /// `s_dev`.
    pub dev: u32,
    /// [`F_RDLCK`] or [`F_WRLCK`].
    pub access: u32,
    /// `flc_flags`.
    pub flags: u32,
    /// Thread-group id.
    pub tgid: i32,
    /// `flc_owner` of the lock that is in the way; 0 where it was gone again.
    pub behind_owner: u64,
    /// First byte of that lock.
    pub behind_start: i64,
}

/// Which process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessKey {
    /// Start of the thread group's leader, ns of `CLOCK_BOOTTIME`.
    pub start: u64,
    /// Thread-group id in the initial pid namespace.
    pub tgid: i32,
    /// 0.
    pub reserved: u32,
}

/// How a process ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// When its last thread began to exit, ns of `CLOCK_BOOTTIME`.
    pub at: u64,
    /// The status that `wait(2)` gives.
    pub status: i32,
    /// 1 where this is an ending at all.
    pub dead: u32,
}

/// Which file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileKey {
    /// Inode number.
    pub ino: u64,
    /// `s_dev`.
    pub dev: u32,
    /// 0.
    pub reserved: u32,
}

/// Hints about pids: whether an exit or a fork is worth a look.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Locks taken by a process of this pid and not given up.
    pub locks: i64,
    /// Waits of a thread of this id.
    pub waits: i64,
    /// Places in [`WAITERS_MAP`] of a thread of this id.
    pub places: i64,
    /// By seat: 1 from when a program has seen what the thread does until the second one there has
    /// seen that it has.
    pub seen: [u8; 8],
}

/// What a daemon has told, for the next one. No program reads or writes it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Note {
    /// Bytes of the text.
    pub length: u32,
    /// Padding; 0.
    pub reserved: u32,
    /// The text, as the daemon writes it.
    pub text: [u8; 1016],
}

/// Hints about owners of POSIX and OFD locks: how many [`LOCKS_MAP`] has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Shared ones.
    pub reads: i64,
    /// Exclusive ones.
    pub writes: i64,
    /// The sum of their first bytes: where there is one, this is its own.
    pub starts: i64,
    /// When one could not be written last, ns of `CLOCK_BOOTTIME`, or 0.
    pub lost_at: u64,
    /// When a lock of any class, of an owner with this place, was taken out of [`LOCKS_MAP`] last, ns
    /// of `CLOCK_BOOTTIME`, or 0.
    pub removed_at: u64,
}

/// The place of a pid or thread id in [`HELD_MAP`], of a length that is a power of two and greater by one
/// than `mask`. Each id below the length has a place of its own, and neighbours are far apart: they are
/// often parent and children that lock on different CPUs, and a cache line holds two places.
#[inline(always)]
pub const fn held_of(id: u32, mask: u32) -> u32 {
    id.wrapping_mul(0x9e37_79b1) & mask
}

/// The refused attempt that was told last, of those that share a place.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Whose, and of which lock: a digest.
    pub of: u64,
    /// When, ns of `CLOCK_BOOTTIME`.
    pub at: u64,
}

/// The place of an owner in [`SLOTS_MAP`].
#[inline(always)]
pub const fn slot_of(inode: u64, owner: u64) -> u32 {
    let mixed = inode ^ owner.rotate_left(23);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32 & (SLOTS - 1)
}

/// Digest of a thread's refused attempt on a lock, `exiting` where the lock's owner is: the first
/// attempt that meets a dying owner is none of those before.
#[inline(always)]
pub const fn refusal_of(tid: i32, key: &Key, exiting: bool) -> u64 {
    let mixed = key.inode ^ key.owner.rotate_left(23) ^ (key.start as u64).rotate_left(41);
    let who = (tid as u32 as u64) << 1 | exiting as u64;
    (mixed ^ who.wrapping_mul(0xff51_afd7_ed55_8ccd)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Keys that each CPU keeps the places of, of locks that were given up last.
pub const PARKED: usize = 8;

/// The place among [`Counters::parked`] of a lock.
#[inline(always)]
pub const fn parked_at(inode: u64, owner: u64) -> usize {
    let mixed = inode ^ owner.rotate_left(23);
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as usize
}
const _: () = assert!(PARKED == 8);

/// Kinds of locks that are counted apart: flock, POSIX, OFD, lease.
pub const KINDS: usize = 4;
/// Powers of two of nanoseconds that are counted apart; the last holds all that is longer.
pub const BUCKETS: usize = 40;

/// What was counted on one CPU. Index of each: flock, POSIX, OFD, lease and the like.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Locks taken. Of leases those that were asked for: whether they are given is not seen.
    pub acquisitions: [u64; KINDS],
    /// Locks given up. Of leases those given back on purpose: their end on close is not seen.
    pub releases: [u64; KINDS],
    /// Attempts that were answered with `EAGAIN`.
    pub refusals: [u64; KINDS],
    /// Attempts that had to wait.
    pub waits: [u64; KINDS],
    /// Records that did not fit the ring.
    pub lost_records: u64,
    /// Locks that did not fit [`LOCKS_MAP`].
    pub lost_locks: u64,
    /// Operations and owners that did not fit their tables.
    pub lost_operations: u64,
    /// Waits and endings that did not fit their tables.
    pub lost_others: u64,
    /// Waits that were granted, by the power of two of their nanoseconds.
    pub wait: [[u64; BUCKETS]; KINDS],
    /// Their sum, nanoseconds.
    pub wait_sum: [u64; KINDS],
    /// Locks that were given up, by the power of two of the nanoseconds that they were held.
    pub hold: [[u64; BUCKETS]; KINDS],
    /// Their sum, nanoseconds.
    pub hold_sum: [u64; KINDS],
    /// What a second program saw because the first could not run.
    pub instead: u64,
    /// Where a program puts addresses to have them as numbers. Nothing is counted here.
    pub scratch: [u64; 2],
    /// Where a program puts together what it writes to a table: its stack is short.
    pub draft: Entry,
    /// Locks that were given up on this CPU and have their place in [`LOCKS_MAP`] still, by
    /// [`parked_at`]: an owner that takes and gives up the same lock again and again finds it there.
    pub parked: [Key; PARKED],
}

/// The beginning of every record of the moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of the `KIND_` constants.
    pub kind: u32,
    /// Length of the record with this header.
    pub len: u32,
    /// When, ns of `CLOCK_BOOTTIME`.
    pub at: u64,
}

/// A [`DiedRecord`].
pub const KIND_DIED: u32 = 1;
/// A [`ReusedRecord`].
pub const KIND_REUSED: u32 = 2;
/// A [`MomentRecord`]: a lock ended with or after its owner.
pub const KIND_ENDED: u32 = 3;
/// A [`MomentRecord`]: a lock was taken on an attended file.
pub const KIND_ACQUIRED: u32 = 4;
/// A [`MomentRecord`]: a lock was given up on an attended file.
pub const KIND_RELEASED: u32 = 5;
/// A [`MomentRecord`]: an attempt was answered with `EAGAIN`.
pub const KIND_REFUSED: u32 = 6;
/// A [`MomentRecord`]: an attempt waits.
pub const KIND_BLOCKED: u32 = 7;
/// A [`MomentRecord`]: an owner's several ranges ended all at once with or after it. Of the key only
/// inode, owner and class, and of the entry only file and process are told: the tables have the rest.
pub const KIND_CLEARED: u32 = 8;

/// A process that has locks begins to exit.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiedRecord {
    /// Kind, length, moment.
    pub header: Header,
    /// Which.
    pub process: ProcessKey,
    /// How.
    pub ending: Ending,
}

/// A pid under which locks were taken was given to a new process.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReusedRecord {
    /// Kind, length, moment.
    pub header: Header,
    /// The new process.
    pub process: ProcessKey,
}

/// What happened to a lock.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MomentRecord {
    /// Kind, length, moment.
    pub header: Header,
    /// The lock; of an attempt the one that it met.
    pub key: Key,
    /// Its entry. Of a lock that no table knew `taken_at` is 0, and `by` is empty.
    pub entry: Entry,
    /// How its acquirer ended, where it did.
    pub ending: Ending,
    /// `i_mtime` now, seconds.
    pub mtime_sec: i64,
    /// `i_mtime` now, nanoseconds.
    pub mtime_nsec: u32,
    /// Of an attempt: [`F_RDLCK`] or [`F_WRLCK`].
    pub access: u32,
    /// Of an attempt: the first byte.
    pub start: i64,
    /// Of an attempt: the last byte.
    pub end: i64,
    /// `i_generation`: tells files apart that had one inode number after the other, on file systems
    /// that keep one; 0 on others.
    pub generation: u32,
    /// Padding; 0.
    pub reserved: u32,
    /// Who did it.
    pub by: Party,
}

macro_rules! wire {
    ($($name:ty = $size:expr,)*) => {
        $(
            const _: () = assert!(size_of::<$name>() == $size);
            // SAFETY: `repr(C)`, integers and records of them alone; the size that is asserted is
            // the sum of the members, so there is no padding.
            unsafe impl Wire for $name {}
        )*
    };
}

wire! {
    Globals = 8 * 10,
    Party = 8 * 3 + 4 * 6 + 16,
    Key = 8 * 3 + 4 * 2,
    Entry = 8 * 5 + 4 * 6 + 64 + 8,
    OwnerKey = 8 * 2,
    Owner = 8 * 6 + 4 * 4 + 16 * WRITTEN,
    Written = 8 * 2,
    OperationKey = 8 * 4,
    Wait = 32 + 8 * 3 + 4 * 4 + 8 * 2,
    ProcessKey = 8 + 4 * 2,
    Ending = 8 + 4 * 2,
    FileKey = 8 + 4 * 2,
    Held = 8 * 4,
    Note = 4 * 2 + 1016,
    Slot = 8 * 5,
    Refusal = 8 * 2,
    Counters = 8 * (KINDS * 4 + 5 + 2 * KINDS * (BUCKETS + 1) + 2) + 136 + 32 * PARKED,
    Header = 4 * 2 + 8,
    DiedRecord = 16 + 16 + 16,
    ReusedRecord = 16 + 16,
    MomentRecord = 16 + 32 + 136 + 16 + 8 + 4 * 2 + 8 * 2 + 4 * 2 + 64,
}

impl Key {
    /// Nothing.
    pub const EMPTY: Self = Self { inode: 0, owner: 0, start: 0, class: 0, reserved: 0 };

    /// Whose it is.
    #[inline(always)]
    pub const fn of_owner(&self) -> OwnerKey {
        OwnerKey { inode: self.inode, owner: self.owner }
    }
}

impl Entry {
    /// Nothing.
    pub const EMPTY: Self = Self {
        written_at: 0,
        taken_at: 0,
        end: 0,
        ino: 0,
        mtime_sec: 0,
        mtime_nsec: 0,
        access: 0,
        flags: 0,
        recorded: 0,
        dev: 0,
        merged: 0,
        by: Party::NOBODY,
        sealed_at: 0,
    };

    /// False where it was read while somebody wrote it.
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.written_at == self.sealed_at
    }
}

impl Party {
    /// Nobody.
    pub const NOBODY: Self = Self {
        start: 0,
        cgroup: 0,
        exe_ino: 0,
        tgid: 0,
        tid: 0,
        exe_dev: 0,
        pid_ns: 0,
        ns_pid: 0,
        exec_id: 0,
        comm: [0; 16],
    };

    /// Which process.
    #[inline(always)]
    pub const fn process(&self) -> ProcessKey {
        ProcessKey { start: self.start, tgid: self.tgid, reserved: 0 }
    }
}

impl Owner {
    /// One that is about to be written: nothing of it is to be relied on.
    pub const UNWRITTEN: Self = Self {
        since: 0,
        cleared_at: 0,
        cleared_before: 0,
        lost_at: u64::MAX,
        last_at: 0,
        start: 0,
        tgid: 0,
        told: 0,
        count: 0,
        reserved: 0,
        written: [Written { at: 0, start: 0 }; WRITTEN],
    };
}

impl Ending {
    /// It lives, as far as is known.
    pub const NONE: Self = Self { at: 0, status: 0, dead: 0 };
}
