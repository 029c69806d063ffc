//! `cargo xtask demo`: the drill, told as a story while it happens.
//!
//! Plays nothing itself: the drill is a live test, and cleans up like one, also when interrupted.

use std::process::ExitCode;

use anyhow::Result;

use crate::{build, command, privilege, progress, test, workspace};

/// Builds, then plays the drill aloud.
pub(crate) fn run() -> Result<ExitCode> {
    let binary = build::run()?;
    let harness = test::live_harness()?;
    progress::say("the drill: with real processes and real locks, in mounts of its own");
    let mut drill = privilege::command(&harness, &[("LOCKWATCH_BIN", binary.as_os_str())]);
    drill.current_dir(workspace::root().join("tests")).args(["--aloud", "drill::"]);
    Ok(command::exit_code(command::status(&mut drill)?))
}
