//! Readings with history, one after the other: the kernel's lists, what the tables know of them, and
//! where need be the search for what no fd table shows.
//!
//! Refuses to let the tables drift: every reading also brings them in line with the kernel's lists.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::collect::Collector;
use super::join::{self, Contents};
use super::names::Names;
use super::{HistoryError, Tables};
use crate::engine::id::{self, IdKey};
use crate::engine::input::{self, FileId};
use crate::engine::snapshot::Limit;
use crate::engine::view::View;
use crate::source::bpf::{self, Hunt, Snapshots};

/// Readings of a time in which nothing happened after which the tables are gone through all the same:
/// that a wait was interrupted nothing tells.
const COLLECTED_AFTER: u32 = 4;

/// Takes readings.
pub struct Reader {
    tables: Arc<Tables>,
    /// Loaded with the first reading, and anew after one that failed.
    snapshots: Option<Snapshots>,
    /// The search for what no fd table shows: loaded after the first reading, and anew after one that
    /// failed.
    hunt: Option<Hunt>,
    prepared: bool,
    /// What the tables held when the last lock had been taken or given up, and how much had happened
    /// by then.
    known: Option<(u64, Contents)>,
    /// Readings since the tables were brought in line with the kernel's lists.
    since_collected: u32,
    collector: Collector,
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
            known: None,
            since_collected: 0,
            collector,
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
        log::debug!("reading: joined with the tables");
        let bpf::Reading { mut snapshot, begun, .. } = reading;
        snapshot.limits.extend(self.limits.iter().cloned());
        let ids = id::assign(&snapshot, &self.key);
        // What is unexplained only a view tells.
        let view = View::new(snapshot, &ids);
        let unexplained = view.unexplained();
        let mut snapshot = view.snapshot;
        if !unexplained.is_empty() {
            let hunt = self.hunt.take();
            self.hunt = bpf::explain(&mut snapshot, &unexplained, hunt);
        }
        log::debug!("reading: {} to be explained", unexplained.len());
        snapshot.limits.sort();
        snapshot.limits.dedup();
        Ok(Taken { reading: input::Reading { begun, snapshot, ids }, files })
    }

    /// Makes ready for a reading that leaves something to be explained. What is wrong with it that
    /// reading says.
    pub fn prepare(&mut self) {
        if !std::mem::replace(&mut self.prepared, true) {
            self.hunt = bpf::prepare().ok();
            give_back_memory();
        }
    }

    /// Joins a reading with the tables, and brings them in line with it. Where nothing happened
    /// since the reading before, what that knew still holds.
    fn remember(&mut self, reading: &mut bpf::Reading) -> Result<(), HistoryError> {
        // Before the tables: what happens meanwhile has them read again next time.
        let happened = self.tables.totals()?.activity();
        let contents = match self.known.take() {
            Some((before, mut contents)) if before == happened => {
                contents.read_endings(&self.tables)?;
                self.since_collected += 1;
                contents
            }
            _ => {
                self.since_collected = COLLECTED_AFTER;
                Contents::read(&self.tables)?
            }
        };
        if self.since_collected >= COLLECTED_AFTER {
            self.since_collected = 0;
            self.collector.collect(&self.tables, reading, contents.endings())?;
        }
        join::join(&contents, &mut reading.snapshot, reading.ended, &mut self.names);
        self.known = Some((happened, contents));
        Ok(())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tables.set_reader(0);
    }
}

/// To load programs takes the kernel's whole type information, many times as much memory as all that
/// comes after; of its own accord the C library keeps most of that for good.
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
