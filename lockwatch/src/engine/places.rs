//! The verdict on a lock that no fd table shows, from the places where its description lives on.
//!
//! Refuses to call a place an orphan's that may have been somebody's before the lock was taken: who
//! opened the file, or mapped it before the acquirer was born, has it by right.

use hashbrown::HashMap; // not iterated

use super::births::{self, Order};
use super::classify::{Birth, Confidence, Facts, Reason, State, Verdict, birth};
use super::conclude::Span;
use super::evidence::Evidence;
use super::identity::{Owner, Pid, StartTime};
use super::snapshot::{Lock, Place, PlaceKind, PlaceOwner, Snapshot};

/// Places of which the evidence speaks; the others are in the list of holders.
const SHOWN: usize = 4;

/// The places of each description.
pub(super) struct Places {
    of: HashMap<Owner, Span>, // not iterated
    list: Vec<u32>,
}

impl Places {
    /// Sorts the snapshot's places.
    pub(super) fn index(snapshot: &Snapshot) -> Self {
        let places = &snapshot.places;
        let mut order: Vec<u32> = (0..places.len() as u32).collect();
        order.sort_unstable_by_key(|&index| &places[index as usize]);
        let description = |index: &u32| places[*index as usize].description;
        let mut list = Vec::with_capacity(order.len());
        let of = order
            .chunk_by(|a, b| description(a) == description(b))
            .filter_map(|group| Some((description(group.first()?), Span::added(&mut list, group))))
            .collect();
        Self { of, list }
    }

    /// Where the description of `lock` lives on.
    pub(super) fn of(&self, lock: &Lock) -> Span {
        let owner = lock.owner.filter(|_| !lock.kind.belongs_to_fd_table());
        owner.and_then(|owner| self.of.get(&owner)).copied().unwrap_or_default()
    }

    /// What the spans are parts of: places in [`Snapshot::places`].
    pub(super) fn list(&self) -> &[u32] {
        &self.list
    }

    pub(super) fn into_list(self) -> Vec<u32> {
        self.list
    }
}

/// What the places say of a lock whose acquirer, `(pid, start)`, no longer has it. The evidence
/// begins with what is known of the acquirer.
pub(super) fn verdict(
    facts: &Facts<'_>,
    acquirer: (Pid, Option<StartTime>),
    mut evidence: Vec<Evidence>,
    acquirer_is_dead: bool,
) -> Verdict {
    evidence.extend(facts.places.iter().take(SHOWN).map(|place| Evidence::kept(place)));
    let certain = |state, evidence| Verdict::new(state, Confidence::Certain, evidence);
    let mut doubtful = None;
    for place in facts.places {
        for owner in &place.owners {
            match standing(facts, acquirer, place, owner) {
                Standing::Opened => {
                    evidence.push(Evidence::HolderOpened { pid: owner.pid });
                    return certain(State::Shared, evidence);
                }
                Standing::Before => {
                    evidence.push(Evidence::HolderBefore { pid: owner.pid });
                    return certain(State::Shared, evidence);
                }
                Standing::Older(basis) => {
                    evidence.push(Evidence::HolderOlder { pid: owner.pid, basis });
                    return Verdict::new(State::Shared, Confidence::Likely, evidence);
                }
                Standing::Doubtful => doubtful = doubtful.or(Some(owner.pid)),
                Standing::Without => {}
            }
        }
    }
    if let Some(pid) = doubtful {
        evidence.push(Evidence::HadBeforeUnknown { pid });
        return certain(State::Unknown, evidence);
    }
    if facts.hidden {
        evidence.push(Evidence::Hidden);
    }
    if !acquirer_is_dead || facts.hidden {
        return certain(State::Unknown, evidence);
    }
    let mut verdict = certain(State::Orphaned, evidence);
    verdict.reason =
        facts.places.iter().map(|place| reason(place)).min_by_key(|reason| rank(*reason));
    if verdict.reason == Some(Reason::Kernel) {
        // Matched by its file, not by its description.
        verdict.confidence = Confidence::Likely;
    }
    verdict
}

/// True where the process has one of the places: it can still get at the description.
pub(super) fn is_owner(facts: &Facts<'_>, pid: Pid) -> Option<Evidence> {
    let of = |place: &&Place| place.owners.iter().any(|owner| owner.pid == pid);
    let place = facts.places.iter().copied().find(of)?;
    Some(Evidence::AcquirerKeeps { pid, via: place.via() })
}

/// How the owner of a place stands to the description in it.
enum Standing {
    /// It opened the file itself.
    Opened,
    /// It had the place before the lock was taken.
    Before,
    /// It had the place before the acquirer was born.
    Older(births::Basis),
    /// Whether it had the description before the lock was taken cannot be told.
    Doubtful,
    /// It came by the place after the lock was taken, or the place gives it nothing.
    Without,
}

fn standing(
    facts: &Facts<'_>,
    acquirer: (Pid, Option<StartTime>),
    place: &Place,
    owner: &PlaceOwner,
) -> Standing {
    let process = facts.processes.get(&owner.pid);
    let start = process.and_then(|process| process.start);
    let order = || births::order(facts.births, acquirer, (owner.pid, start));
    let watched = birth(facts, acquirer.0, start);
    match place.kind {
        // Nobody has what is in flight, not even whose socket it is.
        PlaceKind::Queue { .. } | PlaceKind::Kernel { .. } => Standing::Without,
        _ if owner.opener == Some(true) => Standing::Opened,
        PlaceKind::Mapping { .. } | PlaceKind::Ring { .. } if watched == Some(Birth::After) => {
            Standing::Without
        }
        PlaceKind::Mapping { .. } if watched == Some(Birth::Before) => Standing::Before,
        PlaceKind::Mapping { .. } | PlaceKind::Ring { .. } if watched.is_some() => {
            Standing::Doubtful
        }
        PlaceKind::Mapping { .. } => match order() {
            // A mapping is come by through birth alone, so an older process had it before.
            Order::HolderFirst(basis) => Standing::Older(basis),
            Order::AcquirerFirst(_) => Standing::Without,
            Order::Unknown => Standing::Doubtful,
        },
        // Whoever had the ring too may have put the file there.
        PlaceKind::Ring { .. } => match order() {
            Order::AcquirerFirst(_) => Standing::Without,
            Order::HolderFirst(_) | Order::Unknown => Standing::Doubtful,
        },
    }
}

fn reason(place: &Place) -> Reason {
    match place.kind {
        PlaceKind::Queue { .. } => Reason::ScmRights,
        PlaceKind::Ring { .. } => Reason::IoUring,
        PlaceKind::Mapping { .. } => Reason::Mmap,
        PlaceKind::Kernel { .. } => Reason::Kernel,
    }
}

/// Out of several places the one counts from which the description can still come back.
fn rank(reason: Reason) -> u8 {
    match reason {
        Reason::ScmRights => 0,
        Reason::IoUring => 1,
        Reason::Mmap => 2,
        _ => 3,
    }
}
