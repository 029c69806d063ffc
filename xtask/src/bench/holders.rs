//! The holders, seen from the benchmark: starts them, waits until each holds its locks, and ends
//! them.
//!
//! Takes no lock itself, and reads nothing of the kernel's tables.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::holder::{self, Work};
use crate::interrupt;

/// Some locks to be held by some processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crowd {
    pub(super) work: Work,
    pub(super) locks: usize,
    pub(super) processes: usize,
}

/// Processes that hold locks until this is dropped.
pub(super) struct Holders {
    children: Vec<Child>,
}

impl Crowd {
    /// The crowd of a cell of the table.
    pub(super) fn of_a_cell(locks: usize, processes: usize) -> Self {
        Self { work: Work::of_a_cell(locks.div_ceil(processes)), locks, processes }
    }

    /// Starts the processes and waits until every lock is held. Files go below `folder`.
    pub(super) fn start(self, folder: &Path) -> Result<Holders> {
        let limit = holder::descriptor_limit();
        let share = self.locks.div_ceil(self.processes);
        if holder::descriptors(self.work, share) > limit {
            bail!(
                "a process may have {limit} descriptors here, too few for {share} locks ({}): \
                 raise the hard limit (ulimit -Hn)",
                self.work.name()
            );
        }
        let mut holders = Holders { children: Vec::new() };
        for (number, share) in shares(self.locks, self.processes).enumerate() {
            // Shared holders meet on one file, whichever process they are in.
            let below = match self.work {
                Work::SharedFlocks => folder.to_path_buf(),
                _ => folder.join(number.to_string()),
            };
            holders.children.push(spawn(self.work, share, &below)?);
        }
        for child in &mut holders.children {
            let pipe = child.stdout.take().context("a holder without stdout")?;
            let line = first_line(pipe)?;
            if line != holder::READY {
                bail!("a holder of {} locks said `{line}` (its error is above)", self.work.name());
            }
        }
        if interrupt::happened() {
            bail!("interrupted");
        }
        Ok(holders)
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        // All are told first: they end side by side.
        for child in &mut self.children {
            drop(child.stdin.take());
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// Flock/unlock pairs a second that a process gets on a file of its own below `folder`.
pub(super) fn pairs(folder: &Path, time: Duration) -> Result<f64> {
    let milliseconds = usize::try_from(time.as_millis()).context("a time beyond all measure")?;
    let mut child = spawn(Work::Pairs, milliseconds, folder)?;
    let pipe = child.stdout.take().context("a holder without stdout")?;
    let line = first_line(pipe);
    child.wait().context("waiting for the process that locks and unlocks")?;
    rate(&line?).context("the process that locks and unlocks did not say its rate")
}

fn rate(line: &str) -> Option<f64> {
    let (pairs, nanoseconds) = line.split_once(' ')?;
    let (pairs, nanoseconds): (f64, f64) = (pairs.parse().ok()?, nanoseconds.parse().ok()?);
    (nanoseconds > 0.0).then_some(pairs * 1e9 / nanoseconds)
}

/// One that takes a lock, leaks the descriptor to a child, and is killed.
pub(super) fn leak(folder: &Path, number: usize) -> Result<Child> {
    spawn(Work::Leak, number, folder)
}

/// One that takes and gives up a lock without a pause, until it is killed.
pub(super) fn busy(folder: &Path) -> Result<Child> {
    spawn(Work::Pairs, usize::MAX >> 12, folder)
}

/// The locks of each process, as even as they can be.
fn shares(locks: usize, processes: usize) -> impl Iterator<Item = usize> {
    (0..processes).map(move |number| locks / processes + usize::from(number < locks % processes))
}

fn spawn(work: Work, count: usize, folder: &Path) -> Result<Child> {
    let program = std::env::current_exe().context("finding this program's file")?;
    Command::new(program)
        .args([holder::VERB, work.name(), &count.to_string()])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting a holder of {count} locks ({})", work.name()))
}

fn first_line(pipe: ChildStdout) -> Result<String> {
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line).context("reading a holder's stdout")?;
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_lose_nothing() {
        assert_eq!(shares(10, 4).collect::<Vec<_>>(), [3, 3, 2, 2]);
        assert_eq!(shares(100_000, 200).sum::<usize>(), 100_000);
    }

    #[test]
    fn a_rate_is_pairs_a_second() {
        assert_eq!(rate("3000 500000000"), Some(6000.0));
        assert_eq!(rate("3000 0"), None);
        assert_eq!(rate("ready"), None);
    }
}
