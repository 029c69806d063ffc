//! Leases, delegations and layouts.
//!
//! `generic_add_lease` is seen before it is known whether the kernel gives the lease, and the end of
//! one on close is not seen: what the table has is what was asked for last, and a reading of the
//! kernel's lists says which of it is there.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use lockwatch_common::history::{CLASS_LEASE, SEAT_ADD_LEASE, SEAT_DELETE_LEASE};

use crate::attempt::Attempt;
use crate::conflict;
use crate::tables::LOCKS;
use crate::taking::{given_up, in_force, taken};

#[btf_tracepoint(function = "generic_add_lease")]
fn generic_add_lease(context: BtfTracePointContext) -> i32 {
    let (inode, lease): (*const u8, *const u8) = (context.arg(0), context.arg(1));
    if !inode.is_null() && !lease.is_null() {
        // SAFETY: the tracepoint's arguments.
        unsafe {
            if let Some(attempt) = Attempt::read(inode, lease, CLASS_LEASE, false, SEAT_ADD_LEASE) {
                asked_for(&attempt);
            }
        }
    }
    0
}

#[btf_tracepoint(function = "generic_delete_lease")]
fn generic_delete_lease(context: BtfTracePointContext) -> i32 {
    let (inode, lease): (*const u8, *const u8) = (context.arg(0), context.arg(1));
    // Null where there is none to delete.
    if !inode.is_null() && !lease.is_null() {
        // SAFETY: the tracepoint's arguments; the table's value under this key.
        unsafe {
            let attempt = Attempt::read(inode, lease, CLASS_LEASE, false, SEAT_DELETE_LEASE);
            let Some(attempt) = attempt else { return 0 };
            if let Some(known) = in_force(LOCKS.get_ptr_mut(attempt.key)) {
                given_up(&attempt, known);
            }
        }
    }
    0
}

#[inline(always)]
unsafe fn asked_for(attempt: &Attempt) {
    // SAFETY: `place` is the table's value under this key.
    unsafe {
        let place = LOCKS.get_ptr_mut(attempt.key);
        let known = in_force(place);
        match conflict::of_owner(attempt) {
            // A lease that is there already is changed, not taken: it stays its taker's.
            conflict::Own::There => {
                if known.is_none() {
                    taken(attempt, place, true);
                }
            }
            conflict::Own::Absent => {
                if let Some(known) = known {
                    given_up(attempt, known);
                }
                taken(attempt, place, false);
            }
            conflict::Own::NotSeen => {
                if let Some(known) = known {
                    given_up(attempt, known);
                }
                taken(attempt, place, true);
            }
        }
    }
}
