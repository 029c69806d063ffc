//! The Debian package: its control file, its scripts, its checksums.
//!
//! Made with dpkg-deb alone: what debhelper would add is a few lines, and they are here to be read.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::stage::{self, Stage};
use super::{VERSION, libraries};
use crate::{command, progress, workspace};

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
/// Kept as the administrator left them.
const CONFFILES: &str = "/etc/lockwatch/lockwatch.toml\n";
const DESCRIPTION: &str = "\
Description: who really holds each file lock, and which outlived their owner
 lockwatch reads the kernel's own tables of file locks through BPF and tells
 who took each lock, what keeps it alive now, and whether that is meant to be
 so. A lock that outlived everybody who was meant to hold it is an orphan:
 lockwatch finds it, explains it, and releases it when told to.
 .
 The daemon watches in real time, exports metrics and keeps history.";

/// A version with who made it.
#[derive(Debug, Clone)]
pub(crate) struct Release {
    pub(crate) version: String,
    maintainer: String,
}

impl Release {
    /// The newest of deploy/debian/changelog, which must be that of the code.
    pub(crate) fn from_changelog() -> Result<Self> {
        let path = workspace::root().join("deploy/debian/changelog");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let release = parse(&text).with_context(|| path.display().to_string())?;
        ensure!(
            release.version.starts_with(&format!("{VERSION}-")),
            "{}: its newest entry is of {}, the code of {VERSION}: add an entry",
            path.display(),
            release.version
        );
        Ok(release)
    }

    /// Another version of the same.
    pub(crate) fn as_version(&self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self.clone() }
    }
}

fn parse(changelog: &str) -> Result<Release> {
    let first = changelog.lines().next().unwrap_or_default();
    let version = first.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let trailer = changelog.lines().find_map(|line| line.strip_prefix(" -- "));
    let maintainer = trailer.and_then(|line| line.split_once("  "));
    match (version, maintainer) {
        (Some((version, _)), Some((maintainer, _))) => {
            Ok(Release { version: version.to_owned(), maintainer: maintainer.to_owned() })
        }
        _ => bail!("no version and maintainer in its first entry"),
    }
}

/// Builds the package into `folder`.
pub(crate) fn build(stage: &Stage, release: &Release, folder: &Path) -> Result<PathBuf> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no Debian architecture is known for {other}"),
    };
    let doc = "usr/share/doc/lockwatch/changelog.Debian.gz";
    let changelog = workspace::root().join("deploy/debian/changelog");
    let mut gzip = Command::new("sh");
    gzip.args(["-c", "gzip --no-name --best < \"$1\" > \"$2\"", "sh"]);
    command::run(gzip.arg(changelog).arg(stage.folder().join(doc)), "")?;
    let control = stage.folder().join("DEBIAN");
    fs::create_dir_all(&control).with_context(|| control.display().to_string())?;
    let depends = libraries::depends(&stage.folder().join("usr/bin/lockwatch"))?;
    // dpkg-deb asks for it in KiB.
    let size = progress::size_below(stage.folder()).div_ceil(1024);
    let Release { version, maintainer } = release;
    let text = format!(
        "Package: lockwatch\nVersion: {version}\nArchitecture: {architecture}\n\
         Maintainer: {maintainer}\nInstalled-Size: {size}\nDepends: {depends}\n\
         Pre-Depends: init-system-helpers (>= 1.54~)\nSection: admin\nPriority: optional\n\
         {DESCRIPTION}\n"
    );
    write(&control.join("control"), &text, 0o644)?;
    write(&control.join("conffiles"), CONFFILES, 0o644)?;
    write(&control.join("md5sums"), &sums(stage)?, 0o644)?;
    for script in SCRIPTS {
        let from = workspace::root().join("deploy/debian").join(script);
        let text = fs::read_to_string(&from).with_context(|| from.display().to_string())?;
        write(&control.join(script), &text, 0o755)?;
    }
    let path = folder.join(format!("lockwatch_{version}_{architecture}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", "--build"]).arg(stage.folder()).arg(&path);
    command::capture(dpkg.env("SOURCE_DATE_EPOCH", stage::moment()?), "install dpkg")?;
    // What is for the package alone must not be in what the folder is used for next.
    fs::remove_dir_all(&control).with_context(|| control.display().to_string())?;
    Ok(path)
}

fn sums(stage: &Stage) -> Result<String> {
    let mut find = Command::new("sh");
    find.current_dir(stage.folder()).args([
        "-c",
        "find usr -type f -print0 | LC_ALL=C sort --zero-terminated | xargs --null md5sum",
    ]);
    let mut text = command::capture(&mut find, "")?;
    if !text.ends_with('\n') {
        let _ = writeln!(text);
    }
    Ok(text)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let what = || path.display().to_string();
    fs::write(path, text).with_context(what)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changelog_is_of_the_version_of_the_code() {
        let release = Release::from_changelog().unwrap();
        assert!(release.maintainer.contains('@'));
    }

    #[test]
    fn a_changelog_without_a_version_is_an_error() {
        assert!(parse("lockwatch\n -- me <a@b.c>  today\n").is_err());
        assert!(parse("lockwatch (1-1) unstable\n").is_err());
    }
}
