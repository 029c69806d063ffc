//! Attempts that failed: who waits since when, and what a refused one met.

use lockwatch_common::history::{
    Entry, F_UNLCK, Held, KIND_ACQUIRED, KIND_BLOCKED, KIND_REFUSED, Key, ProcessKey,
    REFUSAL_WINDOW, Wait, refusal_of,
};

use crate::attempt::Attempt;
use crate::conflict::Met;
use crate::moment::{Moment, Room};
use crate::tables::{DEAD, LOCKS, OWNERS, WAITERS, add, globals, held, refusal};
use crate::taking::now;
use crate::{attention, conflict, counters, moment, party, words};

/// The attempt waits now, or goes on waiting.
#[inline(always)]
pub(crate) fn deferred(attempt: &Attempt) {
    // One after the other, and not one within the other: the stack is short.
    let since = note(attempt);
    if since != 0 {
        tell(KIND_BLOCKED, since, attempt);
    }
}

/// Writes the wait down. Answers when it began; 0 where it goes on.
#[inline(never)]
fn note(attempt: &Attempt) -> u64 {
    let now = now();
    let (tgid, tid) = party::ids();
    let (behind_owner, behind_start) = conflict::behind(attempt);
    // SAFETY: the maps' values; a thread waits for one lock at a time, and only itself writes to its
    // place.
    unsafe {
        let Some(held) = held(tid) else { return 0 };
        let place = WAITERS.get_ptr_mut(tid as u64);
        if let Some(known) = place
            && (*known).since != 0
        {
            if (*known).key == attempt.key
                && (*known).tgid == tgid
                && (*known).access == attempt.access
            {
                (*known).behind_owner = behind_owner;
                (*known).behind_start = behind_start;
                return 0;
            }
            add(&raw mut (*held).waits, -1);
        }
        counters::wait(attempt.seat, counters::kind(attempt.key.class, attempt.flags));
        let file = attempt.file();
        let wait = Wait {
            key: attempt.key,
            end: attempt.end,
            since: now,
            ino: file.ino,
            dev: file.dev,
            access: attempt.access,
            flags: attempt.flags,
            tgid,
            behind_owner,
            behind_start,
        };
        match place {
            Some(place) => {
                (&raw mut (*place).since).write_volatile(0);
                words::copy(&raw mut (*place).key, &raw const wait.key);
                (&raw mut (*place).end).write_volatile(wait.end);
                (&raw mut (*place).ino).write_volatile(wait.ino);
                (&raw mut (*place).dev).write_volatile(wait.dev);
                (&raw mut (*place).access).write_volatile(wait.access);
                (&raw mut (*place).flags).write_volatile(wait.flags);
                (&raw mut (*place).tgid).write_volatile(wait.tgid);
                (&raw mut (*place).behind_owner).write_volatile(wait.behind_owner);
                (&raw mut (*place).behind_start).write_volatile(wait.behind_start);
                (&raw mut (*place).since).write_volatile(now);
            }
            None => {
                if WAITERS.insert(tid as u64, &wait, 0).is_err() {
                    counters::lost_other(attempt.seat);
                    return now;
                }
                add(&raw mut (*held).places, 1);
            }
        }
        add(&raw mut (*held).waits, 1);
    }
    now
}

/// The attempt was answered with `EAGAIN`.
#[inline(always)]
pub(crate) fn refused(attempt: &Attempt) {
    counters::refusal(attempt.seat, counters::kind(attempt.key.class, attempt.flags));
    tell(KIND_REFUSED, now(), attempt);
}

/// The current thread has what it may have waited for.
#[inline(always)]
pub(crate) fn granted(attempt: &Attempt) {
    // What is ordinary ends here.
    if !held(party::ids().1).is_some_and(waits) {
        return;
    }
    // One after the other, and not one within the other: the stack is short.
    if attention::may_meet_a_death(now()) {
        succeed(attempt);
    }
    over(attempt.seat, true);
}

/// True where the thread of these hints waits.
#[inline(always)]
fn waits(held: *mut Held) -> bool {
    // SAFETY: the map's value; a plain number.
    unsafe { (*held).waits > 0 }
}

/// Tells of an acquisition after a wait for a lock whose owner crashed.
///
/// Whoever gives a flock back is seen only after that, and may be held up in between for as long as
/// the next one has the lock: nobody pays attention to the file yet.
#[inline(never)]
fn succeed(attempt: &Attempt) {
    let (_, tid) = party::ids();
    let Some(wait) = WAITERS.get_ptr(tid as u64) else { return };
    // SAFETY: the maps' values; an ending is written once, before it is found.
    unsafe {
        if (*wait).since == 0 || (*wait).key.inode != attempt.key.inode {
            return;
        }
        let (owner, start) = ((*wait).behind_owner, (*wait).behind_start);
        // One that was let go before the wait could be seen may have been anybody's.
        if owner != 0 && !is_of_a_crash(&Key { owner, start, ..attempt.key }) {
            return;
        }
        let Some(own) = LOCKS.get(&attempt.key) else { return };
        if attention::is_paid(&attempt.file(), own.taken_at) {
            return;
        }
        let (kind, at, key, entry) = (KIND_ACQUIRED, own.taken_at, &attempt.key, own);
        let room = Room::Reserved;
        moment::tell(attempt, &Moment { kind, at, key, entry, ending: None, room });
    }
}

/// True of a lock that the table still has, and whose owner crashed.
#[inline(always)]
unsafe fn is_of_a_crash(key: &Key) -> bool {
    // SAFETY: the maps' values; an ending is written once, before it is found.
    unsafe {
        let Some(entry) = LOCKS.get(key) else { return false };
        if entry.access == F_UNLCK || !entry.is_whole() {
            return false;
        }
        matches!(DEAD.get(entry.by.process()), Some(ending) if ending.status != 0)
    }
}

/// The current thread does not wait any longer: it has what it waited for where `granted`.
#[inline(never)]
pub(crate) fn over(seat: u32, granted: bool) {
    let (_, tid) = party::ids();
    let Some(held) = held(tid) else { return };
    // SAFETY: the maps' values; only the thread itself writes to its place.
    unsafe {
        if !waits(held) {
            return;
        }
        let Some(wait) = WAITERS.get_ptr_mut(tid as u64) else { return };
        let since = (*wait).since;
        if since == 0 {
            return;
        }
        if granted {
            let kind = counters::kind((*wait).key.class, (*wait).flags);
            counters::granted(seat, kind, now().wrapping_sub(since));
        }
        // Its place is kept until the thread ends: it may wait again.
        (&raw mut (*wait).since).write_volatile(0);
        add(&raw mut (*held).waits, -1);
    }
}

/// Tells of an attempt that met a lock whose taker is dead, or a file with attention.
#[inline(never)]
fn tell(kind: u32, at: u64, attempt: &Attempt) {
    if !attention::may_be_paid(at) && !attention::may_meet_a_death(at) {
        return;
    }
    let attended = attention::is_paid(&attempt.file(), at);
    let mut met = Met::NONE;
    if !conflict::met(attempt, &mut met) {
        return;
    }
    let key = met.key(attempt);
    // SAFETY: the maps' values; plain numbers.
    unsafe {
        let entry = match LOCKS.get(&key) {
            Some(entry) if entry.access != F_UNLCK && entry.is_whole() => Some(entry),
            _ => None,
        };
        let mut ending = match entry {
            Some(entry) => DEAD.get(entry.by.process()),
            None => None,
        };
        let mut is_owner = false;
        let mut of_owner = ProcessKey { start: 0, tgid: 0, reserved: 0 };
        if ending.is_none()
            && let Some(globals) = globals()
            && (*globals).owners != 0
            && let Some(owner) = OWNERS.get(key.of_owner())
        {
            of_owner = ProcessKey { start: owner.start, tgid: owner.tgid, reserved: 0 };
            is_owner = true;
            ending = DEAD.get(of_owner);
        }
        if !attended && ending.is_none() {
            return;
        }
        if kind == KIND_REFUSED && is_told(&key, at, ending.is_some()) {
            return;
        }
        let room = Room::of(kind);
        if let Some(entry) = entry
            && !is_owner
        {
            return moment::tell(attempt, &Moment { kind, at, key: &key, entry, ending, room });
        }
        let Some(to) = counters::draft(attempt.seat) else { return };
        words::clear(to);
        as_met(to, &met, attempt);
        if is_owner {
            ((*to).by.start, (*to).by.tgid) = (of_owner.start, of_owner.tgid);
        }
        let entry = &*to;
        moment::tell(attempt, &Moment { kind, at, key: &key, entry, ending, room });
    }
}

/// What is known of a lock that no table has.
#[inline(always)]
unsafe fn as_met(to: *mut Entry, met: &Met, attempt: &Attempt) {
    let file = attempt.file();
    // SAFETY: the caller gives a place for drafts.
    unsafe {
        (*to).end = met.end;
        (*to).ino = file.ino;
        (*to).access = met.access;
        (*to).flags = met.flags;
        (*to).recorded = met.recorded;
        (*to).dev = file.dev;
    }
}

/// True where a refused attempt of this thread on this lock was told a moment ago. One that was not
/// told meanwhile is counted all the same.
#[inline(always)]
unsafe fn is_told(key: &Key, at: u64, exiting: bool) -> bool {
    let of = refusal_of(party::ids().1, key, exiting);
    let Some(last) = refusal(of) else { return false };
    // SAFETY: the map's value; plain numbers, of which a wrong one costs or saves a record.
    unsafe {
        if (*last).of == of && at.wrapping_sub((*last).at) < REFUSAL_WINDOW {
            return true;
        }
        (*last).of = of;
        (*last).at = at;
    }
    false
}
