//! Attempts that failed: who waits since when, and what a refused one met.

use lockwatch_common::history::{KIND_BLOCKED, KIND_REFUSED, Wait};

use crate::attempt::Attempt;
use crate::moment::Moment;
use crate::tables::{DEAD, LOCKS, WAITERS, add, held};
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
    // SAFETY: the maps' values; a thread waits for one lock at a time.
    unsafe {
        if let Some(known) = WAITERS.get(tid as u64)
            && known.key == attempt.key
            && known.tgid == tgid
            && known.access == attempt.access
        {
            return 0;
        }
        counters::wait(counters::kind(attempt.key.class, attempt.flags));
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
        };
        if WAITERS.insert(tid as u64, &wait, 0).is_err() {
            counters::lost_other();
        } else if let Some(held) = held(tid) {
            add(&raw mut (*held).waits, 1);
        }
    }
    now
}

/// The attempt was answered with `EAGAIN`.
#[inline(always)]
pub(crate) fn refused(attempt: &Attempt) {
    counters::refusal(counters::kind(attempt.key.class, attempt.flags));
    tell(KIND_REFUSED, now(), attempt);
}

/// The current thread does not wait any longer: it has what it waited for where `granted`.
#[inline(never)]
pub(crate) fn over(granted: bool) {
    let (_, tid) = party::ids();
    let Some(held) = held(tid) else { return };
    // SAFETY: the maps' values; only the thread itself removes its wait.
    unsafe {
        if (*held).waits <= 0 {
            return;
        }
        let Some(wait) = WAITERS.get(tid as u64) else { return };
        if granted {
            let kind = counters::kind(wait.key.class, wait.flags);
            counters::granted(kind, now().wrapping_sub(wait.since));
        }
        if WAITERS.remove(tid as u64).is_ok() {
            add(&raw mut (*held).waits, -1);
        }
    }
}

/// Tells of an attempt that met a lock whose taker is dead, or a file with attention.
#[inline(never)]
fn tell(kind: u32, at: u64, attempt: &Attempt) {
    let file = attempt.file();
    let attended = attention::is_paid(&file, at);
    let Some(met) = conflict::met(attempt) else { return };
    let key = met.key(attempt);
    // SAFETY: the maps' values; plain numbers.
    unsafe {
        match LOCKS.get(&key) {
            Some(entry) => {
                let ending = DEAD.get(entry.by.process());
                if attended || ending.is_some() {
                    moment::tell(attempt, &Moment { kind, at, key: &key, entry, ending });
                }
            }
            None if attended => {
                let Some(to) = counters::draft() else { return };
                words::clear(to);
                (*to).end = met.end;
                (*to).ino = file.ino;
                (*to).access = met.access;
                (*to).flags = met.flags;
                (*to).recorded = met.recorded;
                (*to).dev = file.dev;
                let entry = &*to;
                moment::tell(attempt, &Moment { kind, at, key: &key, entry, ending: None });
            }
            None => {}
        }
    }
}
