//! The verdict on one lock: one pure function from facts to state, reason, confidence, evidence.
//!
//! Refuses to call a lock orphaned because its acquirer is gone. What decides is how each survivor
//! came by the description; where that cannot be told the verdict is `unknown`.

use std::collections::{BTreeMap, BTreeSet};

use super::births::{self, Order};
use super::evidence::Evidence;
use super::grounds::Grounds;
use super::identity::{LockKind, Pid, ProcessId, RecordedPid, StartTime};
use super::places;
use super::snapshot::{Births, Death, Lock, Place, Process, Search, Via};
use history::{Past, Tenant};

pub(super) use history::{Birth, birth};

mod history;

/// What a lock is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// The acquirer lives and still refers to it.
    Held,
    /// The acquirer is gone; a survivor had the description when the lock was taken.
    Shared,
    /// The acquirer is gone; a survivor is its fork child and has not exec'd since.
    HandedOver,
    /// The acquirer is gone, and nothing that is left was meant to hold the lock.
    Orphaned,
    /// Taken by another machine or a file system server.
    Remote,
    /// Not enough could be read.
    Unknown,
}

impl State {
    /// Every state, in the order in which reports list them.
    pub const ALL: [Self; 6] =
        [Self::Held, Self::Shared, Self::HandedOver, Self::Orphaned, Self::Remote, Self::Unknown];

    /// The name in JSON, columns and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Shared => "shared",
            Self::HandedOver => "handed_over",
            Self::Orphaned => "orphaned",
            Self::Remote => "remote",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a lock is orphaned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A process born after the lock was taken got the descriptor.
    Inherited,
    /// The description sits in a unix socket's queue.
    ScmRights,
    /// A file registered with io_uring.
    IoUring,
    /// Only a mapping is left.
    Mmap,
    /// Loop device, swap, another reference inside the kernel.
    Kernel,
    /// POSIX: another task shares the fd table.
    SharedFiles,
    /// The owner is stuck in exit.
    Exiting,
    /// The lock exists and no reference was found.
    Unaccounted,
}

impl Reason {
    /// Every reason, in the order in which reports list them.
    pub const ALL: [Self; 8] = [
        Self::Inherited,
        Self::ScmRights,
        Self::IoUring,
        Self::Mmap,
        Self::Kernel,
        Self::SharedFiles,
        Self::Exiting,
        Self::Unaccounted,
    ];

    /// The name in JSON, columns and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inherited => "inherited",
            Self::ScmRights => "scm_rights",
            Self::IoUring => "io_uring",
            Self::Mmap => "mmap",
            Self::Kernel => "kernel",
            Self::SharedFiles => "shared_files",
            Self::Exiting => "exiting",
            Self::Unaccounted => "unaccounted",
        }
    }
}

/// How sure a verdict is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Confidence {
    /// Proven by the kernel's identities or by history.
    Certain,
    /// Inferred.
    Likely,
}

impl Confidence {
    /// The name in JSON and columns.
    pub fn name(self) -> &'static str {
        match self {
            Self::Certain => "certain",
            Self::Likely => "likely",
        }
    }
}

/// The verdict on one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is in.
    pub state: State,
    /// Why it is orphaned; `None` in every other state.
    pub reason: Option<Reason>,
    /// How sure that is.
    pub confidence: Confidence,
    /// What it rests on.
    pub evidence: Grounds,
    /// Whether the acquirer lives; `None` where that cannot be told.
    pub acquirer_alive: Option<bool>,
    /// The recorded pid belongs to another process now.
    pub recycled: bool,
    /// The acquirer lives but no longer refers to the description.
    pub detached: bool,
}

/// A process that refers to the lock's description or fd table.
#[derive(Clone, Copy, Debug)]
pub struct Survivor<'a> {
    /// Its pid.
    pub pid: Pid,
    /// How it refers.
    pub via: Via,
    /// The descriptor, where there is one.
    pub fd: Option<u32>,
    /// True where it opened the description itself.
    pub opener: Option<bool>,
    /// The process; `None` where it could not be read.
    pub process: Option<&'a Process>,
}

/// All that a verdict may rest on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The lock.
    pub lock: &'a Lock,
    /// The process that has the recorded pid now, where there is one.
    pub acquirer: Option<&'a Process>,
    /// Every descriptor and fd table that was found to hold it.
    pub survivors: &'a [Survivor<'a>],
    /// How the process ended that took it, as far as history knows.
    pub death: Option<&'a Death>,
    /// That death lies back longer than the grace period.
    pub overdue: bool,
    /// Where else its description was found to live on.
    pub places: &'a [&'a Place],
    /// Where such places were looked for.
    pub search: &'a Search,
    /// The processes of the snapshot.
    pub processes: &'a BTreeMap<Pid, Process>,
    /// Processes that are on their way out for longer than the grace period.
    pub stuck: &'a BTreeSet<ProcessId>,
    /// How births can be ordered.
    pub births: &'a Births,
    /// The reader sees its own pid namespace only.
    pub nested: bool,
    /// Something that could not be read may hide a holder.
    pub hidden: bool,
}

/// The verdict that follows from `facts`.
pub fn classify(facts: &Facts<'_>) -> Verdict {
    let mut verdict = match facts.lock.acquirer {
        RecordedPid::Remote(recorded) => {
            Verdict::new(State::Remote, Confidence::Certain, Evidence::Remote { recorded })
        }
        RecordedPid::Withheld => unknown(Evidence::AcquirerWithheld),
        RecordedPid::Zero => unknown(Evidence::AcquirerOutside),
        RecordedPid::Local(pid) => local(facts, pid),
    };
    if let Some(to) = facts.lock.breaking_to {
        verdict.evidence.push(Evidence::LeaseBreaking { to });
    }
    verdict
}

impl Verdict {
    pub(super) fn new(state: State, confidence: Confidence, evidence: impl Into<Grounds>) -> Self {
        Self {
            state,
            reason: None,
            confidence,
            evidence: evidence.into(),
            acquirer_alive: None,
            recycled: false,
            detached: false,
        }
    }

    fn orphaned(reason: Reason, evidence: Vec<Evidence>) -> Self {
        let mut verdict = Self::new(State::Orphaned, Confidence::Likely, evidence);
        verdict.reason = Some(reason);
        verdict
    }
}

fn unknown(evidence: impl Into<Grounds>) -> Verdict {
    Verdict::new(State::Unknown, Confidence::Certain, evidence)
}

fn local(facts: &Facts<'_>, pid: Pid) -> Verdict {
    let own = || facts.survivors.iter().filter(|survivor| survivor.pid == pid);
    let zombie = facts.acquirer.is_some_and(|process| process.zombie);
    let past = Past::of(facts, pid);
    let tenant = match (past, facts.acquirer) {
        (Some(past), Some(process)) => past.tenant(process),
        _ => Tenant::Unknown,
    };
    // Only history tells a process that is stuck in its exit from a thread that has left.
    // Only history tells a process that is stuck in its exit from a thread that has left; without
    // it the process must have been seen so twice.
    let overdue = facts.overdue
        && tenant == Tenant::Acquirer
        && past.is_some_and(|past| past.death.is_some());
    let seen_stuck = |process: &Process| {
        process.start.is_some_and(|start| facts.stuck.contains(&ProcessId { pid, start }))
    };
    let stuck = facts.acquirer.is_some_and(|process| {
        process.exiting && !process.zombie && (overdue || seen_stuck(process))
    });
    if let Some(first) = own().min_by_key(|survivor| survivor.fd)
        && !zombie
        && !stuck
        && tenant != Tenant::Another
    {
        let descriptors = own().count() as u32;
        let evidence = Evidence::AcquirerHolds { pid, fd: first.fd, descriptors };
        let mut verdict = Verdict::new(State::Held, Confidence::Certain, evidence);
        verdict.acquirer_alive = Some(true);
        return verdict;
    }
    if !zombie
        && !stuck
        && tenant != Tenant::Another
        && let Some(fact) = places::is_owner(facts, pid)
    {
        let mut verdict = Verdict::new(State::Held, Confidence::Certain, fact);
        verdict.acquirer_alive = Some(true);
        return verdict;
    }
    if let Some(fact) = served(facts, pid) {
        return Verdict::new(State::Remote, Confidence::Likely, fact);
    }
    if facts.lock.owner.is_none() {
        let mut verdict = unknown(Evidence::OwnerUnknown);
        verdict.acquirer_alive = if facts.nested && facts.acquirer.is_none() {
            None
        } else {
            Some(facts.acquirer.is_some_and(|process| !process.zombie))
        };
        if facts.hidden {
            verdict.evidence.push(Evidence::Hidden);
        }
        return verdict;
    }
    match facts.acquirer {
        Some(_) if tenant == Tenant::Another => {
            let evidence = vec![Evidence::PidRecycledProven { pid }];
            let mut verdict = bereft(facts, (pid, None), evidence, Life::Dead);
            verdict.recycled = true;
            verdict
        }
        Some(process) if stuck => {
            let mut evidence = vec![Evidence::AcquirerStuck { pid }];
            let others = facts.survivors.iter().any(|survivor| survivor.pid != pid);
            let elsewhere = |place: &&Place| {
                place.owners.is_empty() || place.owners.iter().any(|owner| owner.pid != pid)
            };
            let mut verdict = if others || facts.places.iter().any(elsewhere) {
                // Whoever else has it decides, as if the acquirer were gone.
                bereft(facts, (pid, process.start), evidence, Life::Dead)
            } else {
                if facts.survivors.is_empty() {
                    evidence.push(Evidence::NoReference);
                }
                evidence.extend(past.and_then(|past| past.ending()));
                let mut verdict = Verdict::orphaned(Reason::Exiting, evidence);
                verdict.confidence = Confidence::Certain;
                verdict
            };
            verdict.acquirer_alive = Some(true);
            verdict
        }
        Some(process) if process.zombie => {
            let evidence = vec![Evidence::AcquirerZombie { pid }];
            bereft(facts, (pid, process.start), evidence, Life::Dead)
        }
        Some(process) if process.exiting => {
            let mut verdict = unknown(Evidence::AcquirerExiting { pid });
            verdict.acquirer_alive = Some(true);
            verdict
        }
        Some(process) if tenant == Tenant::Unknown && is_bystander(facts, process) => {
            let evidence = vec![Evidence::PidRecycled { pid }];
            let mut verdict = bereft(facts, (pid, None), evidence, Life::Dead);
            verdict.recycled = true;
            verdict.confidence = Confidence::Likely;
            verdict
        }
        Some(process) => {
            let evidence = vec![Evidence::AcquirerDetached { pid }];
            let mut verdict = bereft(facts, (pid, process.start), evidence, Life::Alive);
            verdict.detached = true;
            verdict
        }
        None if facts.nested && past.is_none_or(|past| past.death.is_none()) => {
            bereft(facts, (pid, None), vec![Evidence::AcquirerOutside], Life::Unknown)
        }
        None => bereft(facts, (pid, None), vec![Evidence::AcquirerGone { pid }], Life::Dead),
    }
}

/// Why a lock that nothing here refers to must be one that a file server took for a client.
fn served(facts: &Facts<'_>, pid: Pid) -> Option<Evidence> {
    if !facts.survivors.is_empty() || !facts.places.is_empty() {
        return None;
    }
    if facts.acquirer.is_some_and(|process| process.kernel_thread) {
        return Some(Evidence::KernelThread { pid });
    }
    let delegated = matches!(facts.lock.kind, LockKind::Deleg | LockKind::Layout);
    (delegated && facts.acquirer.is_none()).then_some(Evidence::Delegated)
}

/// True where the process that has the recorded pid cannot well be the acquirer: it refers to
/// nothing, is younger than every holder, and no child of one that could have lent it the
/// descriptor for the time of the locking.
fn is_bystander(facts: &Facts<'_>, process: &Process) -> bool {
    let Some(start) = process.start else { return false };
    !facts.survivors.is_empty()
        && facts.survivors.iter().all(|survivor| {
            let younger = survivor
                .process
                .and_then(|holder| holder.start)
                .is_some_and(|holder| holder.ticks() < start.ticks());
            younger && process.parent != Some(survivor.pid)
        })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Alive,
    Dead,
    Unknown,
}

/// The verdict on a lock that its acquirer no longer refers to, from how the survivors came by it.
fn bereft(
    facts: &Facts<'_>,
    acquirer: (Pid, Option<StartTime>),
    mut evidence: Vec<Evidence>,
    life: Life,
) -> Verdict {
    if facts.survivors.is_empty() {
        evidence.extend(Past::of(facts, acquirer.0).and_then(|past| past.ending()));
    }
    let mut verdict = if facts.survivors.is_empty() && !facts.places.is_empty() {
        evidence.push(Evidence::NoReference);
        places::verdict(facts, acquirer, evidence, life == Life::Dead)
    } else if facts.survivors.is_empty() {
        evidence.push(Evidence::NoReference);
        if !facts.lock.kind.belongs_to_fd_table() {
            let Search { searched, gaps } = facts.search;
            if !searched.is_empty() {
                evidence.push(Evidence::Searched { places: searched.as_slice().into() });
            }
            if !gaps.is_empty() {
                evidence.push(Evidence::NotSearched { places: gaps.as_slice().into() });
            }
        }
        if facts.hidden {
            evidence.push(Evidence::Hidden);
        }
        if facts.lock.kind.belongs_to_fd_table() {
            evidence.push(Evidence::NoTable);
            unknown(evidence)
        } else if life == Life::Dead && !facts.hidden {
            Verdict::orphaned(Reason::Unaccounted, evidence)
        } else {
            unknown(evidence)
        }
    } else if let Some(past) = Past::of(facts, acquirer.0) {
        history::by_survivors(facts, past, evidence, life)
    } else {
        by_survivors(facts, acquirer, evidence, life)
    };
    verdict.acquirer_alive = match life {
        Life::Alive => Some(true),
        Life::Dead => Some(false),
        Life::Unknown => None,
    };
    verdict
}

fn by_survivors(
    facts: &Facts<'_>,
    acquirer: (Pid, Option<StartTime>),
    mut evidence: Vec<Evidence>,
    life: Life,
) -> Verdict {
    let with = |mut evidence: Vec<Evidence>, more: Evidence| {
        evidence.push(more);
        evidence
    };
    if let Some(opener) = facts.survivors.iter().find(|survivor| survivor.opener == Some(true)) {
        let evidence = with(evidence, Evidence::HolderOpened { pid: opener.pid });
        return Verdict::new(State::Shared, Confidence::Certain, evidence);
    }
    let mut forked = None;
    let mut unplaced = None;
    let mut younger = Vec::new();
    for survivor in distinct(facts.survivors) {
        let start = survivor.process.and_then(|process| process.start);
        match births::order(facts.births, acquirer, (survivor.pid, start)) {
            Order::HolderFirst(basis) => {
                let fact = Evidence::HolderOlder { pid: survivor.pid, basis };
                return Verdict::new(State::Shared, Confidence::Likely, with(evidence, fact));
            }
            order => {
                let session = survivor.process.and_then(|process| process.session);
                let no_exec = survivor.process.and_then(|process| process.forked_no_exec);
                match (order, no_exec) {
                    (_, Some(true)) => forked = forked.or(Some(survivor.pid)),
                    (Order::AcquirerFirst(basis), Some(false)) => {
                        younger.push((survivor.pid, Some(basis)));
                    }
                    // A session is only joined by birth: its leader is older.
                    (_, Some(false))
                        if session == Some(acquirer.0) && session != Some(survivor.pid) =>
                    {
                        younger.push((survivor.pid, None));
                    }
                    _ => unplaced = unplaced.or(Some(survivor.pid)),
                }
            }
        }
    }
    if facts.lock.kind == LockKind::Posix {
        for survivor in distinct(facts.survivors).take(SHOWN) {
            evidence.push(Evidence::SharesTable { pid: survivor.pid });
        }
        return if life == Life::Dead && unplaced.is_none() {
            Verdict::orphaned(Reason::SharedFiles, evidence)
        } else {
            unknown(evidence)
        };
    }
    if let Some(pid) = forked {
        evidence.push(Evidence::HolderForked { pid });
        evidence.push(Evidence::ExitUnknown);
        return Verdict::new(State::HandedOver, Confidence::Likely, evidence);
    }
    for &(pid, basis) in younger.iter().take(SHOWN) {
        if let Some(basis) = basis {
            evidence.push(Evidence::HolderYounger { pid, basis });
        }
        evidence.push(Evidence::HolderExeced { pid });
    }
    if let Some(pid) = unplaced {
        return unknown(with(evidence, Evidence::HolderAgeUnknown { pid }));
    }
    if life != Life::Dead {
        return unknown(evidence);
    }
    if facts.hidden {
        // A holder that was not seen may be the one that has it by right.
        return unknown(with(evidence, Evidence::Hidden));
    }
    Verdict::orphaned(Reason::Inherited, evidence)
}

/// Survivors of which the evidence speaks; the others are in the list of holders.
const SHOWN: usize = 4;

/// One survivor a process.
fn distinct<'a>(survivors: &'a [Survivor<'a>]) -> impl Iterator<Item = &'a Survivor<'a>> {
    survivors
        .iter()
        .enumerate()
        .filter(|(index, survivor)| *index == 0 || survivors[index - 1].pid != survivor.pid)
        .map(|(_, survivor)| survivor)
}

#[cfg(test)]
mod tests;
