//! One folder below `locks/`: the values of its files.
//!
//! Refuses to leave a value empty where there is nothing to say: `-` is "there is none", `unknown`
//! is "there may be, and it is not known". Only the lists of processes can be empty.

use std::fmt::Write as _;
use std::sync::Arc;

use super::{Facts, Value};
use crate::engine::classify::State;
use crate::engine::id::LockId;
use crate::engine::identity::{BootTime, RecordedPid};
use crate::engine::input::FileId;
use crate::engine::view::{Holding, LockView, View};
use crate::sink::escape::Escaped;
use crate::sink::labels;

/// What there is none of.
pub(super) const NONE: &str = "-";
/// What is not known.
pub(super) const UNKNOWN: &str = "unknown";

/// What a folder is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// A file that the configuration watches, by its name there.
    Watch(String),
    /// An orphaned lock on a file that is not watched; its id in the short form.
    Orphan(LockId),
}

/// Who holds what a folder is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nobody.
    Free,
    /// No lock was seen, but one may have been hidden.
    Unseen,
    /// Nobody but those who may: what is not proven to be orphaned is held by right.
    Rightful(Vec<LockId>),
    /// At least one lock is orphaned.
    Orphaned {
        /// Those that are.
        orphans: Vec<LockId>,
        /// Those that are not.
        rightful: Vec<LockId>,
    },
}

/// One folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder {
    /// Its number: in its files' inode numbers, and never given to another folder.
    pub slot: u64,
    /// Its name.
    pub name: String,
    /// The other name of `locked`, where the file's name has an extension.
    pub alias: Option<String>,
    /// Whether everybody may look into it.
    pub public: bool,
    /// Whether everybody may know that it is there.
    pub listed: bool,
    /// What it is of.
    pub target: Target,
    /// Who holds that.
    pub hold: Hold,
    /// The content of each file, in the order of [`Value::ALL`].
    pub contents: Vec<Arc<[u8]>>,
    /// When each of them changed last, nanoseconds since 1970.
    times: Vec<u64>,
    /// How many times anything in it changed.
    pub generation: u64,
    /// When it changed last, nanoseconds since 1970.
    pub changed: u64,
    pub(super) memory: Memory,
}

/// What is known of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// The taking that `since` tells, and the text: the two clocks drift apart, the past does not
    /// move.
    since: Option<(BootTime, String)>,
    touch: Option<Touch>,
}

/// The last lock on the file that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Touch {
    lock: LockId,
    /// When it was taken, where that was seen.
    at: Option<BootTime>,
    text: String,
}

/// What a folder is made from.
pub(super) struct Subject<'a> {
    pub(super) slot: u64,
    pub(super) name: String,
    pub(super) target: Target,
    /// The path of its file.
    pub(super) path: Option<&'a [u8]>,
    /// Its locks, by [`View::locks`]'s order.
    pub(super) locks: Vec<&'a LockView>,
}

impl Subject<'_> {
    /// The folder as it is now.
    pub(super) fn folder(self, facts: &Facts<'_>, before: Option<&Arc<Folder>>) -> Arc<Folder> {
        let view = facts.view;
        let seen = self.path.and_then(|path| facts.seen.get(path));
        let public = seen.is_some_and(|seen| seen.public);
        let mut memory = before.map_or_else(Memory::default, |before| before.memory.clone());
        let lead = lead(&self.locks);
        memory.remember(facts, &self.locks, lead);
        let hold = hold(view, &self.locks);
        let generation = before.map_or(1, |before| before.generation);
        let text = |value| -> Vec<u8> {
            let mut text = match value {
                Value::Locked | Value::Alias => match hold {
                    Hold::Free => "0".into(),
                    Hold::Unseen => UNKNOWN.into(),
                    Hold::Rightful(_) | Hold::Orphaned { .. } => "1".into(),
                },
                Value::ForceUnlock => return Vec::new(),
                Value::State => match (lead, &hold) {
                    (Some(lead), _) => lead.verdict.state.name().into(),
                    (None, Hold::Free) => "free".into(),
                    (None, _) => UNKNOWN.into(),
                },
                Value::Reason => lead
                    .and_then(|lead| lead.verdict.reason)
                    .map_or(NONE, |reason| reason.name())
                    .into(),
                Value::Type => lead.map_or(NONE, |lead| view.lock(lead).kind.name()).into(),
                Value::Access => lead.map_or(NONE, |lead| view.lock(lead).access.name()).into(),
                Value::Acquirer => {
                    lead.map_or_else(|| NONE.into(), |lead| labels::acquirer(view, lead))
                }
                Value::Holders => return holders(view, &self.locks),
                Value::Waiters => return waiters(view, &self.locks),
                Value::Since => match (lead, &memory.since) {
                    (None, _) => NONE.into(),
                    (Some(_), None) => UNKNOWN.into(),
                    (Some(_), Some((_, text))) => text.clone(),
                },
                Value::Generation => generation.to_string(),
                Value::LastTouched => match (&memory.touch, seen.and_then(|seen| seen.modified)) {
                    (Some(touch), _) => touch.text.clone(),
                    (None, Some(modified)) => {
                        format!("{UNKNOWN} at {}", crate::sink::clock::Timestamp(modified))
                    }
                    (None, None) => UNKNOWN.into(),
                },
                Value::Path => {
                    self.path.map_or_else(|| UNKNOWN.into(), |path| Escaped(path).to_string())
                }
            };
            text.push('\n');
            text.into_bytes()
        };
        let contents: Vec<Arc<[u8]>> =
            Value::ALL.into_iter().map(|value| text(value).into()).collect();
        let now = facts.clock.unix;
        let times = contents.iter().enumerate().map(|(place, content)| match before {
            Some(before) if before.contents[place] == *content => before.times[place],
            _ => now,
        });
        let times = times.collect();
        let alias = self.path.and_then(super::names::extension).map(|ext| format!("{ext}_locked"));
        let listed = public || matches!(self.target, Target::Watch(_));
        let folder = Folder {
            slot: self.slot,
            name: self.name,
            alias,
            public,
            listed,
            target: self.target,
            hold,
            contents,
            times,
            generation,
            changed: before.map_or(now, |before| before.changed),
            memory,
        };
        match before {
            Some(before) if **before == folder => before.clone(),
            Some(_) => Arc::new(folder.changed(now)),
            None => Arc::new(folder),
        }
    }
}

impl Folder {
    fn changed(mut self, now: u64) -> Self {
        self.generation += 1;
        self.changed = now;
        self.times[Value::Generation.place()] = now;
        self.contents[Value::Generation.place()] =
            format!("{}\n", self.generation).into_bytes().into();
        self
    }

    /// The content of a file.
    pub fn content(&self, value: Value) -> &Arc<[u8]> {
        &self.contents[value.place()]
    }

    /// When that changed last, nanoseconds since 1970.
    pub fn time(&self, value: Value) -> u64 {
        self.times[value.place()]
    }

    /// The name of a file in this folder; `None` where it is not there.
    pub fn file_name(&self, value: Value) -> Option<&str> {
        match value {
            Value::Alias => self.alias.as_deref(),
            _ => Some(value.name()),
        }
    }
}

impl Memory {
    fn remember(&mut self, facts: &Facts<'_>, locks: &[&LockView], lead: Option<&LockView>) {
        let view = facts.view;
        let taken = lead.and_then(|lead| view.lock(lead).taken.as_ref());
        self.since = taken.map(|taken| match self.since.take() {
            Some((at, text)) if at == taken.at => (at, text),
            _ => (taken.at, facts.clock.moment(taken.at).to_string()),
        });
        let at = |lock: &LockView| view.lock(lock).taken.as_ref().map(|taken| taken.at);
        let Some(newest) = locks.iter().rev().max_by_key(|lock| at(lock)) else { return };
        let is_new = match &self.touch {
            None => true,
            Some(touch) if touch.at.is_none() && at(newest).is_none() => {
                !locks.iter().any(|lock| lock.id.key() == touch.lock)
            }
            // What was seen to be taken counts more than what was there before anybody looked.
            Some(touch) => at(newest) > touch.at,
        };
        if is_new {
            let who = match &view.lock(newest).taken {
                Some(taken) => format!("{} (pid {})", Escaped(&taken.by.comm), taken.by.id.pid),
                None => labels::acquirer(view, newest),
            };
            let when = match at(newest) {
                Some(at) => format!("at {}", facts.clock.moment(at)),
                None => format!("before {}", facts.clock.now()),
            };
            let text = format!("{who} on {} {when}", facts.host);
            self.touch = Some(Touch { lock: newest.id.key(), at: at(newest), text });
        }
    }
}

/// The lock that speaks for all: an orphan before any other, then one of which nothing is known,
/// then the first.
fn lead<'a>(locks: &[&'a LockView]) -> Option<&'a LockView> {
    let rank = |lock: &&&LockView| match lock.verdict.state {
        State::Orphaned => 0,
        State::Unknown => 1,
        _ => 2,
    };
    locks.iter().min_by_key(rank).copied()
}

fn hold(view: &View, locks: &[&LockView]) -> Hold {
    let is_orphaned = |lock: &&&LockView| labels::is_finding(lock);
    let ids = |locks: Vec<&&LockView>| locks.iter().map(|lock| lock.id.key()).collect::<Vec<_>>();
    let (orphans, rightful): (Vec<_>, Vec<_>) = locks.iter().partition(is_orphaned);
    match (orphans.is_empty(), rightful.is_empty()) {
        (true, true) if view.has_every_lock() => Hold::Free,
        (true, true) => Hold::Unseen,
        (true, false) => Hold::Rightful(ids(rightful)),
        (false, _) => Hold::Orphaned { orphans: ids(orphans), rightful: ids(rightful) },
    }
}

/// Who holds the locks, one a line.
fn holders(view: &View, locks: &[&LockView]) -> Vec<u8> {
    let mut lines: Vec<String> = Vec::new();
    for lock in locks {
        for holding in view.holdings(lock) {
            let line = holding_line(view, &holding);
            // Locks of one owner on one file have the same holders.
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    join(&lines)
}

fn holding_line(view: &View, holding: &Holding<'_>) -> String {
    let mut line = match holding.pid {
        Some(pid) => labels::process(view, pid),
        None => "nobody".into(),
    };
    let _ = write!(line, " via {}", holding.via.name());
    if let Some(fd) = holding.fd {
        let _ = write!(line, " {fd}");
    }
    line
}

/// Who waits for the locks, one a line.
fn waiters(view: &View, locks: &[&LockView]) -> Vec<u8> {
    let mut places: Vec<u32> =
        locks.iter().flat_map(|lock| view.waiters(lock).iter().copied()).collect();
    places.sort_unstable();
    places.dedup();
    let line = |place: &u32| {
        let waiter = &view.snapshot.waiters[*place as usize];
        let who = match waiter.requester {
            RecordedPid::Local(pid) => labels::process(view, pid),
            _ => UNKNOWN.into(),
        };
        format!("{who} for {}", waiter.access.name())
    };
    join(&places.iter().map(line).collect::<Vec<_>>())
}

fn join(lines: &[String]) -> Vec<u8> {
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text.into_bytes()
}

/// The file of a watch or orphan.
pub(super) fn file_of(lock: &LockView) -> FileId {
    FileId { dev: lock.id.dev, ino: lock.id.ino }
}
