//! Keeping the tables true and small: what a reading of the kernel's lists shows and no table has is
//! marked as unknown, what a table has and the kernel has not is removed.
//!
//! Refuses to touch what happened after the reading was begun, to conclude from a reading that is
//! not whole, and to remove what one reading alone does not show.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use lockwatch_common::history::{
    CLASS_POSIX, Ending, Entry, Key, LOCKS_MAP, OPERATIONS_MAP, OWNERS_MAP, Operation,
    OperationKey, Owner, OwnerKey, Party, ProcessKey, RESTORED, SURVIVED_MAP, WAITERS_MAP, Wait,
};
use lockwatch_common::wire::Wire;

use super::join::{self, access, bytes, class};
use super::present::Present;
use super::ranges::{Ranges, Step};
use super::sys::{self, Write};
use super::tables::fd;
use super::{HistoryError, Tables};
use crate::engine::identity::RecordedPid;
use crate::engine::snapshot::Hides;
use crate::source::bpf::{self, Reading};

/// Operations of one owner from which on they are replaced by what they came to.
const MANY: usize = 256;

/// Nanoseconds for which an owner that has nothing must have done nothing before it is forgotten. A
/// program that has just found it writes down what it does next, which then nobody would own.
const AT_REST: u64 = 1_000_000_000;

/// What is remembered from one collection to the next.
#[derive(Debug, Default)]
pub(super) struct Collector {
    /// Waits that the last reading did not show: a waiter is on no list while it tries again.
    unseen: BTreeSet<(u64, u64)>,
    /// Locks that the last reading did not show, and when they were written: the lists are read
    /// without their lock.
    missing: BTreeSet<(Key, u64)>,
    /// Owners of which the last reading showed nothing, and what they had done last by then.
    without: BTreeSet<(OwnerKey, u64)>,
}

/// Marks every lock that was there before the programs ran. From then on every lock is known.
pub(super) fn begin(tables: &Tables) -> Result<(), HistoryError> {
    let reading = bpf::read()?;
    let present = Present::of(&reading);
    mark(tables, &reading, &compared(tables, &reading, &present)?)?;
    tables.set_begun(bpf::now());
    Ok(())
}

fn failed(what: &'static str, table: &'static str) -> impl Fn(io::Error) -> HistoryError {
    move |why| HistoryError::Table { what, table, why }
}

/// The table of locks beside a reading.
struct Compared {
    /// Whether the table has each of the reading's locks, by its place.
    known: Vec<bool>,
    /// What the table has and the reading does not show, and was written before that was begun.
    absent: Vec<(Key, Entry)>,
}

/// Goes through the table once, and keeps nothing of what it has in common with the reading: both may
/// be very large.
fn compared(
    tables: &Tables,
    reading: &Reading,
    present: &Present,
) -> Result<Compared, HistoryError> {
    let mut known = vec![false; reading.snapshot.locks.len()];
    let mut absent = Vec::new();
    tables.each_lock(|key, entry| match present.find(reading, &key) {
        Some(place) => known[place] = true,
        None if entry.written_at < reading.begun.0 => absent.push((key, entry)),
        None => {}
    })?;
    Ok(Compared { known, absent })
}

/// Writes an entry of unknown age for each lock that has none. Without it, what the kernel makes
/// one with such a lock would look younger than it is.
fn mark(tables: &Tables, reading: &Reading, compared: &Compared) -> Result<(), HistoryError> {
    let owners: BTreeSet<OwnerKey> = tables.owners()?.into_iter().map(|(key, _)| key).collect();
    for (place, lock) in reading.snapshot.locks.iter().enumerate() {
        if compared.known[place] {
            continue;
        }
        let Some(key) = join::key(reading, lock) else { continue };
        if key.class == CLASS_POSIX && owners.contains(&key.of_owner()) {
            continue;
        }
        let Some(access) = access(lock.access) else { continue };
        // It may have been given up since the reading: that it was known then, nothing tells any more.
        if tables.slot_removed_at(&key.of_owner()) >= reading.begun.0 {
            continue;
        }
        let file = &reading.snapshot.files[lock.file.0 as usize];
        let recorded = match lock.acquirer {
            RecordedPid::Local(pid) | RecordedPid::Remote(pid) => pid,
            RecordedPid::Zero | RecordedPid::Withheld => 0,
        };
        let process = reading.snapshot.processes.get(&recorded);
        let start = process.and_then(|process| process.start).map_or(0, |start| start.0);
        let now = bpf::now().0;
        let entry = Entry {
            taken_at: 0,
            written_at: now,
            end: bytes(lock.range).1,
            ino: file.ino,
            mtime_sec: 0,
            mtime_nsec: 0,
            access,
            flags: 0,
            recorded,
            dev: file.dev.to_kernel(),
            merged: 0,
            by: Party { start, tgid: recorded.max(0), ..Party::NOBODY },
            sealed_at: now,
        };
        match sys::put(fd(&tables.locks), &key, &entry, Write::New) {
            Ok(()) => tables.hint(&key, &entry, 1),
            // Taken meanwhile, and known better.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            // A full table: nothing of it is known, as before.
            Err(error) if sys::is_full(&error) => return Ok(()),
            Err(error) => return Err(failed("write", LOCKS_MAP)(error)),
        }
    }
    Ok(())
}

impl Collector {
    /// Brings the tables in line with a reading, whose locks are `present`. `endings` are of those
    /// whose locks the tables have.
    ///
    /// # Errors
    /// Where a table cannot be read or written.
    pub(super) fn collect(
        &mut self,
        tables: &Tables,
        reading: &Reading,
        present: &Present,
        endings: &BTreeMap<ProcessKey, Ending>,
    ) -> Result<(), HistoryError> {
        if reading.snapshot.limits.iter().any(|limit| limit.hides == Hides::Locks) {
            return Ok(());
        }
        tables.forget_attention(bpf::now())?;
        let compared = compared(tables, reading, present)?;
        mark(tables, reading, &compared)?;
        let owners: BTreeMap<OwnerKey, Owner> = tables.owners()?.into_iter().collect();
        let begun = reading.begun.0;
        let mut missing = BTreeSet::new();
        for (key, entry) in &compared.absent {
            if key.class == CLASS_POSIX && owners.contains_key(&key.of_owner()) {
                continue;
            }
            if self.missing.contains(&(*key, entry.written_at)) {
                remove_lock(tables, key, entry)?;
            } else {
                missing.insert((*key, entry.written_at));
            }
        }
        self.missing = missing;
        tables.while_tidying(|| self.owners(tables, reading, &owners))?;
        keep_endings(tables, endings)?;
        self.waits(tables, reading, begun)
    }

    fn owners(
        &mut self,
        tables: &Tables,
        reading: &Reading,
        owners: &BTreeMap<OwnerKey, Owner>,
    ) -> Result<(), HistoryError> {
        let begun = reading.begun.0;
        let is_of_one =
            |key: &Key| key.class == CLASS_POSIX && owners.contains_key(&key.of_owner());
        let mut held = BTreeSet::new();
        let mut bases: BTreeMap<OwnerKey, Vec<(Key, Entry)>> = BTreeMap::new();
        if !owners.is_empty() {
            let keys = join::keyed(reading).map(|(key, _)| key);
            held.extend(keys.filter(is_of_one).map(|key| key.of_owner()));
            tables.each_lock(|key, entry| {
                if is_of_one(&key) {
                    bases.entry(key.of_owner()).or_default().push((key, entry));
                }
            })?;
        }
        let mut done: BTreeMap<OwnerKey, Vec<(OperationKey, Operation)>> = BTreeMap::new();
        for (key, operation) in tables.operations()? {
            let owner = OwnerKey { inode: key.inode, owner: key.owner };
            done.entry(owner).or_default().push((key, operation));
        }
        let mut without = BTreeSet::new();
        for (key, owner) in owners {
            let operations = done.remove(key).unwrap_or_default();
            let base = bases.remove(key).unwrap_or_default();
            // Nothing of its is there, so nothing that it did before the reading matters.
            let over = if held.contains(key) {
                owner.cleared_at
            } else if self.without.contains(&(*key, owner.last_at)) {
                begun - 1
            } else {
                without.insert((*key, owner.last_at));
                owner.cleared_at
            };
            // What it had when it ended is still to be told.
            if owner.told != 0 && owner.cleared_at >= tables.drained_at().0 {
                continue;
            }
            for (of, entry) in base.iter().filter(|(_, entry)| entry.written_at <= over) {
                remove_lock(tables, of, entry)?;
            }
            for (of, _) in operations.iter().filter(|(of, _)| of.at <= over) {
                sys::remove(fd(&tables.operations), of).map_err(failed("write", OPERATIONS_MAP))?;
            }
            let left = operations.iter().filter(|(of, _)| of.at > over);
            if owner.last_at <= over && owner.last_at + AT_REST <= begun {
                remove_owner(tables, key, owner)?;
            } else if left.clone().count() > MANY {
                let base: Vec<_> =
                    base.into_iter().filter(|(_, entry)| entry.written_at > over).collect();
                let left: Vec<_> = left.copied().collect();
                shorten(tables, key, &base, &left, begun)?;
            }
        }
        self.without = without;
        // Written down in the very moment in which the owner was removed: until it clears all it
        // has, nothing of it is known.
        for key in done.into_keys() {
            if sys::get::<_, Owner>(fd(&tables.owners), &key)
                .map_err(failed("read", OWNERS_MAP))?
                .is_none()
            {
                let now = bpf::now().0;
                let owner = Owner { since: now, lost_at: now, last_at: now, ..Owner::UNWRITTEN };
                add_owner(tables, &key, &owner)?;
            }
        }
        Ok(())
    }

    fn waits(
        &mut self,
        tables: &Tables,
        reading: &Reading,
        begun: u64,
    ) -> Result<(), HistoryError> {
        let waiting: BTreeSet<(u64, u64, u32, i64)> = (reading.snapshot.waiters.iter())
            .filter_map(|waiter| {
                let class = class(waiter.kind);
                let start = if class == CLASS_POSIX { bytes(waiter.range).0 } else { 0 };
                let inode = *reading.inodes.get(waiter.file.0 as usize)?;
                Some((inode, waiter.owner?.token(), class, start))
            })
            .collect();
        let mut unseen = BTreeSet::new();
        for (tid, wait) in tables.waiters()? {
            let key = &wait.key;
            let seen = waiting.contains(&(key.inode, key.owner, key.class, key.start));
            if seen || wait.since >= begun {
                continue;
            }
            if !self.unseen.contains(&(tid, wait.since)) {
                unseen.insert((tid, wait.since));
                continue;
            }
            // It was interrupted, which no tracepoint tells.
            if remove_if(&tables.waiters, WAITERS_MAP, &tid, |now: &Wait| now.since == wait.since)?
            {
                tables.hint_wait(tid, -1);
            }
        }
        self.unseen = unseen;
        Ok(())
    }
}

/// Keeps the endings of those whose locks are still there, and no others.
fn keep_endings(
    tables: &Tables,
    endings: &BTreeMap<ProcessKey, Ending>,
) -> Result<(), HistoryError> {
    let failed = failed("write", SURVIVED_MAP);
    let survived = fd(&tables.survived);
    let kept = sys::all::<ProcessKey, Ending>(survived).map_err(&failed)?;
    let kept: BTreeSet<ProcessKey> = kept.into_iter().map(|(process, _)| process).collect();
    for process in kept.iter().filter(|process| !endings.contains_key(process)) {
        sys::remove(survived, process).map_err(&failed)?;
    }
    for (process, ending) in endings {
        if kept.contains(process) {
            // The programs ask that one.
            let there: Option<Ending> = sys::get(fd(&tables.dead), process).map_err(&failed)?;
            if there.is_none() {
                sys::put(fd(&tables.dead), process, ending, Write::Any).map_err(&failed)?;
            }
            continue;
        }
        match sys::put(survived, process, ending, Write::Any) {
            Ok(()) => {}
            // Full: as long as the other table has it, it is known.
            Err(error) if sys::is_full(&error) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn remove_lock(tables: &Tables, key: &Key, entry: &Entry) -> Result<(), HistoryError> {
    let same = |now: &Entry| now.written_at == entry.written_at;
    if remove_if(&tables.locks, LOCKS_MAP, key, same)? {
        tables.hint(key, entry, -1);
    }
    Ok(())
}

/// An owner that has nothing: the table of locks alone tells of it from now on.
fn remove_owner(tables: &Tables, key: &OwnerKey, owner: &Owner) -> Result<(), HistoryError> {
    let same = |now: &Owner| now.last_at == owner.last_at;
    if remove_if(&tables.owners, OWNERS_MAP, key, same)? {
        tables.count_owners(-1);
        tables.hint_pid(owner.tgid, -1);
    }
    Ok(())
}

fn add_owner(tables: &Tables, key: &OwnerKey, owner: &Owner) -> Result<(), HistoryError> {
    match sys::put(fd(&tables.owners), key, owner, Write::New) {
        Ok(()) => {
            tables.count_owners(1);
            tables.hint_pid(owner.tgid, 1);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("write", OWNERS_MAP)(error)),
    }
}

/// Removes an element where it still is what it was. One that was written anew in the very moment is
/// put back; true where it was removed.
fn remove_if<K: Wire, V: Wire>(
    map: &aya::maps::MapData,
    table: &'static str,
    key: &K,
    same: impl Fn(&V) -> bool,
) -> Result<bool, HistoryError> {
    let map = fd(map);
    let failed = failed("write", table);
    match sys::take::<K, V>(map, key) {
        Ok(None) => Ok(false),
        Ok(Some(taken)) if same(&taken) => Ok(true),
        Ok(Some(taken)) => match sys::put(map, key, &taken, Write::New) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
            _ => Ok(false),
        },
        // Before 5.14 nothing does both at once.
        Err(error) if sys::is_not_there(&error) => {
            match sys::get::<K, V>(map, key).map_err(&failed)? {
                Some(now) if same(&now) => sys::remove(map, key).map_err(failed),
                _ => Ok(false),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

/// Replaces what an owner did before `begun` by what it came to.
fn shorten(
    tables: &Tables,
    key: &OwnerKey,
    base: &[(Key, Entry)],
    done: &[(OperationKey, Operation)],
    begun: u64,
) -> Result<(), HistoryError> {
    let before: Vec<_> = done.iter().filter(|(of, _)| of.at < begun).copied().collect();
    let mut kept = BTreeSet::new();
    for (at, entry) in restored(key, base, &before) {
        match sys::put(fd(&tables.operations), &at, &entry, Write::Any) {
            Ok(()) => {}
            // Full: what is there stays as it is.
            Err(error) if sys::is_full(&error) => return Ok(()),
            Err(error) => return Err(failed("write", OPERATIONS_MAP)(error)),
        }
        kept.insert(at);
    }
    for (of, _) in before.iter().filter(|(of, _)| !kept.contains(of)) {
        sys::remove(fd(&tables.operations), of).map_err(failed("write", OPERATIONS_MAP))?;
    }
    for (of, entry) in base {
        remove_lock(tables, of, entry)?;
    }
    Ok(())
}

/// What an owner's operations came to, as operations of the moment of the last of them: whoever does
/// these after the others gets the same, and so does who has these alone.
pub(super) fn restored(
    key: &OwnerKey,
    base: &[(Key, Entry)],
    done: &[(OperationKey, Operation)],
) -> Vec<(OperationKey, Operation)> {
    let mut steps: Vec<(u64, i64, Operation)> = (base.iter())
        .map(|(key, entry)| (entry.written_at, key.start, Entry { merged: RESTORED, ..*entry }))
        .chain(done.iter().map(|(key, operation)| (key.at, key.start, *operation)))
        .collect();
    steps.sort_by_key(|&(at, start, _)| (at, start));
    let Some(&(at, _, last)) = steps.last() else { return Vec::new() };
    let mut ranges = Ranges::default();
    for (index, (_, start, operation)) in steps.iter().enumerate() {
        ranges.apply(&Step::of(*start, operation, Some(index)));
    }
    let restore = |(start, end, access, by): (i64, i64, u32, Option<usize>)| {
        let taken = by.and_then(|by| steps.get(by)).map(|(.., operation)| *operation);
        let of = taken.unwrap_or(Entry { taken_at: 0, ..last });
        let entry = Entry { end, access, merged: RESTORED, ..of };
        (OperationKey { inode: key.inode, owner: key.owner, at, start }, entry)
    };
    ranges.pieces().map(restore).collect()
}
