//! `cargo xtask bench daemon`: how soon the daemon tells of an orphan, and what it costs to have it.
//!
//! Every orphan is a real one: a process that is killed while its child has the descriptor. A goal
//! that is missed is a result, not a failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::contender;
use super::goals::{Goal, at_most};
use super::holder::Work;
use super::holders::{self, Crowd};
use super::table;
use crate::{command, interrupt, privilege, progress};

/// How `bench daemon` is to be run.
#[derive(Args)]
pub(crate) struct DaemonArgs {
    /// A tenth of the deaths and of the time
    #[arg(long)]
    quick: bool,
    /// Measure this lockwatch instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Mounts are this process's own already
    #[arg(long, hide = true)]
    inside: bool,
}

/// From an owner's death to calling its lock orphaned, as the daemon under test is told.
const GRACE: f64 = 0.25;
/// Between one death and the next.
const PAUSE: Duration = Duration::from_millis(90);
const LOCKS: usize = 100_000;
const PROCESSES: usize = 200;

/// Runs the benchmark.
pub(super) fn run(args: &DaemonArgs) -> Result<ExitCode> {
    let binary = contender::binary(args.binary.as_deref())?;
    if !args.inside {
        return inside("daemon", &binary, args.quick);
    }
    let (deaths, seconds) = if args.quick { (20, 6) } else { (200, 60) };
    let house = House::new()?;
    let mut daemon = house.daemon(&binary)?;
    progress::say("an idle machine");
    let idle = daemon.processor_time(Duration::from_secs(seconds))?;
    progress::say("deaths on an idle machine");
    let quiet = house.deaths("quiet", deaths)?;
    progress::say("deaths under load");
    let loaded = {
        let _load = Load::start(&house.path.join("load"))?;
        house.deaths("loaded", deaths)?
    };
    progress::say(&format!("{} locks", table::count(LOCKS)));
    let before = daemon.resident()?;
    let crowd =
        Crowd { work: Work::of_a_cell(LOCKS / PROCESSES), locks: LOCKS, processes: PROCESSES };
    let crowd = crowd.start(&house.path.join("crowd"))?;
    let mut resident = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds / 4) {
        resident = resident.max(daemon.resident()?);
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(crowd);
    drop(daemon);
    report(idle, &quiet, &loaded, deaths, (before, resident))
}

/// The same again, as root and in mounts of its own.
pub(super) fn inside(subject: &str, binary: &Path, quick: bool) -> Result<ExitCode> {
    let own = std::env::current_exe().context("finding this program's file")?;
    let mut again = privilege::command(Path::new("unshare"), &[]);
    again.args(["--mount", "--propagation", "private"]).arg(own);
    again.args(["bench", subject, "--inside", "--binary"]).arg(binary);
    again.args(quick.then_some("--quick"));
    Ok(command::exit_code(command::status(&mut again)?))
}

fn report(
    idle: f64,
    quiet: &[f64],
    loaded: &[f64],
    deaths: usize,
    (before, resident): (u64, u64),
) -> Result<ExitCode> {
    let mut text = String::from("the daemon\n\n");
    for (name, seen) in [("idle", quiet), ("under load", loaded)] {
        let figure = |part| at(seen, part).map_or("-".to_owned(), table::time);
        text.push_str(&format!(
            "{name}: {} of {deaths} orphans told, from death to event: median {}, 99th of 100 {}, \
             longest {}\n",
            seen.len(),
            figure(0.5),
            figure(0.99),
            figure(1.0)
        ));
    }
    text.push_str(&format!(
        "resident: {} before, {} with {} locks\n\n",
        table::megabytes(before),
        table::megabytes(resident),
        table::count(LOCKS)
    ));
    // An orphan that was not told is later than any.
    let late = |seen: &[f64], part| {
        at(seen, part).filter(|_| seen.len() == deaths).map(|value| value - GRACE)
    };
    for goal in [
        at_most(
            "orphans: told at most 2 ms after the grace, median",
            late(quiet, 0.5),
            0.002,
            table::time,
        ),
        at_most(
            "orphans while each processor takes and gives up locks without a pause: at most 10 ms \
             after the grace, 99 of 100",
            late(loaded, 0.99),
            0.01,
            table::time,
        ),
        at_most("an idle machine: at most 0.1 % of a processor", Some(idle), 0.001, |part| {
            format!("{:.3} %", part * 100.0)
        }),
        at_most("100,000 locks: at most 64 MB resident", Some(resident as f64), 64e6, |bytes| {
            table::megabytes(bytes as u64)
        }),
    ] {
        let Goal { what, measured, verdict } = goal;
        text.push_str(&format!("{}: {what}: {measured}\n", verdict.word()));
    }
    command::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The value that so large a part of the sorted values does not exceed.
pub(super) fn at(sorted: &[f64], part: f64) -> Option<f64> {
    let place = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied()
}

/// A folder with a configuration, and what the daemon leaves.
pub(super) struct House {
    pub(super) path: PathBuf,
}

impl House {
    fn new() -> Result<Self> {
        Self::with("grace = \"250ms\"")
    }

    /// With more in the configuration, in which `HOUSE` is the folder.
    pub(super) fn with(more: &str) -> Result<Self> {
        let path = PathBuf::from(format!("/run/lockwatch-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        let house = Self { path };
        let mounted = |kind: &str, options: &str, at: &Path| {
            let mut mount = Command::new("mount");
            command::run(mount.args(["-t", kind, "-o", options, kind]).arg(at), "")
        };
        mounted("tmpfs", "mode=755", &house.path)?;
        let pins = house.path.join("bpf");
        fs::create_dir(&pins).context("a folder for pins")?;
        mounted("bpf", "nosuid", &pins)?;
        let at = house.path.display();
        fs::write(
            house.config(),
            format!(
                "mount = \"{at}/tree\"\nstate_dir = \"{at}/bpf/lockwatch\"\n\
                 metrics_listen = \"unix:{at}/metrics.sock\"\n{}\n",
                more.replace("HOUSE", &at.to_string())
            ),
        )
        .context("the configuration")?;
        Ok(house)
    }

    fn config(&self) -> PathBuf {
        self.path.join("lockwatch.toml")
    }

    fn log(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// Starts a daemon and waits until it has read the kernel's lists.
    pub(super) fn daemon(&self, binary: &Path) -> Result<Daemon> {
        let mut command = Command::new(binary);
        command.arg("daemon").arg("--config").arg(self.config()).arg("--log").arg(self.log());
        let child = command.stdout(Stdio::null()).spawn().context("the daemon")?;
        let (binary, config) = (binary.to_owned(), self.config());
        let daemon = Daemon { child, binary, config };
        let began = Instant::now();
        while !fs::read_to_string(self.log()).unwrap_or_default().contains("\"started\"") {
            ensure!(began.elapsed() < Duration::from_secs(20), "the daemon says nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_secs(3));
        Ok(daemon)
    }

    /// Lets processes die while a child of theirs has the lock. Answers, in rising order, how many
    /// seconds after the death each orphan was told.
    fn deaths(&self, name: &str, count: usize) -> Result<Vec<f64>> {
        let folder = self.path.join(name);
        let mut dying = Vec::new();
        for number in 0..count {
            dying.push(holders::leak(&folder, number)?);
            std::thread::sleep(PAUSE);
            if interrupt::happened() {
                bail!("interrupted");
            }
        }
        for mut child in dying {
            child.wait().context("waiting for one that dies")?;
        }
        std::thread::sleep(Duration::from_secs(2));
        let log = fs::read_to_string(self.log()).context("the daemon's log")?;
        let below = folder.to_string_lossy().into_owned();
        let mut late = Vec::new();
        for line in log.lines() {
            let event: Value = serde_json::from_str(line).context("an event")?;
            let path = event["lock"]["file"]["path"].as_str().unwrap_or_default();
            if event["kind"] != "orphaned" || !path.starts_with(&below) {
                continue;
            }
            let moment = |value: &Value| value.as_str().and_then(of_the_day);
            let told = moment(&event["ts"]).context("an event without a time")?;
            let died = moment(&event["lock"]["acquirer"]["exit"]["at"]).context("no death")?;
            late.push((told - died).rem_euclid(86_400.0));
        }
        late.sort_by(f64::total_cmp);
        Ok(late)
    }
}

impl Drop for House {
    fn drop(&mut self) {
        for at in [self.path.join("bpf"), self.path.clone()] {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// Seconds since midnight, of an RFC 3339 time.
fn of_the_day(text: &str) -> Option<f64> {
    let time = text.split('T').nth(1)?.strip_suffix('Z')?;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3_600.0 + parts.next()?? * 60.0 + parts.next()??)
}

/// The daemon under test. Its pins go with it.
pub(super) struct Daemon {
    child: Child,
    binary: PathBuf,
    config: PathBuf,
}

impl Daemon {
    fn file(&self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(&path).with_context(|| path)
    }

    /// The part of a processor that it takes during a time.
    fn processor_time(&mut self, time: Duration) -> Result<f64> {
        let before = self.nanoseconds()?;
        std::thread::sleep(time);
        Ok((self.nanoseconds()? - before) / time.as_nanos() as f64)
    }

    /// Nanoseconds that its threads have run, the kernel's part included.
    fn nanoseconds(&self) -> Result<f64> {
        let mut all = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let path = thread?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let ran = text.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
            all += ran.with_context(|| format!("no time in {}: {text}", path.display()))?;
        }
        Ok(all)
    }

    /// Bytes of memory that it has.
    fn resident(&self) -> Result<u64> {
        let status = self.file("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
        Ok(kilobytes * 1024)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
        let mut detach = Command::new(&self.binary);
        let _ = detach.args(["daemon", "--detach", "--config"]).arg(&self.config).status();
    }
}

/// Processes that take and give up locks without a pause, one for each processor.
pub(super) struct Load {
    children: Vec<Child>,
}

impl Load {
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let mut load = Self { children: Vec::new() };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for number in 0..processors {
            load.children.push(holders::busy(&folder.join(number.to_string()))?);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_values_is_the_largest_of_them() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(at(&values, 0.5), Some(50.0));
        assert_eq!(at(&values, 0.99), Some(99.0));
        assert_eq!(at(&values, 1.0), Some(100.0));
        assert_eq!(at(&[], 0.5), None);
    }

    #[test]
    fn times_are_told_apart_to_the_nanosecond() {
        let told = of_the_day("2026-11-25T09:46:52.250000000Z").unwrap();
        let died = of_the_day("2026-11-25T09:46:52.000000000Z").unwrap();
        assert!((told - died - 0.25).abs() < 1e-9);
        assert_eq!(of_the_day("now"), None);
    }
}
