//! `cargo xtask bench serve`: what it costs to ask the daemon: a walk through its tree, beside the same
//! files on a tmpfs, and a scrape.
//!
//! A goal that is missed is a result, not a failure. Fails where the tree or the scrape did not show
//! what was there to see: a figure of something else would be worth nothing.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::contender;
use super::daemon::{self, House, Load};
use super::goals::{Goal, at_most};
use super::holder::Work;
use super::holders::Crowd;
use super::table::{self, Style, Table};
use crate::{command, interrupt, progress};

/// How `bench serve` is to be run.
#[derive(Args)]
pub(crate) struct ServeArgs {
    /// A tenth of the locks, and fewer walks and scrapes
    #[arg(long)]
    quick: bool,
    /// Measure this lockwatch instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Mounts are this process's own already
    #[arg(long, hide = true)]
    inside: bool,
}

/// Locks of the tree that is walked through, and the processes that hold them.
const WALKED: usize = 1_000;
const WALKED_PROCESSES: usize = 10;
/// Files of a folder that have a line each: all but `force_unlock` and an empty `waiters`. The files
/// have no extension, so `locked` has no other name.
const LINES: usize = 11;
/// Locks when it is scraped, and the processes that hold them.
const SCRAPED: usize = 100_000;
const SCRAPED_PROCESSES: usize = 200;
/// Between two scrapes.
const PAUSE: Duration = Duration::from_millis(50);
/// How long it may take until the daemon shows what there is.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the benchmark.
pub(super) fn run(args: &ServeArgs) -> Result<ExitCode> {
    let binary = contender::binary(args.binary.as_deref())?;
    if !args.inside {
        return daemon::inside("serve", &binary, args.quick);
    }
    let part = if args.quick { 10 } else { 1 };
    let walks = walks(&binary, WALKED / part, 20 / part.min(4))?;
    let scrapes = scrapes(&binary, SCRAPED / part, 400 / part)?;
    let mut text = walks.table().text(Style::Plain) + &scrapes.table().text(Style::Plain);
    let p95 = |seen: &[f64]| daemon::at(seen, 0.95);
    let whole = !args.quick;
    for Goal { what, measured, verdict } in [
        at_most(
            "a walk through 1,000 locks (`grep -r . locks`): at most 1 s, median",
            daemon::at(&walks.tree, 0.5).filter(|_| whole),
            1.0,
            table::time,
        ),
        at_most(
            "a scrape with 100,000 locks: at most 5 ms, 95 of 100",
            p95(&scrapes.quiet).filter(|_| whole),
            0.005,
            table::time,
        ),
    ] {
        text.push_str(&format!("{}: {what}: {measured}\n", verdict.word()));
    }
    command::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// How long walks took, seconds, in rising order.
struct Walks {
    locks: usize,
    lines: usize,
    tree: Vec<f64>,
    tmpfs: Vec<f64>,
}

fn walks(binary: &Path, locks: usize, count: usize) -> Result<Walks> {
    progress::say(&format!("a tree with {} locks", table::count(locks)));
    let share = locks.div_ceil(WALKED_PROCESSES);
    let watches: String = (0..locks)
        .map(|number| {
            let path = format!("HOUSE/crowd/{}/{}", number / share, number % share);
            format!("[[watch]]\nname = \"lock{number}\"\npath = \"{path}\"\n")
        })
        .collect();
    let house = House::with(&watches)?;
    let daemon = house.daemon(binary)?;
    let crowd = Crowd { work: Work::Flocks, locks, processes: WALKED_PROCESSES };
    let crowd = crowd.start(&house.path.join("crowd"))?;
    let tree = house.path.join("tree/locks");
    let began = Instant::now();
    while walk(&tree, "^held$")?.1 < locks {
        ensure!(began.elapsed() < LIMIT, "the tree does not show every lock");
        std::thread::sleep(Duration::from_millis(100));
    }
    let lines = locks * LINES;
    // The same files with the same content; orphans of others have folders, too, and may go.
    let copy = house.path.join("copy");
    fs::create_dir(&copy).context("a folder for the copy")?;
    let own = (0..locks).map(|number| tree.join(format!("lock{number}")));
    command::run(Command::new("cp").arg("-r").args(own).arg(&copy), "")?;
    let mut walks = Walks { locks, lines, tree: Vec::new(), tmpfs: Vec::new() };
    for _ in 0..count {
        for (folder, times) in [(&tree, &mut walks.tree), (&copy, &mut walks.tmpfs)] {
            let (seconds, seen) = walk(folder, ".")?;
            ensure!(seen >= lines, "{seen} lines of {locks} locks instead of {lines}");
            times.push(seconds);
        }
    }
    drop(crowd);
    drop(daemon);
    walks.tree.sort_by(f64::total_cmp);
    walks.tmpfs.sort_by(f64::total_cmp);
    Ok(walks)
}

/// Has grep(1) walk through a folder; how long that took, and how many lines it found.
fn walk(folder: &Path, pattern: &str) -> Result<(f64, usize)> {
    if interrupt::happened() {
        bail!("interrupted");
    }
    let began = Instant::now();
    // Through a pipe: where its output is /dev/null, grep ends with the first line.
    let output = Command::new("grep")
        .args(["-r", pattern, "."])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("grep")?;
    let seconds = began.elapsed().as_secs_f64();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_gone = |line: &str| ["No such file", "No such device"].iter().any(|w| line.contains(w));
    ensure!(complaints.lines().all(is_gone), "grep complained: {complaints}");
    Ok((seconds, output.stdout.iter().filter(|byte| **byte == b'\n').count()))
}

impl Walks {
    fn table(&self) -> Table {
        let title = format!("`grep -r .` through {} locks", table::count(self.locks));
        let mut table = Table::new(&title, &["", "median", "95 of 100", "longest"]);
        for (name, seen) in [("the tree", &self.tree), ("a copy on a tmpfs", &self.tmpfs)] {
            table.row(row(name, seen));
        }
        table.note(format!(
            "{} walks of each, at least {} lines each time",
            self.tree.len(),
            table::count(self.lines)
        ));
        table
    }
}

fn row(name: &str, seen: &[f64]) -> Vec<String> {
    let figure = |part| daemon::at(seen, part).map_or("-".to_owned(), table::time);
    vec![name.to_owned(), figure(0.5), figure(0.95), figure(1.0)]
}

/// How long scrapes took, seconds, in rising order.
struct Scrapes {
    locks: usize,
    bytes: usize,
    quiet: Vec<f64>,
    loaded: Vec<f64>,
}

fn scrapes(binary: &Path, locks: usize, count: usize) -> Result<Scrapes> {
    progress::say(&format!("scrapes with {} locks", table::count(locks)));
    let house = House::with("")?;
    let daemon = house.daemon(binary)?;
    let crowd = Crowd::of_a_cell(locks, SCRAPED_PROCESSES);
    let crowd = crowd.start(&house.path.join("crowd"))?;
    let socket = house.path.join("metrics.sock");
    let began = Instant::now();
    while counted(&scrape(&socket)?.1)? < locks as f64 {
        ensure!(began.elapsed() < LIMIT, "the daemon does not count every lock");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut bytes = 0;
    let mut times = || -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for _ in 0..count {
            if interrupt::happened() {
                bail!("interrupted");
            }
            let (seconds, text) = scrape(&socket)?;
            ensure!(counted(&text)? >= locks as f64, "a scrape that does not count every lock");
            bytes = text.len();
            times.push(seconds);
            std::thread::sleep(PAUSE);
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    };
    let quiet = times()?;
    let loaded = {
        let _load = Load::start(&house.path.join("load"))?;
        times()?
    };
    drop(crowd);
    drop(daemon);
    Ok(Scrapes { locks, bytes, quiet, loaded })
}

/// Scrapes; how long it took from connecting to the end, and what was answered.
fn scrape(socket: &Path) -> Result<(f64, String)> {
    let began = Instant::now();
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).context("a limit")?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").context("asking")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).context("the answer")?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(text.starts_with("HTTP/1.1 200 "), "a scrape was answered {text:.40}");
    Ok((seconds, text))
}

/// How many locks there are by a scrape.
fn counted(text: &str) -> Result<f64> {
    let samples = text.lines().filter(|line| line.starts_with("lockwatch_locks{"));
    samples
        .map(|line| {
            let value = line.rsplit(' ').next().unwrap_or_default();
            value.parse::<f64>().with_context(|| line.to_owned())
        })
        .sum()
}

impl Scrapes {
    fn table(&self) -> Table {
        let title = format!("a scrape with {} locks", table::count(self.locks));
        let mut table = Table::new(&title, &["", "median", "95 of 100", "longest"]);
        for (name, seen) in [
            ("nothing else to do", &self.quiet),
            ("beside locking without a pause on each processor", &self.loaded),
        ] {
            table.row(row(name, seen));
        }
        table.note(format!("{} scrapes of {} bytes each", self.quiet.len(), self.bytes));
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_of_locks_is_counted() {
        let text = "HTTP/1.1 200 OK\n# TYPE lockwatch_locks gauge\n\
                    lockwatch_locks{type=\"FLOCK\",state=\"held\"} 7\n\
                    lockwatch_locks{type=\"POSIX\",state=\"held\"} 2\nlockwatch_waiters 5\n";
        assert_eq!(counted(text).unwrap(), 9.0);
        assert!(counted("lockwatch_locks{} many\n").is_err());
    }
}
