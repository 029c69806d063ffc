//! Lock files that were unlinked and made anew while they were locked.
//!
//! Refuses to go by the path alone: the old file must have lost its name, and the path must name
//! another inode of the same device now.

use std::collections::{BTreeMap, BTreeSet};

use super::telling::{News, Scene};
use crate::engine::event::Kind;
use crate::engine::identity::{Access, Dev, LockKind};
use crate::engine::input::FileId;
use crate::engine::snapshot::File;
use crate::engine::view::{LockView, View};

/// The pairs of files that were told. Bounded by the locks of the last reading.
#[derive(Clone, Debug, Default)]
pub(super) struct Replaced {
    told: BTreeSet<(FileId, FileId)>,
}

impl Replaced {
    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.told.len()
    }

    /// A new view.
    pub(super) fn read(&mut self, scene: Scene<'_>) -> Vec<News> {
        let view = scene.view;
        let is_old = |file: &File| file.deleted == Some(true) && file.replaced == Some(true);
        let exclusive = || view.locks.iter().filter(|lock| is_exclusive(view, lock));
        let old: Vec<&LockView> = exclusive().filter(|lock| is_old(view.file(lock))).collect();
        if old.is_empty() {
            self.told.clear();
            return Vec::new();
        }
        // The first exclusive lock of each file that has or had one of these paths.
        let paths: BTreeSet<_> = old.iter().filter_map(|lock| label(view.file(lock))).collect();
        let mut files: BTreeMap<(Dev, &[u8]), BTreeMap<FileId, &LockView>> = BTreeMap::new();
        for lock in exclusive() {
            let path = label(view.file(lock)).filter(|path| paths.contains(path));
            let Some(path) = path else { continue };
            files.entry(path).or_default().entry(id(lock)).or_insert(lock);
        }
        let mut now = BTreeSet::new();
        let mut news = Vec::new();
        for of_path in files.values() {
            for (&one, &lock) in of_path {
                for (&other, &with) in of_path {
                    let (gone, gone_too) = (is_old(view.file(lock)), is_old(view.file(with)));
                    // Two that are both gone are one pair.
                    if one == other || !gone || gone_too && other < one {
                        continue;
                    }
                    // One that was unlinked, with nothing in its place, is no replacement.
                    if !gone_too && view.file(with).deleted == Some(true) {
                        continue;
                    }
                    now.insert((one, other));
                    if !self.told.contains(&(one, other)) {
                        let new = scene.told(with);
                        news.push(News::of(scene.told(lock), Kind::LockReplaced { new }));
                    }
                }
            }
        }
        self.told = now;
        news
    }
}

fn is_exclusive(view: &View, lock: &LockView) -> bool {
    let facts = view.lock(lock);
    facts.access == Access::Write
        && matches!(facts.kind, LockKind::Flock | LockKind::Posix | LockKind::Ofd)
}

fn id(lock: &LockView) -> FileId {
    FileId { dev: lock.id.dev, ino: lock.id.ino }
}

fn label(file: &File) -> Option<(Dev, &[u8])> {
    Some((file.dev, file.path.as_deref()?))
}
