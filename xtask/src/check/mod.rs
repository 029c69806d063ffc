//! `cargo xtask check`: what a machine can say of the code without running it.
//!
//! Runs every check also where an earlier one failed, and changes no file.

mod paths;
mod rooms;
mod shape;
mod tree;
mod words;

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::{bpf, command, interrupt, progress, setup, workspace};

/// A breach of a rule of the house.
#[derive(Debug, PartialEq, Eq)]
struct Breach {
    path: PathBuf,
    line: usize,
    /// What is wrong, and what to do.
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.what)
    }
}

/// Runs every check.
pub(crate) fn run() -> Result<ExitCode> {
    let failed = failed()?;
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every check, says on stderr what each found, and answers the names of those that failed.
pub(crate) fn failed() -> Result<Vec<&'static str>> {
    let toolchain = setup::toolchain()?;
    bpf::build(&toolchain)?;
    let checks: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("rules of the house", &rules),
        ("formatting", &formatting),
        ("BPF programs without warnings", &|| bpf::check(&toolchain)),
        ("clippy", &clippy),
        ("docs", &docs),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        progress::say(&format!("checking: {name}"));
        if let Err(error) = check() {
            progress::say(&format!("{error:#}"));
            failed.push(name);
        }
        if interrupt::happened() {
            anyhow::bail!("interrupted");
        }
    }
    match failed.as_slice() {
        [] => progress::say("check: all good"),
        failed => progress::say(&format!("check: failed: {}", failed.join(", "))),
    }
    Ok(failed)
}

fn rules() -> Result<()> {
    let sources = tree::read(&workspace::root())?;
    let breaches: Vec<Breach> = sources
        .iter()
        .flat_map(|source| {
            let mut found = shape::check(source);
            found.extend(rooms::check(source));
            found.extend(words::check(source));
            found
        })
        .collect();
    for breach in &breaches {
        command::print(&format!("{breach}\n"))?;
    }
    match breaches.len() {
        0 => Ok(()),
        count => anyhow::bail!("{count} breaches in {} files read", sources.len()),
    }
}

fn formatting() -> Result<()> {
    command::run(workspace::cargo().args(["fmt", "--all", "--check"]), "cargo fmt --all")
}

fn clippy() -> Result<()> {
    let mut clippy = on_the_machines_own("clippy");
    command::run(clippy.args(["--all-targets", "--", "-Dwarnings"]), "")
}

fn docs() -> Result<()> {
    let mut docs = on_the_machines_own("doc");
    command::run(docs.arg("--no-deps").env("RUSTDOCFLAGS", "-Dwarnings"), "")
}

/// A cargo verb on every package but the BPF programs, which only BPF's own toolchain compiles.
fn on_the_machines_own(verb: &str) -> Command {
    let mut cargo = workspace::cargo();
    cargo.args([verb, "--quiet", "--workspace", "--exclude", "lockwatch-ebpf"]);
    cargo
}
