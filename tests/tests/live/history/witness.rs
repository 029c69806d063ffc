//! An open history of a test's own, and what it knows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch::engine::id::{self, LockId};
use lockwatch::engine::identity::{BootTime, Dev, Pid};
use lockwatch::engine::input::{FileId, Input};
use lockwatch::engine::snapshot::{Lock, Snapshot};
use lockwatch::source::history::{
    Continuity, History, Looker, Names, Options, Reader, Sizes, Told,
};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, patience};
use lockwatch_tests::same;
use rustix::time::{ClockId, clock_gettime};

/// The history of one test. It ends with the test.
pub(crate) struct Witness {
    pub(crate) history: History,
    reader: Option<Reader>,
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
        let reader = Some(reader(&history));
        Ok(Self { history, reader, names: Names::default(), folder, _house: house })
    }

    /// The folder of its pins.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Lets the history be, and takes it over again.
    pub(crate) fn again(&mut self) -> Result<Continuity> {
        let (history, continuity) = open(&self.folder, Sizes::default())?;
        self.reader = None;
        self.reader = Some(reader(&history));
        self.history = history;
        Ok(continuity)
    }

    /// The boot clock.
    pub(crate) fn now(&self) -> BootTime {
        let time = clock_gettime(ClockId::Boottime);
        BootTime(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// A reading as the daemon takes it.
    pub(crate) fn look(&mut self) -> Result<Snapshot> {
        let reader = self.reader.as_mut().context("no reader")?;
        let snapshot = reader.read(&[]).context("a reading")?.reading.snapshot;
        reader.tidy();
        ensure!(snapshot.history, "it says that there is no history");
        Ok(snapshot)
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

    /// The records that came since the last call, but for those about processes that are not of the
    /// scene: others live on this machine.
    pub(crate) fn moments(&mut self, scene: &Scene) -> Result<Vec<Input>> {
        // What a dying process leaves is given up by its own work, at the latest with its end.
        std::thread::sleep(Duration::from_millis(100));
        let (key, _) = lockwatch::id_key::machine_key();
        let boot_unix = {
            let unix = clock_gettime(ClockId::Realtime);
            let unix = unix.tv_sec as u64 * 1_000_000_000 + unix.tv_nsec as u64;
            unix - self.now().0
        };
        let mut told = Told { key: &key, names: &mut self.names, boot_unix, looker: Looker::own() };
        let mut inputs = Vec::new();
        self.history.moments.drain(usize::MAX, &mut told, |input| inputs.push(input))?;
        let cast = scene.pids();
        inputs.retain(|input| match input {
            Input::Died(death) => cast.contains(&death.process.pid),
            Input::PidReused(reused) => cast.contains(&reused.process.pid),
            Input::Ended(ended) => cast.contains(&ended.by.id.pid),
            Input::Acquired(acquired) => cast.contains(&acquired.by.id.pid),
            Input::Released(released) => cast.contains(&released.by.id.pid),
            Input::Attempt(attempt) => cast.contains(&attempt.by.id.pid),
            _ => true,
        });
        Ok(inputs)
    }

    /// Has attention paid to these files of the scene and no others.
    pub(crate) fn attend(&self, scene: &Scene, files: &[&str]) -> Result<()> {
        let mut ids = Vec::new();
        for file in files {
            let file = scene.file(file)?;
            let (major, minor) = file.dev.split_once(':').context("a device")?;
            let dev = Dev::new(u32::from_str_radix(major, 16)?, u32::from_str_radix(minor, 16)?);
            ids.push(FileId { dev, ino: file.ino });
        }
        let without = self.history.tables.attend(&ids).context("paying attention")?;
        same!("files without attention", without, 0);
        Ok(())
    }

    /// The id of the one lock on a file, as every snapshot has it.
    pub(crate) fn id_of(&mut self, scene: &Scene, file: &str) -> Result<LockId> {
        self.ids_of(scene, file)?.first().copied().context("no lock")
    }

    /// The ids of the locks on a file, as every snapshot has them.
    pub(crate) fn ids_of(&mut self, scene: &Scene, file: &str) -> Result<Vec<LockId>> {
        let snapshot = self.look()?;
        let ids = id::assign(&snapshot, &lockwatch::id_key::machine_key().0);
        let file = scene.file(file)?;
        let on_file = |lock: &Lock| {
            let at = &snapshot.files[lock.file.0 as usize];
            at.ino == file.ino && at.dev.to_string() == file.dev
        };
        let ids = snapshot.locks.iter().zip(ids).filter(|(lock, _)| on_file(lock));
        Ok(ids.map(|(_, id)| id).collect())
    }

    /// Waits until each of the files has exactly one lock and nobody waits.
    pub(crate) fn waits_for_locks(&mut self, scene: &Scene, files: &[&str]) -> Result<()> {
        patience::until("the locks that were waited for", || {
            let mut there = true;
            for file in files {
                let lines = crate::kernel::proc_locks_on(&scene.file(file)?)?;
                there &= lines.len() == 1 && !lines[0].contains("->");
            }
            Ok(there.then_some(()))
        })
    }

    /// How many of the scene's processes the tables have as waiting.
    pub(crate) fn waiting(&self, scene: &Scene) -> Result<usize> {
        let ours = scene.pids();
        Ok(self.history.tables.waiting()?.iter().filter(|pid| ours.contains(pid)).count())
    }

    /// Another process opens the history and is killed while it has it.
    pub(crate) fn is_killed(&self) -> Result<()> {
        // SAFETY: the child calls what a child may of a process whose other threads are gone with
        // the fork: it opens files, and ends without cleaning up.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error()).context("fork"),
            0 => {
                let opened = open(&self.folder, Sizes::default());
                let signal = if matches!(opened, Ok((_, Continuity::Continued))) {
                    libc::SIGKILL
                } else {
                    libc::SIGABRT
                };
                // SAFETY: a signal to this very process.
                unsafe { libc::kill(libc::getpid(), signal) };
                std::process::abort()
            }
            child => {
                let mut status = 0;
                // SAFETY: `status` is valid, and the child is this process's own.
                unsafe { libc::waitpid(child, &raw mut status, 0) };
                same!("the watcher's end", status & 0x7f, libc::SIGKILL);
                Ok(())
            }
        }
    }

    /// The tables have nothing left of a process but `but` locks.
    pub(crate) fn has_nothing_of(&self, pid: Pid, but: usize) -> Result<()> {
        same!("entries of the table", self.history.tables.taken_by(pid)?, but);
        Ok(())
    }
}

/// A reader of its tables.
fn reader(history: &History) -> Reader {
    Reader::new(Arc::clone(&history.tables), lockwatch::id_key::machine_key().0, Vec::new())
}

/// Opens the history of a folder.
pub(crate) fn open(folder: &Path, sizes: Sizes) -> Result<(History, Continuity)> {
    let options = Options { folder: folder.to_owned(), sizes, handoff_window: 5_000_000_000 };
    History::open(&options).context("opening the history")
}
