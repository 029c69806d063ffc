//! What the tables know of the locks of a snapshot: who took each and when, who waits since when,
//! how the takers ended.
//!
//! Refuses to fit what does not: a lock whose entry says something else than the kernel's list has
//! no taking.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use lockwatch_common::history::{
    CLASS_FLOCK, CLASS_LEASE, CLASS_POSIX, Ending, Entry, F_RDLCK, F_WRLCK, Key, Operation,
    OperationKey, Owner, OwnerKey, Party, ProcessKey, RESTORED, Wait,
};

use super::kept::{Kept, Place, place};
use super::names::Names;
use super::ranges::{Ranges, Step};
use super::{HistoryError, Tables};
use crate::engine::identity::{
    Access, BootTime, LockKind, ProcessId, Range, RecordedPid, StartTime,
};
use crate::engine::snapshot::{Death, Lock, Remembered, Snapshot, Taken};
use crate::source::bpf;

/// What the tables hold, read at one time.
#[derive(Debug, Default)]
pub struct Contents {
    begun: BootTime,
    locks: Kept,
    owners: Owners,
    waits: HashMap<Place, Vec<Wait>>,
    endings: BTreeMap<ProcessKey, Ending>,
}

/// Owners whose ranges have to be worked out, by device, inode number and owner.
type Owners = BTreeMap<(u32, u64, u64), Told>;

/// An owner whose ranges have to be worked out.
#[derive(Debug)]
struct Told {
    ranges: Ranges,
    operations: Vec<Operation>,
    /// Nothing of it is to be relied on.
    lost: bool,
}

impl Contents {
    /// Reads the tables.
    ///
    /// # Errors
    /// Where a table cannot be read.
    pub fn read(tables: &Tables) -> Result<Self, HistoryError> {
        // Owners first: an owner that is added while the locks are read is missed together with
        // what it did, and what the locks say of it was true before.
        let owners = tables.owners()?;
        let mut contents = Self::default();
        let mut ranges = Vec::new();
        tables.each_lock(|key, entry| match key.class {
            // Their owners may have ranges to be worked out.
            CLASS_POSIX => ranges.push((key, entry)),
            _ => contents.locks.keep(&key, &entry),
        })?;
        let operations = tables.operations()?;
        contents.complete(tables, &owners, ranges, operations)?;
        Ok(contents)
    }

    /// Reads what the tables have of these locks; `None` where that cannot be told by their keys
    /// alone, because ranges have to be worked out.
    ///
    /// # Errors
    /// Where a table cannot be read.
    pub(super) fn of_locks(
        tables: &Tables,
        keys: &BTreeSet<Key>,
    ) -> Result<Option<Self>, HistoryError> {
        // In the order of `read`, for the same reason.
        if !tables.owners()?.is_empty() {
            return Ok(None);
        }
        let locks = tables.locks_of(keys)?;
        let operations = tables.operations()?;
        if !operations.is_empty() {
            return Ok(None);
        }
        let mut contents = Self::default();
        contents.complete(tables, &[], locks, operations)?;
        Ok(Some(contents))
    }

    fn complete(
        &mut self,
        tables: &Tables,
        owners: &[(OwnerKey, Owner)],
        locks: Vec<(Key, Entry)>,
        operations: Vec<(OperationKey, Operation)>,
    ) -> Result<(), HistoryError> {
        self.begun = tables.begun().unwrap_or(BootTime(u64::MAX));
        self.work_out(owners, locks, operations, |owner| tables.slot_lost_at(owner));
        for (_, wait) in tables.waiters()? {
            let place = place(&wait.key, wait.dev, wait.ino);
            self.waits.entry(place).or_default().push(wait);
        }
        self.read_endings(tables)
    }

    /// Looks anew which of the processes that took these locks have ended.
    pub(super) fn read_endings(&mut self, tables: &Tables) -> Result<(), HistoryError> {
        let mut processes = BTreeSet::new();
        processes.extend(self.locks.takers().map(|party| party.process()));
        for told in self.owners.values() {
            processes.extend(told.operations.iter().map(|operation| operation.by.process()));
        }
        for process in processes {
            if !self.endings.contains_key(&process)
                && let Some(ending) = tables.ending(&process)?
            {
                self.endings.insert(process, ending);
            }
        }
        Ok(())
    }

    /// How those ended who took locks that the tables have.
    pub(super) fn endings(&self) -> &BTreeMap<ProcessKey, Ending> {
        &self.endings
    }

    /// Works out what the tables say of locks. `lost_at` is until when the entries of an owner are
    /// not to be relied on.
    fn work_out(
        &mut self,
        owners: &[(OwnerKey, Owner)],
        locks: Vec<(Key, Entry)>,
        operations: Vec<(OperationKey, Operation)>,
        lost_at: impl Fn(&OwnerKey) -> u64,
    ) {
        let (told, used) = owners_told(owners, &locks, operations);
        self.owners = told;
        for (key, mut entry) in locks {
            if used.contains(&key) {
                continue;
            }
            if key.class == CLASS_POSIX && entry.written_at <= lost_at(&key.of_owner()) {
                entry.taken_at = 0;
            }
            self.locks.keep(&key, &entry);
        }
    }

    /// When and by whom a lock of a snapshot was taken, where the tables and the snapshot agree.
    fn taking(&self, lock: &Lock, dev: u32, ino: u64) -> Option<(u64, Party)> {
        let owner = lock.owner?.token();
        let class = class(lock.kind);
        let (start, end) = bytes(lock.range);
        let access = access(lock.access)?;
        let taking = match self.owners.get(&(dev, ino, owner)) {
            Some(told) if class == CLASS_POSIX => {
                let oldest = told.oldest(start, end, access)?;
                (oldest.taken_at, oldest.by)
            }
            _ => {
                let key_start = if class == CLASS_POSIX { start } else { 0 };
                let entry = self.locks.find(&(dev, ino, owner, class, key_start))?;
                let agrees = match class {
                    CLASS_POSIX => entry.end == end && entry.access == access,
                    CLASS_FLOCK => entry.access == access,
                    // A lease changes its access and stays what it is.
                    _ => true,
                };
                let recorded = match lock.acquirer {
                    RecordedPid::Local(pid) | RecordedPid::Remote(pid) => Some(pid),
                    RecordedPid::Zero => Some(0),
                    RecordedPid::Withheld => None,
                };
                if !agrees || recorded.is_some_and(|pid| pid != entry.recorded) {
                    return None;
                }
                (entry.taken_at, entry.by)
            }
        };
        Some(taking).filter(|&(at, _)| at != 0 && at >= self.begun.0)
    }
}

impl Told {
    /// The operation that took the oldest byte of a range.
    fn oldest(&self, start: i64, end: i64, access: u32) -> Option<Entry> {
        if self.lost {
            return None;
        }
        let takers = self.ranges.takers(start, end, access)?;
        takers.into_iter().map(|by| self.operations[by]).min_by_key(|entry| entry.taken_at)
    }
}

/// Works out the ranges of the owners. Answers also which entries of the table of locks are theirs.
fn owners_told(
    owners: &[(OwnerKey, Owner)],
    locks: &[(Key, Entry)],
    operations: Vec<(OperationKey, Operation)>,
) -> (Owners, BTreeSet<Key>) {
    let mut steps: BTreeMap<OwnerKey, Vec<(u64, i64, Operation)>> = BTreeMap::new();
    for (key, operation) in operations {
        let owner = OwnerKey { inode: key.inode, owner: key.owner };
        steps.entry(owner).or_default().push((key.at, key.start, operation));
    }
    let known: BTreeMap<OwnerKey, Owner> = owners.iter().copied().collect();
    let mut used = BTreeSet::new();
    for (key, entry) in locks {
        let owner = key.of_owner();
        if key.class == CLASS_POSIX && (known.contains_key(&owner) || steps.contains_key(&owner)) {
            used.insert(*key);
            // The table was the kernel's list until the owner's operations were written down.
            let entry = Entry { merged: RESTORED, ..*entry };
            steps.entry(owner).or_default().push((entry.written_at, key.start, entry));
        }
    }
    let mut told = BTreeMap::new();
    for (key, mut steps) in steps {
        steps.sort_by_key(|&(at, start, _)| (at, start));
        let owner = known.get(&key);
        let cleared_at = owner.map_or(0, |owner| owner.cleared_at);
        let mut one = Told {
            ranges: Ranges::default(),
            operations: Vec::new(),
            // What an owner did that came while the tables were read is not all there.
            lost: owner.is_none_or(|owner| owner.lost_at > cleared_at),
        };
        let mut file = None;
        for (at, start, operation) in steps {
            if at <= cleared_at {
                continue;
            }
            file = Some((operation.dev, operation.ino));
            one.ranges.apply(&Step::of(start, &operation, Some(one.operations.len())));
            one.operations.push(operation);
        }
        if let Some((dev, ino)) = file {
            told.insert((dev, ino, key.owner), one);
        }
    }
    (told, used)
}

/// Adds to a snapshot what the tables know of it. `ended` is when the snapshot had been read: what
/// was taken later is not the lock that it shows.
pub fn join(contents: &Contents, snapshot: &mut Snapshot, ended: BootTime, names: &mut Names) {
    let mut dead: BTreeMap<ProcessId, Death> = BTreeMap::new();
    let mut takers: HashMap<Party, Arc<Remembered>> = HashMap::new();
    let files: Vec<(u32, u64)> =
        snapshot.files.iter().map(|file| (file.dev.to_kernel(), file.ino)).collect();
    for lock in &mut snapshot.locks {
        let (dev, ino) = files[lock.file.0 as usize];
        let Some((at, party)) = contents.taking(lock, dev, ino) else { continue };
        if at > ended.0 {
            continue;
        }
        let by = takers.entry(party).or_insert_with(|| Arc::new(names.remembered(&party)));
        let by = Arc::clone(by);
        if let Some(ending) = contents.endings.get(&party.process()) {
            dead.insert(by.id, death(&party.process(), ending));
        }
        lock.taken = Some(Taken { at: BootTime(at), by });
    }
    for waiter in &mut snapshot.waiters {
        let (dev, ino) = files[waiter.file.0 as usize];
        let (start, end) = bytes(waiter.range);
        let class = class(waiter.kind);
        let (Some(owner), Some(access)) = (waiter.owner, access(waiter.access)) else { continue };
        let start = if class == CLASS_POSIX { start } else { 0 };
        let Some(waits) = contents.waits.get(&(dev, ino, owner.token(), class, start)) else {
            continue;
        };
        let asks = |wait: &&Wait| {
            let same = wait.access == access && (class != CLASS_POSIX || wait.end == end);
            let who = match waiter.requester {
                RecordedPid::Local(pid) => wait.tgid == pid,
                _ => true,
            };
            same && who && wait.since <= ended.0
        };
        // Threads that ask for the same cannot be told apart: the shortest wait is sure.
        waiter.since = waits.iter().filter(asks).map(|wait| BootTime(wait.since)).max();
    }
    snapshot.deaths = dead.into_values().collect();
    snapshot.history = true;
}

/// How a process ended.
pub(super) fn death(process: &ProcessKey, ending: &Ending) -> Death {
    let signal = ending.status & 0x7f;
    Death {
        process: ProcessId { pid: process.tgid, start: StartTime(process.start) },
        at: BootTime(ending.at),
        code: (signal == 0).then_some((ending.status >> 8) & 0xff),
        signal: (signal != 0).then_some(signal),
    }
}

/// The locks of a reading whose owners are known, each with its key.
pub(super) fn keyed(reading: &bpf::Reading) -> impl Iterator<Item = (Key, &Lock)> {
    reading.snapshot.locks.iter().filter_map(|lock| Some((key(reading, lock)?, lock)))
}

/// The key of a lock of a reading; `None` where its owner is not known.
pub(super) fn key(reading: &bpf::Reading, lock: &Lock) -> Option<Key> {
    let inode = *reading.inodes.get(lock.file.0 as usize)?;
    let class = class(lock.kind);
    let start = if class == CLASS_POSIX { bytes(lock.range).0 } else { 0 };
    Some(Key { inode, owner: lock.owner?.token(), start, class, reserved: 0 })
}

/// The class of a kind of lock.
pub(super) fn class(kind: LockKind) -> u32 {
    match kind {
        LockKind::Flock => CLASS_FLOCK,
        LockKind::Posix | LockKind::Ofd => CLASS_POSIX,
        LockKind::Lease | LockKind::Deleg | LockKind::Layout => CLASS_LEASE,
    }
}

/// First and last byte as the kernel counts.
pub(super) fn bytes(range: Range) -> (i64, i64) {
    let signed = |byte: u64| i64::try_from(byte).unwrap_or(i64::MAX);
    (signed(range.start), range.end.map_or(i64::MAX, signed))
}

/// The kernel's number of an access.
pub(super) fn access(access: Access) -> Option<u32> {
    match access {
        Access::Read => Some(F_RDLCK),
        Access::Write => Some(F_WRLCK),
        Access::Unlock => None,
    }
}

#[cfg(test)]
mod tests;
