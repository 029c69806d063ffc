//! Questions to apt, and packages unpacked into a folder.
//!
//! Installs nothing: the machine's own packages stay as they are.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{self, Step};
use crate::{command, privilege};

/// What this file runs.
const TOOLS: [&str; 4] = ["apt-cache", "apt-get", "dpkg", "dpkg-deb"];

/// A package as apt knows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Package {
    /// `name=version`, as apt takes it.
    pub(super) spec: String,
    /// Bytes to fetch.
    pub(super) size: u64,
    /// The names that it depends on, without their versions.
    pub(super) depends: Vec<String>,
}

/// Those of apt's tools that are not here.
pub(super) fn missing_tools() -> Vec<&'static str> {
    TOOLS.into_iter().filter(|tool| command::find(tool).is_none()).collect()
}

/// Fetches the package lists anew: as root, or through a sudo that asks nothing.
pub(super) fn update() -> Result<()> {
    let mut update = if privilege::is_root() {
        Command::new("apt-get")
    } else if command::succeeds(Command::new("sudo").args(["--non-interactive", "true"])) {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "apt-get"]);
        sudo
    } else {
        bail!(
            "apt's package lists must be fetched first, which needs root: run \
             `sudo apt-get update`, then this again"
        );
    };
    let step = Step::start("fetching apt's package lists");
    command::capture(
        update.args(["--quiet", "update"]),
        "see that the network and apt's sources work: `apt-get update`",
    )?;
    step.done("");
    Ok(())
}

/// The newest version of a package that apt knows, if any.
pub(super) fn newest(package: &str) -> Result<Option<String>> {
    let table = command::capture(Command::new("apt-cache").args(["madison", package]), "")?;
    let mut newest: Option<String> = None;
    for version in versions(&table) {
        let newer = match &newest {
            None => true,
            Some(best) => command::succeeds(Command::new("dpkg").args([
                "--compare-versions",
                version,
                "gt",
                best,
            ])),
        };
        if newer {
            newest = Some(version.to_owned());
        }
    }
    Ok(newest)
}

/// What apt knows of a package in one version.
pub(super) fn show(package: &str, version: &str) -> Result<Package> {
    let spec = format!("{package}={version}");
    let text = command::capture(
        Command::new("apt-cache").args(["show", "--no-all-versions", &spec]),
        "fetch the package lists anew: `sudo apt-get update`",
    )?;
    parse(spec.clone(), &text).with_context(|| format!("reading what apt-cache says of {spec}"))
}

/// Fetches packages into `debs` and unpacks them into `root`.
pub(super) fn unpack(packages: &[Package], debs: &Path, root: &Path) -> Result<()> {
    let total = packages.iter().map(|package| package.size).sum();
    let what = format!("fetching {} packages, {}", packages.len(), progress::size(total));
    let step = Step::filling(what, debs, total);
    let mut download = Command::new("apt-get");
    download.current_dir(debs).args(["--quiet", "download"]);
    if privilege::is_root() {
        // apt would drop to a user of its own, which may not write here, and complain.
        download.args(["-o", "APT::Sandbox::User=root"]);
    }
    download.args(packages.iter().map(|package| &package.spec));
    command::capture(&mut download, "see that the network works, then run this again")?;
    step.done("");

    let step = Step::start("unpacking them");
    for entry in std::fs::read_dir(debs).with_context(|| debs.display().to_string())? {
        let deb = entry.with_context(|| debs.display().to_string())?.path();
        command::capture(
            Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(root),
            "see that the disk has room (about 700 MB), then run this again",
        )?;
    }
    step.done(&progress::size(progress::size_below(root)));
    Ok(())
}

fn versions(madison: &str) -> impl Iterator<Item = &str> {
    madison.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim)
}

fn parse(spec: String, text: &str) -> Result<Package> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .with_context(|| format!("no {name} field"))
    };
    let size = field("Size")?;
    let size = size.parse().with_context(|| format!("Size is {size:?}, not a number"))?;
    let depends = field("Depends")
        .unwrap_or_default()
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    Ok(Package { spec, size, depends })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_second_column() {
        let table = " a-package | 1.96.0-1 | somewhere\n a-package | 1.85.0-2 | elsewhere\n";
        assert_eq!(versions(table).collect::<Vec<_>>(), ["1.96.0-1", "1.85.0-2"]);
        assert_eq!(versions("").count(), 0);
    }

    #[test]
    fn size_and_dependencies_are_read() {
        let text =
            "Package: p\nInstalled-Size: 9\nDepends: libc6 (>= 2.34), libllvm22 | x\nSize: 17\n";
        let package = parse("p=1".to_owned(), text).unwrap();
        assert_eq!(package.size, 17);
        assert_eq!(package.depends, ["libc6", "libllvm22", "x"]);
    }

    #[test]
    fn an_answer_without_a_size_is_an_error_that_says_so() {
        let error = parse("p=1".to_owned(), "Package: p\n").unwrap_err();
        assert!(error.to_string().contains("Size"));
    }
}
