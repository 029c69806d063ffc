//! The ranges that an owner has when the first of its operations is written down: they become operations,
//! so that later ones that undo them can take them away.
//!
//! The kernel's own list says which these are, where the entries of one owner stand together. Refuses to
//! believe that it has all of them where the list says anything else than the table.

use lockwatch_common::history::{F_UNLCK, F_WRLCK, OperationKey, Owner, RESTORED, Slot};
use lockwatch_common::standing::STANDING;

use crate::attempt::Attempt;
use crate::kernel::{offset, read_u64};
use crate::owners::{self, BPF_NOEXIST};
use crate::tables::{LOCKS, OPERATIONS, add, count_of};
use crate::taking::{in_force, now};
use crate::{conflict, counters, party};

/// What is counted of the end of an owner's entries: more than there can be of them.
const END: u64 = 1 << 32;
/// What is counted of an entry that cannot be taken over: more than all the rest comes to.
const OTHER: u64 = 1 << 48;

/// Does so with all that the attempt's owner had before the attempt.
///
/// # Safety
/// `slot` and `owner` must be the maps' values of the attempt's owner.
#[inline(always)]
pub(crate) unsafe fn all(attempt: &Attempt, slot: *mut Slot, owner: *mut Owner) {
    // SAFETY: the caller's promise.
    unsafe {
        let counted = (*slot).reads + (*slot).writes;
        if counted < 0 || counted >= STANDING as i64 {
            return;
        }
        let Some(numbers) = counters::numbers(attempt.seat) else { return };
        let known = numbers.cast::<u64>();
        known.write_volatile(0);
        walk(attempt, slot, owner, known);
        if known.read_volatile() == counted as u64 + END {
            (*owner).complete = 1;
        }
    }
}

/// Adds 1 to `known` for each entry that was taken over, and [`END`] where the owner has no more.
#[inline(never)]
unsafe fn walk(attempt: &Attempt, slot: *mut Slot, owner: *mut Owner, known: *mut u64) {
    let (head, mut at) = conflict::first_of_owner(attempt);
    // SAFETY: the caller gives places of maps' values.
    unsafe {
        for _ in 0..owners::places() {
            if at == 0 {
                return;
            }
            if at == head || conflict::owner(at) != attempt.key.owner {
                add(known.cast(), END as i64);
                return;
            }
            one(attempt, at - offset!(lock_list) as u64, slot, owner, known);
            at = read_u64(at);
        }
    }
}

/// One entry of the list, whose lock becomes an operation.
#[inline(never)]
unsafe fn one(attempt: &Attempt, entry: u64, slot: *mut Slot, owner: *mut Owner, known: *mut u64) {
    let entry = conflict::read(entry, attempt.key.class);
    // What the attempt itself made.
    if attempt.access != F_UNLCK
        && entry.start == attempt.key.start
        && entry.end == attempt.end
        && entry.access == attempt.access
    {
        return;
    }
    let key = entry.key(attempt);
    // SAFETY: the caller gives the maps' values.
    unsafe {
        let Some(lock) = in_force(LOCKS.get_ptr_mut(key)) else {
            add(known.cast(), OTHER as i64);
            return;
        };
        let (at, tgid) = ((*lock).written_at, (*lock).by.tgid);
        let operation = OperationKey { inode: key.inode, owner: key.owner, at, start: key.start };
        // Another's is counted among what that one has.
        let fits =
            (*lock).end == entry.end && (*lock).access == entry.access && tgid == party::ids().0;
        if fits {
            (*lock).merged = RESTORED;
        }
        if !fits || OPERATIONS.insert(operation, &*lock, BPF_NOEXIST).is_err() {
            add(known.cast(), OTHER as i64);
            return;
        }
        owners::remember(owner, at, key.start, entry.end, entry.access);
        let _ = LOCKS.remove(key);
        let of = match entry.access {
            F_WRLCK => &raw mut (*slot).writes,
            _ => &raw mut (*slot).reads,
        };
        add(of, -1);
        add(&raw mut (*slot).starts, key.start.wrapping_neg());
        (*slot).removed_at = now();
        count_of(tgid, -1);
        add(known.cast(), 1);
    }
}
