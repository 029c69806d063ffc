//! The things that are measured side by side: lockwatch with either source, the installed
//! lslocks, and a plain read of /proc/locks.
//!
//! Runs each once when asked. How often, and beside what, is the scenarios' to say.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::listing;
use super::measure::{self, Bounded, Run};
use crate::command::{capture, shown};
use crate::{build, interrupt, progress};

/// The lockwatch that is measured: the one that is given, else one that is built now.
pub(super) fn binary(given: Option<&Path>) -> Result<PathBuf> {
    match given {
        Some(given) => given.canonicalize().with_context(|| format!("finding {}", given.display())),
        None => build::run(),
    }
}

/// How many scans a check may take.
const CHECKS: usize = 3;

/// Where lockwatch takes its facts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Bpf,
    Procfs,
}

impl Source {
    /// Its name on lockwatch's command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Procfs => "procfs",
        }
    }
}

/// The binary that is measured.
pub(super) struct Lockwatch {
    binary: PathBuf,
}

impl Lockwatch {
    pub(super) fn new(binary: &Path) -> Self {
        Self { binary: binary.to_path_buf() }
    }

    /// One whole process.
    pub(super) fn scan(&self, source: Source) -> Result<Run> {
        let mut command = self.command(source);
        let run = measure::run(&mut command)?;
        // 1 says that there are findings, which the machine may well have.
        if !matches!(run.code, Some(0 | 1)) {
            bail!("`{}` ended with exit code {:?}", shown(&command), run.code);
        }
        Ok(run)
    }

    /// Fails unless its JSON lists each of the locks below the folder, and no other there.
    ///
    /// What other programs lock and unlock meanwhile can make the kernel show an entry of
    /// /proc/locks twice or not at all, so a scan that is wrong is told, and another one asked.
    pub(super) fn check(&self, source: Source, folder: &Path, locks: usize) -> Result<()> {
        let mut tries = 1..=CHECKS;
        loop {
            match self.check_once(source, folder, locks) {
                Err(error) if tries.next().is_some_and(|number| number < CHECKS) => {
                    progress::say(&format!("{error:#}; once more"));
                }
                checked => return checked,
            }
        }
    }

    /// In a process of its own: what this one ever had in memory counts as the peak of every
    /// program that it starts.
    fn check_once(&self, source: Source, folder: &Path, locks: usize) -> Result<()> {
        let own = std::env::current_exe().context("finding this program's file")?;
        let mut command = Command::new(own);
        command.arg(listing::VERB).arg(&self.binary).arg(source.name());
        command.arg(folder).arg(locks.to_string());
        capture(&mut command, "").map(drop)
    }

    fn command(&self, source: Source) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["scan", "--json", "--source", source.name()]);
        command
    }
}

/// One run of the installed lslocks.
pub(super) fn lslocks(bound: Duration) -> Result<Bounded> {
    measure::bounded(Command::new("lslocks").arg("--json"), bound)
}

/// Reads /proc/locks to its end once, and answers how many seconds that took.
pub(super) fn read_proc_locks(buffer: &mut [u8]) -> Result<f64> {
    let started = Instant::now();
    let mut file = File::open("/proc/locks").context("opening /proc/locks")?;
    while file.read(buffer).context("reading /proc/locks")? > 0 {
        if interrupt::happened() {
            bail!("interrupted");
        }
    }
    Ok(started.elapsed().as_secs_f64())
}

/// A buffer that holds any part of /proc/locks which the kernel gives at once.
pub(super) fn large_buffer() -> Vec<u8> {
    vec![0; 1 << 20]
}
