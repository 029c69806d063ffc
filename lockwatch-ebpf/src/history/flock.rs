//! flock(2): one lock a description and file.
//!
//! The tracepoint comes after the list's lock is given back: what two threads do at once to one
//! description may be seen in the wrong order, which the next reconciliation finds.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use lockwatch_common::history::{CLASS_FLOCK, F_UNLCK, FL_ACCESS, SEAT_FLOCK, SEAT_FLOCK_AGAIN};

use crate::attempt::{Attempt, DEFERRED, EAGAIN};
use crate::tables::LOCKS;
use crate::taking::{given_up, in_force, taken};
use crate::{again, waits};

#[btf_tracepoint(function = "flock_lock_inode")]
fn flock_lock_inode(context: BtfTracePointContext) -> i32 {
    again::first(SEAT_FLOCK);
    look(&context, SEAT_FLOCK);
    0
}

#[btf_tracepoint(function = "flock_lock_inode")]
fn flock_lock_inode_again(context: BtfTracePointContext) -> i32 {
    if again::was_missed(SEAT_FLOCK, SEAT_FLOCK_AGAIN) {
        look(&context, SEAT_FLOCK_AGAIN);
    }
    0
}

#[inline(always)]
fn look(context: &BtfTracePointContext, seat: u32) {
    let (inode, lock): (*const u8, *const u8) = (context.arg(0), context.arg(1));
    let outcome: i32 = context.arg(2);
    if !inode.is_null() && !lock.is_null() {
        // SAFETY: the tracepoint's arguments.
        unsafe {
            if let Some(attempt) = Attempt::read(inode, lock, CLASS_FLOCK, false, seat) {
                seen(&attempt, outcome);
            }
        }
    }
}

#[inline(always)]
unsafe fn seen(attempt: &Attempt, outcome: i32) {
    if attempt.flags & FL_ACCESS != 0 {
        return;
    }
    let place = LOCKS.get_ptr_mut(&attempt.key);
    let known = in_force(place);
    // SAFETY: `place` is the table's value under this key.
    unsafe {
        match outcome {
            0 if attempt.access == F_UNLCK => {
                if let Some(known) = known {
                    given_up(attempt, known);
                }
            }
            0 => {
                // One that it has already, the kernel leaves as it is.
                match known {
                    Some(known) if (*known).access == attempt.access => {}
                    Some(known) => {
                        given_up(attempt, known);
                        taken(attempt, place, false);
                    }
                    None => taken(attempt, place, false),
                }
                waits::granted(attempt);
            }
            DEFERRED | EAGAIN => {
                // What it had, the kernel gave up before it looked for what is in the way.
                if let Some(known) = known
                    && (*known).access != attempt.access
                {
                    given_up(attempt, known);
                }
                if outcome == DEFERRED {
                    waits::deferred(attempt);
                } else {
                    waits::over(attempt.seat, false);
                    waits::refused(attempt);
                }
            }
            _ => waits::over(attempt.seat, false),
        }
    }
}
