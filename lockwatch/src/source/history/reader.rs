//! Readings with history, one after the other: the kernel's lists, what the tables know of them, and
//! where need be the search for what no fd table shows.
//!
//! Refuses to let the tables drift: every reading also brings them in line with the kernel's lists.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lockwatch_common::history::{Ending, Key, ProcessKey};
use rustix::fs::{Mode, OFlags};

use super::collect::Collector;
use super::join::{self, Contents};
use super::names::Names;
use super::present::Present;
use super::{HistoryError, Tables};
use crate::engine::conclude;
use crate::engine::id::{self, IdKey};
use crate::engine::input::{self, FileId};
use crate::engine::snapshot::Limit;
use crate::source::bpf::{self, Hunt, Snapshots};

/// From one time that the tables are brought in line with the kernel's lists to the next: that takes
/// as long as all the rest of a reading.
const REST: Duration = Duration::from_secs(1);
/// Readings of a time in which nothing happened after which that is done all the same: that a wait was
/// interrupted nothing tells.
const COLLECTED_AFTER: u32 = 4;
/// Locks up to which each is looked up by its key. To go through the whole table costs more, however
/// little it holds.
const FEW: usize = 256;
/// Locks from which on what a reading took of memory is worth giving back.
const LARGE: usize = 10_000;

/// Takes readings.
pub struct Reader {
    tables: Arc<Tables>,
    /// Loaded with the first reading, and anew after one that failed.
    snapshots: Option<Snapshots>,
    /// The search for what no fd table shows: loaded after the first reading, and anew after one that
    /// failed.
    hunt: Option<Hunt>,
    prepared: bool,
    /// Whether the last reading was one after which there is memory to be given back.
    was_large: bool,
    /// How much had happened before the last reading.
    happened: Option<u64>,
    /// What the tables held then, and of which locks; `None` is all.
    known: Option<(Contents, Option<BTreeSet<Key>>)>,
    /// When the tables were brought in line with the kernel's lists.
    collected: Option<Instant>,
    /// Readings since then, and whether anything has happened.
    since_collected: (u32, bool),
    collector: Collector,
    /// What they are still to be brought in line with.
    uncollected: Option<bpf::Reading>,
    /// Why that did not work.
    failed: Option<HistoryError>,
    names: Names,
    key: IdKey,
    /// What is said of every reading.
    limits: Vec<Limit>,
}

/// One reading.
pub struct Taken {
    /// The reading, for the engine.
    pub reading: input::Reading,
    /// What is at each path that was asked about, in their order; `None` where nothing is.
    pub files: Vec<Option<FileId>>,
}

impl Reader {
    /// A reader of these tables, which makes ids with `key`; `limits` holds for all its readings.
    pub fn new(tables: Arc<Tables>, key: IdKey, limits: Vec<Limit>) -> Self {
        tables.set_reader(std::process::id());
        let (collector, names) = (Collector::default(), Names::default());
        Self {
            tables,
            snapshots: None,
            hunt: None,
            prepared: false,
            was_large: false,
            happened: None,
            known: None,
            collected: None,
            since_collected: (0, false),
            collector,
            uncollected: None,
            failed: None,
            names,
            key,
            limits,
        }
    }

    /// Takes one, and finds out what is at `paths`.
    ///
    /// # Errors
    /// Where the kernel's lists or the tables cannot be read.
    pub fn read(&mut self, paths: &[PathBuf]) -> Result<Taken, HistoryError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        log::debug!("reading: begun");
        let handles: Vec<Option<OwnedFd>> = paths.iter().map(|path| handle(path)).collect();
        let mut snapshots = match self.snapshots.take() {
            Some(snapshots) => snapshots,
            None => Snapshots::load()?,
        };
        let mut reading = snapshots.read()?;
        log::debug!("reading: the kernel's lists");
        self.snapshots = Some(snapshots);
        let identity = |handle: &OwnedFd| {
            let number = u32::try_from(handle.as_raw_fd()).ok()?;
            let &(dev, ino) = reading.own_files.get(&number)?;
            Some(FileId { dev, ino })
        };
        let files = handles.iter().map(|handle| identity(handle.as_ref()?)).collect();
        drop(handles);
        self.remember(&mut reading)?;
        self.was_large = reading.snapshot.locks.len() > LARGE;
        log::debug!("reading: joined with the tables");
        let begun = reading.begun;
        // What else it found is not needed any more.
        let mut snapshot = std::mem::take(&mut reading.snapshot);
        drop(reading);
        bpf::order_births(&mut snapshot)?;
        snapshot.limits.extend(self.limits.iter().cloned());
        let unexplained = conclude::unexplained(&snapshot);
        if !unexplained.is_empty() {
            let hunt = self.hunt.take();
            self.hunt = bpf::explain(&mut snapshot, &unexplained, hunt);
        }
        log::debug!("reading: {} to be explained", unexplained.len());
        snapshot.limits.sort();
        snapshot.limits.dedup();
        if let Some(snapshots) = &mut self.snapshots {
            snapshots.expect(&snapshot);
        }
        let ids = id::assign(&snapshot, &self.key);
        Ok(Taken { reading: input::Reading { begun, snapshot, ids }, files })
    }

    /// Brings the tables in line with the last reading, where that is due: who waits for a reading need
    /// not wait for that. What is wrong the next reading says.
    pub fn tidy(&mut self) {
        if let Some(reading) = self.uncollected.take() {
            self.failed = self.tidy_by(&reading).err();
        }
    }

    fn tidy_by(&mut self, reading: &bpf::Reading) -> Result<(), HistoryError> {
        let known = self.known.take();
        let read;
        let endings = match &known {
            // Read for this very reading, or as it was then: of all locks.
            Some((contents, None)) => contents.endings(),
            _ => {
                read = Contents::read(&self.tables)?;
                read.endings()
            }
        };
        self.collect(reading, &Present::of(reading), endings)?;
        self.known = known;
        Ok(())
    }

    /// Makes ready for a reading that leaves something to be explained. What is wrong with it that
    /// reading says.
    pub fn prepare(&mut self) {
        let is_first = !std::mem::replace(&mut self.prepared, true);
        if is_first {
            self.hunt = bpf::prepare().ok().map(Hunt::made_quick);
        }
        if is_first || std::mem::take(&mut self.was_large) {
            give_back_memory();
        }
    }

    /// Joins a reading with the tables, and now and then brings them in line with it. Where nothing
    /// happened since the reading before, what that knew still holds.
    fn remember(&mut self, reading: &mut bpf::Reading) -> Result<(), HistoryError> {
        // Before the tables: what happens meanwhile has them read again next time.
        let happened = self.tables.totals()?.activity();
        let is_new = self.happened.replace(happened) != Some(happened);
        let known = self.known.take().filter(|_| !is_new);
        let (readings, anything) = self.since_collected;
        self.since_collected = (readings + 1, anything || is_new);
        let rested = self.collected.is_none_or(|at| at.elapsed() >= REST);
        let is_due = rested && (anything || is_new || readings + 1 >= COLLECTED_AFTER);
        let Some(few) = self.few(reading) else {
            let present = Present::of(reading);
            let endings = Contents::read_into(reading, &present, &self.tables, &mut self.names)?;
            return if is_due { self.collect(reading, &present, &endings) } else { Ok(()) };
        };
        let waits = !reading.snapshot.waiters.is_empty();
        let fits = |(contents, of): &(Contents, Option<BTreeSet<Key>>)| {
            let has_locks = of.as_ref().is_none_or(|of| few.is_subset(of));
            has_locks && (contents.has_waits() || !waits)
        };
        let (contents, of) = match known.filter(fits) {
            Some((mut known, of)) => {
                known.read_endings(&self.tables)?;
                (known, of)
            }
            None => self.look_up(few, waits)?,
        };
        join::join(&contents, &mut reading.snapshot, reading.ended, &mut self.names);
        self.known = Some((contents, of));
        if !is_due {
            return Ok(());
        }
        // An orphan is told that much sooner. But a daemon that is killed before it comes to that must
        // not leave the tables to fill.
        match self.collected {
            Some(_) => self.uncollected = Some(reading.of_locks()),
            None => self.tidy_by(reading)?,
        }
        Ok(())
    }

    /// Brings the tables in line with a reading.
    fn collect(
        &mut self,
        reading: &bpf::Reading,
        present: &Present,
        endings: &BTreeMap<ProcessKey, Ending>,
    ) -> Result<(), HistoryError> {
        self.since_collected = (0, false);
        self.collected = Some(Instant::now());
        self.collector.collect(&self.tables, reading, present, endings)
    }

    /// The keys of the locks of a reading, where these are few.
    fn few(&self, reading: &bpf::Reading) -> Option<BTreeSet<Key>> {
        let are_few = reading.snapshot.locks.len() <= FEW;
        are_few.then(|| join::keyed(reading).map(|(key, _)| key).collect())
    }

    /// What the tables hold of these locks, and of waits where `waits`, or of all.
    fn look_up(
        &self,
        few: BTreeSet<Key>,
        waits: bool,
    ) -> Result<(Contents, Option<BTreeSet<Key>>), HistoryError> {
        match Contents::of_locks(&self.tables, &few, waits)? {
            Some(contents) => Ok((contents, Some(few))),
            None => Ok((Contents::read(&self.tables)?, None)),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tables.set_reader(0);
    }
}

/// To load programs takes the kernel's whole type information, many times as much memory as all that
/// comes after, and a reading of very many locks takes much for a moment; of its own accord the C
/// library keeps most of that for good.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The file itself, without opening it for anything.
fn handle(path: &Path) -> Option<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()
}
