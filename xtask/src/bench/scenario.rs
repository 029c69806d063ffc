//! What is measured: which locks are held, what runs beside them, and how often.
//!
//! Answers figures; what they mean is the goals' to say, and how they look the report's.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::contender::{self, Lockwatch, Source};
use super::folder::Folder;
use super::holder::Work;
use super::holders::{self, Crowd};
use super::machine;
use super::measure::{Bounded, Stats, median};
use crate::progress::Step;

/// An lslocks that takes longer is killed.
pub(super) const LSLOCKS_BOUND: Duration = Duration::from_secs(90);
/// One that takes longer than this runs once only.
const LSLOCKS_SLOW: f64 = 5.0;
/// How often one that fails is started anew, and after what pause.
const LSLOCKS_RETRIES: usize = 5;
const LSLOCKS_PAUSE: Duration = Duration::from_secs(1);
/// How many locks the one-file comparisons make.
const RANGES: usize = 10_000;
const SHARED: usize = 2_000;
/// The numbers of locks that the goals speak of.
pub(super) const MANY: usize = 100_000;
pub(super) const FEWER: usize = 10_000;
/// What is around while pairs are counted.
pub(super) const AROUND: Crowd = Crowd { work: Work::Mix, locks: FEWER, processes: 20 };

/// How much is measured.
pub(super) struct Extent {
    pub(super) locks: &'static [usize],
    pub(super) processes: &'static [usize],
    bpf_runs: usize,
    procfs_runs: usize,
    linear_runs: usize,
    idle_runs: usize,
    rounds: usize,
    pairs: Duration,
}

impl Extent {
    pub(super) const FULL: Self = Self {
        locks: &[1_000, FEWER, MANY],
        processes: &[1, 20, 200],
        bpf_runs: 5,
        procfs_runs: 3,
        linear_runs: 9,
        idle_runs: 15,
        rounds: 3,
        pairs: Duration::from_secs(3),
    };
    pub(super) const QUICK: Self = Self {
        locks: &[1_000, FEWER],
        bpf_runs: 3,
        procfs_runs: 2,
        linear_runs: 3,
        idle_runs: 7,
        pairs: Duration::from_secs(1),
        ..Self::FULL
    };
}

/// One source's runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scans {
    pub(super) seconds: Stats,
    /// The median of the processor time.
    pub(super) cpu: f64,
    pub(super) peak: u64,
}

/// How lslocks did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Peer {
    Ran(Stats),
    /// Killed after so many seconds.
    Cut(f64),
    /// It gave up, again and again: it does so while any lease break waits on the machine.
    Failed,
    /// Not installed.
    Absent,
}

/// So many locks in so many processes.
pub(super) struct Cell {
    pub(super) locks: usize,
    pub(super) processes: usize,
    pub(super) bpf: Scans,
    pub(super) procfs: Scans,
    pub(super) lslocks: Peer,
    pub(super) read: Stats,
    pub(super) others: f64,
}

/// Locks on one file beside as many on separate files.
pub(super) struct OneFile {
    pub(super) what: &'static str,
    pub(super) locks: usize,
    pub(super) processes: usize,
    /// For each source: one file, separate files.
    pub(super) bpf: (Stats, Stats),
    pub(super) procfs: (Stats, Stats),
    pub(super) others: f64,
}

/// The machine without our locks.
pub(super) struct Idle {
    pub(super) bpf: Scans,
    pub(super) procfs: Scans,
    pub(super) others: f64,
}

/// What no fd table shows, around and in flight.
pub(super) struct Unseen {
    /// So many sockets and mappings, and no lock.
    pub(super) idle: Scans,
    /// [`AROUND`]'s locks alone.
    pub(super) alone: Scans,
    /// With so many sockets and mappings around.
    pub(super) around: Scans,
    /// With so many orphans in flight besides.
    pub(super) in_flight: Scans,
    /// [`MANY`] locks in the most processes of [`Extent`], with the sockets and mappings around.
    pub(super) many: Option<Scans>,
    pub(super) others: f64,
}

/// Sockets, mappings and orphans of [`Unseen`].
pub(super) const SOCKETS: usize = 10_000;
pub(super) const MAPPINGS: usize = 1_000;
pub(super) const IN_FLIGHT: usize = 1_000;

/// What runs beside a process that locks and unlocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    Nothing,
    Scan(Source),
    Read,
}

/// Pairs a second with something beside them.
pub(super) struct Pairs {
    pub(super) beside: Beside,
    pub(super) rate: Stats,
    /// The median, over the rounds, of the rate relative to that of the same round alone.
    pub(super) relative: f64,
    /// How often a second the thing beside came to its end.
    pub(super) loops: f64,
}

/// What the scenarios need of the outside.
pub(super) struct Bench<'a> {
    pub(super) lockwatch: &'a Lockwatch,
    pub(super) extent: &'a Extent,
    pub(super) folder: &'a Folder,
    pub(super) lslocks_is_there: bool,
}

impl Bench<'_> {
    /// Every number of locks in every number of processes, fewest locks first.
    pub(super) fn cells(&self) -> Result<Vec<Cell>> {
        let processes = self.extent.processes;
        let pairs =
            self.extent.locks.iter().flat_map(|locks| processes.iter().map(move |of| (locks, of)));
        pairs.map(|(&locks, &processes)| self.cell(locks, processes)).collect()
    }

    fn cell(&self, locks: usize, processes: usize) -> Result<Cell> {
        let step = Step::start(format!("{locks} locks in {}", in_words(processes)));
        let folder = self.folder.below(&format!("mix-{locks}-{processes}"));
        let holders = Crowd::of_a_cell(locks, processes).start(&folder)?;
        let others = machine::quiet()?;
        for source in [Source::Bpf, Source::Procfs] {
            self.lockwatch.check(source, &folder, locks)?;
        }
        let bpf = self.scans(Source::Bpf, self.extent.bpf_runs)?;
        let procfs = self.scans(Source::Procfs, self.extent.procfs_runs)?;
        let mut buffer = contender::large_buffer();
        let read =
            stats((0..self.extent.procfs_runs).map(|_| contender::read_proc_locks(&mut buffer)))?;
        let lslocks = self.lslocks()?;
        drop(holders);
        step.done(&format!("bpf {:.0} ms", bpf.seconds.median * 1e3));
        Ok(Cell { locks, processes, bpf, procfs, lslocks, read, others })
    }

    fn lslocks(&self) -> Result<Peer> {
        if !self.lslocks_is_there {
            return Ok(Peer::Absent);
        }
        let mut seconds = Vec::new();
        let mut failures = 0;
        while seconds.len() < self.extent.procfs_runs {
            match contender::lslocks(LSLOCKS_BOUND)? {
                Bounded::Cut(bound) => return Ok(Peer::Cut(bound)),
                Bounded::Ended(run) if run.code == Some(0) => seconds.push(run.seconds),
                Bounded::Ended(_) if failures < LSLOCKS_RETRIES => {
                    failures += 1;
                    thread::sleep(LSLOCKS_PAUSE);
                }
                Bounded::Ended(_) => return Ok(Peer::Failed),
            }
            if seconds.iter().any(|&seconds| seconds > LSLOCKS_SLOW) {
                break;
            }
        }
        stats(seconds.into_iter().map(Ok)).map(Peer::Ran)
    }

    /// Locks on one file, each time beside as many on separate files.
    pub(super) fn one_file(&self) -> Result<Vec<OneFile>> {
        [
            ("POSIX ranges", Work::PosixRanges, Work::Posix, RANGES, 1),
            ("shared flocks", Work::SharedFlocks, Work::Flocks, SHARED, 1),
            ("shared flocks", Work::SharedFlocks, Work::Flocks, SHARED, 20),
        ]
        .into_iter()
        .map(|(what, one, separate, locks, processes)| {
            let step = Step::start(format!("{locks} {what} of one file, {}", in_words(processes)));
            let one = self.work(Crowd { work: one, locks, processes })?;
            let others = machine::quiet()?;
            let separate = self.work(Crowd { work: separate, locks, processes })?;
            step.done("");
            let [bpf, procfs] = [(one.0, separate.0), (one.1, separate.1)];
            Ok(OneFile { what, locks, processes, bpf, procfs, others })
        })
        .collect()
    }

    /// Both sources, checked and measured, while a crowd holds its locks.
    fn work(&self, crowd: Crowd) -> Result<(Stats, Stats)> {
        let Crowd { work, locks, processes } = crowd;
        let folder = self.folder.below(&format!("{}-{processes}", work.name()));
        let _holders = crowd.start(&folder)?;
        let measured = |source| {
            self.lockwatch.check(source, &folder, locks)?;
            Ok::<_, anyhow::Error>(self.scans(source, self.extent.linear_runs)?.seconds)
        };
        Ok((measured(Source::Bpf)?, measured(Source::Procfs)?))
    }

    /// The machine as it is.
    pub(super) fn idle(&self) -> Result<Idle> {
        let step = Step::start("the machine as it is");
        let others = machine::quiet()?;
        let bpf = self.scans(Source::Bpf, self.extent.idle_runs)?;
        let procfs = self.scans(Source::Procfs, self.extent.idle_runs)?;
        step.done(&format!("bpf {:.0} ms", bpf.seconds.median * 1e3));
        Ok(Idle { bpf, procfs, others })
    }

    /// What is around and what is in flight, with BPF: /proc shows none of it.
    pub(super) fn unseen(&self) -> Result<Unseen> {
        let step = Step::start("sockets, mappings and locks in flight");
        let folder = self.folder.below("unseen");
        let runs = self.extent.linear_runs;
        let locks = AROUND.start(&folder.join("locks"))?;
        let others = machine::quiet()?;
        let alone = self.scans(Source::Bpf, runs)?;
        let crowd = |work, locks, processes| Crowd { work, locks, processes };
        let _sockets = crowd(Work::Sockets, SOCKETS, 10).start(&folder.join("sockets"))?;
        let _mappings = crowd(Work::Mappings, MAPPINGS, 1).start(&folder.join("mappings"))?;
        let around = self.scans(Source::Bpf, runs)?;
        let orphans = folder.join("orphans");
        let flying = crowd(Work::InFlight, IN_FLIGHT, 1).start(&orphans)?;
        self.lockwatch.check(Source::Bpf, &orphans, IN_FLIGHT)?;
        let in_flight = self.scans(Source::Bpf, runs)?;
        drop((flying, locks));
        let idle = self.scans(Source::Bpf, runs)?;
        let many = if self.extent.locks.contains(&MANY) {
            let processes = self.extent.processes.last().copied().unwrap_or(1);
            let _many = Crowd::of_a_cell(MANY, processes).start(&folder.join("many"))?;
            Some(self.scans(Source::Bpf, self.extent.bpf_runs)?)
        } else {
            None
        };
        step.done(&format!("{:.0} ms with orphans", in_flight.seconds.median * 1e3));
        Ok(Unseen { idle, alone, around, in_flight, many, others })
    }

    fn scans(&self, source: Source, runs: usize) -> Result<Scans> {
        let mut peak = 0;
        let mut cpu = Vec::new();
        let seconds = stats((0..runs).map(|_| {
            let run = self.lockwatch.scan(source)?;
            peak = peak.max(run.peak);
            cpu.push(run.cpu);
            Ok(run.seconds)
        }))?;
        Ok(Scans { seconds, cpu: median(&cpu).context("no run")?, peak })
    }

    /// What each reader does to a process that locks and unlocks a file of its own.
    pub(super) fn disturbance(&self) -> Result<Vec<Pairs>> {
        const ALL: [Beside; 4] = [
            Beside::Nothing,
            Beside::Scan(Source::Bpf),
            Beside::Scan(Source::Procfs),
            Beside::Read,
        ];
        let _holders = AROUND.start(&self.folder.below("around"))?;
        let folder = self.folder.below("pairs");
        let mut rounds = Vec::new();
        for round in 1..=self.extent.rounds {
            let step =
                Step::start(format!("flock/unlock pairs, round {round} of {}", self.extent.rounds));
            // Each round has all four, so that what changes on the machine meets them alike.
            let measured: Result<Vec<_>> =
                ALL.iter().map(|beside| self.pairs_beside(*beside, &folder)).collect();
            rounds.push(measured?);
            step.done("");
        }
        ALL.iter()
            .enumerate()
            .map(|(at, &beside)| {
                let rates: Vec<f64> = rounds.iter().map(|round| round[at].0).collect();
                let relative: Vec<f64> =
                    rounds.iter().map(|round| round[at].0 / round[0].0).collect();
                let loops: Vec<f64> = rounds.iter().map(|round| round[at].1).collect();
                Ok(Pairs {
                    beside,
                    rate: Stats::of(&rates).context("no round")?,
                    relative: median(&relative).context("no round")?,
                    loops: median(&loops).context("no round")?,
                })
            })
            .collect()
    }

    /// Pairs a second, and how often a second the thing beside came to its end.
    fn pairs_beside(&self, beside: Beside, folder: &Path) -> Result<(f64, f64)> {
        let stop = AtomicBool::new(false);
        let looping = || {
            let mut buffer = contender::large_buffer();
            let mut loops = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                match beside {
                    Beside::Nothing => return Ok(0),
                    Beside::Scan(source) => drop(self.lockwatch.scan(source)?),
                    Beside::Read => drop(contender::read_proc_locks(&mut buffer)?),
                }
                loops += 1;
            }
            Ok::<_, anyhow::Error>(loops)
        };
        thread::scope(|scope| {
            let reader = scope.spawn(looping);
            let rate = holders::pairs(folder, self.extent.pairs);
            stop.store(true, Ordering::Relaxed);
            let loops = reader.join().map_err(|_| anyhow!("a reader panicked"))??;
            Ok((rate?, f64::from(loops) / self.extent.pairs.as_secs_f64()))
        })
    }
}

/// "1 process", "20 processes".
pub(super) fn in_words(processes: usize) -> String {
    format!("{processes} process{}", if processes == 1 { "" } else { "es" })
}

fn stats(values: impl Iterator<Item = Result<f64>>) -> Result<Stats> {
    let values: Vec<f64> = values.collect::<Result<_>>()?;
    Stats::of(&values).context("no run")
}
