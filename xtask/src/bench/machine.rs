//! What the figures were measured on, and how quiet it was.
//!
//! Reads /proc alone, and asks nobody to be quiet: it waits a little, and then says how it was.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{command, interrupt, workspace};

/// How long a look at the processors lasts.
const LOOK: Duration = Duration::from_millis(400);
/// Others that take less than this share of the processors do not disturb.
pub(super) const QUIET: f64 = 0.1;
/// How long a step waits for that.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine, and the versions of what is measured.
pub(super) struct Machine {
    pub(super) kernel: String,
    pub(super) processors: usize,
    pub(super) memory: u64,
    /// `None` where there is no lslocks.
    pub(super) lslocks: Option<String>,
    pub(super) commit: String,
    /// The 1, 5 and 15 minute load averages at the start.
    pub(super) load: String,
}

impl Machine {
    /// Looks.
    pub(super) fn look() -> Result<Self> {
        let system = rustix::system::uname();
        let machine = system.machine().to_string_lossy();
        let memory = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
        Ok(Self {
            kernel: format!("{} {machine}", system.release().to_string_lossy()),
            processors: thread::available_parallelism().map_or(1, Into::into),
            memory: kilobytes(&memory, "MemTotal:").unwrap_or(0) * 1024,
            lslocks: lslocks(),
            commit: commit(),
            load: load()?,
        })
    }
}

/// The load averages now.
pub(super) fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("reading /proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

/// The share of the processors' time, 0 to 1, that others take while this program waits.
pub(super) fn others() -> Result<f64> {
    let read = || fs::read_to_string("/proc/stat").context("reading /proc/stat");
    let before = read()?;
    thread::sleep(LOOK);
    Ok(busy(&before, &read()?).unwrap_or(0.0))
}

/// Waits a little for a moment in which others let the machine be, and answers their share in the
/// last moment that was looked at.
pub(super) fn quiet() -> Result<f64> {
    let started = Instant::now();
    loop {
        let others = others()?;
        if others <= QUIET || started.elapsed() > PATIENCE || interrupt::happened() {
            return Ok(others);
        }
    }
}

fn busy(before: &str, after: &str) -> Option<f64> {
    let ((idle_before, all_before), (idle, all)) = (ticks(before)?, ticks(after)?);
    let passed = all.checked_sub(all_before).filter(|passed| *passed > 0)?;
    Some(1.0 - idle.saturating_sub(idle_before) as f64 / passed as f64)
}

/// The ticks of all processors: idle ones (waiting for disks too), and all.
fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    // The guests' ticks, ninth and tenth, are in the user's already.
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().take(8).sum()))
}

fn kilobytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn lslocks() -> Option<String> {
    let version = command::capture(Command::new("lslocks").arg("--version"), "").ok()?;
    version.trim().rsplit(' ').next().map(str::to_owned)
}

/// The commit, with a mark when the sources differ from it.
fn commit() -> String {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        command::capture(git.current_dir(workspace::root()).args(args), "").ok()
    };
    git(&["describe", "--always", "--dirty", "--exclude=*"])
        .map_or_else(|| "no git".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busy_share_leaves_idle_and_waiting_out() {
        let before = "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1";
        let after = "cpu  110 0 115 870 5 0 0 0 0 0\ncpu0 1";
        let share = busy(before, after).unwrap();
        assert!((share - 0.25).abs() < 1e-9, "{share}");
        assert_eq!(busy(before, before), None);
        assert_eq!(busy("", after), None);
    }

    #[test]
    fn memory_is_read_from_its_line() {
        assert_eq!(
            kilobytes("MemTotal:  24684092 kB\nMemFree: 1 kB\n", "MemTotal:"),
            Some(24684092)
        );
    }
}
