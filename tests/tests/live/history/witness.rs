//! An open history of a test's own, and what it knows.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lockwatch::engine::identity::{BootTime, Pid};
use lockwatch::engine::snapshot::{Lock, Snapshot};
use lockwatch::source::bpf;
use lockwatch::source::history::{Continuity, History, Names, Options, Sizes};
use lockwatch_tests::harness::Scene;
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::same;
use rustix::time::{ClockId, clock_gettime};

/// The history of one test. It ends with the test.
pub(crate) struct Witness {
    pub(crate) history: History,
    pub(crate) names: Names,
    folder: PathBuf,
    _house: House,
}

impl Witness {
    /// Begins a history.
    pub(crate) fn appear(scene: &mut Scene) -> Result<Self> {
        Self::with(scene, Sizes::default())
    }

    /// Begins a history with tables of these sizes.
    pub(crate) fn with(scene: &mut Scene, sizes: Sizes) -> Result<Self> {
        let house = House::build(scene)?;
        let folder = house.path("bpf/lockwatch");
        let (history, continuity) = open(&folder, sizes)?;
        same!("continuity", continuity, Continuity::New);
        Ok(Self { history, names: Names::default(), folder, _house: house })
    }

    /// The folder of its pins.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Lets the history be, and takes it over again.
    pub(crate) fn again(&mut self) -> Result<Continuity> {
        let (history, continuity) = open(&self.folder, Sizes::default())?;
        self.history = history;
        Ok(continuity)
    }

    /// The boot clock.
    pub(crate) fn now(&self) -> BootTime {
        let time = clock_gettime(ClockId::Boottime);
        BootTime(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// A reading of the kernel's lists, reconciled with the tables.
    pub(crate) fn look(&mut self) -> Result<Snapshot> {
        let mut reading = bpf::read().context("a reading")?;
        self.history.reconcile(&mut reading, &mut self.names).context("reconciling")?;
        ensure!(reading.snapshot.history, "it says that there is no history");
        Ok(reading.snapshot)
    }

    /// The locks on these files of the scene, in the order of the files and of their first bytes.
    pub(crate) fn locks(&mut self, scene: &Scene, files: &[&str]) -> Result<Vec<Lock>> {
        let snapshot = self.look()?;
        let mut found = Vec::new();
        for file in files {
            let file = scene.file(file)?;
            let mut locks: Vec<Lock> = (snapshot.locks.iter())
                .filter(|lock| {
                    let at = &snapshot.files[lock.file.0 as usize];
                    at.ino == file.ino && at.dev.to_string() == file.dev
                })
                .cloned()
                .collect();
            locks.sort_by_key(|lock| lock.range.start);
            found.extend(locks);
        }
        Ok(found)
    }

    /// The tables have nothing left of a process but `but` locks.
    pub(crate) fn has_nothing_of(&self, pid: Pid, but: usize) -> Result<()> {
        same!("entries of the table", self.history.tables.taken_by(pid)?, but);
        Ok(())
    }
}

/// Opens the history of a folder.
pub(crate) fn open(folder: &Path, sizes: Sizes) -> Result<(History, Continuity)> {
    let options = Options { folder: folder.to_owned(), sizes, handoff_window: 5_000_000_000 };
    History::open(&options).context("opening the history")
}
