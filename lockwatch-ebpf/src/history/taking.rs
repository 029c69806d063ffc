//! Locks that are taken and given up: the table of locks and all that hangs on it.
//!
//! To put a lock into the table and to take it out again costs more than all the rest together. So
//! the place of one that was given up by name is kept, marked as given up, until the program that
//! saw it wants to keep another in its stead on the same CPU: whoever takes and gives up the same
//! lock time and again finds it there, and one lookup is all that it costs.
//!
//! Only that program on that CPU fills the place again or gives it away. It does not interrupt
//! itself, so nobody writes to a place that another is giving away. Whoever else sees the same lock
//! being taken meanwhile puts it into the table anew, and makes sure that it is not this one that is
//! given away.

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns};
use lockwatch_common::history::{
    Ending, Entry, F_UNLCK, F_WRLCK, FL_CLOSE, FileKey, KEPT_ON, KIND_ACQUIRED, KIND_ENDED,
    KIND_RELEASED, Key, MERGED, SEATS, slot_of,
};
use lockwatch_common::snapshot::PF_EXITING;

use crate::attempt::Attempt;
use crate::moment::{Moment, Room};
use crate::tables::{DEAD, LOCKS, add, count_of, given_away, slot};
use crate::{attention, counters, moment, party, words};

/// Looks at a keeper that is giving a place away, until it has done so: longer than it takes.
const LOOKS: u32 = 64;

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

/// The place of a lock of which this keeper saw that it was given up: it may be filled again.
#[inline(always)]
fn kept(seat: u32, place: Option<*mut Entry>) -> Option<*mut Entry> {
    // SAFETY: the table's value, where there is one.
    place.filter(|&entry| unsafe { (*entry).access == F_UNLCK && (*entry).merged == keeper(seat) })
}

/// The program in this seat on this CPU, as [`Entry::merged`] of a lock that was given up has it.
#[inline(always)]
fn keeper(seat: u32) -> u32 {
    // SAFETY: no arguments, always allowed.
    KEPT_ON + unsafe { bpf_get_smp_processor_id() } * SEATS + seat
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
    counters::acquisition(attempt.seat, counters::kind(attempt.key.class, attempt.flags));
    // SAFETY: the caller's promise, or a place for drafts.
    let entry = unsafe {
        match kept(attempt.seat, place) {
            Some(place) => {
                describe(place, attempt, &file, now, taken_at);
                &*place
            }
            None => {
                let Some(draft) = counters::draft(attempt.seat) else { return };
                describe(draft, attempt, &file, now, taken_at);
                if !put(attempt, place, draft) {
                    counters::lost_lock(attempt.seat);
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

/// Puts a lock into the table, whose place is `place` where it has one that another keeps. False where
/// that does not work.
#[inline(always)]
unsafe fn put(attempt: &Attempt, place: Option<*mut Entry>, entry: *mut Entry) -> bool {
    // SAFETY: the caller gives the table's value, and an entry.
    unsafe {
        // Asked first: the place is another lock's as soon as there is a new one.
        let giving = match place {
            Some(place) if (*place).access == F_UNLCK => {
                given_away((*place).merged.wrapping_sub(KEPT_ON))
            }
            _ => None,
        };
        if LOCKS.insert(&attempt.key, &*entry, 0).is_err() {
            return false;
        }
        match giving {
            Some(giving) => secured(&attempt.key, giving, entry),
            None => true,
        }
    }
}

/// A lock that another keeper may be giving away by mistake is in the table for good. False where that
/// other does not come to an end.
#[inline(never)]
unsafe fn secured(key: &Key, giving: *mut u64, entry: *mut Entry) -> bool {
    // SAFETY: the caller gives the map's values. Volatile, because the keeper writes it.
    unsafe {
        let own = mark(key) as u64;
        // For the order alone: who shows its mark after this finds what was put.
        add(giving.cast(), 0);
        if giving.read_volatile() != own {
            return true;
        }
        for _ in 0..LOOKS {
            if giving.read_volatile() != own {
                return LOCKS.get_ptr(key).is_some() || LOCKS.insert(key, &*entry, 0).is_ok();
            }
        }
        // What is not counted must not be there.
        let _ = LOCKS.remove(key);
        false
    }
}

/// What a keeper shows while it gives a place away: never 0.
#[inline(always)]
fn mark(key: &Key) -> i64 {
    ((key.inode ^ key.owner.rotate_left(32) ^ key.start as u64) | 1) as i64
}

/// Counts a lock in or out of the hints.
#[inline(always)]
fn count(attempt: &Attempt, tgid: i32, access: u32, by: i64) {
    count_of(tgid, by);
    // SAFETY: the map's value.
    unsafe {
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
        counters::release(
            attempt.seat,
            counters::kind(attempt.key.class, (*known).flags),
            for_so_long,
        );
        count(attempt, (*known).by.tgid, (*known).access, -1);
        if attempt.flags & FL_CLOSE != 0 {
            closed(attempt, &*known, now);
            remove(&attempt.key, now);
            return;
        }
        // What is asked for by name is an ordinary end, whoever asks.
        if attention::may_be_paid(now) {
            released(attempt, &*known, now);
        }
        (&raw mut (*known).merged).write_volatile(keeper(attempt.seat));
        (&raw mut (*known).access).write_volatile(F_UNLCK);
        keep(attempt, now);
    }
}

/// Keeps the place of the attempt's lock, which was given up, and gives the place away that this keeper
/// kept before, where nobody has taken that lock since.
#[inline(always)]
unsafe fn keep(attempt: &Attempt, now: u64) {
    let Some(parking) = counters::parking(attempt.seat, &attempt.key) else { return };
    // SAFETY: the maps' values; a program does not interrupt itself.
    unsafe {
        let before = &*parking;
        if before.owner == attempt.key.owner
            && before.inode == attempt.key.inode
            && before.start == attempt.key.start
            && before.class == attempt.key.class
        {
            return;
        }
        give_away(attempt.seat, parking, now);
        words::copy(parking, &raw const attempt.key);
    }
}

#[inline(never)]
unsafe fn give_away(seat: u32, parking: *mut Key, now: u64) {
    // SAFETY: the caller gives the map's value; nobody but the keeper writes its mark, which is 0
    // before.
    unsafe {
        if (*parking).inode == 0 {
            return;
        }
        let Some(giving) = given_away(keeper(seat) - KEPT_ON) else { return };
        // Shown before it is looked whether the place is still kept: see `secured`.
        add(giving.cast(), mark(&*parking));
        if let Some(entry) = LOCKS.get_ptr_mut(&*parking)
            && kept(seat, Some(entry)).is_some()
        {
            remove(&*parking, now);
        }
        giving.write_volatile(0);
    }
}

/// Takes a place out of the table. A reading that was begun before may still show its lock.
#[inline(always)]
unsafe fn remove(key: &Key, now: u64) {
    let _ = LOCKS.remove(key);
    // SAFETY: the map's value; of two that come at once either is late enough.
    unsafe {
        if let Some(slot) = slot(slot_of(key.inode, key.owner)) {
            (*slot).removed_at = now;
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
