//! `cargo xtask soak`: the long runs of which the live tests have a short form.
//!
//! Holds no test itself.

use std::ffi::OsStr;
use std::process::ExitCode;

use anyhow::Result;
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
    },
}

/// Plays it; fails at the first round that does.
pub(crate) fn run(subject: &Subject) -> Result<ExitCode> {
    let Subject::Reclaim { rounds } = subject;
    let binary = build::run()?;
    let harness = test::live_harness()?;
    let rounds = rounds.to_string();
    let variables =
        [("LOCKWATCH_BIN", binary.as_os_str()), ("LOCKWATCH_SOAK_ROUNDS", OsStr::new(&rounds))];
    let mut soak = privilege::command(&harness, &variables);
    soak.current_dir(workspace::root().join("tests")).arg("reclaim_soak::");
    Ok(command::exit_code(command::status(&mut soak)?))
}
