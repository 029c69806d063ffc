//! Where things are: the workspace, its target folder, the release binary, and the cargo that
//! started us.
//!
//! Creates nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the workspace's Cargo.toml.
pub(crate) fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) if !folder.is_empty() => {
            std::env::current_dir().map_or_else(|_| PathBuf::from(&folder), |cwd| cwd.join(&folder))
        }
        _ => root().join("target"),
    }
}

/// The binary that `build` leaves.
pub(crate) fn binary() -> PathBuf {
    target().join("release/lockwatch")
}

/// The program name of the cargo that started us, so that its toolchain is used throughout.
pub(crate) fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// That cargo, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(cargo_program());
    cargo.current_dir(root()).env("CARGO_TARGET_DIR", target());
    cargo
}
