//! The tree, as a pure function of the view: which files there are, who may read them, what is in
//! them, and what a write to them asks for.
//!
//! Refuses to be served by itself: the FUSE adapter does that, and knows nothing of locks.

pub mod command;
pub mod folder;
pub mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::command::{Aim, Command, Refusal};
use self::folder::{Folder, Subject, Target};
use self::names::Naming;
use super::clock::Clock;
use super::labels;
use crate::engine::id::LockId;
use crate::engine::input::{FileId, Watched};
use crate::engine::view::{LockView, View};

/// A file below one of the folders of `locks/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// `locked`: 1 or 0; 0 releases.
    Locked,
    /// The same under the extension of the file's name: `conf_locked`.
    Alias,
    /// `force_unlock`: 1 releases even a living holder's lock.
    ForceUnlock,
    /// `state`
    State,
    /// `reason`
    Reason,
    /// `type`
    Type,
    /// `access`
    Access,
    /// `acquirer`
    Acquirer,
    /// `holders`, one a line
    Holders,
    /// `waiters`, one a line
    Waiters,
    /// `since`
    Since,
    /// `generation`: how many times anything in the folder changed.
    Generation,
    /// `last_touched`
    LastTouched,
    /// `path`
    Path,
}

impl Value {
    /// Every one, in the order in which they are listed.
    pub const ALL: [Self; 14] = [
        Self::Locked,
        Self::Alias,
        Self::ForceUnlock,
        Self::State,
        Self::Reason,
        Self::Type,
        Self::Access,
        Self::Acquirer,
        Self::Holders,
        Self::Waiters,
        Self::Since,
        Self::Generation,
        Self::LastTouched,
        Self::Path,
    ];

    fn place(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Self::Locked | Self::Alias => "locked",
            Self::ForceUnlock => "force_unlock",
            Self::State => "state",
            Self::Reason => "reason",
            Self::Type => "type",
            Self::Access => "access",
            Self::Acquirer => "acquirer",
            Self::Holders => "holders",
            Self::Waiters => "waiters",
            Self::Since => "since",
            Self::Generation => "generation",
            Self::LastTouched => "last_touched",
            Self::Path => "path",
        }
    }
}

/// A file of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// `status`
    Status,
    /// `events`
    Events,
    /// `gc_interval_ms`
    GcInterval,
    /// `gc`
    Gc,
    /// `reclaim_enabled`
    ReclaimEnabled,
    /// A file of a folder below `locks/`.
    Value(Value),
}

impl File {
    const TOP: [Self; 5] =
        [Self::Status, Self::Events, Self::GcInterval, Self::Gc, Self::ReclaimEnabled];

    fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Events => "events",
            Self::GcInterval => "gc_interval_ms",
            Self::Gc => "gc",
            Self::ReclaimEnabled => "reclaim_enabled",
            Self::Value(value) => value.name(),
        }
    }

    /// Whether a write to it can mean anything.
    pub fn is_writable(self) -> bool {
        matches!(
            self,
            Self::GcInterval
                | Self::Gc
                | Self::ReclaimEnabled
                | Self::Value(Value::Locked | Value::Alias | Value::ForceUnlock)
        )
    }

    fn mode(self, public: bool) -> u16 {
        let open = match self {
            Self::Events => return 0o400,
            Self::Gc | Self::Value(Value::ForceUnlock) => return 0o200,
            _ if self.is_writable() => 0o644,
            _ => 0o444,
        };
        if public { open } else { open & 0o700 }
    }
}

/// What the file system tells of a path, which the tree does not ask itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether everybody may read the folder that it is in, and come there.
    pub public: bool,
    /// When the file was written last, nanoseconds since 1970.
    pub modified: Option<u64>,
}

/// What the tree is made from.
pub struct Facts<'a> {
    /// The view.
    pub view: &'a View,
    /// When it was taken.
    pub clock: Clock,
    /// Host name.
    pub host: &'a str,
    /// The files that are watched, in the order of the configuration.
    pub watches: &'a [Watched],
    /// What the file system tells of paths; one that is not here is for root alone.
    pub seen: &'a BTreeMap<Box<[u8]>, Seen>,
    /// Between two reconciliations, milliseconds.
    pub gc_interval_ms: u64,
    /// Whether locks may be reclaimed.
    pub reclaim_enabled: bool,
}

/// Inode numbers: a folder's slot and a place in it, or slot 0 and a place at the top.
const PLACES: u64 = 256;
/// The root's.
pub const ROOT: u64 = 1;
const LOCKS: u64 = 2;
const FIRST_FILE: u64 = 3;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its inode number: the same while it is there, and never another's.
    pub ino: u64,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits; everything belongs to root.
    pub mode: u16,
    /// When its content changed last, nanoseconds since 1970.
    pub changed: u64,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A folder with so many folders in it.
    Folder(u32),
    /// A file, and what is in it. That of `events` is not in the tree.
    File(File, Arc<[u8]>),
}

/// The tree at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    folders: BTreeMap<u64, Arc<Folder>>,
    by_name: BTreeMap<String, u64>,
    slots: BTreeMap<Target, u64>,
    next_slot: u64,
    status: Dated,
    gc_interval: Dated,
    reclaim: Dated,
    reclaim_enabled: bool,
    /// When the list of folders changed, nanoseconds since 1970.
    listed: u64,
}

/// The content of a file, and when it changed last, nanoseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Dated {
    content: Arc<[u8]>,
    changed: u64,
}

impl Dated {
    /// The same file with what is in it at `now`.
    fn next(&self, content: String, now: u64) -> Self {
        let content: Arc<[u8]> = content.into_bytes().into();
        let changed = if content == self.content { self.changed } else { now };
        Self { content, changed }
    }
}

impl Default for Tree {
    /// Before anything was read.
    fn default() -> Self {
        let undated = |content: &str| Dated::default().next(content.to_owned(), 0);
        Self {
            folders: BTreeMap::new(),
            by_name: BTreeMap::new(),
            slots: BTreeMap::new(),
            next_slot: 1,
            status: undated("UNKNOWN\n"),
            gc_interval: undated("unknown\n"),
            reclaim: undated("0\n"),
            reclaim_enabled: false,
            listed: 0,
        }
    }
}

impl Tree {
    /// The tree of what is known now. Whatever is still there keeps its name, its inode numbers
    /// and its memory.
    #[must_use]
    pub fn next(&self, facts: &Facts<'_>) -> Self {
        let subjects = self.subjects(facts);
        let now = facts.clock.unix;
        let (interval, reclaim) = (facts.gc_interval_ms, u8::from(facts.reclaim_enabled));
        let mut next = Self {
            folders: BTreeMap::new(),
            by_name: BTreeMap::new(),
            slots: BTreeMap::new(),
            next_slot: self.next_slot,
            status: self.status.next(status(facts.view), now),
            gc_interval: self.gc_interval.next(format!("{interval}\n"), now),
            reclaim: self.reclaim.next(format!("{reclaim}\n"), now),
            reclaim_enabled: facts.reclaim_enabled,
            listed: self.listed,
        };
        for mut subject in subjects {
            if subject.slot == 0 {
                subject.slot = next.next_slot;
                next.next_slot += 1;
            }
            let before = self.folders.get(&subject.slot);
            let folder = subject.folder(facts, before);
            next.slots.insert(folder.target.clone(), folder.slot);
            next.by_name.insert(folder.name.clone(), folder.slot);
            next.folders.insert(folder.slot, folder);
        }
        if next.by_name != self.by_name {
            next.listed = now;
        }
        next
    }

    /// The paths of which [`Facts::seen`] should know something: of watches, and of orphans.
    pub fn paths<'a>(view: &'a View, watches: &'a [Watched]) -> impl Iterator<Item = &'a [u8]> {
        let orphans = view.orphaned().filter_map(|lock| view.file(lock).path.as_deref());
        watches.iter().map(|watch| &*watch.path).chain(orphans)
    }

    fn subjects<'a>(&self, facts: &Facts<'a>) -> Vec<Subject<'a>> {
        let view = facts.view;
        let mut naming = Naming::default();
        let mut subjects: Vec<Subject<'a>> = Vec::new();
        let mut watched: BTreeSet<FileId> = BTreeSet::new();
        for watch in facts.watches {
            // The configuration gives no name twice.
            naming.reserve(&watch.name);
            watched.extend(watch.file);
            let target = Target::Watch(watch.name.clone());
            let locks = watch
                .file
                .map_or_else(Vec::new, |file| view.on_file(file.dev, file.ino).iter().collect());
            subjects.push(Subject {
                slot: self.slots.get(&target).copied().unwrap_or(0),
                name: watch.name.clone(),
                target,
                path: Some(&watch.path),
                locks,
            });
        }
        let elsewhere = |lock: &&LockView| !watched.contains(&folder::file_of(lock));
        let orphans: Vec<&LockView> = view.orphaned().filter(elsewhere).collect();
        let known = |lock: &LockView| self.slots.get(&Target::Orphan(lock.id.key())).copied();
        // Those that were there before come first: they keep their names.
        let (old, new): (Vec<_>, Vec<_>) =
            orphans.into_iter().partition(|lock| known(lock).is_some());
        for lock in old.into_iter().chain(new) {
            let path = view.file(lock).path.as_deref();
            let slot = known(lock).unwrap_or(0);
            let kept = self.folders.get(&slot).map(|folder| folder.name.clone());
            let name = kept.filter(|name| naming.reserve(name)).unwrap_or_else(|| {
                naming.give(path.map_or_else(|| nameless(lock.id), names::stem))
            });
            let target = Target::Orphan(lock.id.key());
            subjects.push(Subject { slot, name, target, path, locks: vec![lock] });
        }
        subjects
    }

    /// A node by its number.
    pub fn node(&self, ino: u64) -> Option<Node> {
        let (slot, place) = (ino / PLACES, ino % PLACES);
        if slot > 0 {
            return self.node_of_folder(self.folders.get(&slot)?, place);
        }
        let folder = |ino, folders, changed| Node {
            ino,
            kind: NodeKind::Folder(folders),
            mode: 0o755,
            changed,
        };
        Some(match place {
            ROOT => folder(ROOT, 1, self.listed),
            LOCKS => {
                let folders = u32::try_from(self.folders.len()).unwrap_or(u32::MAX);
                folder(LOCKS, folders, self.listed)
            }
            _ => {
                let place = usize::try_from(place.checked_sub(FIRST_FILE)?).ok()?;
                let file = *File::TOP.get(place)?;
                let Dated { content, changed } = match file {
                    File::Status => self.status.clone(),
                    File::GcInterval => self.gc_interval.clone(),
                    File::ReclaimEnabled => self.reclaim.clone(),
                    File::Events | File::Gc | File::Value(_) => {
                        Dated { changed: self.listed, ..Dated::default() }
                    }
                };
                let (kind, mode) = (NodeKind::File(file, content), file.mode(true));
                Node { ino, kind, mode, changed }
            }
        })
    }

    fn node_of_folder(&self, folder: &Folder, place: u64) -> Option<Node> {
        let (kind, mode, changed) = match usize::try_from(place).ok()?.checked_sub(1) {
            None => {
                let mode = if folder.public { 0o755 } else { 0o700 };
                (NodeKind::Folder(0), mode, folder.changed)
            }
            Some(place) => {
                let value = *Value::ALL.get(place)?;
                folder.file_name(value)?;
                let file = File::Value(value);
                let content = folder.content(value).clone();
                (NodeKind::File(file, content), file.mode(folder.public), folder.time(value))
            }
        };
        Some(Node { ino: folder.slot * PLACES + place, kind, mode, changed })
    }

    /// What a folder has under a name. Only root sees what is in no folder that everybody may read.
    pub fn look_up(&self, parent: u64, name: &str, is_root: bool) -> Option<Node> {
        let (slot, place) = (parent / PLACES, parent % PLACES);
        match (slot, place) {
            (0, ROOT) if name == "locks" => self.node(LOCKS),
            (0, ROOT) => {
                let place = File::TOP.iter().position(|file| file.name() == name)?;
                self.node(FIRST_FILE + place as u64)
            }
            (0, LOCKS) => {
                let slot = *self.by_name.get(name)?;
                let folder = self.folders.get(&slot)?;
                (folder.listed || is_root).then(|| self.node(slot * PLACES))?
            }
            (_, 0) => {
                let folder = self.folders.get(&slot)?;
                let is = |value: &Value| folder.file_name(*value) == Some(name);
                let place = Value::ALL.iter().position(is)?;
                self.node(slot * PLACES + place as u64 + 1)
            }
            _ => None,
        }
    }

    /// What a folder holds, with the names; `None` where there is no such folder.
    pub fn list(&self, ino: u64, is_root: bool) -> Option<Vec<(u64, bool, String)>> {
        let file = |ino, name: &str| (ino, false, name.to_owned());
        let (slot, place) = (ino / PLACES, ino % PLACES);
        Some(match (slot, place) {
            (0, ROOT) => {
                let files = File::TOP.into_iter().zip(FIRST_FILE..);
                let files = files.map(|(top, ino)| file(ino, top.name()));
                files.chain([(LOCKS, true, "locks".to_owned())]).collect()
            }
            (0, LOCKS) => self
                .by_name
                .iter()
                .filter(|(_, slot)| {
                    is_root || self.folders.get(*slot).is_some_and(|folder| folder.listed)
                })
                .map(|(name, slot)| (slot * PLACES, true, name.clone()))
                .collect(),
            (_, 0) => {
                let folder = self.folders.get(&slot)?;
                let files = Value::ALL.into_iter().zip(1..);
                let file = |(value, place): (Value, u64)| {
                    Some(file(ino + place, folder.file_name(value)?))
                };
                files.filter_map(file).collect()
            }
            _ => return None,
        })
    }

    /// The number of the folder that a node is in.
    pub fn parent(ino: u64) -> u64 {
        match (ino / PLACES, ino % PLACES) {
            (0, _) => ROOT,
            (_, 0) => LOCKS,
            (slot, _) => slot * PLACES,
        }
    }

    /// What a write asks for: `None` where there is nothing to do.
    ///
    /// # Errors
    /// Where the value is not known, or must not be obeyed.
    pub fn command(&self, ino: u64, bytes: &[u8]) -> Result<Option<Command>, Refusal> {
        let node = self.node(ino).ok_or(Refusal::Unverified)?;
        let NodeKind::File(file, _) = node.kind else { return Err(Refusal::Invalid) };
        let asked = command::parse(file, bytes)?;
        let Some(folder) = self.folders.get(&(ino / PLACES)) else {
            return match asked {
                command::Asked::Whole(command) => Ok(Some(command)),
                command::Asked::Release | command::Asked::ForceUnlock => Err(Refusal::Invalid),
            };
        };
        command::decide(&asked, &folder.hold, self.reclaim_enabled, |locks| Aim {
            name: folder.name.clone(),
            target: folder.target.clone(),
            locks,
        })
    }
}

/// `ALL CLEAR` only where nothing was hidden.
fn status(view: &View) -> String {
    match view.locks.iter().filter(|lock| labels::is_finding(lock)).count() {
        0 if view.has_every_lock() => "ALL CLEAR\n".into(),
        0 => "UNKNOWN\n".into(),
        hot => format!("HOT {hot}\n"),
    }
}

/// The name of a file whose path nobody knows.
fn nameless(id: LockId) -> String {
    format!("{:x}_{:x}_{}", id.dev.major(), id.dev.minor(), id.ino)
}
