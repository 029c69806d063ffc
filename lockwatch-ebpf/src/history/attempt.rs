//! An attempt to take or give up a lock, as a tracepoint shows it.

use lockwatch_common::history::{FileKey, Key};
use lockwatch_common::offsets::ABSENT;

use crate::counters;
use crate::kernel::{member, offset};

/// What `flock_lock_inode` and `posix_lock_inode` say.
pub(crate) struct Attempt {
    /// The typed pointer to the inode.
    pub(crate) inode: *const u8,
    pub(crate) key: Key,
    pub(crate) end: i64,
    pub(crate) flags: u32,
    pub(crate) access: u32,
    pub(crate) recorded: i32,
    /// The kernel's own entry is what is shown, not the request: the request became one with it.
    pub(crate) linked: bool,
    /// Address of the entry that it has to wait for; 0 where there is none.
    pub(crate) blocker: u64,
    /// The program's seat.
    pub(crate) seat: u32,
    /// The place of the owner among the hints about owners, where it has one.
    pub(crate) slot: u32,
}

/// [`Attempt::slot`] of an owner of flocks or leases.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// How an attempt ends that has to wait (`FILE_LOCK_DEFERRED`).
pub(crate) const DEFERRED: i32 = 1;
/// How an attempt ends that does not want to wait.
pub(crate) const EAGAIN: i32 = -11;

impl Attempt {
    /// Reads it. `ranged` where the lock has a range; `seat` is the program's.
    ///
    /// # Safety
    /// The pointers must be a tracepoint's, not null.
    #[inline(always)]
    pub(crate) unsafe fn read(
        inode: *const u8,
        lock: *const u8,
        class: u32,
        ranged: bool,
        seat: u32,
    ) -> Option<Self> {
        // SAFETY: offsets of the lock that all its kinds have, and of a `file_lock` where ranged.
        unsafe {
            let (start, end) = match ranged {
                true => (member(lock, offset!(lock_start)), member(lock, offset!(lock_end))),
                // Not a constant to the compiler, which would call a function for two zeros in a
                // row.
                false => (core::hint::black_box(0), i64::MAX),
            };
            let (number, owner) =
                counters::plain(seat, inode as u64, member(lock, offset!(lock_owner)))?;
            let key = Key { inode: number, owner, start, class, reserved: 0 };
            Some(Self {
                inode,
                key,
                end,
                flags: member(lock, offset!(lock_flags)),
                access: member::<u8>(lock, offset!(lock_type)) as u32,
                recorded: member(lock, offset!(lock_pid)),
                linked: member::<u64>(lock, offset!(lock_link) + 8) != 0,
                blocker: member(lock, offset!(lock_blocker)),
                seat,
                slot: NO_SLOT,
            })
        }
    }

    /// The file.
    #[inline(always)]
    pub(crate) fn file(&self) -> FileKey {
        // SAFETY: `inode` is the tracepoint's.
        unsafe {
            let sb: *const u8 = member(self.inode, offset!(inode_sb));
            let dev = if sb.is_null() { 0 } else { member(sb, offset!(sb_dev)) };
            FileKey { ino: member(self.inode, offset!(inode_ino)), dev, reserved: 0 }
        }
    }

    /// Which of the files it is that have or had its inode number, as far as the file system tells.
    #[inline(always)]
    pub(crate) fn generation(&self) -> u32 {
        if offset!(inode_generation) == ABSENT {
            return 0;
        }
        // SAFETY: `inode` is the tracepoint's.
        unsafe { member(self.inode, offset!(inode_generation)) }
    }

    /// When the file was written last: seconds and nanoseconds, as far as the kernel tells.
    #[inline(always)]
    pub(crate) fn modified(&self) -> (i64, u32) {
        if offset!(inode_mtime_sec) == ABSENT || offset!(inode_mtime_nsec) == ABSENT {
            return (0, 0);
        }
        // SAFETY: `inode` is the tracepoint's.
        unsafe {
            (
                member(self.inode, offset!(inode_mtime_sec)),
                member(self.inode, offset!(inode_mtime_nsec)),
            )
        }
    }
}
