//! One run of a program, with its wall time and peak memory; and what several runs come to.
//!
//! Knows nothing of what the programs do, and judges no figure.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::command::shown;
use crate::interrupt;

/// How long a wait lasts before it asks whether the caller has interrupted.
const SLICE: Duration = Duration::from_millis(200);

/// One run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Run {
    pub(super) seconds: f64,
    /// Processor time, the kernel's for it included: what other work on the machine changes least.
    pub(super) cpu: f64,
    /// Peak resident memory of the program and of what it started, in bytes.
    pub(super) peak: u64,
    pub(super) code: Option<i32>,
}

/// How a run that is bounded in time went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bounded {
    Ended(Run),
    /// It was killed after so many seconds.
    Cut(f64),
}

/// What several runs come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stats {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) runs: usize,
}

impl Stats {
    /// `None` of nothing.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let least = values.iter().copied().reduce(f64::min)?;
        Some(Self { median: median(values)?, least, runs: values.len() })
    }
}

/// The middle value, or the mean of the two in the middle. `None` of nothing.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted.get(sorted.len() / 2 - 1)? + upper) / 2.0)
}

/// Runs to the end, output to nowhere but stderr. A signal is an error; the exit code is the
/// caller's to judge.
pub(super) fn run(command: &mut Command) -> Result<Run> {
    match bounded(command, Duration::MAX)? {
        Bounded::Ended(run) => Ok(run),
        Bounded::Cut(seconds) => bail!("`{}` was cut after {seconds} s", shown(command)),
    }
}

/// The same, killed when it takes longer than `bound`.
pub(super) fn bounded(command: &mut Command, bound: Duration) -> Result<Bounded> {
    if interrupt::happened() {
        bail!("interrupted");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let started = Instant::now();
    let child = command.spawn().with_context(|| format!("starting `{}`", shown(command)))?;
    let pid = Pid::from_child(&child);
    let in_time = wait_until(pid, started, bound);
    let elapsed = started.elapsed().as_secs_f64();
    if !matches!(in_time, Ok(true)) {
        // It may have ended meanwhile; it has not been waited for, so the pid is still its own.
        let _ = kill_process(pid, Signal::KILL);
    }
    let (status, usage) = reap(pid).with_context(|| shown(command))?;
    if !in_time.with_context(|| shown(command))? {
        return Ok(Bounded::Cut(bound.as_secs_f64()));
    }
    if libc::WIFSIGNALED(status) {
        return Err(anyhow!("`{}` died by signal {}", shown(command), libc::WTERMSIG(status)));
    }
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    let peak = u64::try_from(usage.ru_maxrss).context("a negative size")? * 1024;
    let cpu = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    Ok(Bounded::Ended(Run { seconds: elapsed, cpu, peak, code }))
}

/// Runs to the end and answers its stdout.
pub(super) fn output(command: &mut Command) -> Result<Vec<u8>> {
    if interrupt::happened() {
        bail!("interrupted");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting `{}`", shown(command)))?;
    let mut bytes = Vec::new();
    let read = child.stdout.take().map(|mut pipe| pipe.read_to_end(&mut bytes)).transpose();
    child.wait().with_context(|| shown(command))?;
    read.with_context(|| format!("reading what `{}` writes", shown(command)))?;
    Ok(bytes)
}

/// Whether it ended within the bound.
fn wait_until(pid: Pid, started: Instant, bound: Duration) -> Result<bool> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
    loop {
        let left = bound.saturating_sub(started.elapsed());
        let slice = Timespec::try_from(left.min(SLICE)).context("a wait beyond all measure")?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&slice)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error).context("poll"),
        }
        if interrupt::happened() {
            bail!("interrupted");
        }
    }
}

fn seconds(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

/// Waits for a child's end: its status, and what it used.
fn reap(pid: Pid) -> Result<(libc::c_int, libc::rusage)> {
    let mut status = 0;
    // SAFETY: `struct rusage` is plain data, for which zeroes are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both places outlive the call, and the pid is a child's that nobody has waited
        // for.
        let found =
            unsafe { libc::wait4(pid.as_raw_nonzero().get(), &raw mut status, 0, &raw mut usage) };
        if found >= 0 {
            return Ok((status, usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error).context("wait4");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        let stats = Stats::of(&[0.3, 0.1, 0.2]).unwrap();
        assert_eq!((stats.median, stats.least, stats.runs), (0.2, 0.1, 3));
    }

    #[test]
    fn a_run_has_a_time_a_peak_and_a_code() {
        let run = run(&mut sh("sleep 0.05; exit 3")).unwrap();
        assert!(run.seconds >= 0.05 && run.seconds < 5.0, "{run:?}");
        assert!(run.peak > 100_000, "{run:?}");
        assert_eq!(run.code, Some(3));
    }

    #[test]
    fn a_run_is_cut_at_its_bound() {
        let bound = Duration::from_millis(100);
        assert_eq!(bounded(&mut sh("exec sleep 20"), bound).unwrap(), Bounded::Cut(0.1));
    }

    #[test]
    fn a_death_names_the_command() {
        let error = run(&mut sh("kill -9 $$")).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("signal 9"), "{error}");
    }
}
