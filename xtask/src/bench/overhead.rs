//! `cargo xtask bench overhead`: what the history costs those who take locks, beside what else could
//! watch them.
//!
//! Measures nothing itself: a program of its own does, which loads the BPF programs and starts the
//! workers. Holds what it says against the goals.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::{build, command, privilege, progress, workspace};

/// How `bench overhead` is to be run.
#[derive(Args)]
pub(crate) struct OverheadArgs {
    /// Write every figure to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the measuring program says.
#[derive(Deserialize)]
struct Figures {
    setups: Vec<String>,
    operations: Vec<String>,
    shapes: Vec<String>,
    rounds: u32,
    absent: Vec<String>,
    /// Nanoseconds a pair: of each setup, operation and shape.
    nanoseconds: Vec<Vec<Vec<Option<f64>>>>,
}

/// The history adds at most so many times what programs that do nothing, and one insert and one
/// delete, add.
const TIMES_TABLE: f64 = 1.5;
/// It adds less than this part of what bpftrace adds.
const OF_BPFTRACE: f64 = 0.6;

/// Runs the benchmark.
pub(super) fn run(args: &OverheadArgs) -> Result<ExitCode> {
    build::run()?;
    progress::say("compiling the measuring program");
    let mut cargo = workspace::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "lockwatch-tests"]);
    command::run(cargo.args(["--bin", "overhead"]), "")?;
    let target = workspace::target();
    let mut measuring = privilege::command(&target.join("release/overhead"), &[]);
    measuring.arg(target.join("bpf/overhead.bpf.o"));
    progress::say("measuring, which takes some minutes");
    let told = command::capture(&mut measuring, "")?;
    let figures: Figures = serde_json::from_str(&told).context("what was measured")?;
    command::print(&text(&figures)?)?;
    if let Some(path) = &args.json {
        std::fs::write(path, told).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(figures: &Figures) -> Result<String> {
    let mut text = format!(
        "nanoseconds of processor time a pair of taking and giving up, median of {} rounds\n\
         (under strace: of time passed)\n\n",
        figures.rounds
    );
    text.push_str(&format!("{:26}", ""));
    for setup in &figures.setups {
        text.push_str(&format!("{setup:>10}"));
    }
    text.push('\n');
    let setup = |name: &str| {
        figures.setups.iter().position(|setup| setup == name).context("a setup is missing")
    };
    let (bare, table) = (setup("bare")?, setup("table")?);
    let (history, bpftrace) = (setup("history")?, setup("bpftrace")?);
    let (mut of_table, mut of_bpftrace) = (Vec::new(), Vec::new());
    for (operation, name) in figures.operations.iter().enumerate() {
        for (shape, shape_name) in figures.shapes.iter().enumerate() {
            text.push_str(&format!("{:26}", format!("{name}, {shape_name}")));
            let figure = |setup: usize| figures.nanoseconds[setup][operation][shape];
            for setup in 0..figures.setups.len() {
                let shown = figure(setup).map_or("-".to_owned(), |value| format!("{value:.0}"));
                text.push_str(&format!("{shown:>10}"));
            }
            text.push('\n');
            let added = |setup| Some(figure(setup)? - figure(bare)?);
            let ratio = |beside| Some(added(history)? / added(beside)?);
            of_table.push((format!("{name}, {shape_name}"), ratio(table)));
            of_bpftrace.push((format!("{name}, {shape_name}"), ratio(bpftrace)));
        }
    }
    text.push('\n');
    for (what, ratios, goal) in [
        ("the history adds, in times what an insert and a delete add", of_table, TIMES_TABLE),
        ("the history adds, in times what bpftrace adds", of_bpftrace, OF_BPFTRACE),
    ] {
        text.push_str(&format!("{what} (goal: {goal})\n"));
        for (name, ratio) in ratios {
            let told = match ratio {
                Some(ratio) if ratio <= goal => format!("{ratio:.2}  reached"),
                Some(ratio) => format!("{ratio:.2}  NOT reached"),
                None => "not measured".to_owned(),
            };
            text.push_str(&format!("  {name:24}  {told}\n"));
        }
    }
    for absent in &figures.absent {
        text.push_str(&format!("not measured: {absent}\n"));
    }
    if figures.nanoseconds.iter().flatten().flatten().all(Option::is_none) {
        bail!("nothing was measured: {}", figures.absent.join("; "));
    }
    Ok(text)
}
