//! Where the programs are that a test runs, found at run time.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The variable that names the `lockwatch` binary.
pub const LOCKWATCH: &str = "LOCKWATCH_BIN";
/// The variable that names the rig.
pub const RIG: &str = "RIG_BIN";

/// The `lockwatch` binary: the variable's, else beside the test program (in a virtual machine),
/// else the release binary of the target folder that the test program is in.
pub fn lockwatch() -> Result<PathBuf> {
    find(LOCKWATCH, &["lockwatch", "../../release/lockwatch", "../release/lockwatch"])
        .context("the lockwatch binary: build it (cargo xtask build), or name it in LOCKWATCH_BIN")
}

/// The rig: the variable's, else beside the test program, else where cargo leaves programs.
pub fn rig() -> Result<PathBuf> {
    find(RIG, &["rig", "../rig"])
        .context("the rig: build it (cargo build -p lockwatch-tests), or name it in RIG_BIN")
}

fn find(variable: &str, candidates: &[&str]) -> Result<PathBuf> {
    if let Some(named) = env::var_os(variable) {
        let named = PathBuf::from(named);
        return named.canonicalize().with_context(|| format!("{variable}={}", named.display()));
    }
    let program = env::current_exe().context("finding this program")?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    for candidate in candidates {
        if let Ok(found) = folder.join(candidate).canonicalize()
            && found.is_file()
        {
            return Ok(found);
        }
    }
    bail!("not found at {} from {}", candidates.join(", "), folder.display())
}

/// A program that the machine may have, in the usual folders.
pub fn system_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin:/usr/sbin:/sbin".into());
    env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
}
