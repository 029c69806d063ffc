//! What the tables know of the locks of a snapshot: who took each and when, who waits since when,
//! how the takers ended.
//!
//! Refuses to fit what does not: a lock whose entry says something else than the kernel's list has
//! no taking.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use hashbrown::HashMap;
use lockwatch_common::history::{
    CLASS_FLOCK, CLASS_LEASE, CLASS_POSIX, Ending, Entry, F_RDLCK, F_WRLCK, Key, Operation,
    OperationKey, Owner, OwnerKey, Party, ProcessKey, RESTORED, Wait,
};

use super::kept::{Kept, Known, Place, place};
use super::names::Names;
use super::present::Present;
use super::ranges::{Ranges, Step};
use super::{HistoryError, Tables};
use crate::engine::identity::{
    Access, BootTime, LockKind, ProcessId, Range, RecordedPid, StartTime,
};
use crate::engine::shared::Shared;
use crate::engine::snapshot::{Death, File, Lock, Remembered, Snapshot, Taken};
use crate::source::bpf;

/// How often tables are read again that are being tidied, and how long it is waited before.
const READ_AGAIN: usize = 16;
const PAUSE: Duration = Duration::from_millis(2);

/// What the tables hold, read at one time.
#[derive(Debug, Default)]
pub struct Contents {
    begun: BootTime,
    locks: Kept,
    owners: Owners,
    /// `None` where they were not asked for.
    waits: Option<HashMap<Place, Vec<Wait>>>,
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
    /// Reads the tables; where they are being tidied meanwhile, again.
    ///
    /// # Errors
    /// Where a table cannot be read.
    pub fn read(tables: &Tables) -> Result<Self, HistoryError> {
        for _ in 0..READ_AGAIN {
            let before = tables.tidied();
            if before.is_multiple_of(2) {
                let contents = Self::read_once(tables)?;
                if tables.tidied() == before {
                    return Ok(contents);
                }
            }
            sleep(PAUSE);
        }
        // Who tidied them was killed. What is there then is all there is.
        Self::read_once(tables)
    }

    fn read_once(tables: &Tables) -> Result<Self, HistoryError> {
        // Owners first: an owner that is added while the locks are read is missed together with
        // what it did, and what the locks say of it was true before.
        let owners = tables.owners()?;
        let mut locks = Kept::default();
        let of_owners = each_plain(tables, &owners, |key, entry| locks.keep(&key, &entry))?;
        let operations = tables.operations()?;
        let mut contents = Self { locks, ..Self::default() };
        contents.complete(tables, &owners, of_owners, operations)?;
        Ok(contents)
    }

    /// Reads the tables and joins a reading with them at once: of very many locks nothing is kept
    /// beside the reading. Answers how those ended who took locks that the tables have.
    ///
    /// # Errors
    /// Where a table cannot be read.
    pub(super) fn read_into(
        reading: &mut bpf::Reading,
        present: &Present,
        tables: &Tables,
        names: &mut Names,
    ) -> Result<BTreeMap<ProcessKey, Ending>, HistoryError> {
        let owners = tables.owners()?;
        let begun = begun(tables);
        let mut takers = Takers::named_by(names);
        let mut seen = vec![false; reading.snapshot.locks.len()];
        let mut processes = BTreeSet::new();
        let of_owners = each_plain(tables, &owners, |key, entry| {
            if takers.last.as_ref().is_none_or(|(last, _)| *last != entry.by) {
                processes.insert(entry.by.process());
            }
            let Some(place) = present.find(reading, &key) else { return };
            let lock = &reading.snapshot.locks[place];
            let file = &reading.snapshot.files[lock.file.0 as usize];
            let is_its = (entry.dev, entry.ino) == (file.dev.to_kernel(), file.ino);
            let is_known = is_known(entry.taken_at, begun, reading.ended);
            if is_its && is_known && agrees(lock, &Known::of(&entry)) {
                seen[place] = true;
                let taken = takers.taken(entry.taken_at, entry.by);
                take(&mut reading.snapshot.locks, place, Some(taken));
            }
        })?;
        let operations = tables.operations()?;
        let mut contents = Self::default();
        contents.complete(tables, &owners, of_owners, operations)?;
        contents.read_endings_of(processes, tables)?;
        let Snapshot { locks, files, .. } = &mut reading.snapshot;
        for (place, seen) in seen.into_iter().enumerate() {
            let lock = &locks[place];
            if let Some(told) = contents.told(lock, &files[lock.file.0 as usize]) {
                let taking = contents.oldest(told, lock, reading.ended);
                take(locks, place, taking.map(|(at, party)| takers.taken(at, party)));
            } else if !seen {
                take(locks, place, None);
            }
        }
        contents.finish(&mut reading.snapshot, reading.ended);
        Ok(contents.endings)
    }

    /// Reads what the tables have of these locks, and of waits where `waits`; `None` where that cannot
    /// be told by the locks' keys alone, because ranges have to be worked out.
    ///
    /// # Errors
    /// Where a table cannot be read.
    pub(super) fn of_locks(
        tables: &Tables,
        keys: &BTreeSet<Key>,
        waits: bool,
    ) -> Result<Option<Self>, HistoryError> {
        // In the order of `read`, for the same reason. To go through a table takes longer than all the
        // rest, however little it holds.
        if tables.may_have_operations() {
            return Ok(None);
        }
        let locks = tables.locks_of(keys)?;
        if tables.may_have_operations() {
            return Ok(None);
        }
        let mut contents = Self { begun: begun(tables), ..Self::default() };
        contents.work_out(&[], locks, Vec::new(), |owner| tables.slot_lost_at(owner));
        if waits {
            contents.read_waits(tables)?;
        }
        contents.read_endings(tables)?;
        Ok(Some(contents))
    }

    /// True where who waits since when was asked for.
    pub(super) fn has_waits(&self) -> bool {
        self.waits.is_some()
    }

    fn complete(
        &mut self,
        tables: &Tables,
        owners: &[(OwnerKey, Owner)],
        locks: Vec<(Key, Entry)>,
        operations: Vec<(OperationKey, Operation)>,
    ) -> Result<(), HistoryError> {
        self.begun = begun(tables);
        self.work_out(owners, locks, operations, |owner| tables.slot_lost_at(owner));
        self.read_waits(tables)?;
        self.read_endings(tables)
    }

    fn read_waits(&mut self, tables: &Tables) -> Result<(), HistoryError> {
        let waits = self.waits.insert(HashMap::new());
        for (_, wait) in tables.waiters()? {
            let place = place(&wait.key, wait.dev, wait.ino);
            waits.entry(place).or_default().push(wait);
        }
        Ok(())
    }

    /// Looks anew which of the processes that took these locks have ended.
    pub(super) fn read_endings(&mut self, tables: &Tables) -> Result<(), HistoryError> {
        let mut processes = BTreeSet::new();
        processes.extend(self.locks.takers().map(|party| party.process()));
        for told in self.owners.values() {
            processes.extend(told.operations.iter().map(|operation| operation.by.process()));
        }
        self.read_endings_of(processes, tables)
    }

    fn read_endings_of(
        &mut self,
        processes: BTreeSet<ProcessKey>,
        tables: &Tables,
    ) -> Result<(), HistoryError> {
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
        for (key, entry) in locks {
            if !used.contains(&key) {
                self.locks.keep(&key, &relied_upon(&key, entry, &lost_at));
            }
        }
    }

    /// Adds the rest to a snapshot whose locks have their takings.
    fn finish(&self, snapshot: &mut Snapshot, ended: BootTime) {
        let Snapshot { locks, waiters, files, deaths, history, .. } = snapshot;
        let by: BTreeSet<ProcessId> =
            locks.iter().filter_map(|lock| Some(lock.taken.as_ref()?.by.id)).collect();
        let ending = |id: &ProcessId| {
            let process = ProcessKey { start: id.start.0, tgid: id.pid, reserved: 0 };
            Some(death(&process, self.endings.get(&process)?))
        };
        *deaths = by.iter().filter_map(ending).collect();
        for waiter in waiters {
            let file = &files[waiter.file.0 as usize];
            let (start, end) = bytes(waiter.range);
            let class = class(waiter.kind);
            let (Some(owner), Some(access)) = (waiter.owner, access(waiter.access)) else {
                continue;
            };
            let start = if class == CLASS_POSIX { start } else { 0 };
            let place = (file.dev.to_kernel(), file.ino, owner.token(), class, start);
            let waits = self.waits.as_ref().and_then(|waits| waits.get(&place));
            let Some(waits) = waits else { continue };
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
        *history = true;
    }

    /// When and by whom a lock of a snapshot was taken, where the tables and the snapshot agree.
    fn taking(&self, lock: &Lock, file: &File, ended: BootTime) -> Option<(u64, Party)> {
        if let Some(told) = self.told(lock, file) {
            return self.oldest(told, lock, ended);
        }
        let class = class(lock.kind);
        let start = if class == CLASS_POSIX { bytes(lock.range).0 } else { 0 };
        let owner = lock.owner?.token();
        let known = self.locks.find(&(file.dev.to_kernel(), file.ino, owner, class, start))?;
        let is_known = is_known(known.taken_at, self.begun, ended) && agrees(lock, &known);
        is_known.then_some((known.taken_at, known.by))
    }

    /// The owner of a lock, where its ranges had to be worked out.
    fn told(&self, lock: &Lock, file: &File) -> Option<&Told> {
        let owner = (file.dev.to_kernel(), file.ino, lock.owner?.token());
        self.owners.get(&owner).filter(|_| class(lock.kind) == CLASS_POSIX)
    }

    /// When and by whom the oldest byte of such a lock was taken.
    fn oldest(&self, told: &Told, lock: &Lock, ended: BootTime) -> Option<(u64, Party)> {
        let (start, end) = bytes(lock.range);
        let oldest = told.oldest(start, end, access(lock.access)?)?;
        let is_known = is_known(oldest.taken_at, self.begun, ended);
        is_known.then_some((oldest.taken_at, oldest.by))
    }
}

/// From when on every lock is known.
fn begun(tables: &Tables) -> BootTime {
    tables.begun().unwrap_or(BootTime(u64::MAX))
}

/// True of a time at which a lock was taken that was seen: what was taken after the end of the reading
/// is not the lock that it shows.
fn is_known(taken_at: u64, begun: BootTime, ended: BootTime) -> bool {
    taken_at != 0 && (begun.0..=ended.0).contains(&taken_at)
}

/// True where what is known is of the lock as the kernel's list has it.
fn agrees(lock: &Lock, known: &Known) -> bool {
    let Some(access) = access(lock.access) else { return false };
    let is_same = match class(lock.kind) {
        CLASS_POSIX => known.end == bytes(lock.range).1 && known.access == access,
        CLASS_FLOCK => known.access == access,
        // A lease changes its access and stays what it is.
        _ => true,
    };
    let recorded = match lock.acquirer {
        RecordedPid::Local(pid) | RecordedPid::Remote(pid) => Some(pid),
        RecordedPid::Zero => Some(0),
        RecordedPid::Withheld => None,
    };
    is_same && recorded.is_none_or(|pid| pid == known.recorded)
}

/// Hands every lock of the tables to `take` whose entry says all there is to know of it; answers
/// those whose owners may have ranges to be worked out.
fn each_plain(
    tables: &Tables,
    owners: &[(OwnerKey, Owner)],
    mut take: impl FnMut(Key, Entry),
) -> Result<Vec<(Key, Entry)>, HistoryError> {
    let owners: BTreeSet<OwnerKey> = owners.iter().map(|&(key, _)| key).collect();
    let mut of_owners = Vec::new();
    tables.each_lock(|key, entry| {
        if key.class == CLASS_POSIX && owners.contains(&key.of_owner()) {
            of_owners.push((key, entry));
        } else {
            take(key, relied_upon(&key, entry, |owner| tables.slot_lost_at(owner)));
        }
    })?;
    Ok(of_owners)
}

/// An entry, without the time where that is not to be relied on.
fn relied_upon(key: &Key, entry: Entry, lost_at: impl Fn(&OwnerKey) -> u64) -> Entry {
    let is_lost = key.class == CLASS_POSIX && entry.written_at <= lost_at(&key.of_owner());
    Entry { taken_at: if is_lost { 0 } else { entry.taken_at }, ..entry }
}

/// Who took locks, each with its names once.
struct Takers<'a> {
    names: &'a mut Names,
    known: HashMap<Party, Arc<Remembered>>,
    /// The one who was asked for last: mostly it is the next one, too.
    last: Option<(Party, Arc<Remembered>)>,
}

impl<'a> Takers<'a> {
    fn named_by(names: &'a mut Names) -> Self {
        Self { names, known: HashMap::new(), last: None }
    }

    fn taken(&mut self, at: u64, party: Party) -> Taken {
        let by = match &self.last {
            Some((last, by)) if *last == party => Arc::clone(by),
            _ => {
                let remembered = || Arc::new(self.names.remembered(&party));
                let by = Arc::clone(self.known.entry(party).or_insert_with(remembered));
                self.last = Some((party, Arc::clone(&by)));
                by
            }
        };
        Taken { at: BootTime(at), by }
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
    let mut takers = Takers::named_by(names);
    for place in 0..snapshot.locks.len() {
        let lock = &snapshot.locks[place];
        let taking = contents.taking(lock, &snapshot.files[lock.file.0 as usize], ended);
        let taken = taking.map(|(at, party)| takers.taken(at, party));
        take(&mut snapshot.locks, place, taken);
    }
    contents.finish(snapshot, ended);
}

/// Sets the taking of a lock. A list that is shared is left alone where it has it already.
fn take(locks: &mut Shared<Lock>, place: usize, taken: Option<Taken>) {
    if locks[place].taken != taken {
        locks[place].taken = taken;
    }
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
    (signed(range.start), range.end().map_or(i64::MAX, signed))
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
