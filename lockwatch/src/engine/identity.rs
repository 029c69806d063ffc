//! What makes two things the same thing: files, processes, lock owners, ranges, lock ids.
//!
//! Refuses to look anything up: every value here is built from what a source read.

use std::fmt;
use std::num::NonZero;

use serde::{Deserialize, Serialize};

/// A block or anonymous device number, as the kernel's `super_block.s_dev` has it
/// (`include/linux/kdev_t.h`): 12 bits major, 20 bits minor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "Numbers", try_from = "Numbers")]
pub struct Dev(u32);

impl Dev {
    const MINOR_BITS: u32 = 20;
    const MINORS: u32 = (1 << Self::MINOR_BITS) - 1;

    /// The device with these numbers, of which the kernel keeps no more bits than that.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self(major << Self::MINOR_BITS | minor & Self::MINORS)
    }

    /// The device with these numbers; `None` where the kernel can have none.
    pub fn exact(major: u32, minor: u32) -> Option<Self> {
        let dev = Self::new(major, minor);
        ((dev.major(), dev.minor()) == (major, minor)).then_some(dev)
    }

    /// From the kernel's own `dev_t`.
    pub const fn from_kernel(dev: u32) -> Self {
        Self(dev)
    }

    /// The kernel's own `dev_t`.
    pub const fn to_kernel(self) -> u32 {
        self.0
    }

    /// Major number.
    pub const fn major(self) -> u32 {
        self.0 >> Self::MINOR_BITS
    }

    /// Minor number.
    pub const fn minor(self) -> u32 {
        self.0 & Self::MINORS
    }
}

impl fmt::Debug for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dev({self})")
    }
}

/// A device number in a trace.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    major: u32,
    minor: u32,
}

impl From<Dev> for Numbers {
    fn from(dev: Dev) -> Self {
        Self { major: dev.major(), minor: dev.minor() }
    }
}

impl TryFrom<Numbers> for Dev {
    type Error = String;

    fn try_from(Numbers { major, minor }: Numbers) -> Result<Self, String> {
        Self::exact(major, minor).ok_or_else(|| format!("{major}:{minor} is no device number"))
    }
}

impl fmt::Display for Dev {
    /// The form of `/proc/locks`: two hexadecimal numbers, at least two digits each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}", self.major(), self.minor())
    }
}

/// The kind of a lock, named as `/proc/locks` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    /// flock(2): belongs to an open file description.
    Flock,
    /// fcntl(2) `F_SETLK`: belongs to an fd table (`files_struct`).
    Posix,
    /// fcntl(2) `F_OFD_SETLK`: belongs to an open file description.
    Ofd,
    /// fcntl(2) `F_SETLEASE`: belongs to an open file description.
    Lease,
    /// A delegation handed out by the NFS server.
    Deleg,
    /// A pNFS layout handed out by the NFS server.
    Layout,
}

impl LockKind {
    /// Every kind, in the order in which reports list them.
    pub const ALL: [Self; 6] =
        [Self::Flock, Self::Posix, Self::Ofd, Self::Lease, Self::Deleg, Self::Layout];

    /// The name that `/proc/locks`, the JSON and the columns use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flock => "FLOCK",
            Self::Posix => "POSIX",
            Self::Ofd => "OFDLCK",
            Self::Lease => "LEASE",
            Self::Deleg => "DELEG",
            Self::Layout => "LAYOUT",
        }
    }

    /// True where the owner is an fd table and not an open file description.
    pub fn belongs_to_fd_table(self) -> bool {
        self == Self::Posix
    }

    /// Kinds that can conflict with each other live in one kernel list
    /// (`flc_flock`, `flc_posix`, `flc_lease`).
    pub fn conflict_class(self) -> u8 {
        match self {
            Self::Flock => 0,
            Self::Posix | Self::Ofd => 1,
            Self::Lease | Self::Deleg | Self::Layout => 2,
        }
    }
}

/// Shared or exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// `F_RDLCK`, `LOCK_SH`.
    Read,
    /// `F_WRLCK`, `LOCK_EX`.
    Write,
    /// `F_UNLCK`: a lease that its breaker wants gone altogether.
    Unlock,
}

impl Access {
    /// The name that `/proc/locks`, the JSON and the columns use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
            Self::Unlock => "UNLCK",
        }
    }
}

/// A number of bytes, or the place of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u64", try_from = "u64")]
pub struct Size(NonZero<u64>);

impl Size {
    /// So many; `None` of the very last number, which is none.
    pub fn new(bytes: u64) -> Option<Self> {
        // One more, so that none at all takes no room of its own.
        NonZero::new(bytes.wrapping_add(1)).map(Self)
    }

    /// The kernel's `loff_t`; `None` where it is negative.
    pub fn of_kernel(bytes: i64) -> Option<Self> {
        u64::try_from(bytes).ok().and_then(Self::new)
    }

    /// How many.
    pub fn bytes(self) -> u64 {
        self.0.get() - 1
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

impl TryFrom<u64> for Size {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        Self::new(bytes).ok_or_else(|| format!("{bytes} is no number of bytes"))
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.bytes()
    }
}

/// The bytes that a lock covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// First byte.
    pub start: u64,
    end: Option<Size>,
}

impl Range {
    /// The whole file.
    pub const WHOLE: Self = Self { start: 0, end: None };

    /// From a first to a last byte, included; `None` is "to the end of the file, however far it
    /// grows" (the kernel's `OFFSET_MAX`), and so is what no byte can be.
    pub fn new(start: u64, end: Option<u64>) -> Self {
        Self { start, end: end.and_then(Size::new) }
    }

    /// The last byte, included; `None` where it is the file's last, however far that grows.
    pub fn end(self) -> Option<u64> {
        self.end.map(Size::bytes)
    }

    /// True where the two ranges share at least one byte.
    pub fn overlaps(self, other: Self) -> bool {
        self.end().is_none_or(|end| other.start <= end)
            && other.end().is_none_or(|end| self.start <= end)
    }
}

/// An open file description or an fd table, by a token that the source chose.
///
/// Equal tokens of one snapshot mean the same kernel object. The BPF source uses the kernel's
/// pointer, so a token must never be shown or written anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u64", from = "u64")]
pub struct Owner(NonZero<u64>);

impl Owner {
    /// By a token; the very last number is none, and counts as the one before it.
    pub const fn new(token: u64) -> Self {
        // One more, so that none at all takes no room of its own.
        match NonZero::new(token.wrapping_add(1)) {
            Some(one_more) => Self(one_more),
            None => Self(NonZero::<u64>::MAX),
        }
    }

    /// The token.
    pub const fn token(self) -> u64 {
        self.0.get() - 1
    }
}

impl From<u64> for Owner {
    fn from(token: u64) -> Self {
        Self::new(token)
    }
}

impl From<Owner> for u64 {
    fn from(owner: Owner) -> Self {
        owner.token()
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(_)")
    }
}

/// A process id, in the namespace in which the snapshot's source counts.
///
/// The BPF source counts in the initial pid namespace, as the kernel's lock entries do; the procfs
/// source in that of its `/proc`.
pub type Pid = i32;

/// A process's start, in nanoseconds of `CLOCK_BOOTTIME`.
///
/// procfs only tells clock ticks: starts from different sources are compared by [`Self::ticks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StartTime(pub u64);

impl StartTime {
    /// Clock ticks a second in `/proc` (`USER_HZ`, 100 on every architecture that matters).
    pub const TICKS_PER_SECOND: u64 = 100;
    /// Nanoseconds of such a tick.
    pub const NANOS_PER_TICK: u64 = 1_000_000_000 / Self::TICKS_PER_SECOND;

    /// From field 22 of `/proc/PID/stat`.
    pub fn from_ticks(ticks: u64) -> Self {
        Self(ticks.saturating_mul(Self::NANOS_PER_TICK))
    }

    /// True where it looks as if it came from clock ticks: then it is up to a tick too early.
    pub fn is_whole_ticks(self) -> bool {
        self.0.is_multiple_of(Self::NANOS_PER_TICK)
    }

    /// True where the two are starts of one process, if they are of one pid: procfs tells clock
    /// ticks, the kernel's own tables nanoseconds.
    pub fn is_same(self, other: Self) -> bool {
        self == other
            || (self.is_whole_ticks() || other.is_whole_ticks()) && self.ticks() == other.ticks()
    }

    /// As field 22 of `/proc/PID/stat` would show it.
    pub fn ticks(self) -> u64 {
        self.0 / Self::NANOS_PER_TICK
    }
}

/// A moment, in nanoseconds of `CLOCK_BOOTTIME`, which does not stand still in suspend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub struct BootTime(pub u64);

impl BootTime {
    /// So many nanoseconds later; the end of time where there is no such moment.
    pub fn after(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// So many nanoseconds earlier; the boot where there is no such moment.
    pub fn before(self, nanos: u64) -> Self {
        Self(self.0.saturating_sub(nanos))
    }

    /// Nanoseconds since `earlier`; 0 where that was later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A process: a pid alone is given to another one sooner or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// Thread-group id, counted as [`Pid`] says.
    pub pid: Pid,
    /// Its start.
    pub start: StartTime,
}

/// The pid that the kernel recorded in a lock (`flc_pid`), or what it showed instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedPid {
    /// A local process, alive or not.
    Local(Pid),
    /// Shown as 0: dead, or of a pid namespace that the reader cannot see.
    Zero,
    /// Not shown at all: `-1`, which is how `/proc` prints every OFD lock.
    Withheld,
    /// Negative: a file system's or lock server's peer.
    Remote(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_share_a_byte_overlap() {
        let range = Range::new;
        assert!(range(0, Some(9)).overlaps(range(9, Some(20))));
        assert!(!range(0, Some(9)).overlaps(range(10, Some(20))));
        assert!(range(100, None).overlaps(range(0, Some(100))));
        assert!(!range(100, None).overlaps(range(0, Some(99))));
        assert!(Range::WHOLE.overlaps(range(u64::MAX, None)));
    }

    #[test]
    fn a_device_is_written_as_proc_locks_writes_it() {
        assert_eq!(Dev::from_kernel((0xfe << 20) | 1).to_string(), "fe:01");
        assert_eq!(Dev::from_kernel(0x2b).to_string(), "00:2b");
        assert_eq!(Dev::new(0x103, 0x12345).to_string(), "103:12345");
    }

    #[test]
    fn a_start_time_survives_the_way_through_clock_ticks() {
        assert_eq!(StartTime(1_239_999_999).ticks(), 123);
        assert_eq!(StartTime::from_ticks(123).ticks(), 123);
    }
}
