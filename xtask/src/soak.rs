//! `cargo xtask soak`: the long runs of which the live tests have a short form.
//!
//! Holds no test itself.

use std::ffi::OsStr;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::{build, command, privilege, test, workspace};

/// What is done again and again.
#[derive(Subcommand)]
pub(crate) enum Subject {
    /// An adversary against reclaims: nothing is released that was not planned
    Reclaim {
        /// How often
        #[arg(long, default_value_t = 10_000)]
        rounds: u32,
        /// The number of the first round, which chance depends on: long runs can be made in parts
        #[arg(long, default_value_t = 0)]
        first: u32,
    },
}

/// Plays it; fails at the first round that does.
pub(crate) fn run(subject: &Subject) -> Result<ExitCode> {
    let Subject::Reclaim { rounds, first } = subject;
    let binary = build::run()?;
    let harness = test::live_harness()?;
    let (rounds, first) = (rounds.to_string(), first.to_string());
    let report = workspace::root().join("target/soak-reclaim.txt");
    let _ = fs::remove_file(&report);
    let variables = [
        ("LOCKWATCH_SOAK_REPORT", report.as_os_str()),
        ("LOCKWATCH_BIN", binary.as_os_str()),
        ("LOCKWATCH_SOAK_ROUNDS", OsStr::new(&rounds)),
        ("LOCKWATCH_SOAK_FIRST", OsStr::new(&first)),
    ];
    let mut soak = privilege::command(&harness, &variables);
    soak.current_dir(workspace::root().join("tests")).arg("reclaim_soak::");
    let status = command::status(&mut soak)?;
    if status.success() {
        let ends = fs::read_to_string(&report).context("what came of the rounds")?;
        command::print(&format!("what was done, and how the reclaim ended:\n{ends}"))?;
    }
    Ok(command::exit_code(status))
}
