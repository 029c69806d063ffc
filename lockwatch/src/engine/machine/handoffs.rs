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
    open: BTreeMap<FileId, BTreeMap<LockId, Ended>>,
    /// The same by the moment of the crash.
    crashes: BTreeSet<(BootTime, FileId, LockId)>,
    /// Acquisitions of the window: the kernel says that a lock was given back only after another may
    /// have got it, and whoever gave it back may have been preempted in between.
    early: BTreeMap<FileId, BTreeSet<(BootTime, Acquired)>>,
    /// The same by age.
    takings: BTreeSet<(BootTime, FileId)>,
    forgotten: u64,
}

impl Handoffs {
    pub(super) fn new(window: u64) -> Self {
        Self {
            window,
            open: BTreeMap::new(),
            crashes: BTreeSet::new(),
            early: BTreeMap::new(),
            takings: BTreeSet::new(),
            forgotten: 0,
        }
    }

    /// A lock ended that did not outlive its owner.
    pub(super) fn end(&mut self, ended: Ended, scene: Scene<'_>) -> Option<News> {
        if !is_crash(&ended) {
            return None;
        }
        let early = self.early.get(&ended.lock.file).into_iter().flatten();
        if let Some((_, taker)) = early.into_iter().find(|(_, taker)| self.is_next(&ended, taker)) {
            return Some(tell(&ended, taker, scene));
        }
        let (at, file, id) = (ended.death.at, ended.lock.file, ended.lock.id.key());
        if let Some(before) = self.open.entry(file).or_default().insert(id, ended) {
            self.crashes.remove(&(before.death.at, file, id));
        }
        self.crashes.insert((at, file, id));
        if self.crashes.len() > MOST {
            self.forget_a_crash();
            self.forgotten += 1;
        }
        None
    }

    /// A lock was taken, which is known since `now`.
    pub(super) fn acquire(
        &mut self,
        taker: &Acquired,
        now: BootTime,
        scene: Scene<'_>,
    ) -> Vec<News> {
        let file = taker.lock.file;
        let open = self.open.get(&file).into_iter().flatten();
        let next: Vec<Ended> = open
            .filter(|(_, ended)| self.is_next(ended, taker))
            .map(|(_, ended)| ended.clone())
            .collect();
        for ended in &next {
            self.close(ended.death.at, file, ended.lock.id.key());
        }
        self.early.entry(file).or_default().insert((now, taker.clone()));
        self.takings.insert((now, file));
        if self.takings.len() > MOST {
            self.forget_a_taking();
        }
        next.iter().map(|ended| tell(ended, taker, scene)).collect()
    }

    /// Forgets what is too old.
    pub(super) fn expire(&mut self, now: BootTime) {
        let until = self.window.saturating_add(2 * reorder::WINDOW);
        while self.crashes.first().is_some_and(|(at, ..)| at.after(until) <= now) {
            self.forget_a_crash();
        }
        while self.takings.first().is_some_and(|(at, _)| at.after(until) <= now) {
            self.forget_a_taking();
        }
    }

    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        let early = self.early.values().map(BTreeSet::len);
        self.crashes.len() + self.takings.len() + early.sum::<usize>()
    }

    /// How many crashes had to be forgotten since the last call.
    pub(super) fn forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }

    fn forget_a_crash(&mut self) {
        if let Some((at, file, id)) = self.crashes.first().copied() {
            self.close(at, file, id);
        }
    }

    fn close(&mut self, at: BootTime, file: FileId, id: LockId) {
        self.crashes.remove(&(at, file, id));
        if let Some(of_file) = self.open.get_mut(&file) {
            of_file.remove(&id);
            if of_file.is_empty() {
                self.open.remove(&file);
            }
        }
    }

    fn forget_a_taking(&mut self) {
        let Some((at, file)) = self.takings.pop_first() else { return };
        if let Some(of_file) = self.early.get_mut(&file) {
            while of_file.first().is_some_and(|(known, _)| *known <= at) {
                of_file.pop_first();
            }
            if of_file.is_empty() {
                self.early.remove(&file);
            }
        }
    }

    /// Whoever got what conflicts with an exclusive lock after its owner's death can only have got
    /// it after its end.
    fn is_next(&self, ended: &Ended, taker: &Acquired) -> bool {
        let (old, new) = (&ended.lock, &taker.lock);
        // A file that was removed leaves its inode number to the next.
        let is_other_file = match (ended.generation, taker.generation) {
            (Some(old), Some(new)) => old != new,
            _ => false,
        };
        old.kind.conflict_class() == new.kind.conflict_class()
            && old.range.overlaps(new.range)
            && taker.by.id != ended.by.id
            && !is_other_file
            && ended.death.at <= taker.at
            && taker.at <= ended.death.at.after(self.window)
    }
}

/// True of an exclusive lock that ended because its owner died without unlocking it.
fn is_crash(ended: &Ended) -> bool {
    let is_lock = matches!(ended.lock.kind, LockKind::Flock | LockKind::Posix | LockKind::Ofd);
    is_lock && ended.is_by_death() && ended.lock.access == Access::Write && !ended.death.is_clean()
}

fn tell(ended: &Ended, taker: &Acquired, scene: Scene<'_>) -> News {
    let by = Some((&ended.by, ended.taken_at));
    News::of(
        scene.recorded(&ended.lock, by, Some(ended.death)),
        Kind::CrashHandoff {
            death: ended.death,
            // The kernel says it late, and nobody gets what another has.
            released_at: ended.at.min(taker.at),
            to: Party::from(&taker.by),
            acquired_at: taker.at,
            written: ended.written,
        },
    )
}
