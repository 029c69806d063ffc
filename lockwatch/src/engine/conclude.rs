//! The verdicts on the locks of a snapshot, one after the other.
//!
//! Refuses to keep any: whoever asks for a verdict has it, so that a snapshot of very many locks can
//! be gone through without room for all of their verdicts.

use std::collections::BTreeMap;

use super::classify::{Facts, State, Survivor, Verdict, classify};
use super::evidence::Evidence;
use super::holders::Holders;
use super::identity::{BootTime, Owner, ProcessId, RecordedPid};
use super::places::Places;
use super::snapshot::{Death, Hides, Lock, Place, Snapshot, Via};

/// A part of a list of indices that many locks share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    from: u32,
    to: u32,
}

impl Span {
    /// The part of `list`.
    pub(super) fn of(self, list: &[u32]) -> &[u32] {
        list.get(self.from as usize..self.to as usize).unwrap_or_default()
    }

    /// The part of `list` that `more` is, once it is added.
    pub(super) fn added(list: &mut Vec<u32>, more: &[u32]) -> Self {
        let from = list.len() as u32;
        list.extend_from_slice(more);
        Self { from, to: list.len() as u32 }
    }
}

/// All that the verdicts on a snapshot's locks rest on, put in order.
pub(super) struct Conclusions<'a> {
    snapshot: &'a Snapshot,
    holders: Holders,
    places: Places,
    deaths: BTreeMap<ProcessId, &'a Death>,
    hidden: bool,
    overdue: Option<BootTime>,
    survivors: Vec<Survivor<'a>>,
}

/// What follows for one lock.
pub(super) struct Conclusion<'c, 'a> {
    pub(super) verdict: Verdict,
    /// Its holders: a part of [`Lists::holders`].
    pub(super) holders: Span,
    /// Its places: a part of [`Lists::places`].
    pub(super) places: Span,
    pub(super) survivors: &'c [Survivor<'a>],
}

/// The lists that the parts are of.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    /// Places in [`Snapshot::references`].
    pub(super) holders: Vec<u32>,
    /// Places in [`Snapshot::places`].
    pub(super) places: Vec<u32>,
}

impl<'a> Conclusions<'a> {
    /// Puts the facts in order; who died at `overdue` or before should long have come to the end of
    /// its exit.
    pub(super) fn of(snapshot: &'a Snapshot, overdue: Option<BootTime>) -> Self {
        Self {
            snapshot,
            holders: Holders::index(snapshot),
            places: Places::index(snapshot),
            deaths: snapshot.deaths.iter().map(|death| (death.process, death)).collect(),
            hidden: snapshot.limits.iter().any(|limit| limit.hides != Hides::Nothing),
            overdue,
            survivors: Vec::new(),
        }
    }

    /// Concludes on one lock of the snapshot.
    pub(super) fn on(&mut self, lock: &'a Lock) -> Conclusion<'_, 'a> {
        let snapshot = self.snapshot;
        let (holders, kept_in) = (self.holders.of(lock), self.places.of(lock));
        self.survivors.clear();
        let held_by = holders.of(self.holders.list()).iter();
        self.survivors.extend(held_by.map(|&reference| survivor(snapshot, lock, reference)));
        let places: Vec<&Place> = kept_in
            .of(self.places.list())
            .iter()
            .map(|&place| &snapshot.places[place as usize])
            .collect();
        let acquirer = match lock.acquirer {
            RecordedPid::Local(pid) => snapshot.processes.get(&pid),
            _ => None,
        };
        let death = lock.taken.as_ref().and_then(|taken| self.deaths.get(&taken.by.id).copied());
        let overdue = death.zip(self.overdue).is_some_and(|(death, overdue)| death.at <= overdue);
        let verdict = classify(&Facts {
            lock,
            acquirer,
            survivors: &self.survivors,
            death,
            overdue,
            places: &places,
            search: &snapshot.search,
            processes: &snapshot.processes,
            stuck: &snapshot.stuck,
            births: &snapshot.births,
            nested: snapshot.nested,
            hidden: self.hidden,
        });
        Conclusion { verdict, holders, places: kept_in, survivors: &self.survivors }
    }

    /// The lists that holders and places of the conclusions are parts of.
    pub(super) fn into_lists(self) -> Lists {
        Lists { holders: self.holders.into_list(), places: self.places.into_list() }
    }
}

fn survivor<'a>(snapshot: &'a Snapshot, lock: &Lock, reference: u32) -> Survivor<'a> {
    let reference = &snapshot.references[reference as usize];
    Survivor {
        pid: reference.pid,
        via: if lock.kind.belongs_to_fd_table() { Via::Files } else { reference.via },
        fd: reference.fd,
        opener: reference.opener,
        process: snapshot.processes.get(&reference.pid),
    }
}

/// Descriptions of which nobody was found who holds them by right: worth a search for what no fd
/// table shows. In rising order.
pub fn unexplained(snapshot: &Snapshot) -> Vec<Owner> {
    let mut conclusions = Conclusions::of(snapshot, None);
    sorted(snapshot.locks.iter().filter_map(|lock| {
        let Conclusion { verdict, survivors, .. } = conclusions.on(lock);
        unexplained_owner(snapshot, lock, &verdict, !survivors.is_empty())
    }))
}

/// The lock's description, where it is worth that search. `is_held` is whether a holder was found.
pub(super) fn unexplained_owner(
    snapshot: &Snapshot,
    lock: &Lock,
    verdict: &Verdict,
    is_held: bool,
) -> Option<Owner> {
    let is_unexplained = match verdict.state {
        State::Orphaned => true,
        // What dies is still giving things back.
        State::Unknown => !is_held && dying(snapshot, verdict).is_none(),
        _ => false,
    };
    lock.owner.filter(|_| is_unexplained && !lock.kind.belongs_to_fd_table())
}

pub(super) fn sorted(owners: impl Iterator<Item = Owner>) -> Vec<Owner> {
    let mut owners: Vec<Owner> = owners.collect();
    owners.sort_unstable();
    owners.dedup();
    owners
}

/// The acquirer, where nothing more is known than that it is on its way out.
pub(super) fn dying(snapshot: &Snapshot, verdict: &Verdict) -> Option<ProcessId> {
    let Some(&Evidence::AcquirerExiting { pid }) = verdict.evidence.first() else { return None };
    let start = snapshot.processes.get(&pid)?.start?;
    Some(ProcessId { pid, start })
}
