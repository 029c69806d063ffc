//! Who lost a lock by a reclaim and has the file open for writing: a write by it afterwards is told.
//!
//! Refuses to blame who has taken a lock on the file anew, and anybody at all once records were lost
//! that could have said so.

use std::collections::BTreeMap;

use super::telling::{News, Scene};
use crate::engine::event::{Kind, Party, Told};
use crate::engine::identity::{BootTime, ProcessId};
use crate::engine::input::{Acquired, FileId, Wrote};
use crate::engine::reclaim::progress::{Asker, Evicted};

/// For how long after a reclaim it is watched, nanoseconds.
pub const WATCHED_FOR: u64 = 60_000_000_000;
/// Evicted processes that are remembered at once.
const MOST: usize = 1 << 10;

/// Those whose writes would be a race.
#[derive(Clone, Debug, Default)]
pub(super) struct Evictions {
    of: BTreeMap<(FileId, ProcessId), Eviction>,
}

#[derive(Clone, Debug)]
struct Eviction {
    by: Asker,
    about: Told,
    who: Party,
    until: BootTime,
}

impl Evictions {
    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.of.len()
    }

    /// The files on which who locks must be known.
    pub(super) fn files(&self) -> impl Iterator<Item = FileId> {
        self.of.keys().map(|(file, _)| *file)
    }

    /// A lock was released that these had.
    pub(super) fn begin(&mut self, by: Asker, about: &Told, evicted: &[Evicted], now: BootTime) {
        for one in evicted {
            if self.of.len() >= MOST {
                return;
            }
            let who = Party {
                start: Some(one.process.start),
                comm: Some(one.comm.clone()),
                ..Party::of(one.process.pid, None)
            };
            let until = now.after(WATCHED_FOR);
            let eviction = Eviction { by, about: about.clone(), who, until };
            self.of.insert((about.lock.file, one.process), eviction);
        }
    }

    /// Somebody took a lock: what it writes from then on is its right.
    pub(super) fn acquire(&mut self, acquired: &Acquired) -> bool {
        self.of.remove(&(acquired.lock.file, acquired.by.id)).is_some()
    }

    /// Forgets all: that somebody took a lock anew may be among what was lost.
    pub(super) fn lose(&mut self) {
        self.of.clear();
    }

    pub(super) fn expire(&mut self, now: BootTime) -> bool {
        let before = self.of.len();
        self.of.retain(|_, eviction| now < eviction.until);
        self.of.len() != before
    }

    /// One of them wrote.
    pub(super) fn wrote(&mut self, wrote: &Wrote, scene: Scene<'_>) -> Option<News> {
        let Eviction { by, about, who, .. } = self.of.remove(&(wrote.file, wrote.process))?;
        let seen = scene.view.process(who.pid).filter(|process| process.start == who.start);
        let writer = if seen.is_some() { Party::of(who.pid, seen) } else { who };
        let kind = Kind::ReclaimRace {
            by,
            method: None,
            race: "written".into(),
            why: "who lost the lock wrote to the file afterwards".into(),
            writer: Some(writer),
            hooks: Vec::new(),
        };
        Some(News::of(about, kind))
    }
}
