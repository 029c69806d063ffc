//! `cargo xtask scan`: build as the caller, scan with root's rights where they can be had.
//!
//! Adds nothing to what lockwatch prints, and its exit code is lockwatch's.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::{build, command, privilege};

/// Builds, then runs `lockwatch scan` with these arguments.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    let binary = build::run()?;
    let status = command::status(privilege::command(&binary, &[]).arg("scan").args(args))?;
    Ok(command::exit_code(status))
}
