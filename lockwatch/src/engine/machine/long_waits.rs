//! Waits that passed their threshold.
//!
//! Refuses to tell of a wait that no reading showed at its threshold or later.

use std::collections::BTreeMap;

use super::schedule::Schedule;
use super::telling::{self, News, Scene};
use crate::engine::event::Kind;
use crate::engine::identity::{Access, BootTime, LockKind, Range, RecordedPid};
use crate::engine::input::FileId;

/// What makes two requests of two readings the same wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wait {
    file: FileId,
    kind: LockKind,
    access: Access,
    range: Range,
    requester: RecordedPid,
    since: Option<BootTime>,
    /// Which of several that nothing else tells apart.
    nth: u32,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    from: BootTime,
    told: bool,
}

/// The waits of the last reading. Bounded by its waiters.
#[derive(Clone, Debug, Default)]
pub(super) struct LongWaits {
    waits: BTreeMap<Wait, Seen>,
}

impl LongWaits {
    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.waits.len()
    }

    /// A new view, of a reading that was begun at `begun`.
    pub(super) fn read(
        &mut self,
        begun: BootTime,
        threshold: u64,
        schedule: &mut Schedule,
        scene: Scene<'_>,
    ) -> Vec<News> {
        let view = scene.view;
        let mut now = BTreeMap::new();
        let mut news = Vec::new();
        let mut next: Option<BootTime> = None;
        for (waiter, blockers) in view.snapshot.waiters.iter().zip(&view.blockers) {
            let file = &view.snapshot.files[waiter.file.0 as usize];
            let mut wait = Wait {
                file: FileId { dev: file.dev, ino: file.ino },
                kind: waiter.kind,
                access: waiter.access,
                range: waiter.range,
                requester: waiter.requester,
                since: waiter.since,
                nth: 0,
            };
            while now.contains_key(&wait) {
                wait.nth += 1;
            }
            let from = waiter.since.unwrap_or(begun);
            let mut seen = self.waits.get(&wait).copied().unwrap_or(Seen { from, told: false });
            let long_at = seen.from.after(threshold);
            if !seen.told && begun >= long_at {
                seen.told = true;
                let locks = blockers.iter().map(|&place| &view.locks[place as usize]);
                news.push(News {
                    lock: locks.clone().next().map(|lock| scene.told(lock)),
                    kind: Kind::LongWait {
                        by: telling::requester(view, waiter),
                        since: waiter.since,
                        blocked_by: locks.map(|lock| lock.id).collect(),
                    },
                });
            } else if !seen.told {
                next = Some(next.map_or(long_at, |next| next.min(long_at)));
            }
            now.insert(wait, seen);
        }
        if let Some(next) = next {
            schedule.at(next);
        }
        self.waits = now;
        news
    }
}
