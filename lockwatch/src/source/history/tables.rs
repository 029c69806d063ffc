//! The tables of an open history.
//!
//! Refuses to interpret: keys and values as the programs wrote them.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use aya::maps::MapData;
use lockwatch_common::history::{
    ATTENDED_MAP, BUCKETS, COUNTERS_MAP, Counters, DEAD_MAP, Ending, Entry, F_UNLCK, F_WRLCK,
    FOREVER, FileKey, HELD_MAP, KINDS, Key, LOCKS_MAP, OPERATIONS_MAP, OWNERS_MAP, Operation,
    OperationKey, Owner, OwnerKey, ProcessKey, SEATS, SLOTS, SLOTS_MAP, SURVIVED_MAP, TOLD_MAP,
    WAITERS_MAP, Wait, held_of, slot_of,
};
use lockwatch_common::wire;

use super::HistoryError;
use super::array::MappedArray;
use super::sys::{self, Write};
use crate::engine::identity::{BootTime, Pid};
use crate::engine::input::FileId;
use crate::source::bpf;

/// Places of the members of `Globals`, in words.
const BEGUN: usize = 1;
const OWNERS: usize = 2;
const ATTENDED: usize = 3;
pub(super) const HANDOFF_WINDOW: usize = 5;
const LAST_SEQ: usize = 6;
const READER: usize = 7;
const TIDIED: usize = 9;

/// How often an entry is read again that is being written.
const READ_AGAIN: usize = 100;

/// Words of a `Held` and of a `Slot`.
const HELD_WORDS: usize = 4;
const SLOT_WORDS: usize = 5;

/// The tables.
pub struct Tables {
    pub(super) locks: MapData,
    pub(super) owners: MapData,
    pub(super) operations: MapData,
    pub(super) waiters: MapData,
    pub(super) dead: MapData,
    pub(super) survived: MapData,
    pub(super) told: MapData,
    pub(super) attended: MapData,
    pub(super) counters: MapData,
    pub(super) globals: MappedArray,
    held: MappedArray,
    held_mask: u32,
    slots: MappedArray,
    /// Until when every record of the moment was taken, ns of `CLOCK_BOOTTIME`.
    drained_at: AtomicU64,
    /// The first programs on the tracepoints, where they are this process's to ask about.
    pub(super) programs: Vec<OwnedFd>,
}

fn failed_to_ask(why: io::Error) -> HistoryError {
    HistoryError::Table { what: "ask about", table: "the programs", why }
}

fn failed(what: &'static str, table: &'static str) -> impl Fn(io::Error) -> HistoryError {
    move |why| HistoryError::Table { what, table, why }
}

impl Tables {
    /// Opens them; `open` gives the table of a name.
    pub(super) fn open(
        mut open: impl FnMut(&'static str) -> Result<MapData, HistoryError>,
        globals: MappedArray,
        writable: bool,
    ) -> Result<Self, HistoryError> {
        let held = open(HELD_MAP)?;
        let elements = held
            .info()
            .map_err(|error| failed("ask about", HELD_MAP)(io::Error::other(error)))?
            .max_entries();
        let slots = open(SLOTS_MAP)?;
        Ok(Self {
            locks: open(LOCKS_MAP)?,
            owners: open(OWNERS_MAP)?,
            operations: open(OPERATIONS_MAP)?,
            waiters: open(WAITERS_MAP)?,
            dead: open(DEAD_MAP)?,
            survived: open(SURVIVED_MAP)?,
            told: open(TOLD_MAP)?,
            attended: open(ATTENDED_MAP)?,
            counters: open(COUNTERS_MAP)?,
            globals,
            held: MappedArray::new(held.fd(), elements, HELD_WORDS, writable)
                .map_err(failed("map", HELD_MAP))?,
            held_mask: elements - 1,
            slots: MappedArray::new(slots.fd(), SLOTS, SLOT_WORDS, writable)
                .map_err(failed("map", SLOTS_MAP))?,
            drained_at: AtomicU64::new(0),
            programs: Vec::new(),
        })
    }

    /// From when on every lock is known; `None` where the history was never begun in full.
    pub fn begun(&self) -> Option<BootTime> {
        match self.globals.load(BEGUN) {
            0 => None,
            begun => Some(BootTime(begun)),
        }
    }

    pub(super) fn set_begun(&self, at: BootTime) {
        self.globals.store(BEGUN, at.0);
    }

    pub(super) fn set_handoff_window(&self, nanoseconds: u64) {
        self.globals.store(HANDOFF_WINDOW, nanoseconds);
    }

    /// Has the OFD locks of this process not noted: those that a reader begins its walks from.
    pub(super) fn set_reader(&self, pid: u32) {
        self.globals.store(READER, u64::from(pid));
    }

    /// The number of the event that was told last, by this daemon or one before it; 0 before the
    /// first.
    pub fn last_seq(&self) -> u64 {
        self.globals.load(LAST_SEQ)
    }

    /// Keeps the number of the event that was told last.
    pub fn set_last_seq(&self, seq: u64) {
        self.globals.store(LAST_SEQ, seq);
    }

    /// Has attention paid to these files, and for good to no others. Answers how many of them did not
    /// fit: a process that crashes with very many locks makes a file of each have it for a while.
    ///
    /// # Errors
    /// Where the table cannot be written.
    pub fn attend(&self, files: &[FileId]) -> Result<usize, HistoryError> {
        let mut wanted: BTreeSet<FileKey> = files.iter().map(file_key).collect();
        let all = wanted.len();
        let map = fd(&self.attended);
        let failed = failed("write", ATTENDED_MAP);
        for (file, until) in sys::all::<FileKey, u64>(map).map_err(&failed)? {
            if until == FOREVER && !wanted.remove(&file) {
                sys::remove(map, &file).map_err(&failed)?;
            }
        }
        let mut tidied = false;
        while let Some(file) = wanted.first() {
            match sys::put(map, file, &FOREVER, Write::Any) {
                Ok(()) => {
                    wanted.pop_first();
                }
                Err(error) if !sys::is_full(&error) => return Err(failed(error)),
                Err(_) if tidied => break,
                Err(_) => {
                    self.forget_attention(bpf::now())?;
                    tidied = true;
                }
            }
        }
        self.globals.store(ATTENDED, (all - wanted.len()) as u64);
        Ok(wanted.len())
    }

    /// Forgets the files whose attention has ended.
    pub(super) fn forget_attention(&self, now: BootTime) -> Result<(), HistoryError> {
        let map = fd(&self.attended);
        for (file, until) in sys::all::<FileKey, u64>(map).map_err(failed("read", ATTENDED_MAP))? {
            if until < now.0 {
                sys::remove(map, &file).map_err(failed("write", ATTENDED_MAP))?;
            }
        }
        Ok(())
    }

    /// What was counted since the history began, over all CPUs.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub fn totals(&self) -> Result<Totals, HistoryError> {
        let failed = failed("read", COUNTERS_MAP);
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, why)| failed(io::Error::new(why.kind(), format!("{what}: {why}"))))?;
        let mut totals = Totals::default();
        let mut missed: u64 = 0;
        for program in &self.programs {
            missed += sys::missed(program.as_fd()).map_err(failed_to_ask)?;
        }
        let mut instead = 0;
        for seat in 0..SEATS {
            let bytes = sys::get_bytes(fd(&self.counters), &seat, cpus * size_of::<Counters>())
                .map_err(&failed)?;
            for counters in bytes.chunks_exact(size_of::<Counters>()) {
                if let Some(counters) = wire::read::<Counters>(counters) {
                    totals.add(&counters);
                    instead += counters.instead;
                }
            }
        }
        // Asked first: what is missed meanwhile is seen instead meanwhile, and counts next time.
        totals.missed = missed.saturating_sub(instead);
        Ok(totals)
    }

    /// Every lock that was taken and not given up.
    pub(super) fn locks(&self) -> Result<Vec<(Key, Entry)>, HistoryError> {
        let mut locks = Vec::new();
        self.each_lock(|key, entry| locks.push((key, entry)))?;
        Ok(locks)
    }

    /// Hands each of them to `take`.
    pub(super) fn each_lock(&self, mut take: impl FnMut(Key, Entry)) -> Result<(), HistoryError> {
        let mut whole = Ok(());
        let read = sys::each::<Key, Entry>(fd(&self.locks), |key, mut entry| {
            if whole.is_ok() {
                whole = self.read_whole(&key, &mut entry);
            }
            // Of those that were given up the place is kept, and nothing else.
            if entry.access != F_UNLCK {
                take(key, entry);
            }
        });
        read.map_err(failed("read", LOCKS_MAP))?;
        whole
    }

    /// Those of these locks that were taken and not given up.
    pub(super) fn locks_of(&self, keys: &BTreeSet<Key>) -> Result<Vec<(Key, Entry)>, HistoryError> {
        let mut locks = Vec::with_capacity(keys.len());
        for key in keys {
            let read = sys::get(fd(&self.locks), key).map_err(failed("read", LOCKS_MAP))?;
            let Some(mut entry) = read else { continue };
            self.read_whole(key, &mut entry)?;
            if entry.access != F_UNLCK {
                locks.push((*key, entry));
            }
        }
        Ok(locks)
    }

    /// Reads an entry again that somebody wrote while it was read. One that is written without an
    /// end is as good as given up: nothing is said of it.
    fn read_whole(&self, key: &Key, entry: &mut Entry) -> Result<(), HistoryError> {
        for _ in 0..READ_AGAIN {
            if entry.is_whole() {
                return Ok(());
            }
            let read = sys::get(fd(&self.locks), key).map_err(failed("read", LOCKS_MAP))?;
            *entry = read.unwrap_or(Entry { access: F_UNLCK, ..Entry::EMPTY });
        }
        entry.access = F_UNLCK;
        Ok(())
    }

    /// Remembers until when every record of the moment was taken; an earlier time changes nothing.
    pub(super) fn set_drained(&self, at: BootTime) {
        self.drained_at.fetch_max(at.0, Ordering::Relaxed);
    }

    /// Until when every record of the moment was taken; 0 where none was.
    pub(super) fn drained_at(&self) -> BootTime {
        BootTime(self.drained_at.load(Ordering::Relaxed))
    }

    /// A number that is odd while [`Self::while_tidying`] is at work, and another one after it.
    pub(super) fn tidied(&self) -> u64 {
        // Neither later than what is read after it nor earlier than what was read before.
        fence(Ordering::SeqCst);
        let number = self.globals.load(TIDIED);
        fence(Ordering::SeqCst);
        number
    }

    /// Replaces what owners did; who reads the tables meanwhile can tell.
    pub(super) fn while_tidying<T>(&self, replace: impl FnOnce() -> T) -> T {
        // Odd already where who did it last was killed.
        let odd = self.globals.load(TIDIED) | 1;
        self.globals.store(TIDIED, odd);
        // What is replaced is seen by nobody who has not seen that number, nor later than the next.
        fence(Ordering::SeqCst);
        let done = replace();
        fence(Ordering::SeqCst);
        self.globals.store(TIDIED, odd + 1);
        done
    }

    /// False where no operation is written down: a program counts an owner before the first of its.
    pub(super) fn may_have_operations(&self) -> bool {
        self.globals.load(OWNERS) != 0
    }

    pub(super) fn owners(&self) -> Result<Vec<(OwnerKey, Owner)>, HistoryError> {
        sys::all(fd(&self.owners)).map_err(failed("read", OWNERS_MAP))
    }

    pub(super) fn owner(&self, key: &OwnerKey) -> Result<Option<Owner>, HistoryError> {
        sys::get(fd(&self.owners), key).map_err(failed("read", OWNERS_MAP))
    }

    pub(super) fn operations(&self) -> Result<Vec<(OperationKey, Operation)>, HistoryError> {
        sys::all(fd(&self.operations)).map_err(failed("read", OPERATIONS_MAP))
    }

    pub(super) fn waiters(&self) -> Result<Vec<(u64, Wait)>, HistoryError> {
        let mut waiters =
            sys::all::<u64, Wait>(fd(&self.waiters)).map_err(failed("read", WAITERS_MAP))?;
        waiters.retain(|(_, wait)| wait.since != 0);
        Ok(waiters)
    }

    pub(super) fn ending(&self, process: &ProcessKey) -> Result<Option<Ending>, HistoryError> {
        match sys::get(fd(&self.dead), process).map_err(failed("read", DEAD_MAP))? {
            None => sys::get(fd(&self.survived), process).map_err(failed("read", SURVIVED_MAP)),
            found => Ok(found),
        }
    }

    /// Until when locks of the owner's slot are not to be relied on, or 0.
    pub(super) fn slot_lost_at(&self, key: &OwnerKey) -> u64 {
        self.slots.load(slot_of(key.inode, key.owner) as usize * SLOT_WORDS + 3)
    }

    /// When a lock of the owner's slot was taken out of the table last, or 0.
    pub(super) fn slot_removed_at(&self, key: &OwnerKey) -> u64 {
        self.slots.load(slot_of(key.inode, key.owner) as usize * SLOT_WORDS + 4)
    }

    /// Counts a lock in or out of the hints.
    pub(super) fn hint(&self, key: &Key, entry: &Entry, by: i64) {
        self.hint_pid(entry.by.tgid, by);
        if key.class == lockwatch_common::history::CLASS_POSIX {
            let slot = slot_of(key.inode, key.owner) as usize * SLOT_WORDS;
            self.slots.add(slot + usize::from(entry.access == F_WRLCK), by);
            self.slots.add(slot + 2, key.start.wrapping_mul(by));
        }
    }

    /// Counts a lock of a pid in or out of the hints.
    pub(super) fn hint_pid(&self, tgid: i32, by: i64) {
        self.held.add(held_of(tgid as u32, self.held_mask) as usize * HELD_WORDS, by);
    }

    /// Counts a wait of a thread out of the hints.
    pub(super) fn hint_wait(&self, tid: u64, by: i64) {
        let at = held_of(tid as u32, self.held_mask) as usize * HELD_WORDS;
        self.held.add(at + 1, by);
        self.held.add(at + 2, by);
    }

    /// Counts owners out.
    pub(super) fn count_owners(&self, by: i64) {
        self.globals.add(OWNERS, by);
    }

    /// The processes of the threads that wait for a lock, as far as the table knows.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub fn waiting(&self) -> Result<Vec<Pid>, HistoryError> {
        Ok(self.waiters()?.iter().map(|(_, wait)| wait.tgid).collect())
    }

    /// How many locks the table has that a process took.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub fn taken_by(&self, pid: Pid) -> Result<usize, HistoryError> {
        Ok(self.locks()?.iter().filter(|(_, entry)| entry.by.tgid == pid).count())
    }
}

/// The table behind a map.
pub(super) fn fd(map: &MapData) -> BorrowedFd<'_> {
    map.fd().as_fd()
}

/// The key of a file.
pub(super) fn file_key(file: &FileId) -> FileKey {
    FileKey { ino: file.ino, dev: file.dev.to_kernel(), reserved: 0 }
}

/// What was counted, by kind of lock: flock, POSIX, OFD, lease and the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Locks taken; of leases those that were asked for, because whether they are given is not seen.
    pub acquisitions: [u64; KINDS],
    /// Locks given up; of leases only those that were given back on purpose.
    pub releases: [u64; KINDS],
    /// Attempts that were answered with `EAGAIN`.
    pub refusals: [u64; KINDS],
    /// Attempts that had to wait.
    pub waits: [u64; KINDS],
    /// Records of the moment that did not fit the ring.
    pub lost_records: u64,
    /// Locks, operations, waits and endings that did not fit their tables.
    pub lost_elements: u64,
    /// What no program saw, because each was preempted: see `bpf_prog_info.recursion_misses`.
    pub missed: u64,
    /// Waits that were granted, by the power of two of their nanoseconds, and the sum of these.
    pub wait: [([u64; BUCKETS], u64); KINDS],
    /// Locks given up, by the power of two of the nanoseconds they were held, and their sum.
    pub hold: [([u64; BUCKETS], u64); KINDS],
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            acquisitions: [0; KINDS],
            releases: [0; KINDS],
            refusals: [0; KINDS],
            waits: [0; KINDS],
            lost_records: 0,
            lost_elements: 0,
            missed: 0,
            wait: [([0; BUCKETS], 0); KINDS],
            hold: [([0; BUCKETS], 0); KINDS],
        }
    }
}

impl Totals {
    /// A number that changes with whatever happens to a lock.
    pub fn activity(&self) -> u64 {
        let counts = [self.acquisitions, self.releases, self.refusals, self.waits];
        counts.iter().flatten().sum::<u64>() + self.lost()
    }

    /// Everything that was lost: each may be missing from the tables or from the records.
    pub fn lost(&self) -> u64 {
        self.lost_records + self.lost_elements + self.missed
    }

    fn add(&mut self, counters: &Counters) {
        for kind in 0..KINDS {
            self.acquisitions[kind] += counters.acquisitions[kind];
            self.releases[kind] += counters.releases[kind];
            self.refusals[kind] += counters.refusals[kind];
            self.waits[kind] += counters.waits[kind];
            for bucket in 0..BUCKETS {
                self.wait[kind].0[bucket] += counters.wait[kind][bucket];
                self.hold[kind].0[bucket] += counters.hold[kind][bucket];
            }
            self.wait[kind].1 += counters.wait_sum[kind];
            self.hold[kind].1 += counters.hold_sum[kind];
        }
        self.lost_records += counters.lost_records;
        self.lost_elements += counters.lost_locks + counters.lost_operations + counters.lost_others;
    }
}
