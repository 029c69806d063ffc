//! What an attempt met: the entry of the inode's list that stands in its way.
//!
//! The list is walked without its lock, as far as a bound allows: what is found is a hint.

use lockwatch_common::history::{CLASS_FLOCK, CLASS_POSIX, F_WRLCK, Key};

use crate::attempt::Attempt;
use crate::kernel::{load, offset, read_into, read_u32, read_u64};

/// Entries that are looked at. A global, so that the compiler writes a loop and not 24 steps; the
/// verifier knows its value.
#[unsafe(no_mangle)]
static LOOKED_AT: u32 = 24;

/// An entry of the kernel's list.
pub(crate) struct Met {
    pub(crate) owner: u64,
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) access: u32,
    pub(crate) flags: u32,
    pub(crate) recorded: i32,
}

impl Met {
    /// None. Older verifiers want every member to be written whose value may be looked at.
    pub(crate) const NONE: Self =
        Self { owner: 0, start: 0, end: 0, access: 0, flags: 0, recorded: 0 };

    /// Its key.
    #[inline(always)]
    pub(crate) fn key(&self, attempt: &Attempt) -> Key {
        Key { owner: self.owner, start: self.start, ..attempt.key }
    }
}

/// The first entry of the list, whoever's it is.
#[inline(never)]
pub(crate) fn first(attempt: &Attempt) -> Option<Met> {
    let head = head(attempt)?;
    let first = read_u64(head);
    if first == head || first == 0 {
        return None;
    }
    Some(read(first - offset!(lock_list) as u64, attempt.key.class))
}

/// The first entry that is another's and in the way, to `to`; false where there is none.
#[inline(never)]
pub(crate) fn met(attempt: &Attempt, to: &mut Met) -> bool {
    let Some(head) = head(attempt) else { return false };
    let mut at = read_u64(head);
    for _ in 0..load(&LOOKED_AT) {
        if at == head || at == 0 {
            return false;
        }
        let met = read(at - offset!(lock_list) as u64, attempt.key.class);
        let apart = met.start > attempt.end || met.end < attempt.key.start;
        let exclusive = met.access == F_WRLCK || attempt.access == F_WRLCK;
        if met.owner != attempt.key.owner && !apart && exclusive {
            *to = met;
            return true;
        }
        at = read_u64(at);
    }
    false
}

/// Owner and first byte of the entry that an attempt waits for; zeros where it has been let go.
#[inline(always)]
pub(crate) fn behind(attempt: &Attempt) -> (u64, i64) {
    if attempt.blocker == 0 {
        return (0, 0);
    }
    let start = match attempt.key.class {
        CLASS_POSIX => read_u64(attempt.blocker + offset!(lock_start) as u64) as i64,
        _ => 0,
    };
    (read_u64(attempt.blocker + offset!(lock_owner) as u64), start)
}

/// Address of the head of the list.
#[inline(always)]
fn head(attempt: &Attempt) -> Option<u64> {
    // By a helper: with a number the verifier allows sums.
    let locks = read_u64(attempt.inode as u64 + offset!(inode_flctx) as u64);
    if locks == 0 {
        return None;
    }
    let list = match attempt.key.class {
        CLASS_FLOCK => offset!(ctx_flock),
        CLASS_POSIX => offset!(ctx_posix),
        _ => offset!(ctx_lease),
    };
    Some(locks + list as u64)
}

#[inline(always)]
fn read(entry: u64, class: u32) -> Met {
    let mut access = 0u8;
    // SAFETY: one byte.
    unsafe { read_into(&raw mut access, 1, entry + offset!(lock_type) as u64) };
    let (start, end) = match class {
        CLASS_POSIX => (
            read_u64(entry + offset!(lock_start) as u64) as i64,
            read_u64(entry + offset!(lock_end) as u64) as i64,
        ),
        _ => (0, i64::MAX),
    };
    Met {
        owner: read_u64(entry + offset!(lock_owner) as u64),
        start,
        end,
        access: access as u32,
        flags: read_u32(entry + offset!(lock_flags) as u64),
        recorded: read_u32(entry + offset!(lock_pid) as u64) as i32,
    }
}

/// Whether the owner of an attempt has an entry in the list.
pub(crate) enum Own {
    /// It has.
    There,
    /// It has not.
    Absent,
    /// The list is longer than the bound.
    NotSeen,
}

/// Looks for an entry of the attempt's own owner.
#[inline(never)]
pub(crate) fn of_owner(attempt: &Attempt) -> Own {
    let Some(head) = head(attempt) else { return Own::Absent };
    let mut at = read_u64(head);
    for _ in 0..load(&LOOKED_AT) {
        if at == head || at == 0 {
            return Own::Absent;
        }
        let entry = at - offset!(lock_list) as u64;
        if read_u64(entry + offset!(lock_owner) as u64) == attempt.key.owner {
            return Own::There;
        }
        at = read_u64(at);
    }
    Own::NotSeen
}
