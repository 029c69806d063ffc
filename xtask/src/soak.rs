//! `cargo xtask soak`: the long runs of which the live tests have a short form.
//!
//! Holds no test itself.

use std::ffi::OsStr;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::{build, command, privilege, test, workspace};

/// How often the tests are told to do it.
pub(crate) const ROUNDS: &str = "LOCKWATCH_SOAK_ROUNDS";

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
    /// Each race, provoked on purpose: each is told, and once
    Races {
        /// How often each
        #[arg(long, default_value_t = 1_000)]
        rounds: u32,
    },
    /// Locks that are taken and end in every ordinary way, crashes included: nothing is told
    Ordinary {
        /// How many sequences
        #[arg(long, default_value_t = 100_000)]
        rounds: u32,
    },
    /// A random mix of operations, with pauses: the tables are the kernel's own list at each
    Mixed {
        /// How many operations
        #[arg(long, default_value_t = 1_000_000)]
        rounds: u32,
    },
    /// What stress-ng has for locks, with pauses: the tables are the kernel's own list at each
    Stressors {
        /// How long
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// Renew the golden traces: record real runs anew, and keep what is about their own files
    Traces,
    /// Sixty-four readers and writers on the tree: nothing but the contract, and nothing stale
    Tree {
        /// How long
        #[arg(long, default_value_t = 60)]
        seconds: u32,
    },
    /// A scrape loop, a scan loop and a load of locks together: no missed scrape, memory flat
    Fleet {
        /// How long
        #[arg(long, default_value_t = 120)]
        seconds: u32,
    },
    /// A daemon that is killed and started anew under load: nobody is lost, nothing invented
    Kill {
        /// How often
        #[arg(long, default_value_t = 100)]
        rounds: u32,
    },
}

impl Subject {
    /// The live tests that play it, how often, and from which round on.
    fn play(&self) -> (&'static str, u32, u32) {
        match *self {
            Self::Reclaim { rounds, first } => ("reclaim_soak::", rounds, first),
            Self::Races { rounds } => ("soak_races::", rounds, 0),
            Self::Ordinary { rounds } => ("soak_ordinary::", rounds, 0),
            Self::Mixed { rounds } => ("soak_mixed::", rounds, 0),
            Self::Stressors { seconds } => ("soak_stressors::", seconds, 0),
            Self::Traces => ("soak_traces::", 1, 0),
            Self::Tree { seconds } => ("soak_tree::", seconds, 0),
            Self::Fleet { seconds } => ("soak_fleet::", seconds, 0),
            Self::Kill { rounds } => ("soak_kill::", rounds, 0),
        }
    }
}

/// Plays it; fails at the first round that does.
pub(crate) fn run(subject: &Subject) -> Result<ExitCode> {
    let (theme, rounds, first) = subject.play();
    let binary = build::run()?;
    let harness = test::live_harness()?;
    let (rounds, first) = (rounds.to_string(), first.to_string());
    let report = workspace::root().join("target/soak.txt");
    let _ = fs::remove_file(&report);
    let golden = workspace::root().join("tests/fixtures/traces");
    let variables = [
        ("LOCKWATCH_SOAK_REPORT", report.as_os_str()),
        ("LOCKWATCH_BIN", binary.as_os_str()),
        (ROUNDS, OsStr::new(&rounds)),
        ("LOCKWATCH_SOAK_FIRST", OsStr::new(&first)),
        // Read by the subject `traces` alone.
        ("LOCKWATCH_GOLDEN_TRACES", golden.as_os_str()),
    ];
    let mut soak = privilege::command(&harness, &variables);
    soak.current_dir(workspace::root().join("tests")).arg(theme);
    let status = command::status(&mut soak)?;
    if status.success() {
        // The golden traces are their own report.
        if !matches!(subject, Subject::Traces) {
            let ends = fs::read_to_string(&report).context("what came of the rounds")?;
            command::print(&format!("what was done, and what came of it:\n{ends}"))?;
        }
    }
    Ok(command::exit_code(status))
}
