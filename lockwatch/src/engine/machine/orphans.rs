//! Which locks are called orphaned, and when they are so no longer.
//!
//! Refuses to call a lock that because its owner's death was reported: only a reading that was begun
//! a grace after the death counts, and where the death was not seen, or the reason may pass by
//! itself, two readings a grace apart. Until then the view says `unknown`.

use std::collections::BTreeMap;

use super::schedule::Schedule;
use super::telling::{self, News, Scene};
use crate::engine::classify::{Confidence, Reason, State, Verdict};
use crate::engine::event::{Kind, Recovery, Told};
use crate::engine::evidence::Evidence;
use crate::engine::id::LockId;
use crate::engine::identity::BootTime;
use crate::engine::input::{Ended, FileId};
use crate::engine::view::View;

/// Ends of locks that are remembered until a reading shows them.
const MOST: usize = 1 << 16;

/// The orphans that were announced, and those that may become ones.
///
/// Bounded by the locks of the last reading, and [`MOST`].
#[derive(Clone, Debug, Default)]
pub(super) struct Orphans {
    announced: BTreeMap<LockId, Announced>,
    /// Since which reading each looks orphaned.
    suspects: BTreeMap<LockId, BootTime>,
    /// When each lock ended that a reading under way may still show.
    ended: BTreeMap<LockId, BootTime>,
}

#[derive(Clone, Debug)]
struct Announced {
    told: Told,
    reason: Option<Reason>,
}

impl Orphans {
    /// A daemon before announced it.
    pub(super) fn remember(&mut self, told: Told, exiting: bool) {
        let reason = exiting.then_some(Reason::Exiting);
        self.announced.insert(told.lock.id.key(), Announced { told, reason });
    }

    /// True where the lock was announced and has not ended.
    pub(super) fn contains(&self, id: LockId) -> bool {
        self.announced.contains_key(&id.key())
    }

    /// True where the lock outlived its owner, and not only because that is stuck in its exit.
    pub(super) fn outlived_owner(&self, id: LockId) -> bool {
        let announced = self.announced.get(&id.key());
        announced.is_some_and(|orphan| orphan.reason != Some(Reason::Exiting))
    }

    /// The files of all that were announced.
    pub(super) fn files(&self) -> impl Iterator<Item = FileId> {
        self.announced.values().map(|orphan| orphan.told.lock.file)
    }

    /// What may turn out to be an orphan, with the first reading that showed it so.
    pub(super) fn suspects(&self) -> impl Iterator<Item = (&LockId, &BootTime)> {
        self.suspects.iter()
    }

    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.announced.len() + self.suspects.len() + self.ended.len()
    }

    /// Takes back, in a view of a reading that was begun at `begun`, every orphan that cannot be
    /// called one yet, and orders the readings that will tell.
    pub(super) fn confirm(
        &mut self,
        view: &mut View,
        begun: BootTime,
        grace: u64,
        schedule: &mut Schedule,
    ) {
        self.ended.retain(|_, ended| *ended >= begun);
        let mut suspects = BTreeMap::new();
        for place in 0..view.locks.len() {
            let lock = &view.locks[place];
            if lock.verdict.state != State::Orphaned {
                continue;
            }
            let key = lock.id.key();
            let ended = self.ended.contains_key(&key);
            if self.announced.contains_key(&key) && !ended {
                continue;
            }
            let first = self.suspects.get(&key).copied().unwrap_or(begun);
            let mut ripe_at = match telling::death(view, lock) {
                Some(death) => death.at.after(grace),
                None => first.after(grace),
            };
            if view.is_fleeting(lock) {
                ripe_at = ripe_at.max(first.after(grace));
            }
            if !ended {
                suspects.insert(key, first);
            }
            if ended || begun < ripe_at {
                if !ended {
                    schedule.at(ripe_at);
                }
                doubt(&mut view.locks[place].verdict);
            }
        }
        self.suspects = suspects;
    }

    /// What is new in a view that was confirmed.
    pub(super) fn announce(&mut self, scene: Scene<'_>) -> Vec<News> {
        let view = scene.view;
        let mut news = Vec::new();
        let had_any = !self.announced.is_empty();
        let every_lock = view.has_every_lock();
        self.announced.retain(|&id, orphan| {
            let how = match view.find(id) {
                None if every_lock => Recovery::Released,
                Some(lock) if !matches!(lock.verdict.state, State::Orphaned | State::Unknown) => {
                    Recovery::Reclassified
                }
                // What could not be read proves nothing.
                _ => return true,
            };
            news.push(News::of(orphan.told.clone(), Kind::Recovered { how }));
            false
        });
        for lock in view.orphaned() {
            let told = scene.told(lock);
            let orphan = Announced { told: told.clone(), reason: lock.verdict.reason };
            self.suspects.remove(&lock.id.key());
            if self.announced.insert(lock.id.key(), orphan).is_none() {
                let (holders, more) = telling::holders(view, lock);
                let verdict = lock.verdict.clone();
                news.push(News::of(told, Kind::Orphaned { verdict, holders, more }));
            }
        }
        self.all_clear(had_any, &mut news);
        news
    }

    /// A lock ended.
    pub(super) fn end(&mut self, ended: &Ended) -> Vec<News> {
        let key = ended.lock.id.key();
        self.suspects.remove(&key);
        self.ended.insert(key, ended.at);
        if self.ended.len() > MOST {
            // A reading that shows the lock all the same asks for one more.
            self.ended.pop_first();
        }
        let mut news = Vec::new();
        if let Some(orphan) = self.announced.remove(&key) {
            let how = Recovery::Released;
            news.push(News::of(orphan.told, Kind::Recovered { how }));
            self.all_clear(true, &mut news);
        }
        news
    }

    fn all_clear(&self, had_any: bool, news: &mut Vec<News>) {
        let ended = news.iter().any(|news| matches!(news.kind, Kind::Recovered { .. }));
        if had_any && ended && self.announced.is_empty() {
            news.push(News::general(Kind::AllClear));
        }
    }
}

fn doubt(verdict: &mut Verdict) {
    verdict.state = State::Unknown;
    verdict.reason = None;
    verdict.confidence = Confidence::Certain;
    verdict.evidence.push(Evidence::Unconfirmed);
}
