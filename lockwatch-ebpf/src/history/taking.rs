//! Locks that are taken and given up: the table of locks and all that hangs on it.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use lockwatch_common::history::{
    Ending, Entry, F_WRLCK, FL_CLOSE, FileKey, KIND_ACQUIRED, KIND_ENDED, KIND_RELEASED, MERGED,
};
use lockwatch_common::snapshot::PF_EXITING;

use crate::attempt::Attempt;
use crate::moment::Moment;
use crate::tables::{DEAD, LOCKS, add, held, slot};
use crate::{attention, counters, moment, party};

/// Now, ns of `CLOCK_BOOTTIME`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, always allowed.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Tells of the attempt's own lock.
#[inline(always)]
pub(crate) fn tell(kind: u32, at: u64, attempt: &Attempt, entry: &Entry, ending: Option<&Ending>) {
    moment::tell(attempt, &Moment { kind, at, key: &attempt.key, entry, ending });
}

/// Writes down what is known of a lock that the current task takes now, every member of it.
///
/// # Safety
/// `to` must be valid for writes.
#[inline(always)]
pub(crate) unsafe fn describe(to: *mut Entry, attempt: &Attempt, file: &FileKey, now: u64) {
    let (mtime_sec, mtime_nsec) = attempt.modified();
    // SAFETY: the caller's promise.
    unsafe {
        (*to).taken_at = now;
        (*to).written_at = now;
        (*to).end = attempt.end;
        (*to).ino = file.ino;
        (*to).mtime_sec = mtime_sec;
        (*to).mtime_nsec = mtime_nsec;
        (*to).access = attempt.access;
        (*to).flags = attempt.flags;
        (*to).recorded = attempt.recorded;
        (*to).dev = file.dev;
        (*to).merged = if attempt.linked { MERGED } else { 0 };
        party::current(&raw mut (*to).by);
    }
}

/// The current task has taken a lock: the table gets it, instead of what it had under its key.
#[inline(never)]
pub(crate) fn taken(attempt: &Attempt, unknown_since: bool) {
    let now = now();
    let file = attempt.file();
    let Some(draft) = counters::draft() else { return };
    // SAFETY: every member is written.
    let entry = unsafe {
        describe(draft, attempt, &file, now);
        &mut *draft
    };
    if unknown_since {
        entry.taken_at = 0;
    }
    counters::acquisition(counters::kind(attempt.key.class, attempt.flags));
    if LOCKS.insert(&attempt.key, &*entry, 0).is_err() {
        counters::lost_lock();
        if let Some(slot) = slot(attempt.slot) {
            // SAFETY: the map's value.
            unsafe { (*slot).lost_at = now };
        }
    } else {
        count(attempt, entry.by.tgid, entry.access, 1);
    }
    if attention::is_paid(&file, now) {
        tell(KIND_ACQUIRED, now, attempt, entry, None);
    }
}

/// Counts a lock in or out of the hints.
#[inline(always)]
fn count(attempt: &Attempt, tgid: i32, access: u32, by: i64) {
    // SAFETY: the maps' values.
    unsafe {
        if let Some(held) = held(tgid) {
            add(&raw mut (*held).locks, by);
        }
        if let Some(slot) = slot(attempt.slot) {
            let of = match access {
                F_WRLCK => &raw mut (*slot).writes,
                _ => &raw mut (*slot).reads,
            };
            add(of, by);
            add(&raw mut (*slot).starts, attempt.key.start.wrapping_mul(by));
        }
    }
}

/// The lock under the attempt's key is no more. `known` is its entry in the table.
///
/// # Safety
/// `known` must be the table's value under the attempt's key.
#[inline(never)]
pub(crate) unsafe fn given_up(attempt: &Attempt, known: *const Entry) {
    // SAFETY: the caller's promise; the entry is removed last.
    unsafe {
        let known = &*known;
        let now = now();
        let since = known.taken_at;
        let for_so_long = (since != 0).then(|| now.wrapping_sub(since));
        counters::release(counters::kind(attempt.key.class, known.flags), for_so_long);
        count(attempt, known.by.tgid, known.access, -1);
        let (flags, start) = party::flags_and_start();
        let own = known.by.tgid == party::ids().0 && known.by.start == start;
        let file = FileKey { ino: known.ino, dev: known.dev, reserved: 0 };
        // What is asked for by name is an ordinary end, whoever asks.
        if attempt.flags & FL_CLOSE != 0 && (!own || flags & PF_EXITING != 0) {
            outlived(attempt, known, &file, now);
        } else if attention::is_paid(&file, now) {
            tell(KIND_RELEASED, now, attempt, known, None);
        }
        let _ = LOCKS.remove(&attempt.key);
    }
}

/// A lock ends in its owner's exit, or with the last descriptor of another.
#[inline(never)]
unsafe fn outlived(attempt: &Attempt, known: &Entry, file: &FileKey, now: u64) {
    let process = known.by.process();
    // SAFETY: an ending is written once, before it is found.
    match unsafe { DEAD.get(&process) } {
        Some(ending) => {
            if known.access == F_WRLCK {
                let at = match ending.status {
                    0 => now,
                    _ => attention::after_crash(attempt, file, now),
                };
                tell(KIND_ENDED, at, attempt, known, Some(ending));
            }
        }
        None => {
            if attention::is_paid(file, now) {
                tell(KIND_RELEASED, now, attempt, known, None);
            }
        }
    }
}
