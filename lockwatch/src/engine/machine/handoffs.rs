//! Exclusive locks that ended by their owner's crash, and who took them next.
//!
//! Refuses a hand-off of a lock that outlived its owner: that one did not end by the crash.

use std::collections::{BTreeMap, BTreeSet};

use super::reorder;
use super::telling::{News, Scene};
use crate::engine::event::{Kind, Party};
use crate::engine::id::LockId;
use crate::engine::identity::{Access, BootTime, LockKind};
use crate::engine::input::{Acquired, Ended, FileId};

/// Crashes, and acquisitions, that are remembered at once.
const MOST: usize = 1 << 12;

/// Crashes that wait for the next acquisition. Bounded by the window and [`MOST`].
#[derive(Clone, Debug)]
pub(super) struct Handoffs {
    window: u64,
    open: BTreeMap<LockId, Ended>,
    /// The kernel says that a lock was given back only after another may have got it.
    early: BTreeSet<(BootTime, Acquired)>,
    forgotten: u64,
}

impl Handoffs {
    pub(super) fn new(window: u64) -> Self {
        Self { window, open: BTreeMap::new(), early: BTreeSet::new(), forgotten: 0 }
    }

    /// A lock ended that did not outlive its owner.
    pub(super) fn end(&mut self, ended: Ended, scene: Scene<'_>) -> Option<News> {
        if !is_crash(&ended) {
            return None;
        }
        let taker = self.early.iter().map(|(_, taker)| taker);
        if let Some(taker) = taker.clone().find(|taker| self.is_next(&ended, taker)) {
            return Some(tell(&ended, taker, scene));
        }
        self.open.insert(ended.lock.id.key(), ended);
        if self.open.len() > MOST {
            self.open.pop_first();
            self.forgotten += 1;
        }
        None
    }

    /// A lock was taken.
    pub(super) fn acquire(&mut self, taker: &Acquired, scene: Scene<'_>) -> Vec<News> {
        let of_file = |ended: &Ended| ended.lock.file == taker.lock.file;
        let next: Vec<LockId> = self
            .open
            .iter()
            .filter(|(_, ended)| of_file(ended) && self.is_next(ended, taker))
            .map(|(&id, _)| id)
            .collect();
        let ended: Vec<Ended> = next.iter().filter_map(|id| self.open.remove(id)).collect();
        self.early.insert((taker.at, taker.clone()));
        if self.early.len() > MOST {
            self.early.pop_first();
        }
        ended.iter().map(|ended| tell(ended, taker, scene)).collect()
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: BootTime) {
        let until = self.window.saturating_add(2 * reorder::WINDOW);
        self.open.retain(|_, ended| ended.death.at.after(until) > now);
        self.early.retain(|(at, _)| at.after(2 * reorder::WINDOW) > now);
    }

    /// When [`Self::expire`] has something to forget on whose file attention is still paid.
    pub(super) fn deadline(&self) -> Option<BootTime> {
        let until = self.window.saturating_add(2 * reorder::WINDOW);
        self.open.values().map(|ended| ended.death.at.after(until)).min()
    }

    /// The files whose next acquisition matters.
    pub(super) fn files(&self) -> impl Iterator<Item = FileId> {
        self.open.values().map(|ended| ended.lock.file)
    }

    /// How many crashes had to be forgotten since the last call.
    pub(super) fn forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }

    /// Whoever got what conflicts with an exclusive lock after its owner's death can only have got
    /// it after its end.
    fn is_next(&self, ended: &Ended, taker: &Acquired) -> bool {
        let (old, new) = (&ended.lock, &taker.lock);
        old.file == new.file
            && old.kind.conflict_class() == new.kind.conflict_class()
            && old.range.overlaps(new.range)
            && taker.by.id != ended.by.id
            && ended.death.at <= taker.at
            && taker.at <= ended.death.at.after(self.window)
    }
}

/// True of an exclusive lock that ended because its owner died without unlocking it.
pub(super) fn is_crash(ended: &Ended) -> bool {
    let is_lock = matches!(ended.lock.kind, LockKind::Flock | LockKind::Posix | LockKind::Ofd);
    is_lock && ended.is_by_death() && ended.lock.access == Access::Write && !ended.death.is_clean()
}

fn tell(ended: &Ended, taker: &Acquired, scene: Scene<'_>) -> News {
    let by = Some((&ended.by, ended.taken_at));
    News::of(
        scene.recorded(&ended.lock, by, Some(ended.death)),
        Kind::CrashHandoff {
            death: ended.death,
            released_at: ended.at,
            to: Party::from(&taker.by),
            acquired_at: taker.at,
            written: ended.written,
        },
    )
}
