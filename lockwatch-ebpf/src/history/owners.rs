//! Owners whose ranges are merged, cut or split: what they do is written down, for user space to do it
//! again in its order.
//!
//! When an owner gives up everything that is taken away again, so that the table holds what owners have
//! and not what they ever did. Refuses to work out ranges.

use lockwatch_common::history::{
    F_UNLCK, FL_CLOSE, KIND_ACQUIRED, OperationKey, Owner, Slot, TO_BE_TOLD, WRITTEN, Written,
};

use crate::attempt::Attempt;
use crate::kernel::load;
use crate::posix::TO_THE_END;
use crate::tables::{OPERATIONS, OWNERS, add, count_of, globals};
use crate::taking::{describe, now, tell};
use crate::{attention, counters, party};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const BPF_NOEXIST: u64 = 1;

/// Operations that are known one by one. A global, so that the compiler writes a loop; the verifier
/// knows its value.
#[unsafe(no_mangle)]
static KNOWN: u32 = WRITTEN as u32;

static UNWRITTEN: Owner = Owner::UNWRITTEN;

/// An owner does something.
///
/// # Safety
/// `owner` must be the map's value of the attempt's owner.
#[inline(always)]
pub(crate) unsafe fn does(attempt: &Attempt, owner: *mut Owner) {
    // SAFETY: the caller's promise.
    unsafe {
        if attempt.access != F_UNLCK && (*owner).cleared_at == (*owner).last_at {
            pass_on(owner);
        }
        write_down(attempt, owner, now());
    }
}

/// From here on the owner's operations are written down, beginning with this one.
///
/// # Safety
/// `slot` must be the map's value.
#[inline(always)]
pub(crate) unsafe fn begin_with(attempt: &Attempt, slot: *mut Slot) {
    // One after the other, and not one within the other: the stack is short.
    // SAFETY: the maps' values.
    unsafe {
        begin(attempt, slot, false);
        if let Some(owner) = OWNERS.get_ptr_mut(attempt.key.of_owner()) {
            write_down(attempt, owner, now());
        }
    }
}

/// An owner that had nothing takes something: it may be another by now, to whom the kernel gave the
/// same addresses. Its death is what matters from now on.
#[inline(never)]
unsafe fn pass_on(owner: *mut Owner) {
    let (tgid, _) = party::ids();
    let (_, start) = party::flags_and_start();
    // SAFETY: the caller gives the map's value.
    unsafe {
        let before = (*owner).tgid;
        (*owner).start = start;
        if before == tgid {
            return;
        }
        (*owner).tgid = tgid;
        count_of(before, -1);
        count_of(tgid, 1);
    }
}

/// From here on the owner's operations are written down; with this one it gave up all where `cleared`.
///
/// # Safety
/// `slot` must be the map's value.
#[inline(never)]
pub(crate) unsafe fn begin(attempt: &Attempt, slot: *mut Slot, cleared: bool) {
    let now = now();
    let (tgid, _) = party::ids();
    let (_, start) = party::flags_and_start();
    // SAFETY: the maps' values.
    unsafe {
        if OWNERS.insert(attempt.key.of_owner(), &UNWRITTEN, 0).is_err() {
            (*slot).lost_at = now;
            counters::lost_operation(attempt.seat);
            return;
        }
        let Some(owner) = OWNERS.get_ptr_mut(attempt.key.of_owner()) else { return };
        ((*owner).since, (*owner).last_at) = (now, now);
        ((*owner).start, (*owner).tgid) = (start, tgid);
        if cleared {
            all_given_up(attempt, owner, now);
        }
        // Last: until then nothing of it is relied upon.
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        (&raw mut (*owner).lost_at).write_volatile((*slot).lost_at);
        if let Some(globals) = globals() {
            add((&raw mut (*globals).owners).cast(), 1);
        }
        count_of(tgid, 1);
    }
}

/// The owner gave up all that it had.
#[inline(always)]
unsafe fn all_given_up(attempt: &Attempt, owner: *mut Owner, now: u64) {
    counters::release(attempt.seat, counters::kind(attempt.key.class, attempt.flags), None);
    // SAFETY: the caller gives the map's value.
    unsafe {
        (*owner).cleared_before = (*owner).cleared_at;
        // Until it is known better.
        (*owner).told = if attempt.flags & FL_CLOSE != 0 { TO_BE_TOLD } else { 0 };
        (*owner).last_at = now;
        (*owner).cleared_at = now;
    }
}

/// Writes one operation down.
#[inline(never)]
unsafe fn write_down(attempt: &Attempt, owner: *mut Owner, now: u64) {
    let kind = counters::kind(attempt.key.class, attempt.flags);
    // SAFETY: the map's value.
    unsafe {
        if attempt.access == F_UNLCK {
            if attempt.key.start == 0 && attempt.end == TO_THE_END {
                // At its exit an owner closes each of its descriptors.
                if (*owner).cleared_at == (*owner).last_at {
                    return;
                }
                all_given_up(attempt, owner, now);
                // Who died is still to be told of.
                if (*owner).told == 0 {
                    forget(attempt, owner);
                }
                return;
            }
            counters::release(attempt.seat, kind, None);
        } else {
            counters::acquisition(attempt.seat, kind);
        }
        (*owner).last_at = now;
        let file = attempt.file();
        let Some(draft) = counters::draft(attempt.seat) else { return };
        describe(draft, attempt, &file, now, now);
        let entry = &*draft;
        let key = OperationKey {
            inode: attempt.key.inode,
            owner: attempt.key.owner,
            at: now,
            start: attempt.key.start,
        };
        if OPERATIONS.insert(key, entry, BPF_NOEXIST).is_err() {
            (*owner).lost_at = now;
            counters::lost_operation(attempt.seat);
        } else if (*owner).count < WRITTEN as u32 {
            let written = place(owner, (*owner).count);
            ((*written).at, (*written).start) = (now, attempt.key.start);
            (*owner).count += 1;
        }
        if attempt.access != F_UNLCK && attention::is_paid(&file, now) {
            tell(KIND_ACQUIRED, now, attempt, entry, None);
        }
    }
}

/// What is known of one operation.
#[inline(always)]
unsafe fn place(owner: *mut Owner, number: u32) -> *mut Written {
    // SAFETY: the caller gives the map's value; the number is made less than their number.
    unsafe { (&raw mut (*owner).written).cast::<Written>().add(number as usize & (WRITTEN - 1)) }
}
const _: () = assert!(WRITTEN.is_power_of_two());

/// Takes away what was written down since the owner had nothing, as far as it is known one by one: the
/// rest is left to user space.
///
/// # Safety
/// `owner` must be the map's value of the attempt's owner.
#[inline(never)]
pub(crate) unsafe fn forget(attempt: &Attempt, owner: *mut Owner) {
    // SAFETY: the caller's promise.
    unsafe {
        for number in 0..load(&KNOWN) {
            if number >= (*owner).count {
                break;
            }
            let Written { at, start } = *place(owner, number);
            let (inode, owner) = (attempt.key.inode, attempt.key.owner);
            let _ = OPERATIONS.remove(OperationKey { inode, owner, at, start });
        }
        (*owner).count = 0;
    }
}
