//! `cargo xtask dist`: a tarball and a Debian package of the release binary and all that an
//! operator expects beside it.
//!
//! Publishes nothing and installs nothing: what it makes is in target/dist.

pub(crate) mod deb;
mod libraries;
mod stage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

pub(crate) use stage::Stage;

use crate::{build, command, progress, workspace};

/// The version of every crate of the workspace.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) tarball: PathBuf,
    pub(crate) deb: PathBuf,
}

/// Makes both.
pub(crate) fn run() -> Result<ExitCode> {
    let made = make()?;
    command::print(&format!("{}\n{}\n", made.tarball.display(), made.deb.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Makes both, and answers where they are.
pub(crate) fn make() -> Result<Made> {
    let binary = build::run()?;
    let folder = workspace::target().join("dist");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let stage = Stage::fill(&folder.join("stage"), &binary)?;
    let tarball = tarball(&stage, &folder)?;
    let deb = deb::build(&stage, &deb::Release::from_changelog()?, &folder)?;
    progress::say(&format!("dist: {}", folder.display()));
    Ok(Made { tarball, deb })
}

fn tarball(stage: &Stage, folder: &Path) -> Result<PathBuf> {
    let name = format!("lockwatch-{VERSION}");
    let path = folder.join(format!("{name}-{}-linux.tar.gz", std::env::consts::ARCH));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    // The same sources give the same bytes.
    tar.arg("--use-compress-program=gzip --no-name").arg(format!("--mtime=@{}", stage::moment()?));
    tar.arg(format!("--transform=s,^\\.,{name},")).arg("--file").arg(&path);
    command::run(tar.arg("--directory").arg(stage.folder()).arg("."), "")?;
    Ok(path)
}
