//! Locks that are taken and given up: the table of locks and all that hangs on it.
//!
//! To put a lock into the table and to take it out again costs more than all the rest together. So
//! the place of one that was given up by name is kept, marked as given up, until the CPU on which
//! that was wants to keep another in its stead: whoever takes and gives up the same lock time and
//! again finds it there, and one lookup is all that it costs.
//!
//! Only that CPU fills the place again or gives it away. On it programs do not overlap, so nobody
//! writes to a place that another is giving away.

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use lockwatch_common::history::{
    Ending, Entry, F_UNLCK, F_WRLCK, FL_CLOSE, FileKey, KEPT_ON, KIND_ACQUIRED, KIND_ENDED,
    KIND_RELEASED, Key, MERGED,
};
use lockwatch_common::snapshot::PF_EXITING;

use crate::attempt::Attempt;
use crate::moment::{Moment, Room};
use crate::tables::{DEAD, LOCKS, add, held, slot};
use crate::{attention, counters, moment, party, words};

/// Now, ns of `CLOCK_BOOTTIME`.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: no arguments, always allowed.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Tells of the attempt's own lock.
#[inline(always)]
pub(crate) fn tell(kind: u32, at: u64, attempt: &Attempt, entry: &Entry, ending: Option<&Ending>) {
    moment::tell(
        attempt,
        &Moment { kind, at, key: &attempt.key, entry, ending, room: Room::of(kind) },
    );
}

/// The entry of a lock that is not given up.
#[inline(always)]
pub(crate) fn in_force(place: Option<*mut Entry>) -> Option<*mut Entry> {
    // SAFETY: the table's value, where there is one.
    place.filter(|&entry| unsafe { (*entry).access } != F_UNLCK)
}

/// The place of a lock that was given up on this CPU, which may be filled again.
#[inline(always)]
fn kept(place: Option<*mut Entry>) -> Option<*mut Entry> {
    // SAFETY: the table's value, where there is one.
    place.filter(|&entry| unsafe { (*entry).access == F_UNLCK && (*entry).merged == this_cpu() })
}

/// This CPU, as [`Entry::merged`] of a lock that was given up has it.
#[inline(always)]
fn this_cpu() -> u32 {
    // SAFETY: no arguments, always allowed.
    KEPT_ON + unsafe { bpf_get_smp_processor_id() }
}

/// Writes down what is known of a lock that the current task takes now, every member of it, in the
/// order that lets others read it meanwhile. `taken_at` is 0 where it may be older than now.
///
/// # Safety
/// `to` must be valid for reads and writes.
#[inline(always)]
pub(crate) unsafe fn describe(
    to: *mut Entry,
    attempt: &Attempt,
    file: &FileKey,
    now: u64,
    taken_at: u64,
) {
    let (mtime_sec, mtime_nsec) = attempt.modified();
    // SAFETY: the caller's promise. Volatile for the order.
    unsafe {
        (&raw mut (*to).sealed_at).write_volatile(now);
        (*to).taken_at = taken_at;
        (*to).end = attempt.end;
        (*to).ino = file.ino;
        (*to).mtime_sec = mtime_sec;
        (*to).mtime_nsec = mtime_nsec;
        (*to).access = attempt.access;
        (*to).flags = attempt.flags;
        (*to).recorded = attempt.recorded;
        (*to).dev = file.dev;
        (*to).merged = if attempt.linked { MERGED } else { 0 };
        party::renew(&raw mut (*to).by);
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
        (&raw mut (*to).written_at).write_volatile(now);
    }
}

/// The current task has taken a lock: the table gets it. `place` is what the table has under its key.
///
/// # Safety
/// `place` must be the table's value under the attempt's key.
#[inline(never)]
pub(crate) unsafe fn taken(attempt: &Attempt, place: Option<*mut Entry>, unknown_since: bool) {
    let now = now();
    let file = attempt.file();
    let taken_at = if unknown_since { 0 } else { now };
    counters::acquisition(counters::kind(attempt.key.class, attempt.flags));
    // SAFETY: the caller's promise, or a place for drafts.
    let entry = unsafe {
        match kept(place) {
            Some(place) => {
                describe(place, attempt, &file, now, taken_at);
                &*place
            }
            None => {
                let Some(draft) = counters::draft() else { return };
                describe(draft, attempt, &file, now, taken_at);
                if LOCKS.insert(&attempt.key, &*draft, 0).is_err() {
                    counters::lost_lock();
                    if let Some(slot) = slot(attempt.slot) {
                        (*slot).lost_at = now;
                    }
                    if attention::is_paid(&file, now) {
                        tell(KIND_ACQUIRED, now, attempt, &*draft, None);
                    }
                    return;
                }
                &*draft
            }
        }
    };
    count(attempt, entry.by.tgid, attempt.access, 1);
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
            if attempt.key.start != 0 {
                add(&raw mut (*slot).starts, attempt.key.start.wrapping_mul(by));
            }
        }
    }
}

/// The lock under the attempt's key is no more. `known` is its entry in the table.
///
/// # Safety
/// `known` must be the table's value under the attempt's key.
#[inline(never)]
pub(crate) unsafe fn given_up(attempt: &Attempt, known: *mut Entry) {
    // SAFETY: the caller's promise.
    unsafe {
        let now = now();
        let since = (*known).taken_at;
        let for_so_long = (since != 0).then(|| now.wrapping_sub(since));
        counters::release(counters::kind(attempt.key.class, (*known).flags), for_so_long);
        count(attempt, (*known).by.tgid, (*known).access, -1);
        if attempt.flags & FL_CLOSE != 0 {
            closed(attempt, &*known, now);
            let _ = LOCKS.remove(&attempt.key);
            return;
        }
        // What is asked for by name is an ordinary end, whoever asks.
        if attention::may_be_paid(now) {
            released(attempt, &*known, now);
        }
        (&raw mut (*known).merged).write_volatile(this_cpu());
        (&raw mut (*known).access).write_volatile(F_UNLCK);
        keep(attempt);
    }
}

/// Keeps the place of the attempt's lock, which was given up, and gives the place away that this CPU
/// kept before, where nobody has taken that lock since.
#[inline(always)]
unsafe fn keep(attempt: &Attempt) {
    let Some(parking) = counters::parking(&attempt.key) else { return };
    // SAFETY: the maps' values; programs on one CPU do not overlap.
    unsafe {
        let before = &*parking;
        if before.owner == attempt.key.owner
            && before.inode == attempt.key.inode
            && before.start == attempt.key.start
            && before.class == attempt.key.class
        {
            return;
        }
        give_away(parking);
        words::copy(parking, &raw const attempt.key);
    }
}

#[inline(never)]
unsafe fn give_away(parking: *mut Key) {
    // SAFETY: the caller gives the map's value.
    unsafe {
        if (*parking).inode == 0 {
            return;
        }
        if let Some(entry) = LOCKS.get_ptr_mut(&*parking)
            && kept(Some(entry)).is_some()
        {
            let _ = LOCKS.remove(&*parking);
        }
    }
}

/// A lock that nobody asked to give up ends.
#[inline(never)]
unsafe fn closed(attempt: &Attempt, known: &Entry, now: u64) {
    let (flags, start) = party::flags_and_start();
    let own = known.by.tgid == party::ids().0 && known.by.start == start;
    if own && flags & PF_EXITING == 0 {
        return released(attempt, known, now);
    }
    // It ends in its owner's exit, or with the last descriptor of another.
    // SAFETY: an ending is written once, before it is found.
    match unsafe { DEAD.get(known.by.process()) } {
        Some(ending) => {
            let at = match (known.access, ending.status) {
                (F_WRLCK, status) if status != 0 => attention::after_crash(attempt, now),
                _ => now,
            };
            tell(KIND_ENDED, at, attempt, known, Some(ending));
        }
        None => released(attempt, known, now),
    }
}

/// A lock was given up in the ordinary way.
#[inline(never)]
fn released(attempt: &Attempt, known: &Entry, now: u64) {
    let file = FileKey { ino: known.ino, dev: known.dev, reserved: 0 };
    if attention::is_paid(&file, now) {
        tell(KIND_RELEASED, now, attempt, known, None);
    }
}
