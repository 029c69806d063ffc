//! The live tests: `lockwatch` on the real kernel, with real locks.
//!
//! Each file is a theme; each test is a sentence about what `lockwatch` does. The same program
//! runs on the host and, without cargo, in virtual machines.

mod kernel;
mod rig;

use std::process::ExitCode;

use lockwatch_tests::harness::{Test, runner};

const THEMES: &[(&str, &[Test])] = &[("rig", rig::TESTS)];

fn main() -> ExitCode {
    runner::main(THEMES)
}
