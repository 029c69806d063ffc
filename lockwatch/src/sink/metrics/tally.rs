//! What the daemon counts: events by their kind, reclaims, reconciliations.
//!
//! Refuses to judge: it adds up what the engine told and what the actuators answered. It begins at
//! 0 with each daemon; counters of Prometheus may.

use super::buckets::Buckets;
use crate::engine::event::{Event, Kind};

/// What may be a value of the label `kind` of `lockwatch_races_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Race {
    /// A crash hand-off; `lockwatch_crash_handoffs_total` counts it, too.
    CrashHandoff,
    /// An attempt while the owner was already exiting.
    ExitRace,
    /// A reclaim that was overtaken.
    ReclaimRace,
    /// A lock file that was made anew under its lock.
    LockReplaced,
    /// A recorded pid that was given away.
    PidRecycled,
    /// Waiters that wait for each other.
    Deadlock,
    /// A wait beyond its threshold.
    LongWait,
}

impl Race {
    /// Every one, in the order in which they are shown.
    pub const ALL: [Self; 7] = [
        Self::CrashHandoff,
        Self::ExitRace,
        Self::ReclaimRace,
        Self::LockReplaced,
        Self::PidRecycled,
        Self::Deadlock,
        Self::LongWait,
    ];

    /// The name of the event.
    pub fn name(self) -> &'static str {
        match self {
            Self::CrashHandoff => "crash_handoff",
            Self::ExitRace => "exit_race",
            Self::ReclaimRace => "reclaim_race",
            Self::LockReplaced => "lock_replaced",
            Self::PidRecycled => "pid_recycled",
            Self::Deadlock => "deadlock",
            Self::LongWait => "long_wait",
        }
    }
}

/// How a reclaim ended: the label `result` of `lockwatch_reclaims_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReclaimResult {
    /// The lock is gone, which was verified.
    Released,
    /// Not carried out: what was planned was no longer so, or a hook said no.
    Refused,
    /// Carried out, and the lock is still there, or that could not be verified.
    Failed,
}

impl ReclaimResult {
    /// Every one, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Released, Self::Refused, Self::Failed];

    /// The value of the label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The actuator's methods: shown from the start, because Prometheus sees no increase in a counter
/// that begins with its first reclaim. `none` is for what was refused before a method was chosen.
const METHODS: [&str; 5] = ["fd", "queue", "signal", "inject", "none"];

/// The counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    races: [u64; Race::ALL.len()],
    /// By method; [`METHODS`], then others in the order in which each came first.
    reclaims: Vec<(&'static str, [u64; ReclaimResult::ALL.len()])>,
    lost: u64,
    resyncs: u64,
    gc_runs: u64,
    detection: Buckets,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            races: Default::default(),
            reclaims: METHODS.iter().map(|method| (*method, Default::default())).collect(),
            lost: 0,
            resyncs: 0,
            gc_runs: 0,
            detection: Buckets::default(),
        }
    }
}

impl Tally {
    /// Counts an event.
    pub fn event(&mut self, event: &Event) {
        match &event.kind {
            Kind::CrashHandoff { .. } => self.race(Race::CrashHandoff),
            Kind::ExitRace { .. } => self.race(Race::ExitRace),
            Kind::LockReplaced { .. } => self.race(Race::LockReplaced),
            Kind::PidRecycled { .. } => self.race(Race::PidRecycled),
            Kind::Deadlock { .. } => self.race(Race::Deadlock),
            Kind::LongWait { .. } => self.race(Race::LongWait),
            Kind::ReclaimDone { method, .. } => {
                self.reclaim(method.name(), ReclaimResult::Released);
            }
            Kind::ReclaimFailed { method, result, .. } => {
                let method = method.map_or("none", |method| method.name());
                let refused = ["refused", "not_tried"].contains(&result.as_str());
                let result = if refused { ReclaimResult::Refused } else { ReclaimResult::Failed };
                self.reclaim(method, result);
            }
            // The reclaim itself was counted when it ended.
            Kind::ReclaimRace { writer: Some(_), .. } => self.race(Race::ReclaimRace),
            Kind::ReclaimRace { method, .. } => {
                self.race(Race::ReclaimRace);
                let method = method.map_or("none", |method| method.name());
                self.reclaim(method, ReclaimResult::Refused);
            }
            Kind::Lost { records } => {
                self.lost = self.lost.saturating_add(*records);
                self.resyncs += 1;
            }
            Kind::Orphaned { .. } => {
                // An orphan whose owner's death nobody saw was found, not detected in a time.
                let death = event.lock.as_ref().and_then(|told| told.death.as_ref());
                if let Some(death) = death {
                    self.detection.observe(event.at.boot.since(death.at));
                }
            }
            _ => {}
        }
    }

    /// Counts a race.
    pub fn race(&mut self, race: Race) {
        self.races[race as usize] += 1;
    }

    /// Counts a reclaim; `method` is the actuator's name of it, `none` where there was none.
    pub fn reclaim(&mut self, method: &'static str, result: ReclaimResult) {
        let at = match self.reclaims.iter().position(|(known, _)| *known == method) {
            Some(at) => at,
            None => {
                self.reclaims.push((method, Default::default()));
                self.reclaims.len() - 1
            }
        };
        self.reclaims[at].1[result as usize] += 1;
    }

    /// Counts a reconciliation with the kernel.
    pub fn gc_run(&mut self) {
        self.gc_runs += 1;
    }

    pub(super) fn races(&self) -> impl Iterator<Item = (Race, u64)> {
        Race::ALL.into_iter().map(|race| (race, self.races[race as usize]))
    }

    pub(super) fn crash_handoffs(&self) -> u64 {
        self.races[Race::CrashHandoff as usize]
    }

    pub(super) fn reclaims(&self) -> impl Iterator<Item = (&'static str, ReclaimResult, u64)> {
        self.reclaims.iter().flat_map(|(method, counts)| {
            ReclaimResult::ALL.into_iter().map(|result| (*method, result, counts[result as usize]))
        })
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn resyncs(&self) -> u64 {
        self.resyncs
    }

    pub(super) fn gc_runs(&self) -> u64 {
        self.gc_runs
    }

    pub(super) fn detection(&self) -> &Buckets {
        &self.detection
    }
}
