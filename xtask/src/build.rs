//! `cargo xtask build`: the release binary, BPF object inside.
//!
//! Runs nothing of what it built.

use std::path::PathBuf;

use anyhow::Result;

use crate::{bpf, command, setup, workspace};

/// Leaves the binary at target/release/lockwatch, and answers that path.
pub(crate) fn run() -> Result<PathBuf> {
    bpf::build(&setup::toolchain()?)?;
    command::run(workspace::cargo().args(["build", "--release", "--package", "lockwatch"]), "")?;
    Ok(workspace::binary())
}
