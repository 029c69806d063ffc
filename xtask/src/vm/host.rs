//! Runs the same program of live tests on the running kernel, for a column of the table.
//!
//! As root if that is to be had: what the tests cannot do without it, they say themselves.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::programs::Programs;
use super::tools;
use super::verdict::{self, Verdict};
use crate::privilege;

pub(crate) fn run(programs: &Programs, arguments: &[String]) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let results = folder.path().join("results.json");
    let named = [("LOCKWATCH_BIN", &programs.lockwatch), ("RIG_BIN", &programs.rig)];
    let variables: Vec<_> = named
        .iter()
        .filter_map(|(name, program)| Some((*name, program.as_ref()?.as_os_str())))
        .collect();
    let mut tests = privilege::command(&programs.tests, &variables);
    tests.arg("--json").arg(&results).args(arguments);
    // Standard output is the table's.
    tests.stdout(Stdio::from(std::io::stderr()));
    let started = Instant::now();
    let status = tests.status().with_context(|| format!("cannot run `{}`", tools::line(&tests)))?;
    let test_seconds = started.elapsed().as_secs_f64();
    let Some(exit) = status.code() else { bail!("the tests ended with {status}") };
    let text = fs::read_to_string(&results).context("the tests left no results")?;
    let (tests, lacks) = verdict::account(&text).map_err(anyhow::Error::msg)?;
    verdict::check_exit(exit.into(), &tests).map_err(anyhow::Error::msg)?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Ok(Verdict::Ran { release, boot_seconds: 0.0, test_seconds, tests, lacks })
}
