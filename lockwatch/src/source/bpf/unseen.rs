//! Completes a snapshot with what no fd table shows.
//!
//! Refuses to fail: what cannot be searched is told, and the lock stays unexplained.

use std::collections::{BTreeMap, BTreeSet};
use std::thread::JoinHandle;

use super::kernel_users::KernelUsers;
use super::search::Hunt;
use super::sightings::Sightings;
use super::{BpfError, enrich};
use crate::engine::identity::{Owner, Pid, RecordedPid};
use crate::engine::snapshot::{
    FileIx, Hides, Limit, Place, PlaceKind, Reference, Search, Snapshot, Via,
};

/// Loads a search before there is anything to look for: to load it takes longer than to look.
///
/// # Errors
/// Where this kernel or these privileges do not allow it.
pub fn prepare() -> Result<Hunt, BpfError> {
    Hunt::new(BTreeMap::new())
}

/// A search that is being loaded.
pub struct Loading(JoinHandle<Result<Hunt, BpfError>>);

impl Loading {
    /// Waits until it is loaded; `None` where it could not be, which who loads it anew is told.
    pub fn wait(self) -> Option<Hunt> {
        self.0.join().ok()?.ok()
    }
}

/// Begins to load a search where a file that has a lock is open nowhere: what is done with the rest
/// of the facts takes about as long.
pub(super) fn prepare_early(snapshot: &Snapshot) -> Option<Loading> {
    let mut open = vec![false; snapshot.files.len()];
    for reference in &snapshot.references {
        open[reference.file.0 as usize] = true;
    }
    let mut locks = snapshot.locks.iter().filter(|lock| !lock.kind.belongs_to_fd_table());
    locks.find(|lock| !open[lock.file.0 as usize])?;
    std::thread::Builder::new().spawn(prepare).ok().map(Loading)
}

/// Looks for the descriptions `unexplained`, and adds what was found to `snapshot`. Answers with
/// the search, for whoever wants to look [`again`], or for the next snapshot's; `loaded` is one of
/// before.
pub fn explain(
    snapshot: &mut Snapshot,
    unexplained: &[Owner],
    loaded: Option<Hunt>,
) -> Option<Hunt> {
    let wanted: BTreeMap<Owner, FileIx> = snapshot
        .locks
        .iter()
        .filter(|lock| !lock.kind.belongs_to_fd_table())
        .filter_map(|lock| Some((lock.owner?, lock.file)))
        .filter(|(owner, _)| unexplained.binary_search(owner).is_ok())
        .collect();
    let load = || Hunt::new(wanted.clone());
    let hunt = match loaded {
        Some(mut hunt) => hunt.look_for(wanted.clone()).and_then(|fits| match fits {
            true => Ok(hunt),
            false => load(),
        }),
        None => load(),
    };
    let hunt = hunt.and_then(|mut hunt| {
        let sightings = hunt.search()?;
        add(snapshot, sightings);
        Ok(hunt)
    });
    let hunt = hunt.map_err(|error| snapshot.search = Search::none(&error.to_string())).ok();
    requests(snapshot, &wanted);
    kernel(snapshot, &wanted);
    hunt
}

/// Looks for the same descriptions once more, and puts what is found now in the place of what
/// was found then. False where that is the same, and nothing was changed.
///
/// # Errors
/// Where an iterator fails.
pub fn again(snapshot: &mut Snapshot, hunt: &mut Hunt) -> Result<bool, BpfError> {
    // To pass every mapping of the machine takes as long as all the rest. What was in queues and rings
    // then and still is need not be asked for in mappings, where it was not then.
    if snapshot.places.iter().all(|place| place.via() != Via::Mmap)
        && is_the_same(snapshot, &hunt.search_but_mappings()?)
    {
        return Ok(false);
    }
    let sightings = hunt.search()?;
    if is_the_same(snapshot, &sightings) {
        return Ok(false);
    }
    add(snapshot, sightings);
    kernel(snapshot, hunt.wanted());
    Ok(true)
}

/// True where what was searched and what was found is what the snapshot has already, but for what
/// the kernel keeps.
fn is_the_same(snapshot: &Snapshot, sightings: &Sightings) -> bool {
    let then = snapshot.places.iter().filter(|place| place.via() != Via::Kernel);
    let gaps = snapshot.search.gaps.iter().filter(|(via, _)| *via != Via::Kernel);
    snapshot.search.searched == sightings.search.searched
        && gaps.eq(&sightings.search.gaps)
        && then.eq(&sightings.places())
        && has_all(&snapshot.references, sightings.references())
}

/// True where each of `found` is among `known`.
fn has_all(known: &[Reference], found: &[Reference]) -> bool {
    let who = |of: &Reference| (of.description, of.pid, of.tid, of.fd);
    let wanted: BTreeSet<_> = found.iter().map(who).collect();
    wanted.is_empty() || {
        let known: BTreeSet<_> = known.iter().map(who).filter(|of| wanted.contains(of)).collect();
        known.len() == wanted.len()
    }
}

fn add(snapshot: &mut Snapshot, mut sightings: Sightings) {
    snapshot.search = std::mem::take(&mut sightings.search);
    let (places, references, processes) = sightings.finish();
    let mut pids: BTreeSet<Pid> = processes.keys().copied().collect();
    snapshot.places = places;
    snapshot.references.extend(references);
    for (pid, process) in processes {
        snapshot.processes.entry(pid).or_insert(process);
    }
    pids.retain(|pid| snapshot.processes.get(pid).is_some_and(|process| process.session.is_none()));
    if let Err(error) = enrich::complete(snapshot, pids) {
        let what = format!("read /proc: {error}");
        snapshot.limits.push(Limit { what, hides: Hides::Nothing });
    }
}

/// A description with which somebody waits for another lock is in use, also where its descriptor
/// was closed meanwhile.
fn requests(snapshot: &mut Snapshot, wanted: &BTreeMap<Owner, FileIx>) {
    for waiter in &snapshot.waiters {
        let (Some(description), RecordedPid::Local(pid)) = (waiter.owner, waiter.requester) else {
            continue;
        };
        let known = |reference: &Reference| {
            reference.description == Some(description) && reference.pid == pid
        };
        if waiter.kind.belongs_to_fd_table()
            || !wanted.contains_key(&description)
            || !snapshot.processes.contains_key(&pid)
            || snapshot.references.iter().any(known)
        {
            continue;
        }
        snapshot.references.push(Reference {
            pid,
            tid: pid,
            via: Via::Fd,
            fd: None,
            file: waiter.file,
            description: Some(description),
            table: None,
            opener: None,
            writes: None,
        });
    }
}

/// Looks among the files that the kernel itself uses for those of descriptions that are nowhere
/// else.
fn kernel(snapshot: &mut Snapshot, wanted: &BTreeMap<Owner, FileIx>) {
    let elsewhere: BTreeSet<Owner> = snapshot
        .places
        .iter()
        .map(|place| place.description)
        .chain(snapshot.references.iter().filter_map(|reference| reference.description))
        .filter(|description| wanted.contains_key(description))
        .collect();
    let nowhere = wanted.iter().filter(|(description, _)| !elsewhere.contains(description));
    let nowhere: Vec<(Owner, FileIx)> = nowhere.map(|(&owner, &file)| (owner, file)).collect();
    let users = match nowhere.is_empty() {
        true => KernelUsers::none(),
        false => KernelUsers::read(),
    };
    for (description, file) in nowhere {
        let file = &snapshot.files[file.0 as usize];
        snapshot.places.extend(users.of(file).map(|what| Place {
            description,
            kind: PlaceKind::Kernel { what: what.to_owned() },
            owners: Vec::new(),
        }));
    }
    let mut why = "the kernel uses the file neither for a loop device nor for swapping, and what \
                   else in it may keep a description it does not tell"
        .to_owned();
    for unread in users.unread {
        why.push_str(&format!("; not read: {unread}"));
    }
    snapshot.search.gaps.retain(|(via, _)| *via != Via::Kernel);
    snapshot.search.gaps.push((Via::Kernel, why));
}
