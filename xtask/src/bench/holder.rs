//! The process that is measured around: takes locks fast, says so, and keeps them until its
//! standard input ends.
//!
//! Runs as a hidden verb of xtask in a process of its own. Measures nothing but its own pairs.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::FlockOperation;
use rustix::process::{Resource, Rlimit, Signal};

use super::unseen;

/// The hidden verb.
pub(crate) const VERB: &str = "bench-holder";
/// What it says when it holds what it was asked for.
pub(crate) const READY: &str = "ready";
/// How many locks of [`Work::Mix`] lie on one file: one flock, the others OFD byte ranges.
pub(crate) const LOCKS_PER_FILE: usize = 8;

/// A lock file descriptor has room for this many locks before the limit is asked for.
const SPARE_DESCRIPTORS: u64 = 64;
/// Byte ranges lie this far apart, and are this long, so that the kernel cannot merge them.
const RANGE_STEP: usize = 16;
const RANGE_LENGTH: usize = 8;

/// What a holder is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Files with one flock and up to seven OFD byte ranges each, on one description a file.
    Mix,
    /// Separate files, an exclusive flock on each.
    Flocks,
    /// One file, opened again and again, a shared flock on each description.
    SharedFlocks,
    /// Separate files, a POSIX lock on each.
    Posix,
    /// One file, as many POSIX byte ranges.
    PosixRanges,
    /// No lock: unix sockets, in pairs with a byte in flight.
    Sockets,
    /// No lock: mappings of one file.
    Mappings,
    /// Flocks on separate files whose descriptions are in flight in a socket of this process, and
    /// were taken by a child that is dead.
    InFlight,
    /// The child of [`Work::InFlight`]: sends over its standard input and ends.
    Sender,
    /// No lock that stays: flock and unlock in turn, for so many milliseconds.
    Pairs,
    /// One flock, on the file with this number, that a child has when this process is killed a moment
    /// later.
    Leak,
}

const WORKS: [(&str, Work); 11] = [
    ("mix", Work::Mix),
    ("flocks", Work::Flocks),
    ("shared-flocks", Work::SharedFlocks),
    ("posix", Work::Posix),
    ("posix-ranges", Work::PosixRanges),
    ("sockets", Work::Sockets),
    ("mappings", Work::Mappings),
    ("in-flight", Work::InFlight),
    ("sender", Work::Sender),
    ("pairs", Work::Pairs),
    ("leak", Work::Leak),
];

impl Work {
    /// What one process of a cell holds: flocks on separate files where it may have as many
    /// descriptors, else the mix.
    pub(crate) fn of_a_cell(count: usize) -> Self {
        let fits = descriptors(Self::Flocks, count) <= descriptor_limit();
        if fits { Self::Flocks } else { Self::Mix }
    }

    /// Its name on the holder's command line.
    pub(crate) fn name(self) -> &'static str {
        WORKS.iter().find(|(_, work)| *work == self).map_or("", |(name, _)| name)
    }

    fn named(name: &str) -> Option<Self> {
        WORKS.iter().find(|(found, _)| *found == name).map(|(_, work)| *work)
    }
}

/// Does the work: WORK COUNT FOLDER.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    // A holder that outlives the benchmark would leave a hundred thousand locks behind.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("asking for a signal at the benchmark's death")?;
    let [work, count, folder] = args else { bail!("{VERB} takes WORK COUNT FOLDER") };
    let work = work.to_str().and_then(Work::named).context("no such work")?;
    let count: usize =
        count.to_str().and_then(|count| count.parse().ok()).context("COUNT is no number")?;
    let folder = PathBuf::from(folder);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    raise_descriptor_limit()?;

    if work == Work::Pairs {
        let (pairs, elapsed) = pairs(&folder, Duration::from_millis(count as u64))?;
        say(&format!("{pairs} {}", elapsed.as_nanos()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if work == Work::Sender {
        unseen::send_locked(count, &folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    if work == Work::Leak {
        leak(&folder.join(count.to_string()))?;
    }
    let files = take(work, count, &folder)?;
    say(READY)?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).context("waiting for the end of stdin")?;
    drop(files);
    Ok(ExitCode::SUCCESS)
}

/// How many descriptors a process may have here.
pub(crate) fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

fn raise_descriptor_limit() -> Result<()> {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let wanted = Rlimit { current: maximum, maximum };
    rustix::process::setrlimit(Resource::Nofile, wanted).context("raising RLIMIT_NOFILE")
}

/// How many descriptors a holder of so many locks has open.
pub(crate) fn descriptors(work: Work, count: usize) -> u64 {
    let files = match work {
        Work::Mix => count.div_ceil(LOCKS_PER_FILE),
        Work::Flocks | Work::SharedFlocks | Work::Posix | Work::Sockets | Work::Sender => count,
        Work::PosixRanges | Work::Pairs | Work::Mappings | Work::InFlight | Work::Leak => 1,
    };
    files as u64 + SPARE_DESCRIPTORS
}

fn take(work: Work, count: usize, folder: &Path) -> Result<Vec<File>> {
    let numbered = |number: usize| folder.join(number.to_string());
    match work {
        Work::Mix => (0..count.div_ceil(LOCKS_PER_FILE))
            .map(|number| mixed(&numbered(number), (count - number * LOCKS_PER_FILE).min(8)))
            .collect(),
        Work::Flocks => (0..count)
            .map(|number| flocked(&numbered(number), FlockOperation::NonBlockingLockExclusive))
            .collect(),
        Work::SharedFlocks => (0..count)
            .map(|_| flocked(&folder.join("shared"), FlockOperation::NonBlockingLockShared))
            .collect(),
        Work::Posix => (0..count)
            .map(|number| {
                let path = numbered(number);
                let file = open(&path)?;
                lock_range(&file, &path, libc::F_SETLK, 0)?;
                Ok(file)
            })
            .collect(),
        Work::PosixRanges => {
            let path = folder.join("ranges");
            let file = open(&path)?;
            // Downwards: the kernel keeps them in order, and finds the place for a new one from
            // the front.
            for number in (0..count).rev() {
                lock_range(&file, &path, libc::F_SETLK, number)?;
            }
            Ok(vec![file])
        }
        Work::Sockets => unseen::sockets(count),
        Work::Mappings => unseen::mappings(count, &numbered(0)),
        Work::InFlight => unseen::in_flight(count, folder),
        Work::Pairs | Work::Sender | Work::Leak => Ok(Vec::new()),
    }
}

/// Leaves a lock to a child that knows nothing of it.
fn leak(path: &Path) -> Result<()> {
    let file = flocked(path, FlockOperation::NonBlockingLockExclusive)?;
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).context("leaking a descriptor")?;
    std::process::Command::new("sleep").arg("1.5").spawn().context("a child")?;
    std::thread::sleep(Duration::from_millis(20));
    rustix::process::kill_process(rustix::process::getpid(), Signal::KILL).context("dying")
}

fn mixed(path: &Path, locks: usize) -> Result<File> {
    let file = flocked(path, FlockOperation::NonBlockingLockExclusive)?;
    for number in 1..locks {
        lock_range(&file, path, libc::F_OFD_SETLK, number)?;
    }
    Ok(file)
}

pub(super) fn flocked(path: &Path, operation: FlockOperation) -> Result<File> {
    let file = open(path)?;
    rustix::fs::flock(&file, operation).with_context(|| format!("flock {}", path.display()))?;
    Ok(file)
}

pub(super) fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

fn lock_range(file: &File, path: &Path, command: libc::c_int, number: usize) -> Result<()> {
    // SAFETY: `struct flock` is plain data, for which zeroes are a value; OFD locks want l_pid 0.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = (number * RANGE_STEP) as libc::off_t;
    range.l_len = RANGE_LENGTH as libc::off_t;
    // SAFETY: the descriptor is open, and the kernel reads a `struct flock` that outlives the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const range) };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(error).with_context(|| format!("locking range {number} of {}", path.display()))
}

fn pairs(folder: &Path, time: Duration) -> Result<(u64, Duration)> {
    const BATCH: u64 = 64;
    let path = folder.join("pairs");
    let file = open(&path)?;
    let started = Instant::now();
    let mut pairs = 0;
    loop {
        for _ in 0..BATCH {
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .and_then(|()| rustix::fs::flock(&file, FlockOperation::Unlock))
                .with_context(|| format!("flock {}", path.display()))?;
        }
        pairs += BATCH;
        let elapsed = started.elapsed();
        if elapsed >= time {
            return Ok((pairs, elapsed));
        }
    }
}

fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("writing to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_is_found_by_its_name() {
        for (name, work) in WORKS {
            assert_eq!(Work::named(name), Some(work));
            assert_eq!(work.name(), name);
        }
        assert_eq!(Work::named("juggling"), None);
    }

    #[test]
    fn a_hundred_thousand_mixed_locks_fit_into_one_process() {
        assert_eq!(descriptors(Work::Mix, 100_000), 12_500 + SPARE_DESCRIPTORS);
        assert_eq!(descriptors(Work::PosixRanges, 10_000), 1 + SPARE_DESCRIPTORS);
    }

    #[test]
    fn each_work_takes_its_files() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(take(Work::Mix, 17, folder.path()).unwrap().len(), 3);
        let shared = tempfile::tempdir().unwrap();
        assert_eq!(take(Work::SharedFlocks, 5, shared.path()).unwrap().len(), 5);
        assert_eq!(shared.path().read_dir().unwrap().count(), 1);
    }
}
