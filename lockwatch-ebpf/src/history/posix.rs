//! POSIX and OFD locks: ranges, which the kernel merges, cuts and splits.
//!
//! As long as each thing that an owner does concerns exactly one of its ranges, the table of locks
//! is the kernel's list. The first that does not makes it one of the [`owners`] whose operations are
//! written down.
//!
//! The tracepoint comes under the list's lock: operations are seen in the order of their effect.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use lockwatch_common::history::{
    CLASS_POSIX, Entry, F_UNLCK, F_WRLCK, FL_ACCESS, FL_CLOSE, FL_OFDLCK, SEAT_POSIX, Slot, slot_of,
};
use lockwatch_common::ranges::{self, Known, Setting, Unsetting};

use crate::attempt::{Attempt, DEFERRED, EAGAIN};
use crate::tables::{LOCKS, OWNERS, globals, slot};
use crate::taking::{given_up, in_force, taken};
use crate::{cleared, owners, party, waits};

/// The last byte of what goes to the end of the file.
pub(crate) const TO_THE_END: i64 = i64::MAX;

#[btf_tracepoint(function = "posix_lock_inode")]
fn posix_lock_inode(context: BtfTracePointContext) -> i32 {
    let (inode, lock): (*const u8, *const u8) = (context.arg(0), context.arg(1));
    let outcome: i32 = context.arg(2);
    if !inode.is_null() && !lock.is_null() {
        // SAFETY: the tracepoint's arguments.
        unsafe {
            let Some(mut attempt) = Attempt::read(inode, lock, CLASS_POSIX, true, SEAT_POSIX)
            else {
                return 0;
            };
            attempt.slot = slot_of(attempt.key.inode, attempt.key.owner);
            seen(&mut attempt, outcome);
            // One after the other, and not one within the other: the stack is short.
            if outcome == 0 && attempt.access == F_UNLCK && attempt.flags & FL_CLOSE != 0 {
                cleared::tell(&attempt);
            }
        }
    }
    0
}

#[inline(always)]
unsafe fn seen(attempt: &mut Attempt, outcome: i32) {
    if attempt.flags & FL_ACCESS != 0 {
        return;
    }
    // SAFETY: see `flock`.
    unsafe {
        match outcome {
            0 => {
                done(attempt);
                if attempt.access != F_UNLCK {
                    waits::granted(attempt);
                }
            }
            DEFERRED => waits::deferred(attempt),
            EAGAIN => {
                waits::over(attempt.seat, false);
                waits::refused(attempt);
            }
            _ => waits::over(attempt.seat, false),
        }
    }
}

#[inline(always)]
unsafe fn done(attempt: &mut Attempt) {
    let Some(globals) = globals() else { return };
    // SAFETY: the maps' values.
    unsafe {
        if attempt.flags & FL_OFDLCK != 0 && (*globals).reader == party::ids().0 as u64 {
            return;
        }
        if (*globals).owners != 0
            && let Some(owner) = OWNERS.get_ptr_mut(attempt.key.of_owner())
        {
            return owners::does(attempt, owner);
        }
        let Some(slot) = slot(attempt.slot) else { return };
        let place = LOCKS.get_ptr_mut(attempt.key);
        let found = in_force(place);
        let known = found.map(|entry| Known {
            same_end: (*entry).end == attempt.end,
            same_access: (*entry).access == attempt.access,
        });
        if attempt.access == F_UNLCK {
            return given_back(attempt, slot, found, known);
        }
        let others = match attempt.access {
            F_WRLCK => (*slot).reads,
            _ => (*slot).writes,
        };
        match ranges::set(attempt.linked, known, others) {
            Setting::Nothing => {}
            Setting::Simple => {
                if let Some(found) = found {
                    given_up(attempt, found);
                }
                // Where something is missing, what it became one with may be older.
                taken(attempt, place, attempt.linked && (*slot).lost_at != 0);
            }
            Setting::Other => owners::begin_with(attempt, slot),
        }
    }
}

#[inline(always)]
unsafe fn given_back(
    attempt: &mut Attempt,
    slot: *mut Slot,
    found: Option<*mut Entry>,
    known: Option<Known>,
) {
    // SAFETY: the maps' values.
    unsafe {
        let whole = attempt.key.start == 0 && attempt.end == TO_THE_END;
        match ranges::unset(whole, known, (*slot).reads + (*slot).writes) {
            Unsetting::Nothing => {}
            Unsetting::Simple => {
                if let Some(found) = found {
                    given_up(attempt, found);
                }
            }
            Unsetting::Only => {
                attempt.key.start = (*slot).starts;
                if let Some(found) = in_force(LOCKS.get_ptr_mut(attempt.key)) {
                    given_up(attempt, found);
                }
            }
            Unsetting::Cleared => owners::begin(attempt, slot, true),
            Unsetting::Other => owners::begin_with(attempt, slot),
        }
    }
}
