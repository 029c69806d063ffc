//! What a verdict may rest on where somebody watched the lock being taken.
//!
//! Refuses to guess: a survivor whose birth lies too close to the taking to be told from it, or
//! whose exec is not known, makes the verdict `unknown`.

use super::{Facts, Life, Reason, SHOWN, State, Survivor, Verdict, distinct, unknown};
use crate::engine::classify::Confidence;
use crate::engine::evidence::Evidence;
use crate::engine::identity::{BootTime, LockKind, Pid, StartTime};
use crate::engine::snapshot::{Death, Process, Taken};

/// What history knows of a lock's acquirer.
#[derive(Clone, Copy)]
pub(super) struct Past<'a> {
    pub(super) taken: &'a Taken,
    pub(super) death: Option<&'a Death>,
}

/// Who has the recorded pid now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenant {
    Acquirer,
    Another,
    Unknown,
}

/// A survivor's birth seen from the taking of the lock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Birth {
    Before,
    After,
    Unknown,
}

impl<'a> Past<'a> {
    /// The past of `facts.lock`, taken by the process with the recorded `pid`. `None` where nobody
    /// watched, or where history speaks of another taking than the kernel does.
    pub(super) fn of(facts: &Facts<'a>, pid: Pid) -> Option<Self> {
        let taken = facts.lock.taken.as_ref().filter(|taken| taken.by.id.pid == pid)?;
        let death = facts.death.filter(|death| death.process == taken.by.id);
        Some(Self { taken, death })
    }

    /// Who `process` is, which has the recorded pid now.
    pub(super) fn tenant(&self, process: &Process) -> Tenant {
        match process.start {
            Some(start) if start.is_same(self.taken.by.id.start) => Tenant::Acquirer,
            Some(_) => Tenant::Another,
            None => Tenant::Unknown,
        }
    }

    /// How the acquirer ended, as evidence.
    pub(super) fn ending(&self) -> Option<Evidence> {
        let Death { process, code, signal, .. } = *self.death?;
        Some(Evidence::AcquirerEnded { pid: process.pid, code, signal })
    }

    fn birth(&self, survivor: &Survivor<'_>) -> Birth {
        self.birth_of(survivor.process.and_then(|process| process.start))
    }

    fn birth_of(&self, start: Option<StartTime>) -> Birth {
        let Some(start) = start else { return Birth::Unknown };
        let BootTime(taken) = self.taken.at;
        // A start in whole clock ticks may be up to a tick later than it says.
        let latest = if start.is_whole_ticks() {
            start.0.saturating_add(StartTime::NANOS_PER_TICK - 1)
        } else {
            start.0
        };
        if latest < taken {
            Birth::Before
        } else if start.0 > taken {
            Birth::After
        } else {
            Birth::Unknown
        }
    }
}

/// When a process with that start was born, seen from the taking of the lock by the process with
/// the recorded pid. `None` where nobody watched.
pub(in crate::engine) fn birth(
    facts: &Facts<'_>,
    acquirer: Pid,
    start: Option<StartTime>,
) -> Option<Birth> {
    Past::of(facts, acquirer).map(|past| past.birth_of(start))
}

/// The verdict on a lock that its acquirer no longer refers to, from how the survivors came by it.
pub(super) fn by_survivors(
    facts: &Facts<'_>,
    past: Past<'_>,
    mut evidence: Vec<Evidence>,
    life: Life,
) -> Verdict {
    evidence.extend(past.ending());
    // An acquirer that is stuck in its exit is no survivor of itself.
    let is_acquirer = |survivor: &Survivor<'_>| {
        survivor.pid == past.taken.by.id.pid
            && survivor.process.is_some_and(|process| past.tenant(process) == Tenant::Acquirer)
    };
    let survivors = || distinct(facts.survivors).filter(|survivor| !is_acquirer(survivor));
    if let Some(before) = survivors().find(|survivor| survivor.opener == Some(true)) {
        evidence.push(Evidence::HolderOpened { pid: before.pid });
        return Verdict::new(State::Shared, Confidence::Certain, evidence);
    }
    if let Some(before) = survivors().find(|survivor| past.birth(survivor) == Birth::Before) {
        evidence.push(Evidence::HolderBefore { pid: before.pid });
        return Verdict::new(State::Shared, Confidence::Certain, evidence);
    }
    let no_exec = |survivor: &Survivor<'_>| survivor.process.and_then(|of| of.forked_no_exec);
    let is_forked = |survivor: &&Survivor<'_>| no_exec(survivor) == Some(true);
    let is_later = |survivor: &&Survivor<'_>| past.birth(survivor) == Birth::After;
    let posix = facts.lock.kind == LockKind::Posix;
    let clean = past.death.map(Death::is_clean);
    // Of a POSIX lock nothing is inherited by a fork that does not share the whole fd table, so
    // there only a proven clean exit makes it a hand-over.
    if clean == Some(true) || clean.is_none() && !posix {
        let forked = survivors().filter(is_forked).find(is_later);
        // One that was forked at an unknown time has the lock by right either way.
        if let Some(heir) = forked.or_else(|| survivors().find(is_forked)) {
            evidence.push(Evidence::HolderForked { pid: heir.pid });
            if clean.is_none() && life != Life::Alive {
                evidence.push(Evidence::ExitUnknown);
            }
            let proven = clean == Some(true) && is_later(&heir);
            let confidence = if proven { Confidence::Certain } else { Confidence::Likely };
            return Verdict::new(State::HandedOver, confidence, evidence);
        }
    }
    for survivor in survivors().filter(is_later).take(SHOWN) {
        let pid = survivor.pid;
        evidence.push(Evidence::HolderAfter { pid });
        match no_exec(survivor) {
            _ if posix => evidence.push(Evidence::SharesTable { pid }),
            Some(true) => evidence.push(Evidence::HolderForked { pid }),
            Some(false) => evidence.push(Evidence::HolderExeced { pid }),
            None => {}
        }
    }
    if let Some(unplaced) = survivors().find(|survivor| !is_later(survivor)) {
        evidence.push(Evidence::HolderBirthUnknown { pid: unplaced.pid });
        return unknown(evidence);
    }
    // After a crash it does not matter whether a later-born survivor has exec'd.
    let undecided = |survivor: &&Survivor<'_>| no_exec(survivor).is_none();
    if clean != Some(false)
        && let Some(survivor) = survivors().find(undecided)
    {
        evidence.push(Evidence::HolderExecUnknown { pid: survivor.pid });
        return unknown(evidence);
    }
    if life != Life::Dead {
        return unknown(evidence);
    }
    if facts.hidden {
        // A holder that was not seen may be the one that has it by right.
        evidence.push(Evidence::Hidden);
        return unknown(evidence);
    }
    let reason = if posix { Reason::SharedFiles } else { Reason::Inherited };
    let mut verdict = Verdict::orphaned(reason, evidence);
    if clean.is_some() || !posix {
        verdict.confidence = Confidence::Certain;
    }
    verdict
}
