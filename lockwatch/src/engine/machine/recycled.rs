//! Recorded pids of live locks that were given to new processes.
//!
//! Refuses to compare pids alone: without the acquirer's start time, or the lock having been there
//! before, nothing is told.

use std::collections::{BTreeMap, BTreeSet};

use super::schedule::Schedule;
use super::telling::{News, Scene};
use crate::engine::event::{Kind, Party};
use crate::engine::id::LockId;
use crate::engine::identity::{BootTime, Pid, ProcessId, RecordedPid, StartTime};
use crate::engine::input::{Ended, PidReused};
use crate::engine::view::LockView;

/// Reuses that are remembered until the next reading.
const MOST: usize = 1 << 12;

/// Pids that were reused. Bounded by the locks of the last reading, and [`MOST`].
#[derive(Clone, Debug, Default)]
pub(super) struct Recycled {
    pending: BTreeMap<ProcessId, Reuse>,
    /// Locks of the last reading of whose taking nothing is known, by recorded pid.
    unwatched: BTreeMap<Pid, BTreeSet<LockId>>,
    told: BTreeSet<(LockId, ProcessId)>,
    forgotten: u64,
}

#[derive(Clone, Debug)]
struct Reuse {
    at: BootTime,
    /// Locks with that pid that were there before, and of whose taking nothing is known.
    before: BTreeSet<LockId>,
}

impl Recycled {
    /// A pid was given to a new process: the next reading shows whether a lock has it recorded, and
    /// by which name the new process goes. `begun` is when the last reading was.
    pub(super) fn reuse(&mut self, reused: PidReused, begun: BootTime, schedule: &mut Schedule) {
        let before = match begun < reused.at {
            true => self.unwatched.get(&reused.process.pid).cloned().unwrap_or_default(),
            false => BTreeSet::new(),
        };
        self.pending.insert(reused.process, Reuse { at: reused.at, before });
        if self.pending.len() > MOST {
            self.pending.pop_first();
            self.forgotten += 1;
        }
        schedule.at(reused.at);
    }

    /// A lock ended: had its pid a new owner by then?
    pub(super) fn end(&mut self, ended: &Ended, scene: Scene<'_>) -> Vec<News> {
        let key = ended.lock.id.key();
        let mut news = Vec::new();
        let mut found = Vec::new();
        let pid = ended.by.id.pid;
        let from = ProcessId { pid, start: StartTime(0) };
        let of_pid = self.pending.range(from..).take_while(|(process, _)| process.pid == pid);
        for (&process, &Reuse { at, .. }) in of_pid {
            let reused = process != ended.by.id && (ended.taken_at..=ended.at).contains(&at);
            if reused {
                found.push(process);
            }
        }
        for process in found {
            if self.is_new(key, process) {
                let by = Some((&ended.by, ended.taken_at));
                let told = scene.recorded(&ended.lock, by, Some(ended.death));
                let to = Party::of(process.pid, None);
                let to = Party { start: Some(process.start), ..to };
                news.push(News::of(told, Kind::PidRecycled { to }));
            }
        }
        news
    }

    /// A new view, of a reading that was begun at `begun`.
    pub(super) fn read(&mut self, begun: BootTime, scene: Scene<'_>) -> Vec<News> {
        let view = scene.view;
        let mut news = Vec::new();
        let pending: Vec<PidReused> =
            self.pending.iter().map(|(&process, of)| PidReused { process, at: of.at }).collect();
        for lock in &view.locks {
            for &reused in of_pid(&pending, view.lock(lock).acquirer) {
                let before = self.pending.get(&reused.process).map(|reuse| &reuse.before);
                let was_there = before.is_some_and(|before| before.contains(&lock.id.key()));
                if was_there || is_proven(lock, scene, reused) {
                    self.tell(lock, reused.process, scene, &mut news);
                }
            }
            if let Some(process) = proven_tenant(lock, scene) {
                self.tell(lock, process, scene, &mut news);
            }
        }
        self.unwatched.clear();
        for lock in &view.locks {
            if let (RecordedPid::Local(pid), None) =
                (view.lock(lock).acquirer, &view.lock(lock).taken)
            {
                self.unwatched.entry(pid).or_default().insert(lock.id.key());
            }
        }
        self.pending.retain(|_, reuse| reuse.at > begun);
        self.told.retain(|&(id, _)| view.find(id).is_some());
        news
    }

    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        let before = self.pending.values().map(|reuse| reuse.before.len());
        let unwatched = self.unwatched.values().map(BTreeSet::len);
        self.pending.len() + before.chain(unwatched).sum::<usize>() + self.told.len()
    }

    /// How many reuses had to be forgotten since the last call.
    pub(super) fn forgotten(&mut self) -> u64 {
        std::mem::take(&mut self.forgotten)
    }

    /// True the first time. A reading may know the start in clock ticks alone.
    fn is_new(&mut self, id: LockId, to: ProcessId) -> bool {
        let from = ProcessId { start: StartTime(0), ..to };
        let mut of_pid = self.told.range((id, from)..);
        let told = of_pid
            .by_ref()
            .take_while(|(of, process)| (*of, process.pid) == (id, to.pid))
            .any(|(_, process)| process.start.is_same(to.start));
        !told && self.told.insert((id, to))
    }

    fn tell(&mut self, lock: &LockView, to: ProcessId, scene: Scene<'_>, news: &mut Vec<News>) {
        if !self.is_new(lock.id.key(), to) {
            return;
        }
        let is_it = |start: StartTime| start.is_same(to.start);
        let now = scene.view.process(to.pid).filter(|process| process.start.is_some_and(is_it));
        let party = Party { start: Some(to.start), ..Party::of(to.pid, now) };
        news.push(News::of(scene.told(lock), Kind::PidRecycled { to: party }));
    }
}

/// The reuses of one pid.
fn of_pid(pending: &[PidReused], recorded: RecordedPid) -> &[PidReused] {
    let RecordedPid::Local(pid) = recorded else { return &[] };
    let from = pending.partition_point(|reused| reused.process.pid < pid);
    let to = pending.partition_point(|reused| reused.process.pid <= pid);
    pending.get(from..to).unwrap_or_default()
}

/// True where the lock was taken before the reuse, by another process with that pid.
fn is_proven(lock: &LockView, scene: Scene<'_>, reused: PidReused) -> bool {
    let facts = scene.view.lock(lock);
    let is_by_another = facts
        .taken
        .as_ref()
        .is_some_and(|taken| taken.by.id != reused.process && taken.at <= reused.at);
    is_by_another && facts.acquirer == RecordedPid::Local(reused.process.pid)
}

/// The process that has the recorded pid now, where history proves it to be another one.
fn proven_tenant(lock: &LockView, scene: Scene<'_>) -> Option<ProcessId> {
    let facts = scene.view.lock(lock);
    facts.taken.as_ref().filter(|_| lock.verdict.recycled)?;
    let RecordedPid::Local(pid) = facts.acquirer else { return None };
    let start = scene.view.process(pid)?.start?;
    Some(ProcessId { pid, start })
}
