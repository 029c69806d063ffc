//! Owners whose ranges are merged, cut or split: what they do is written down, for user space to do it
//! again in its order.
//!
//! What an operation undoes is taken away with it, as far as that is sure, so that the table holds what
//! owners have and not what they ever did. Refuses to work out ranges.

use lockwatch_common::history::{
    F_UNLCK, FL_CLOSE, KIND_ACQUIRED, OperationKey, Owner, RESTORED, Slot, TO_BE_TOLD,
};
use lockwatch_common::standing::{Becomes, Meeting, STANDING, Standing};

use crate::attempt::Attempt;
use crate::kernel::load;
use crate::posix::TO_THE_END;
use crate::tables::{OPERATIONS, OWNERS, add, count_of, globals};
use crate::taking::{describe, now, tell};
use crate::{adopt, attention, counters, party};

/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
pub(crate) const BPF_NOEXIST: u64 = 1;

/// The places of what stands. A global, so that the compiler writes a loop; the verifier knows its
/// value.
#[unsafe(no_mangle)]
static PLACES: u32 = STANDING as u32;

/// Last byte of no range.
pub(crate) const OF_ALL: i64 = -1;

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

/// From here on the owner's operations are written down.
///
/// # Safety
/// `slot` must be the map's value.
#[inline(always)]
pub(crate) unsafe fn begin(attempt: &Attempt, slot: *mut Slot) {
    // One after the other, and not one within the other: the stack is short.
    // SAFETY: the maps' values.
    unsafe {
        enter(attempt, slot, false);
        if let Some(owner) = OWNERS.get_ptr_mut(attempt.key.of_owner()) {
            adopt::all(attempt, slot, owner);
        }
    }
}

/// So they are, and with this one it gave up all that it had.
///
/// # Safety
/// `slot` must be the map's value.
#[inline(always)]
pub(crate) unsafe fn begin_cleared(attempt: &Attempt, slot: *mut Slot) {
    // SAFETY: the caller's promise.
    unsafe { enter(attempt, slot, true) };
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

#[inline(never)]
unsafe fn enter(attempt: &Attempt, slot: *mut Slot, cleared: bool) {
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
        // Until it is known better.
        let told = if attempt.flags & FL_CLOSE != 0 { TO_BE_TOLD } else { 0 };
        has_nothing(owner, now, told);
    }
}

#[inline(always)]
unsafe fn has_nothing(owner: *mut Owner, now: u64, told: u32) {
    // SAFETY: the caller gives the map's value.
    unsafe {
        (*owner).cleared_before = (*owner).cleared_at;
        (*owner).told = told;
        (*owner).last_at = now;
        (*owner).cleared_at = now;
        (*owner).complete = 1;
    }
}

/// Writes one operation down, or takes away what it undoes.
#[inline(never)]
unsafe fn write_down(attempt: &Attempt, owner: *mut Owner, now: u64) {
    let kind = counters::kind(attempt.key.class, attempt.flags);
    let gives_up = attempt.access == F_UNLCK;
    // SAFETY: the map's value.
    unsafe {
        if gives_up {
            if attempt.key.start == 0 && attempt.end == TO_THE_END {
                // At its exit an owner closes each of its descriptors.
                if (*owner).cleared_at == (*owner).last_at {
                    return;
                }
                all_given_up(attempt, owner, now);
                if (*owner).told == 0 {
                    forget(attempt, owner, OF_ALL);
                }
                return;
            }
            counters::release(attempt.seat, kind, None);
        } else {
            counters::acquisition(attempt.seat, kind);
        }
        let meeting = meet(attempt, owner);
        let becomes = meeting.becomes(gives_up, (*owner).complete != 0, attempt.linked);
        if matches!(becomes, Becomes::Nothing) {
            return;
        }
        (*owner).last_at = now;
        if !matches!(becomes, Becomes::Another) {
            forget(attempt, owner, attempt.end);
        }
        if matches!(becomes, Becomes::Undoes) {
            if meeting.all == meeting.met {
                has_nothing(owner, now, 0);
            }
            return;
        }
        let file = attempt.file();
        let Some(draft) = counters::draft(attempt.seat) else { return };
        describe(draft, attempt, &file, now, now);
        if matches!(becomes, Becomes::Replaces) {
            (*draft).merged = RESTORED;
        }
        let entry = &*draft;
        let key = OperationKey {
            inode: attempt.key.inode,
            owner: attempt.key.owner,
            at: now,
            start: attempt.key.start,
        };
        if OPERATIONS.insert(key, entry, BPF_NOEXIST).is_err() {
            ((*owner).lost_at, (*owner).complete) = (now, 0);
            counters::lost_operation(attempt.seat);
        } else {
            remember(owner, now, attempt.key.start, attempt.end, attempt.access);
        }
        if !gives_up && attention::is_paid(&file, now) {
            tell(KIND_ACQUIRED, now, attempt, entry, None);
        }
    }
}

/// How many places there are.
#[inline(always)]
pub(crate) fn places() -> u32 {
    load(&PLACES)
}

/// A place of what stands.
#[inline(always)]
unsafe fn place(owner: *mut Owner, number: u32) -> *mut Standing {
    // SAFETY: the caller gives the map's value; the number is made less than their number.
    unsafe { (&raw mut (*owner).standing).cast::<Standing>().add(number as usize & (STANDING - 1)) }
}
const _: () = assert!(STANDING.is_power_of_two());

#[inline(never)]
unsafe fn meet(attempt: &Attempt, owner: *mut Owner) -> Meeting {
    let mut meeting = Meeting::NONE;
    // SAFETY: the map's value.
    unsafe {
        for number in 0..places() {
            meeting.add(&*place(owner, number), attempt.key.start, attempt.end, attempt.access);
        }
    }
    meeting
}

/// What was written down is remembered among what stands, as long as there is room.
///
/// # Safety
/// `owner` must be the map's value.
#[inline(always)]
pub(crate) unsafe fn remember(owner: *mut Owner, at: u64, start: i64, end: i64, access: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for number in 0..places() {
            let place = place(owner, number);
            if (*place).at == 0 {
                ((*place).start, (*place).end, (*place).access) = (start, end, access);
                (*place).at = at;
                return;
            }
        }
        (*owner).complete = 0;
    }
}

/// Takes away what was written down of what stands and has bytes in common with the attempt's first
/// byte to `end`, or of all where that is [`OF_ALL`].
///
/// # Safety
/// `owner` must be the map's value of the attempt's owner.
#[inline(never)]
pub(crate) unsafe fn forget(attempt: &Attempt, owner: *mut Owner, end: i64) {
    // SAFETY: the caller's promise.
    unsafe {
        for number in 0..places() {
            let place = place(owner, number);
            let Standing { at, start, .. } = *place;
            if at == 0 || (end != OF_ALL && (*place).meets(attempt.key.start, end) == 0) {
                continue;
            }
            let (inode, owner) = (attempt.key.inode, attempt.key.owner);
            let _ = OPERATIONS.remove(OperationKey { inode, owner, at, start });
            (*place).at = 0;
        }
    }
}

/// Nothing stands any more, and what was written down is left to user space.
///
/// # Safety
/// `owner` must be the map's value.
#[inline(always)]
pub(crate) unsafe fn leave(owner: *mut Owner) {
    // SAFETY: the caller's promise.
    unsafe {
        for number in 0..places() {
            (*place(owner, number)).at = 0;
        }
    }
}
