//! Which orphans are reclaimed without anybody's asking, when, and what is told of every reclaim.
//!
//! Refuses to have anything done that the configuration does not allow by name or in general, that
//! is not proven to be an orphan where the file's watch does not do without, about which there is no
//! plan, on a file on which something is being done, soon after a failure, or once
//! there were too many in a minute: then it only tells, until somebody turns the switch on again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::schedule::Schedule;
use super::telling::{News, Scene};
use crate::engine::classify::Confidence;
use crate::engine::event::{Kind, Party, Told};
use crate::engine::id::LockId;
use crate::engine::identity::BootTime;
use crate::engine::input::{FileId, LockName, Policy};
use crate::engine::reclaim::outcome::Successor;
use crate::engine::reclaim::plan::{Method, Terms, Wanted, plan};
use crate::engine::reclaim::progress::{
    Asker, Done, Ended, Ending, Evicted, HookEnd, Order, Planned, PlannedLock, Reclaimed,
};
use crate::engine::view::LockView;

/// What a limit counts over, nanoseconds.
const MINUTE: u64 = 60_000_000_000;
/// From one failure to the next attempt it is never longer, nanoseconds.
const LONGEST_RETRY: u64 = 60 * MINUTE;
/// Files whose failures are remembered at once.
const MOST: usize = 1 << 12;
/// The pid of nobody: the engine has no process of its own to leave out of a plan.
const NOBODY: i32 = 0;

/// The state of all reclaims.
#[derive(Clone, Debug)]
pub(super) struct Reclaims {
    policy: Policy,
    enabled: bool,
    /// What was ordered and has not ended.
    running: BTreeSet<FileId>,
    /// What was said of each lock when it was planned: later no reading may have it.
    planned: BTreeMap<LockId, (Told, Vec<Evicted>)>,
    failures: BTreeMap<FileId, Failure>,
    /// Orphans about which it was told that there is no plan.
    hopeless: BTreeSet<LockId>,
    /// When each of the last minute's reclaims was ordered.
    ordered: VecDeque<BootTime>,
    /// When the first reading was begun.
    first: Option<BootTime>,
    swept: bool,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    times: u32,
    next: BootTime,
}

/// What follows from the end of a reclaim.
#[derive(Default)]
pub(super) struct After {
    pub(super) news: Vec<News>,
    /// Each lock that was released, with those who had it and may write to its file.
    pub(super) released: Vec<(Told, Vec<Evicted>)>,
}

/// What follows from a reading.
#[derive(Default)]
pub(super) struct Decision {
    pub(super) orders: Vec<Order>,
    pub(super) news: Vec<News>,
    /// There were too many.
    pub(super) suspended: bool,
}

impl Reclaims {
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            enabled: policy.automatic,
            swept: !policy.automatic,
            policy,
            running: BTreeSet::new(),
            planned: BTreeMap::new(),
            failures: BTreeMap::new(),
            hopeless: BTreeSet::new(),
            ordered: VecDeque::new(),
            first: None,
        }
    }

    /// True once everything was dealt with that the first readings found.
    pub(super) fn is_swept(&self) -> bool {
        self.swept
    }

    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.running.len()
            + self.planned.len()
            + self.failures.len()
            + self.hopeless.len()
            + self.ordered.len()
    }

    /// Turns the switch. Who turns it on wants everything tried anew.
    pub(super) fn switch(&mut self, on: bool) {
        self.enabled = on;
        self.failures.clear();
        self.hopeless.clear();
        self.ordered.clear();
    }

    /// What is to be done after a reading that was begun at `begun`. `suspects` may turn out to be
    /// orphans, each with the first reading that showed it so.
    pub(super) fn decide<'a>(
        &mut self,
        begun: BootTime,
        now: BootTime,
        suspects: impl Iterator<Item = (&'a LockId, &'a BootTime)>,
        schedule: &mut Schedule,
        scene: Scene<'_>,
    ) -> Decision {
        let first = *self.first.get_or_insert(begun);
        let mut decision = Decision::default();
        if self.policy.automatic && self.enabled {
            self.order(now, schedule, scene, &mut decision);
        }
        let undecided = suspects.into_iter().any(|(id, &since)| {
            since <= first
                && scene.view.find(*id).is_some_and(|lock| self.may(scene, lock).is_some())
        });
        self.swept |= !self.enabled || (self.running.is_empty() && !undecided);
        decision
    }

    fn order(
        &mut self,
        now: BootTime,
        schedule: &mut Schedule,
        scene: Scene<'_>,
        decision: &mut Decision,
    ) {
        self.ordered.retain(|at| now.since(*at) < MINUTE);
        let mut files: BTreeMap<FileId, Vec<(&LockView, Confidence)>> = BTreeMap::new();
        let mut orphans = BTreeSet::new();
        for lock in scene.view.orphaned() {
            let Some(at_least) = self.may(scene, lock) else { continue };
            orphans.insert(lock.id.key());
            files.entry(scene.view.name(lock).file).or_default().push((lock, at_least));
        }
        self.hopeless.retain(|id| orphans.contains(id));
        // What was mended meanwhile has no past.
        self.failures.retain(|file, failure| now < failure.next || files.contains_key(file));
        for (file, locks) in files {
            if self.running.contains(&file) {
                continue;
            }
            if let Some(failure) = self.failures.get(&file).filter(|failure| now < failure.next) {
                schedule.at(failure.next);
                continue;
            }
            let planned = self.with_plan(scene, &locks, &mut decision.news);
            let Some(&(one, at_least)) = planned.first() else { continue };
            if self.ordered.len() >= self.policy.per_minute as usize {
                self.enabled = false;
                decision.suspended = true;
                decision.news.push(self.suspension(scene, one));
                return;
            }
            self.ordered.push_back(now);
            self.running.insert(file);
            let path = scene.watched.get(&file).map(|watched| watched.path.clone());
            let locks = planned.iter().map(|(lock, _)| lock.id).collect();
            decision.orders.push(Order { file, path, locks, at_least });
        }
    }

    /// Those of a file's orphans that there is a way to release; of the others it is told once why
    /// there is none.
    fn with_plan<'a>(
        &mut self,
        scene: Scene<'_>,
        locks: &[(&'a LockView, Confidence)],
        news: &mut Vec<News>,
    ) -> Vec<(&'a LockView, Confidence)> {
        let mut planned = Vec::new();
        for &(lock, at_least) in locks {
            let terms = Terms { wanted: Wanted::Auto, forced: false, at_least, own: NOBODY };
            match plan(scene.view, lock, terms) {
                Ok(_) => planned.push((lock, at_least)),
                Err(refusal) => {
                    if self.hopeless.insert(lock.id.key()) {
                        let ending = Ending::refused(&refusal);
                        let kind = told(Asker::Policy, None, ending, None, Vec::new());
                        news.push(News::of(scene.told(lock), kind));
                    }
                }
            }
        }
        planned
    }

    /// How sure it must be that a lock is an orphan; `None` where the configuration does not allow
    /// it at all. What a watch says of its path holds for what was there before, too.
    fn may(&self, scene: Scene<'_>, lock: &LockView) -> Option<Confidence> {
        let file = scene.view.name(lock).file;
        let watched = scene.watched.get(&file).map(|watched| &*watched.path);
        let seen = scene.view.file(lock).path.as_deref();
        let named = |path: &[u8]| watched == Some(path) || seen == Some(path);
        let mut said = self.policy.watches.iter().filter(|watch| named(&watch.path)).peekable();
        match said.peek() {
            Some(_) => {
                let said: Vec<_> = said.collect();
                let likely = said.iter().all(|watch| watch.likely);
                let at_least = if likely { Confidence::Likely } else { Confidence::Certain };
                said.iter().all(|watch| watch.allowed).then_some(at_least)
            }
            None => (!self.policy.only_watched).then_some(Confidence::Certain),
        }
    }

    fn suspension(&self, scene: Scene<'_>, lock: &LockView) -> News {
        let why = format!(
            "more than {} reclaims in a minute: orphans are only told from now on, until \
             reclaim_enabled is set again",
            self.policy.per_minute
        );
        let ending = Ending::Failed { result: "not_tried".into(), why };
        News::of(scene.told(lock), told(Asker::Policy, None, ending, None, Vec::new()))
    }

    /// A reclaim is about to be carried out.
    pub(super) fn planned(&mut self, planned: Planned, scene: Scene<'_>) -> Vec<News> {
        let by = planned.by;
        let news = |planned: PlannedLock| {
            let PlannedLock { lock, path, method, forced, through, holders, warnings } = planned;
            let about = about(&lock, path, scene);
            if self.planned.len() < MOST {
                let may_write = holders.into_iter().filter(|holder| holder.writes != Some(false));
                self.planned.insert(lock.id.key(), (about.clone(), may_write.collect()));
            }
            let through = party(&through, scene);
            News::of(about, Kind::ReclaimPlanned { by, method, forced, through, warnings })
        };
        planned.locks.into_iter().map(news).collect()
    }

    /// A reclaim has ended.
    pub(super) fn ended(
        &mut self,
        reclaimed: Reclaimed,
        now: BootTime,
        schedule: &mut Schedule,
        scene: Scene<'_>,
    ) -> After {
        let Reclaimed { by, file, locks, done, error } = reclaimed;
        let success = error.is_none() && done.is_success();
        if by == Asker::Policy
            && let Some(file) = file
        {
            self.running.remove(&file);
            self.remember(file, success, now);
        }
        // What it shows decides what comes next.
        schedule.at_once(now);
        let mut after = After::default();
        if let Some(why) = error {
            for id in locks {
                let seen = || scene.view.find(id).map(|lock| scene.told(lock));
                let planned = self.planned.remove(&id.key()).map(|(about, _)| about);
                let Some(about) = planned.or_else(seen) else { continue };
                let ending = Ending::Failed { result: "failed".into(), why: why.clone() };
                after.news.push(News::of(about, told(by, None, ending, None, Vec::new())));
            }
        }
        let Done { outcomes, hooks } = done;
        for Ended { lock, path, method, ending, took } in outcomes {
            let planned = self.planned.remove(&lock.id.key());
            let (about, evicted) =
                planned.unwrap_or_else(|| (about(&lock, path, scene), Vec::new()));
            if matches!(ending, Ending::Released { .. }) && !evicted.is_empty() {
                after.released.push((about.clone(), evicted));
            }
            let kind = told(by, method, ending, took, hooks.clone());
            after.news.push(News::of(about, kind));
        }
        after
    }

    fn remember(&mut self, file: FileId, success: bool, now: BootTime) {
        if success {
            self.failures.remove(&file);
            return;
        }
        let times = self.failures.get(&file).map_or(0, |failure| failure.times);
        let pause = self.policy.retry.saturating_mul(1 << times.min(20)).min(LONGEST_RETRY);
        self.failures.insert(file, Failure { times: times + 1, next: now.after(pause) });
        if self.failures.len() > MOST {
            self.failures.pop_first();
        }
    }
}

/// The event of an end. A release whose hook failed is none that anybody could be content with.
fn told(
    by: Asker,
    method: Option<Method>,
    ending: Ending,
    took: Option<u64>,
    hooks: Vec<HookEnd>,
) -> Kind {
    match (ending, method) {
        (Ending::Race { race, why }, method) => {
            Kind::ReclaimRace { by, method, race, why, writer: None, hooks }
        }
        (Ending::Failed { result, why }, method) => {
            Kind::ReclaimFailed { by, method, result, why, hooks }
        }
        (Ending::Released { taken_by }, method) => {
            let failed = hooks.iter().find(|hook| !hook.ok);
            match (failed.map(|hook| format!("{} {}", hook.hook, hook.status)), method) {
                (None, Some(method)) => {
                    let taken_by = taken_by.into_iter().filter_map(successor).collect();
                    Kind::ReclaimDone { by, method, taken_by, took, hooks }
                }
                (why, method) => {
                    let why = why.unwrap_or_else(|| "released without a plan".into());
                    Kind::ReclaimFailed { by, method, result: "released".into(), why, hooks }
                }
            }
        }
    }
}

/// A lock that a run names.
fn about(lock: &LockName, path: Option<Box<[u8]>>, scene: Scene<'_>) -> Told {
    let told = scene.recorded(lock, None, None);
    Told { path: told.path.clone().or(path), ..told }
}

/// Who has the lock now, where it is a process of this machine.
fn successor(successor: Successor) -> Option<Party> {
    let pid = successor.pid?;
    Some(Party { comm: successor.comm, ..Party::of(pid, None) })
}

fn party(evicted: &Evicted, scene: Scene<'_>) -> Party {
    let seen = scene.view.process(evicted.process.pid);
    let seen = seen.filter(|process| process.start == Some(evicted.process.start));
    Party {
        start: Some(evicted.process.start),
        comm: Some(evicted.comm.clone()),
        ..Party::of(evicted.process.pid, seen)
    }
}
