//! What a view shows, counted once, when it is new.
//!
//! Refuses to call a file free that it could not see: where the view may lack locks, a watch
//! without one is left out.

use crate::engine::classify::{Reason, State};
use crate::engine::identity::{Access, LockKind};
use crate::engine::input::Watched;
use crate::engine::view::{LockView, View};
use crate::sink::clock::Clock;

const KINDS: usize = LockKind::ALL.len();
const STATES: usize = State::ALL.len();
const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Unlock];

/// The kinds that are shown also where there are none: what any machine can have.
const ORDINARY: [LockKind; 4] = [LockKind::Flock, LockKind::Posix, LockKind::Ofd, LockKind::Lease];

/// The counts of a view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    locks: [[[u64; STATES]; ACCESSES.len()]; KINDS],
    waiters: [u64; KINDS],
    orphaned: [u64; Reason::ALL.len()],
    watches: Vec<WatchCounts>,
}

/// What a view shows of one watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchCounts {
    /// Its name.
    pub name: String,
    /// Whether it has an orphaned lock; `None` where that cannot be told.
    pub hot: Option<bool>,
    /// Whether it is locked; `None` where that cannot be told.
    pub held: Option<bool>,
    /// Since when, nanoseconds since 1970: when the oldest of its locks was taken. `None` where it
    /// is not locked, or where that is not known of all of them.
    pub since: Option<u64>,
}

impl Counts {
    /// Counts: once over every lock, and a look-up for each watch.
    pub fn of<'a>(
        view: &View,
        watches: impl IntoIterator<Item = &'a Watched>,
        clock: Clock,
    ) -> Self {
        let mut counts = Self::default();
        for lock in &view.locks {
            let facts = view.lock(lock);
            let state = lock.verdict.state as usize;
            counts.locks[facts.kind as usize][facts.access as usize][state] += 1;
            if lock.verdict.state == State::Orphaned
                && let Some(reason) = lock.verdict.reason
            {
                counts.orphaned[reason as usize] += 1;
            }
        }
        for waiter in &view.snapshot.waiters {
            counts.waiters[waiter.kind as usize] += 1;
        }
        counts.watches = watches.into_iter().map(|watch| watched(view, watch, clock)).collect();
        counts
    }

    /// Every count of locks that is worth a line.
    pub(super) fn locks(&self) -> impl Iterator<Item = (LockKind, Access, State, u64)> {
        LockKind::ALL.into_iter().flat_map(move |kind| {
            ACCESSES.into_iter().flat_map(move |access| {
                State::ALL.into_iter().filter_map(move |state| {
                    let count = self.locks[kind as usize][access as usize][state as usize];
                    let ordinary = ORDINARY.contains(&kind) && access != Access::Unlock;
                    (count > 0 || ordinary).then_some((kind, access, state, count))
                })
            })
        })
    }

    pub(super) fn waiters(&self) -> impl Iterator<Item = (LockKind, u64)> {
        LockKind::ALL.into_iter().filter_map(|kind| {
            let count = self.waiters[kind as usize];
            (count > 0 || ORDINARY.contains(&kind)).then_some((kind, count))
        })
    }

    pub(super) fn orphaned(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().map(|reason| (reason, self.orphaned[reason as usize]))
    }

    pub(super) fn watches(&self) -> &[WatchCounts] {
        &self.watches
    }
}

fn watched(view: &View, watch: &Watched, clock: Clock) -> WatchCounts {
    let locks = watch.file.map_or(&[][..], |file| view.on_file(file.dev, file.ino));
    // Where nothing is, nothing is locked.
    let complete = watch.file.is_none() || view.has_every_lock();
    let is_in = |state| locks.iter().any(|lock| lock.verdict.state == state);
    let hot = is_in(State::Orphaned);
    let told = complete && !is_in(State::Unknown);
    WatchCounts {
        name: watch.name.clone(),
        hot: (hot || told).then_some(hot),
        held: (complete || !locks.is_empty()).then_some(!locks.is_empty()),
        since: if complete { oldest(view, locks, clock) } else { None },
    }
}

fn oldest(view: &View, locks: &[LockView], clock: Clock) -> Option<u64> {
    let mut oldest: Option<u64> = None;
    for lock in locks {
        let taken = clock.moment(view.lock(lock).taken.as_ref()?.at).0;
        oldest = Some(oldest.map_or(taken, |oldest| oldest.min(taken)));
    }
    oldest
}
