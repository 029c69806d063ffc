//! `bench reclaim`: from the decision to the verified release, the whole command around it, and
//! what is left to do without lockwatch: to end the holder.
//!
//! Fails where a release was not verified: a figure of something else would be worth nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{build, command, privilege};

/// What the release of one description may take, its median.
const GOAL: Duration = Duration::from_millis(5);

/// How `bench reclaim` is to be run.
#[derive(Args)]
pub(crate) struct ReclaimArgs {
    /// How often
    #[arg(long, default_value_t = 50)]
    rounds: u32,
}

/// A folder that root alone can write, as the configuration must be in one.
struct Room(PathBuf);

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes orphans and reclaims them, one after the other.
pub(super) fn run(args: &ReclaimArgs) -> Result<ExitCode> {
    ensure!(privilege::is_root(), "a reclaim needs root's rights: run this as root");
    ensure!(args.rounds > 0, "--rounds 0 measures nothing");
    let binary = build::run()?;
    let room = Room(PathBuf::from(format!("/run/lockwatch-bench-{}", std::process::id())));
    fs::create_dir(&room.0).with_context(|| room.0.display().to_string())?;
    let config = room.0.join("lockwatch.toml");
    fs::write(&config, format!("[reclaim]\naudit = \"{}/audit.jsonl\"\n", room.0.display()))?;
    let (mut release, mut whole, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let file = room.0.join(format!("lock-{round}"));
        let (took, all) = once(&binary, &config, &file)?;
        release.push(took);
        whole.push(all);
        ended.push(by_ending_the_holder(&room.0.join(format!("ended-{round}")))?);
    }
    let goal = quantile(&mut release, 50) <= GOAL;
    let text = format!(
        "{} reclaims of a FLOCK that one process keeps, without hooks, in ms:\n\
         {:<56} {:>8} {:>8} {:>8}\n{}{}{}\
         goal: the first median at most {} ms: {}\n",
        args.rounds,
        "",
        "median",
        "p95",
        "max",
        row("decision to verified release (programs loaded before)", &mut release),
        row("the whole command, its loading and its plan included", &mut whole),
        row("without it: SIGKILL to the holder, until the lock is gone", &mut ended),
        GOAL.as_millis(),
        if goal { "met" } else { "missed" },
    );
    command::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn row(name: &str, times: &mut [Duration]) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let [median, most, all] = [50, 95, 100].map(|percent| ms(quantile(times, percent)));
    format!("{name:<56} {median:>8.2} {most:>8.2} {all:>8.2}\n")
}

fn quantile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get(last * percent / 100).copied().unwrap_or_default()
}

/// Makes an orphan; answers the process that keeps it.
fn orphan(file: &Path) -> Result<Pid> {
    // flock(1) takes the lock and ends; what it leaves behind has the descriptor.
    let output = Command::new("flock")
        .arg(file)
        .args(["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!"])
        .stdin(Stdio::null())
        .output()
        .context("flock(1)")?;
    ensure!(output.status.success(), "flock(1) ended with {}", output.status);
    let pid = String::from_utf8_lossy(&output.stdout);
    pid.trim().parse().ok().and_then(Pid::from_raw).with_context(|| format!("no pid: {pid:?}"))
}

/// How long the lock outlives the order to end its holder, which other tools do not even name.
fn by_ending_the_holder(path: &Path) -> Result<Duration> {
    let holder = orphan(path)?;
    let file = fs::File::open(path).with_context(|| path.display().to_string())?;
    let is_free = || flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    ensure!(!is_free(), "it is not locked");
    let begun = Instant::now();
    kill_process(holder, Signal::KILL).context("ending the sleep")?;
    while !is_free() {
        ensure!(begun.elapsed() < Duration::from_secs(10), "its holder was killed, and it stays");
    }
    Ok(begun.elapsed())
}

/// Makes one orphan, and reclaims it: from the decision on, and the whole command.
fn once(binary: &Path, config: &Path, file: &Path) -> Result<(Duration, Duration)> {
    let holder = orphan(file)?;
    let begun = Instant::now();
    let output = Command::new(binary)
        .arg("reclaim")
        .arg(file)
        .args(["--execute", "--json", "--source", "bpf", "--config"])
        .arg(config)
        .output()
        .context("lockwatch reclaim")?;
    let whole = begun.elapsed();
    let account: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    // Whatever came of it, the holder lives on.
    kill_process(holder, Signal::KILL).context("ending the sleep")?;
    match account["outcomes"][0]["took_ns"].as_u64() {
        Some(took) => Ok((Duration::from_nanos(took), whole)),
        None => bail!("it was not released: {account}"),
    }
}
