//! `cargo xtask ci`: the checks, every test on this kernel, what is shipped, and the live tests on the
//! matrix.
//!
//! Adds up what the other verbs found, and tests nothing itself.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::tally::{self, Part, Tally};
use crate::{check, command, deploy, interrupt, progress, test, vm};

/// How long the matrix may take, with what it builds.
const MATRIX_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Themes that the matrix does without until whole runs of them were green on every kernel:
/// `cargo xtask vm` runs them, too.
const NOT_IN_THE_MATRIX: [&str; 24] = [
    "daemon",
    "drill",
    "fleet",
    "history",
    "history_moments",
    "history_ranges",
    "reclaim",
    "reclaim_hooks",
    "reclaim_races",
    "reclaim_ways",
    "scrapes",
    "service",
    "soak_fleet",
    "soak_kill",
    "soak_mixed",
    "soak_ordinary",
    "soak_races",
    "soak_traces",
    "soak_tree",
    "tree",
    "tree_around",
    "tree_events",
    "tree_releases",
    "tree_shell",
];

/// Runs all parts, whatever comes of each. The last line of stdout is the sum over all.
pub(crate) fn run() -> Result<ExitCode> {
    let mut parts: Vec<Part> = vec![("checks", checks())];
    deploy::install_tools();
    // The tests are run also where a check failed: one run then tells everything.
    match test::parts(None, test::Bpf::Required) {
        Ok(tests) => parts.extend(tests),
        Err(error) => parts.push(("tests", Err(error))),
    }
    if !interrupt::happened() {
        parts.push(("what is shipped", deploy::tests(None)));
    }
    if !interrupt::happened() {
        parts.push(("matrix", matrix()));
    }
    if interrupt::happened() {
        bail!("interrupted");
    }
    let (text, total) = tally::summary(&parts);
    command::print(&text)?;
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// They are no tests, and count only where they fail.
fn checks() -> Result<Tally> {
    match check::failed()?.as_slice() {
        [] => Ok(Tally::default()),
        failed => bail!("failed: {}", failed.join(", ")),
    }
}

fn matrix() -> Result<Tally> {
    if let Err(error) = vm::prerequisites() {
        let line = format!("MATRIX NOT RUN: {error:#}");
        progress::say(&line);
        return Ok(Tally { skipped: 1, skips: vec![line], ..Tally::default() });
    }
    let left_out = NOT_IN_THE_MATRIX.join(", ");
    let line =
        format!("matrix: not run within its {} minutes: {left_out}", MATRIX_LIMIT.as_secs() / 60);
    progress::say(&line);
    let mut tally = vm::matrix(MATRIX_LIMIT, &NOT_IN_THE_MATRIX)?;
    tally.skips.push(line);
    Ok(tally)
}
