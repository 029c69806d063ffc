//! Attempts on a lock whose owner was already exiting and had not yet released it.
//!
//! Refuses to call it a race before the lock is seen to end with its owner, or to be stuck in its
//! exit: an owner that handed the lock over exits too.

use std::collections::{BTreeMap, BTreeSet};

use super::reorder;
use super::schedule::Schedule;
use super::telling::{News, Scene};
use crate::engine::classify::{Reason, State};
use crate::engine::event::{Kind, Party};
use crate::engine::id::LockId;
use crate::engine::identity::{BootTime, ProcessId, StartTime};
use crate::engine::input::{Attempt, Ended};
use crate::engine::snapshot::Death;

/// Attempts, and ends of locks, that are remembered at once.
const MOST: usize = 1 << 12;

/// Before every other process.
const FIRST: ProcessId = ProcessId { pid: i32::MIN, start: StartTime(0) };

/// Attempts that wait for what becomes of the lock. Bounded by the grace and [`MOST`].
#[derive(Clone, Debug, Default)]
pub(super) struct ExitRaces {
    /// The first attempt of each process on each lock.
    pending: BTreeMap<(LockId, ProcessId), Pending>,
    /// The kernel may tell of an attempt after the end of the lock that it met. With each end those
    /// whose attempt was told.
    ended: BTreeMap<LockId, (Ended, BTreeSet<ProcessId>)>,
    /// The same by age.
    ends: BTreeSet<(BootTime, LockId)>,
    forgotten: u64,
}

#[derive(Clone, Debug)]
struct Pending {
    attempt: Attempt,
    /// The death of the lock's owner.
    death: Death,
    /// When a reading was told of that shows the lock no more.
    gone: Option<BootTime>,
}

impl ExitRaces {
    /// Somebody tried.
    pub(super) fn attempt(
        &mut self,
        attempt: &Attempt,
        grace: u64,
        schedule: &mut Schedule,
        scene: Scene<'_>,
    ) -> Option<News> {
        let death = attempt
            .exiting
            .filter(|death| death.process != attempt.by.id && death.at <= attempt.at)?;
        let key = attempt.met.id.key();
        if let Some((ended, told)) = self.ended.get_mut(&key)
            && is_end_of(ended, &death, attempt)
        {
            let new = told.len() < MOST && told.insert(attempt.by.id);
            return new.then(|| tell(attempt, death, Some(ended), scene));
        }
        schedule.at(death.at.after(grace));
        let attempt = attempt.clone();
        let by = attempt.by.id;
        self.pending.entry((key, by)).or_insert(Pending { attempt, death, gone: None });
        if self.pending.len() > MOST {
            self.pending.pop_first();
            self.forgotten += 1;
        }
        None
    }

    /// A lock ended.
    pub(super) fn end(&mut self, ended: &Ended, scene: Scene<'_>) -> Vec<News> {
        let key = ended.lock.id.key();
        let mut news = Vec::new();
        let mut told = BTreeSet::new();
        let of_lock: Vec<(LockId, ProcessId)> = self
            .pending
            .range((key, FIRST)..)
            .map(|(at, _)| *at)
            .take_while(|(id, _)| *id == key)
            .collect();
        for at in of_lock {
            if let Some(Pending { attempt, death, .. }) = self.pending.remove(&at)
                && is_end_of(ended, &death, &attempt)
            {
                told.insert(at.1);
                news.push(tell(&attempt, death, Some(ended), scene));
            }
        }
        if let Some((before, _)) = self.ended.insert(key, (ended.clone(), told)) {
            self.ends.remove(&(before.at, key));
        }
        self.ends.insert((ended.at, key));
        if self.ends.len() > MOST {
            self.forget_an_end();
        }
        news
    }

    /// A reading that was begun at `begun` shows which owners are stuck in their exit.
    pub(super) fn read(
        &mut self,
        begun: BootTime,
        now: BootTime,
        grace: u64,
        scene: Scene<'_>,
    ) -> Vec<News> {
        let view = scene.view;
        let mut news = Vec::new();
        self.pending.retain(|(id, _), Pending { attempt, death, gone }| {
            if begun < death.at.after(grace) {
                return true;
            }
            let Some(lock) = view.find(*id) else {
                // One that is gone without a record may have been an heir's; but the record of what
                // a reading does not show any more may come after it.
                return now <= gone.get_or_insert(now).after(2 * reorder::WINDOW);
            };
            if lock.verdict.reason == Some(Reason::Exiting) {
                news.push(tell(attempt, *death, None, scene));
            }
            lock.verdict.state == State::Unknown
        });
        news
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: BootTime) {
        while self.ends.first().is_some_and(|(at, _)| at.after(2 * reorder::WINDOW) <= now) {
            self.forget_an_end();
        }
    }

    fn forget_an_end(&mut self) {
        if let Some((_, id)) = self.ends.pop_first() {
            self.ended.remove(&id);
        }
    }

    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        let told = self.ended.values().map(|(_, told)| told.len());
        self.pending.len() + self.ended.len() + told.sum::<usize>()
    }

    /// How many attempts had to be forgotten since the last call.
    pub(super) fn forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }
}

/// True where the lock that an attempt met ended by the death that it met.
fn is_end_of(ended: &Ended, death: &Death, attempt: &Attempt) -> bool {
    // Either of the two may be told a little after it happened.
    ended.death.process == death.process
        && ended.is_by_death()
        && attempt.at <= ended.at.after(reorder::WINDOW)
}

fn tell(attempt: &Attempt, death: Death, ended: Option<&Ended>, scene: Scene<'_>) -> News {
    let by = ended.map(|ended| (&ended.by, ended.taken_at));
    News::of(
        scene.recorded(&attempt.met, by, Some(death)),
        Kind::ExitRace {
            death,
            by: Party::from(&attempt.by),
            at: attempt.at,
            outcome: attempt.outcome,
        },
    )
}
