//! The ranges that an owner has when the first of its operations is written down: they become operations,
//! so that later ones that undo them can take them away.
//!
//! The kernel's own list says which these are. Refuses to take a part of them: where the list is longer
//! than the bound, or says anything else than the table, all stay where they are.

use lockwatch_common::history::{F_UNLCK, F_WRLCK, Key, OperationKey, Owner, RESTORED, Slot};
use lockwatch_common::standing::STANDING;

use crate::attempt::Attempt;
use crate::conflict::{self, LOOKED_AT, Met};
use crate::kernel::{load, offset, read_u64};
use crate::owners::{self, BPF_NOEXIST};
use crate::tables::{LOCKS, OPERATIONS, add, count_of};
use crate::taking::{in_force, now};
use crate::{counters, party};

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
        let other = known.add(1);
        known.write_volatile(0);
        other.write_volatile(1);
        compare(attempt, known, other);
        if other.read_volatile() != 0 || known.read_volatile() != counted as u64 {
            return;
        }
        (*owner).complete = 1;
        if counted > 0 {
            convert(attempt, slot, owner);
        }
    }
}

/// Counts the entries of the kernel's list that are the owner's and not the attempt's own; `other` is 0
/// afterwards where the table has each of them as it is.
#[inline(never)]
unsafe fn compare(attempt: &Attempt, known: *mut u64, other: *mut u64) {
    let Some(head) = conflict::head(attempt) else { return };
    let (tgid, _) = party::ids();
    let mut at = read_u64(head);
    // SAFETY: the caller gives places of a map's value. Volatile, so that it is done.
    unsafe {
        for _ in 0..load(&LOOKED_AT) {
            if at == head {
                other.write_volatile(0);
                return;
            }
            if at == 0 {
                return;
            }
            let entry = conflict::read(at - offset!(lock_list) as u64, attempt.key.class);
            if entry.owner == attempt.key.owner && !is_own(attempt, &entry) {
                match in_force(LOCKS.get_ptr_mut(entry.key(attempt))) {
                    Some(lock)
                        if (*lock).end == entry.end
                            && (*lock).access == entry.access
                            && (*lock).by.tgid == tgid => {}
                    _ => return,
                }
                known.write_volatile(known.read_volatile() + 1);
            }
            at = read_u64(at);
        }
    }
}

/// True of what the attempt made.
#[inline(always)]
fn is_own(attempt: &Attempt, entry: &Met) -> bool {
    attempt.access != F_UNLCK
        && entry.start == attempt.key.start
        && entry.end == attempt.end
        && entry.access == attempt.access
}

#[inline(never)]
unsafe fn convert(attempt: &Attempt, slot: *mut Slot, owner: *mut Owner) {
    let Some(head) = conflict::head(attempt) else { return };
    let mut at = read_u64(head);
    // SAFETY: the maps' values.
    unsafe {
        for _ in 0..load(&LOOKED_AT) {
            if at == head || at == 0 {
                return;
            }
            let entry = conflict::read(at - offset!(lock_list) as u64, attempt.key.class);
            if entry.owner == attempt.key.owner
                && !is_own(attempt, &entry)
                && !one(&entry.key(attempt), slot, owner)
            {
                counters::lost_operation(attempt.seat);
                return;
            }
            at = read_u64(at);
        }
    }
}

/// One lock of the table becomes an operation; false where there is no room for it.
#[inline(never)]
unsafe fn one(key: &Key, slot: *mut Slot, owner: *mut Owner) -> bool {
    // SAFETY: the caller gives the maps' values.
    unsafe {
        let Some(lock) = in_force(LOCKS.get_ptr_mut(key)) else { return true };
        let (at, start, end, access) = ((*lock).written_at, key.start, (*lock).end, (*lock).access);
        let tgid = (*lock).by.tgid;
        (*lock).merged = RESTORED;
        let operation = OperationKey { inode: key.inode, owner: key.owner, at, start };
        if OPERATIONS.insert(operation, &*lock, BPF_NOEXIST).is_err() {
            ((*owner).lost_at, (*owner).complete) = (now(), 0);
            return false;
        }
        owners::remember(owner, at, start, end, access);
        let _ = LOCKS.remove(key);
        let of = match access {
            F_WRLCK => &raw mut (*slot).writes,
            _ => &raw mut (*slot).reads,
        };
        add(of, -1);
        add(&raw mut (*slot).starts, start.wrapping_neg());
        (*slot).removed_at = now();
        count_of(tgid, -1);
        true
    }
}
