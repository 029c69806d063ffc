//! What an event says of a lock and of processes, from the newest view.
//!
//! Refuses to number or date events: that is the engine's last step.

use std::collections::BTreeMap;

use crate::engine::event::{Event, Holding, Kind, Party, Told};
use crate::engine::identity::{BootTime, RecordedPid};
use crate::engine::input::{FileId, LockName, Moment, Watched};
use crate::engine::snapshot::{Death, Remembered, Waiter};
use crate::engine::view::{LockView, View};

/// Holders that an event names.
const HOLDERS: usize = 16;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct News {
    /// What it is about, where it is about one lock.
    pub(super) lock: Option<Told>,
    pub(super) kind: Kind,
}

impl News {
    pub(super) fn of(lock: Told, kind: Kind) -> Self {
        Self { lock: Some(lock), kind }
    }

    pub(super) fn general(kind: Kind) -> Self {
        Self { lock: None, kind }
    }

    /// True where it has to do with a file whose path is not known, though somebody may have it open.
    pub(super) fn wants_a_path(&self) -> bool {
        let is_pathless = |told: &Told| told.path.is_none();
        self.lock.as_ref().is_some_and(is_pathless)
    }

    /// The same with the path of its file, where that is known by now.
    pub(super) fn with_path(mut self, scene: Scene<'_>) -> Self {
        if let Some(told) = &mut self.lock {
            told.path = scene.path(told.lock.file);
        }
        self
    }

    /// The event with its number.
    pub(super) fn numbered(self, seq: u64, at: Moment) -> Event {
        Event { seq, at, lock: self.lock, kind: self.kind }
    }
}

/// The newest view and the files that are watched.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) view: &'a View,
    pub(super) watched: &'a BTreeMap<FileId, Watched>,
}

impl Scene<'_> {
    /// A lock of the view.
    pub(super) fn told(&self, lock: &LockView) -> Told {
        let facts = self.view.lock(lock);
        let name = self.view.name(lock);
        let taken = facts.taken.as_ref();
        let recorded = match facts.acquirer {
            RecordedPid::Local(pid) => Some(Party::of(pid, self.view.acquirer(lock))),
            _ => None,
        };
        Told {
            path: self.path(name.file),
            watch: self.watch(name.file),
            acquirer: taken.map(|taken| Party::from(&*taken.by)).or(recorded),
            death: death(self.view, lock).copied(),
            taken_at: taken.map(|taken| taken.at),
            lock: name,
        }
    }

    /// A lock of a record.
    pub(super) fn recorded(
        &self,
        name: &LockName,
        by: Option<(&Remembered, BootTime)>,
        death: Option<Death>,
    ) -> Told {
        let seen = self.view.find(name.id).map(|lock| self.told(lock));
        let mut told = seen.unwrap_or_else(|| Told {
            lock: name.clone(),
            path: self.path(name.file),
            watch: self.watch(name.file),
            acquirer: None,
            death: None,
            taken_at: None,
        });
        told.lock = LockName { id: told.lock.id, ..name.clone() };
        if let Some((by, at)) = by {
            told.acquirer = Some(by.into());
            told.taken_at = Some(at);
        }
        told.death = death.or(told.death);
        told
    }

    /// True where the file is watched.
    pub(super) fn is_watched(&self, file: FileId) -> bool {
        self.watched.contains_key(&file)
    }

    fn watch(&self, file: FileId) -> Option<String> {
        self.watched.get(&file).map(|watched| watched.name.clone())
    }

    fn path(&self, file: FileId) -> Option<Box<[u8]>> {
        let locks = self.view.on_file(file.dev, file.ino);
        let seen = locks.first().and_then(|lock| self.view.file(lock).path.as_deref());
        let seen = seen.map(Box::from);
        seen.or_else(|| self.watched.get(&file).map(|watched| watched.path.clone()))
    }
}

/// The death of the process that took a lock of the view.
pub(super) fn death<'a>(view: &'a View, lock: &LockView) -> Option<&'a Death> {
    let taken = view.lock(lock).taken.as_ref()?;
    view.snapshot.deaths.iter().find(|death| death.process == taken.by.id)
}

/// The first holders of a lock, and how many more there are.
pub(super) fn holders(view: &View, lock: &LockView) -> (Vec<Holding>, usize) {
    let all = || view.holdings(lock);
    let more = all().count().saturating_sub(HOLDERS);
    let holding = |held: crate::engine::view::Holding<'_>| Holding {
        by: held.pid.map(|pid| Party::of(pid, view.process(pid))),
        via: held.via,
        fd: held.fd,
    };
    (all().take(HOLDERS).map(holding).collect(), more)
}

/// Who asks.
pub(super) fn requester(view: &View, waiter: &Waiter) -> Option<Party> {
    match waiter.requester {
        RecordedPid::Local(pid) => Some(Party::of(pid, view.process(pid))),
        _ => None,
    }
}
