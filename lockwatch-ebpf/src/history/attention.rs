//! Files to which attention is paid: what happens to their locks is told, not only written down.
//!
//! User space names some for good; a crash makes one, so that whoever takes the lock next is told
//! of, however quick.

use lockwatch_common::history::{CLASS_FLOCK, F_UNLCK, FOREVER, FileKey, KIND_ACQUIRED, Key};

use crate::attempt::Attempt;
use crate::conflict;
use crate::counters;
use crate::moment::{self, Moment, Room};
use crate::tables::{ATTENDED, LOCKS, globals};

/// False where no file has attention.
#[inline(always)]
pub(crate) fn may_be_paid(now: u64) -> bool {
    let Some(globals) = globals() else { return false };
    // SAFETY: the map's value; plain numbers that are written whole.
    unsafe { (*globals).attended != 0 || now < (*globals).attended_until }
}

/// True where an attempt may meet a lock whose taker is dying.
#[inline(always)]
pub(crate) fn may_meet_a_death(now: u64) -> bool {
    let Some(globals) = globals() else { return false };
    // SAFETY: the map's value; a plain number that is written whole.
    unsafe { now < (*globals).dying_until }
}

/// True where the file has attention.
#[inline(always)]
pub(crate) fn is_paid(file: &FileKey, now: u64) -> bool {
    if !may_be_paid(now) {
        return false;
    }
    // SAFETY: the map's value; a plain number that is written whole.
    match unsafe { ATTENDED.get(file) } {
        Some(&until) => until > now,
        None => false,
    }
}

/// An exclusive lock ended by its owner's crash: whoever takes it next is told of. Answers when it
/// ended at the latest.
///
/// The tracepoint comes after the lock is free, so another may have it by now and have been seen:
/// then that is told here.
#[inline(never)]
pub(crate) fn after_crash(attempt: &Attempt, now: u64) -> u64 {
    let Some(globals) = globals() else { return now };
    let file = &attempt.file();
    // SAFETY: the maps' values; plain numbers that are written whole.
    unsafe {
        let until = now + (*globals).handoff_window;
        let forever = matches!(ATTENDED.get(file), Some(&FOREVER));
        if !forever {
            match ATTENDED.insert(file, until, 0) {
                Ok(()) if (*globals).attended_until < until => (*globals).attended_until = until,
                Ok(()) => {}
                Err(_) => counters::lost_other(attempt.seat),
            }
        }
        if attempt.key.class != CLASS_FLOCK {
            return now;
        }
        let Some(next) = conflict::first(attempt) else { return now };
        let key = Key { owner: next.owner, ..attempt.key };
        let Some(entry) = LOCKS.get(&key) else { return now };
        if entry.taken_at == 0 || entry.access == F_UNLCK || !entry.is_whole() {
            return now;
        }
        let at = entry.taken_at;
        let room = Room::Reserved;
        let kind = KIND_ACQUIRED;
        moment::tell(attempt, &Moment { kind, at, key: &key, entry, ending: None, room });
        // Nobody else could have it while it was there.
        if at > now { now } else { at - 1 }
    }
}
