//! From the records of a search to places: whose socket, ring or mapping it is in which a
//! description lives on.
//!
//! Refuses to look anything up: records in, facts out.

use std::collections::{BTreeMap, BTreeSet};

use lockwatch_common::search::{
    BY_FILE, BY_SOCK, ContainerRecord, HOLDS_WANTED, HoldRecord, INSIDE_FILE, INSIDE_SOCK,
    INSIDE_WANTED, InsideRecord, MAPS_WANTED, NO_FD, NOT_MAPPED,
};

use super::assemble::process;
use super::search_record::Found;
use crate::engine::identity::{Owner, Pid};
use crate::engine::snapshot::{
    FileIx, Place, PlaceKind, PlaceOwner, Process, Reference, Search, Via,
};

/// `VM_*` of `include/linux/mm.h`, in the order of `/proc/PID/maps`.
const VM_READ: u64 = 1;
const VM_WRITE: u64 = 2;
const VM_EXEC: u64 = 4;
const VM_MAYSHARE: u64 = 0x80;

/// Everything that a search found.
pub(super) struct Sightings {
    wanted: BTreeMap<Owner, FileIx>,
    /// By address and whether that is a file's or a sock's.
    containers: BTreeMap<[u64; 2], Container>,
    inside: Vec<InsideRecord>,
    mappings: Vec<HoldRecord>,
    /// Wanted descriptions that somebody has a descriptor of, and whose file nobody maps.
    unmapped: BTreeSet<Owner>,
    references: Vec<Reference>,
    processes: BTreeMap<Pid, Process>,
    /// What was searched.
    pub(super) search: Search,
}

/// A socket or ring.
#[derive(Default)]
struct Container {
    /// What it is, where something was found in it.
    record: Option<ContainerRecord>,
    /// The container that it was found in, unless it has owners itself.
    parent: Option<[u64; 2]>,
    owners: BTreeMap<Pid, Holder>,
}

/// A process that has a container.
#[derive(Clone, Copy)]
struct Holder {
    tid: Pid,
    fd: Option<u32>,
    cred: u64,
}

impl Sightings {
    pub(super) fn new(wanted: &BTreeMap<Owner, FileIx>) -> Self {
        Self {
            wanted: wanted.clone(),
            containers: BTreeMap::new(),
            inside: Vec::new(),
            mappings: Vec::new(),
            unmapped: BTreeSet::new(),
            references: Vec::new(),
            processes: BTreeMap::new(),
            search: Search::default(),
        }
    }

    /// Every container that was met so far, as the walker wants it named.
    pub(super) fn containers(&self) -> impl Iterator<Item = [u64; 2]> {
        self.containers.keys().copied()
    }

    /// True where each wanted description was met at a descriptor, and no mapping keeps any.
    pub(super) fn is_unmapped(&self) -> bool {
        self.unmapped.len() == self.wanted.len()
    }

    pub(super) fn take(&mut self, found: Found) {
        match found {
            Found::Hold(hold) => self.hold(&hold),
            Found::Container(container) => self.describe(&container),
            Found::Inside(inside) => self.inside(&inside),
        }
    }

    fn hold(&mut self, hold: &HoldRecord) {
        let (pid, tid) = (hold.task.tgid, hold.task.tid);
        match hold.what {
            HOLDS_WANTED => {
                let description = Owner::new(hold.file);
                let Some(&file) = self.wanted.get(&description) else { return };
                if hold.flags & NOT_MAPPED != 0 {
                    self.unmapped.insert(description);
                }
                self.references.push(Reference {
                    pid,
                    tid,
                    via: Via::Fd,
                    fd: Some(hold.fd),
                    file,
                    description: Some(description),
                    table: (hold.files != 0).then_some(Owner::new(hold.files)),
                    opener: Some(hold.cred == hold.file_cred),
                    writes: None,
                });
            }
            MAPS_WANTED => self.mappings.push(*hold),
            _ => {
                let fd = (hold.fd != NO_FD).then_some(hold.fd);
                let holder = Holder { tid, fd, cred: hold.cred };
                let owners = &mut self.containers.entry([hold.file, BY_FILE]).or_default().owners;
                let known = owners.entry(pid).or_insert(holder);
                if known.fd.is_none() {
                    known.fd = fd;
                }
            }
        }
        self.processes.entry(pid).or_insert_with(|| process(&hold.task));
    }

    fn describe(&mut self, record: &ContainerRecord) {
        for by in [BY_FILE, BY_SOCK] {
            if let Some(container) = self.containers.get_mut(&[record.address, by]) {
                container.record = Some(*record);
            }
        }
    }

    fn inside(&mut self, inside: &InsideRecord) {
        let by = match inside.what {
            INSIDE_FILE => BY_FILE,
            INSIDE_SOCK => BY_SOCK,
            _ => {
                self.inside.push(*inside);
                return;
            }
        };
        let parent = self.key(inside.container);
        let inner = self.containers.entry([inside.address, by]).or_default();
        if inner.owners.is_empty() && inner.parent.is_none() {
            inner.parent = parent;
        }
    }

    fn key(&self, address: u64) -> Option<[u64; 2]> {
        [BY_FILE, BY_SOCK]
            .map(|by| [address, by])
            .into_iter()
            .find(|key| self.containers.contains_key(key))
    }

    /// The descriptors of wanted descriptions.
    pub(super) fn references(&self) -> &[Reference] {
        &self.references
    }

    /// The places, in their order.
    pub(super) fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.mappings.iter().map(mapping).collect();
        places.extend(self.inside.iter().filter_map(|inside| self.place(inside)));
        places.sort();
        // A queue that changed underfoot was walked more than once.
        places.dedup();
        places
    }

    /// The places, the descriptors of wanted descriptions, and the processes that either names.
    pub(super) fn finish(self) -> (Vec<Place>, Vec<Reference>, BTreeMap<Pid, Process>) {
        let places = self.places();
        let mut processes = self.processes;
        let named = |pid: &Pid| {
            places.iter().any(|place| place.owners.iter().any(|owner| owner.pid == *pid))
                || self.references.iter().any(|reference| reference.pid == *pid)
        };
        processes.retain(|pid, _| named(pid));
        (places, self.references, processes)
    }

    fn place(&self, inside: &InsideRecord) -> Option<Place> {
        if inside.what != INSIDE_WANTED {
            return None;
        }
        let key = self.key(inside.container)?;
        let container = self.containers.get(&key)?;
        let record = container.record?;
        let (outermost, depth) = self.outermost(key);
        let ring = record.ring == 1;
        let owner = |(&pid, holder): (&Pid, &Holder)| PlaceOwner {
            pid,
            tid: holder.tid,
            fd: holder.fd,
            opener: ring.then_some(holder.cred == inside.file_cred),
        };
        let owners = outermost.owners.iter().map(owner).collect();
        let kind = if ring {
            PlaceKind::Ring { slot: inside.slot, depth }
        } else {
            let name = record.name.get(..record.name_len as usize).unwrap_or(&record.name);
            PlaceKind::Queue {
                socket: (record.ino != 0).then_some(record.ino),
                name: (!name.is_empty()).then(|| bound_name(name).into()),
                depth,
            }
        };
        Some(Place { description: Owner::new(inside.address), kind, owners })
    }

    /// The container around a container that processes have, and how many lie between. One that
    /// waits to be accepted is part of its listener.
    fn outermost(&self, mut key: [u64; 2]) -> (&Container, u32) {
        let mut depth = 0;
        let mut container = &self.containers[&key];
        for _ in 0..self.containers.len() {
            let Some(parent) = container.parent.filter(|_| container.owners.is_empty()) else {
                break;
            };
            depth += u32::from(key[1] == BY_FILE);
            key = parent;
            let Some(outer) = self.containers.get(&key) else { break };
            container = outer;
        }
        (container, depth)
    }
}

fn mapping(hold: &HoldRecord) -> Place {
    let letter = |bit, letter| if hold.flags & bit != 0 { letter } else { b'-' };
    Place {
        description: Owner::new(hold.file),
        kind: PlaceKind::Mapping {
            start: hold.start,
            end: hold.end,
            protection: [
                letter(VM_READ, b'r'),
                letter(VM_WRITE, b'w'),
                letter(VM_EXEC, b'x'),
                if hold.flags & VM_MAYSHARE != 0 { b's' } else { b'p' },
            ],
        },
        owners: vec![PlaceOwner {
            pid: hold.task.tgid,
            tid: hold.task.tid,
            fd: None,
            opener: Some(hold.cred == hold.file_cred),
        }],
    }
}

/// The path without the closing NUL that the kernel counts in; an abstract name as it is.
fn bound_name(name: &[u8]) -> &[u8] {
    if name.first() == Some(&0) {
        return name;
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    &name[..end]
}
