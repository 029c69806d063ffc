//! `cargo xtask deploy`: tests of what is shipped beside the binary: service unit, rules, dashboard,
//! package.
//!
//! Tests that need a tool which is not here are skipped, and say so. Refuses to touch the machine:
//! packages are installed in a throw-away root.

mod dashboard;
mod package;
mod rules;
mod unit;

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::tally::Tally;
use crate::{command, dist, interrupt, privilege, progress};

/// One test.
struct Test {
    name: &'static str,
    /// The programs that it runs.
    needs: &'static [&'static str],
    /// Whether it needs root's rights.
    root: bool,
    body: fn(&dist::Made) -> Result<()>,
}

/// The Debian packages that have the programs.
const PACKAGES: [&str; 7] =
    ["prometheus", "lintian", "systemd", "dpkg", "strace", "iproute2", "stress-ng"];

const THEMES: [&[Test]; 4] = [rules::TESTS, dashboard::TESTS, unit::TESTS, package::TESTS];

/// Runs those with `filter` in their name.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
    let tally = tests(filter)?;
    command::print(&format!("{tally}\n"))?;
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Installs the packages that the tests need, where that can be done without asking anybody. What
/// is missing after that is skipped.
pub(crate) fn install_tools() {
    let tools =
        ["promtool", "lintian", "systemd-analyze", "dpkg", "strace", "ip", "curl", "stress-ng"];
    if tools.iter().all(|tool| command::find(tool).is_some()) || !privilege::is_root() {
        return;
    }
    let mut install = Command::new("apt-get");
    install.args(["--quiet", "--yes", "install", "--no-install-recommends"]).args(PACKAGES);
    // Prometheus is for its tools: as a service it would listen on this machine.
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    if let Err(error) = command::capture(&mut install, "") {
        progress::say(&format!("tools for the tests of deploy/: {error:#}"));
    }
}

/// Runs those with `filter` in their name, and adds up.
pub(crate) fn tests(filter: Option<&str>) -> Result<Tally> {
    let chosen: Vec<&Test> = THEMES
        .iter()
        .flat_map(|theme| theme.iter())
        .filter(|test| filter.is_none_or(|filter| test.name.contains(filter)))
        .collect();
    if chosen.is_empty() {
        return Ok(Tally::default());
    }
    let made = dist::make()?;
    let mut tally = Tally::default();
    for test in chosen {
        let line = match lacks(test) {
            Some(why) => {
                tally.skipped += 1;
                let line = format!("test {} ... skipped: {why}", test.name);
                tally.skips.push(line.clone());
                line
            }
            None => match (test.body)(&made) {
                Ok(()) => {
                    tally.passed += 1;
                    format!("test {} ... ok", test.name)
                }
                Err(error) => {
                    tally.failed += 1;
                    format!("test {} ... FAILED: {error:#}", test.name)
                }
            },
        };
        command::print(&format!("{line}\n"))?;
        if interrupt::happened() {
            bail!("interrupted");
        }
    }
    Ok(tally)
}

fn lacks(test: &Test) -> Option<String> {
    if test.root && !privilege::is_root() {
        return Some("needs root".to_owned());
    }
    let missing = test.needs.iter().find(|program| command::find(program).is_none())?;
    Some(format!("needs program:{missing} ({missing} is not installed)"))
}
