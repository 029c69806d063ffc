//! POSIX and OFD locks: ranges, which the kernel merges, cuts and splits.
//!
//! As long as each thing that an owner does concerns exactly one of its ranges, the table of locks
//! is the kernel's list. The first that does not makes it an owner whose operations are written
//! down each, for user space to do them again in their order.
//!
//! The tracepoint comes under the list's lock: operations are seen in the order of their effect.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use lockwatch_common::history::{
    CLASS_POSIX, Entry, F_UNLCK, F_WRLCK, FL_ACCESS, FL_CLOSE, FL_OFDLCK, KIND_ACQUIRED,
    OperationKey, Owner, SEAT_POSIX, Slot, TO_BE_TOLD, slot_of,
};
use lockwatch_common::ranges::{self, Known, Setting, Unsetting};

use crate::attempt::{Attempt, DEFERRED, EAGAIN};
use crate::tables::{LOCKS, OPERATIONS, OWNERS, add, count_of, globals, slot};
use crate::taking::{describe, given_up, in_force, now, taken, tell};
use crate::{attention, cleared, counters, party, waits};

/// The last byte of what goes to the end of the file.
const TO_THE_END: i64 = i64::MAX;
/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const BPF_NOEXIST: u64 = 1;

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
            if attempt.access != F_UNLCK && (*owner).cleared_at == (*owner).last_at {
                pass_on(owner);
            }
            write_down(attempt, owner, now());
            return;
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
            Setting::Other => begin_with(attempt, slot),
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
            Unsetting::Cleared => begin(attempt, slot, true),
            Unsetting::Other => begin_with(attempt, slot),
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

/// From here on the owner's operations are written down, beginning with this one.
#[inline(always)]
unsafe fn begin_with(attempt: &Attempt, slot: *mut Slot) {
    // One after the other, and not one within the other: the stack is short.
    // SAFETY: the maps' values.
    unsafe {
        begin(attempt, slot, false);
        if let Some(owner) = OWNERS.get_ptr_mut(attempt.key.of_owner()) {
            write_down(attempt, owner, now());
        }
    }
}

/// From here on the owner's operations are written down; with this one it gave up all where `cleared`.
#[inline(never)]
unsafe fn begin(attempt: &Attempt, slot: *mut Slot, cleared: bool) {
    let now = now();
    let (tgid, _) = party::ids();
    let (_, start) = party::flags_and_start();
    // SAFETY: the maps' values.
    unsafe {
        let mut owner = Owner {
            since: now,
            cleared_at: 0,
            cleared_before: 0,
            lost_at: (*slot).lost_at,
            last_at: now,
            start,
            tgid,
            told: 0,
        };
        if cleared {
            all_given_up(attempt, &raw mut owner, now);
        }
        if OWNERS.insert(attempt.key.of_owner(), owner, 0).is_err() {
            (*slot).lost_at = now;
            counters::lost_operation(attempt.seat);
            return;
        }
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
    // SAFETY: the caller gives the map's value, or one that becomes it.
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
    // SAFETY: the map's value, or one that becomes it.
    unsafe {
        if attempt.access == F_UNLCK {
            if attempt.key.start == 0 && attempt.end == TO_THE_END {
                // At its exit an owner closes each of its descriptors.
                if (*owner).cleared_at == (*owner).last_at {
                    return;
                }
                return all_given_up(attempt, owner, now);
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
        }
        if attempt.access != F_UNLCK && attention::is_paid(&file, now) {
            tell(KIND_ACQUIRED, now, attempt, entry, None);
        }
    }
}
