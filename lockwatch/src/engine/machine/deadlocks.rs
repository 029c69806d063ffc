//! Waiters that wait for each other, over FLOCK, OFD and POSIX locks.
//!
//! What waits is a thread, and what can release a lock is any thread that has its description or fd
//! table: the kernel says of a request only whose process it is, and of a lock nothing at all about
//! threads. So a process is stuck where every single one of its threads waits for a lock that none
//! but the stuck could release; as long as one thread does not wait, or how many there are is not
//! known, it may be the one that lets all others go on.
//!
//! Refuses to call it a deadlock where anybody else could still release one of the locks, where a
//! holder may have been overlooked, or before it was there for a grace: a reading takes a moment,
//! in which waits come and go.

use std::collections::{BTreeMap, BTreeSet};

use super::schedule::Schedule;
use super::telling::{News, Scene};
use crate::engine::event::{Kind, Member, Party};
use crate::engine::id::LockId;
use crate::engine::identity::{BootTime, Pid, ProcessId, RecordedPid, StartTime};
use crate::engine::view::View;

/// Parents that are looked at above a process.
const GENERATIONS: usize = 32;

/// The deadlocks of the last reading. Bounded by its waiters.
#[derive(Clone, Debug, Default)]
pub(super) struct Deadlocks {
    seen: BTreeMap<BTreeSet<ProcessId>, Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    first: BootTime,
    waits: Vec<Wait>,
    told: bool,
}

/// That a process waits for a lock, since then.
type Wait = (ProcessId, LockId, Option<BootTime>);

/// A process that waits, and the place in the view of the lock that the next one has.
type Link = (Pid, u32);

impl Deadlocks {
    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.seen.values().map(|seen| seen.waits.len()).sum()
    }

    /// A new view, of a reading that was begun at `begun`.
    pub(super) fn read(
        &mut self,
        begun: BootTime,
        grace: u64,
        schedule: &mut Schedule,
        scene: Scene<'_>,
    ) -> Vec<News> {
        let view = scene.view;
        if !view.is_complete() {
            return Vec::new();
        }
        let mut news = Vec::new();
        let mut now = BTreeMap::new();
        for cycle in cycles(view) {
            let Some(waits) = waits(view, &cycle) else { continue };
            let members: BTreeSet<ProcessId> = waits.iter().map(|(member, ..)| *member).collect();
            let known = self.seen.remove(&members);
            let mut seen = match known {
                Some(known) if known.told || known.waits == waits => known,
                _ => Seen { first: begun, waits, told: false },
            };
            if !seen.told && begun >= seen.first.after(grace) {
                seen.told = true;
                news.push(tell(scene, &cycle));
            } else if !seen.told {
                schedule.at(seen.first.after(grace));
            }
            now.insert(members, seen);
        }
        self.seen = now;
        news
    }
}

fn waits(view: &View, cycle: &[Link]) -> Option<Vec<Wait>> {
    let wait = |&(pid, lock): &Link| {
        let start = view.process(pid)?.start?;
        let mut of_pid = view.snapshot.waiters.iter().enumerate().filter(|(place, waiter)| {
            waiter.requester == RecordedPid::Local(pid) && view.blockers[*place].contains(&lock)
        });
        let since = of_pid.next()?.1.since;
        // One reading may know it in clock ticks alone, and the next exactly.
        let start = StartTime::from_ticks(start.ticks());
        Some((ProcessId { pid, start }, view.locks.get(lock as usize)?.id.key(), since))
    };
    cycle.iter().map(wait).collect()
}

fn tell(scene: Scene<'_>, cycle: &[Link]) -> News {
    let member = |&(pid, lock): &Link| Member {
        process: Party::of(pid, scene.view.process(pid)),
        waits_for: scene.told(&scene.view.locks[lock as usize]),
    };
    News::general(Kind::Deadlock { members: cycle.iter().map(member).collect() })
}

/// Every process that waits with all its threads, and for each of its requests the locks that block
/// it.
struct Graph<'a> {
    view: &'a View,
    requests: BTreeMap<Pid, Vec<&'a [u32]>>,
}

/// The cycles of the view, one for each set of members, each begun at its lowest pid.
fn cycles(view: &View) -> Vec<Vec<Link>> {
    let mut graph = Graph { view, requests: BTreeMap::new() };
    for (waiter, blockers) in view.snapshot.waiters.iter().zip(&view.blockers) {
        if let RecordedPid::Local(pid) = waiter.requester {
            graph.requests.entry(pid).or_default().push(blockers);
        }
    }
    graph.requests.retain(|&pid, requests| {
        let threads = view.process(pid).and_then(|process| process.threads);
        // A thread waits for one lock at a time.
        threads.is_some_and(|threads| threads <= requests.len() as u64)
    });
    if graph.requests.len() < 2 {
        return Vec::new();
    }
    let stuck = graph.stuck();
    let mut found: BTreeMap<BTreeSet<Pid>, Vec<Link>> = BTreeMap::new();
    let mut done = BTreeSet::new();
    for &from in &stuck {
        let mut path: Vec<Link> = Vec::new();
        let mut at = from;
        while !done.contains(&at) {
            if let Some(first) = path.iter().position(|&(pid, _)| pid == at) {
                let mut cycle = path.split_off(first);
                let lowest = cycle.iter().enumerate().min_by_key(|(_, link)| link.0);
                let lowest = lowest.map_or(0, |(place, _)| place);
                cycle.rotate_left(lowest);
                done.extend(cycle.iter().map(|&(pid, _)| pid));
                found.insert(cycle.iter().map(|&(pid, _)| pid).collect(), cycle);
                break;
            }
            let Some((lock, next)) = graph.next(at, &stuck) else { break };
            path.push((at, lock));
            at = next;
        }
        done.extend(path.iter().map(|&(pid, _)| pid));
    }
    found.into_values().collect()
}

impl Graph<'_> {
    /// The waiting processes that none but each other could let go on: what is left when all are
    /// taken away, again and again, who wait for nobody that waits.
    fn stuck(&self) -> BTreeSet<Pid> {
        let mut stuck: BTreeSet<Pid> = self.requests.keys().copied().collect();
        loop {
            let before = stuck.len();
            let is_stuck = |&&pid: &&Pid| {
                let mut requests = self.requests[&pid].iter();
                requests.all(|request| self.is_blocked(request, &stuck))
            };
            stuck = stuck.iter().filter(is_stuck).copied().collect();
            if stuck.len() == before {
                return stuck;
            }
        }
    }

    /// True where one of the locks that block a request is one that none but the stuck could release.
    /// One is enough, because every blocker must go.
    fn is_blocked(&self, request: &[u32], stuck: &BTreeSet<Pid>) -> bool {
        request.iter().any(|&place| {
            let holders = self.kept_by(place, stuck).unwrap_or_default();
            holders.iter().any(|holder| stuck.contains(holder))
        })
    }

    /// A lock that `pid` waits for and that nobody outside of `stuck` could release, with the first
    /// of its other holders.
    fn next(&self, pid: Pid, stuck: &BTreeSet<Pid>) -> Option<(u32, Pid)> {
        let mut places: Vec<u32> = self.requests.get(&pid)?.concat();
        places.sort_unstable();
        places.into_iter().find_map(|place| {
            let holders = self.kept_by(place, stuck)?;
            let next = holders.into_iter().find(|&holder| holder != pid && stuck.contains(&holder));
            Some((place, next?))
        })
    }

    /// The holders of a lock, where each is stuck or waits for one that is; `None` where anybody else
    /// could release it.
    fn kept_by(&self, place: u32, stuck: &BTreeSet<Pid>) -> Option<BTreeSet<Pid>> {
        let lock = self.view.locks.get(place as usize)?;
        // A place that is nobody's is somebody else's next.
        let holders: Option<BTreeSet<Pid>> =
            self.view.holdings(lock).map(|holding| holding.pid).collect();
        let holders = holders?;
        let waits = |holder: &Pid| {
            stuck.contains(holder)
                || holders
                    .iter()
                    .any(|child| stuck.contains(child) && self.is_ancestor(*holder, *child))
        };
        holders.iter().all(waits).then_some(holders)
    }

    /// True where `process` descends from `ancestor`: a shell has the descriptor that it gave to
    /// flock(1), and waits for it.
    fn is_ancestor(&self, ancestor: Pid, process: Pid) -> bool {
        let parent = |&pid: &Pid| self.view.process(pid).and_then(|process| process.parent);
        std::iter::successors(Some(process), parent)
            .take(GENERATIONS)
            .skip(1)
            .any(|pid| pid == ancestor)
    }
}
