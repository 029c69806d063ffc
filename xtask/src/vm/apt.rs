//! Asks apt about one suite, with a configuration, lists and state of our own.
//!
//! Every index is verified against a keyring: nothing here can switch that off. The machine's
//! own lists, sources and state are not touched; its way to the mirror (proxies and so on) is
//! kept, because its configuration files are read first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::sources::stanzas;
use super::tools;

/// A private view of one suite at one address.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) name: String,
    conf: PathBuf,
}

/// A stanza about a package.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) depends: Vec<String>,
}

/// What a failed update means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The suite is signed by a key that the keyring lacks.
    UnknownKey,
    /// Anything else; apt's own words.
    Other(String),
}

impl Suite {
    /// Lays out the private state of `suite` at `uri` below `folder`.
    pub(crate) fn prepare(
        folder: &Path,
        uri: &str,
        suite: &str,
        keyring: Option<&Path>,
    ) -> Result<Self> {
        let folder = folder.join(suite);
        for part in ["state/lists/partial", "cache/archives/partial", "empty"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot make {}/{part}", folder.display()))?;
        }
        let signed_by = keyring.map(|k| format!(" signed-by={}", k.display())).unwrap_or_default();
        fs::write(folder.join("state/status"), "")?;
        fs::write(
            folder.join("sources.list"),
            format!("deb [arch=amd64{signed_by}] {uri} {suite} main\n"),
        )?;
        let conf = folder.join("apt.conf");
        fs::write(&conf, configuration(&folder))
            .with_context(|| format!("cannot write {}", conf.display()))?;
        Ok(Self { name: suite.to_owned(), conf })
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.arg("-c").arg(&self.conf).env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
        apt
    }

    /// Fetches and verifies the suite's index.
    pub(crate) fn update(&self) -> Result<std::result::Result<(), Refusal>> {
        let mut update = self.apt("apt-get");
        let output = tools::output(update.arg("update"))?;
        if output.status.success() {
            return Ok(Ok(()));
        }
        Ok(Err(refusal(&String::from_utf8_lossy(&output.stderr))))
    }

    /// The newest package `name`; none if the suite has no such package.
    pub(crate) fn package(&self, name: &str) -> Result<Option<Package>> {
        let output =
            tools::output(self.apt("apt-cache").args(["show", "--no-all-versions", name]))?;
        // apt-cache fails both for an unknown name and for a broken list; the list was just
        // verified by `update`.
        if !output.status.success() {
            return Ok(None);
        }
        parse(&String::from_utf8_lossy(&output.stdout)).map(Some)
    }

    /// Downloads `packages`, verified against the signed index, into `folder`.
    pub(crate) fn download(&self, packages: &[Package], folder: &Path) -> Result<()> {
        let names = packages.iter().map(|p| format!("{}={}", p.name, p.version));
        let mut download = self.apt("apt-get");
        tools::stdout(download.arg("download").args(names).current_dir(folder)).map(drop)
    }
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "// Written anew by `cargo xtask vm`.
Dir::State \"{folder}/state\";
Dir::State::status \"{folder}/state/status\";
Dir::Cache \"{folder}/cache\";
Dir::Etc::sourcelist \"{folder}/sources.list\";
Dir::Etc::sourceparts \"{folder}/empty\";
Dir::Etc::preferences \"{folder}/empty/none\";
Dir::Etc::preferencesparts \"{folder}/empty\";
APT::Architecture \"amd64\";
#clear APT::Architectures;
APT::Architectures \"amd64\";
// A machine may be set up to take unsigned packages; this list never does.
APT::Get::AllowUnauthenticated \"false\";
Acquire::AllowInsecureRepositories \"false\";
Acquire::AllowWeakRepositories \"false\";
Acquire::AllowDowngradeToInsecureRepositories \"false\";
// An index that cannot be had is an error here, not a warning.
APT::Update::Error-Mode \"any\";
Acquire::Retries \"2\";
Acquire::Languages \"none\";
Acquire::PDiffs \"false\";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled \"false\";
// apt's own user cannot write below a home folder.
APT::Sandbox::User \"\";
// What the machine does after its own updates is not for a private one.
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
"
    )
}

fn refusal(stderr: &str) -> Refusal {
    if stderr.contains("NO_PUBKEY") || stderr.contains("Missing key") {
        return Refusal::UnknownKey;
    }
    let error = stderr.lines().find(|line| line.starts_with("E:"));
    Refusal::Other(error.unwrap_or(stderr.trim()).trim_start_matches("E:").trim().to_owned())
}

fn parse(text: &str) -> Result<Package> {
    let Some(stanza) = stanzas(text).into_iter().next() else { bail!("apt-cache showed nothing") };
    let field = |name: &str| stanza.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let depends = field("Depends").unwrap_or_default().split(',');
    Ok(Package {
        name: field("Package").context("a package without a name")?.to_owned(),
        version: field("Version").context("a package without a version")?.to_owned(),
        // Of alternatives, the first; without the version that it asks for.
        depends: depends.filter_map(|d| d.split_whitespace().next()).map(str::to_owned).collect(),
    })
}

/// Whether Debian version `a` is newer than `b`.
pub(crate) fn newer(a: &str, b: &str) -> Result<bool> {
    let mut dpkg = Command::new("dpkg");
    let output = tools::output(dpkg.args(["--compare-versions", a, "gt", b]))?;
    Ok(output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_apt_cache_shows() {
        let text = "\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (7.2.13+1)
Version: 7.2.13-1
Depends: linux-base-cloud-amd64 (= 7.2.13-1), dracut | initramfs-tools (>= 0.1),
 linux-image-7.2.13+deb14-cloud-amd64 (= 7.2.13-1)
Description: Linux for x86-64 cloud (meta-package)

Package: linux-image-cloud-amd64
Version: 7.2.1-1
";
        assert_eq!(
            parse(text).unwrap(),
            Package {
                name: "linux-image-cloud-amd64".into(),
                version: "7.2.13-1".into(),
                depends: vec![
                    "linux-base-cloud-amd64".into(),
                    "dracut".into(),
                    "linux-image-7.2.13+deb14-cloud-amd64".into(),
                ],
            }
        );
        assert!(parse("").is_err());
    }

    #[test]
    fn an_unknown_key_is_told_from_an_absent_suite() {
        let unknown = "W: GPG error: http://example.org sid InRelease: The following signatures \
                       couldn't be verified because the public key is not available: NO_PUBKEY 6ED0\n\
                       E: The repository 'http://example.org sid InRelease' is not signed.\n";
        assert_eq!(refusal(unknown), Refusal::UnknownKey);
        let absent =
            "E: The repository 'http://example.org old Release' does not have a Release file.\n";
        assert_eq!(
            refusal(absent),
            Refusal::Other(
                "The repository 'http://example.org old Release' does not have a Release file."
                    .into()
            )
        );
    }

    #[test]
    fn the_private_configuration_insists_on_signatures() {
        let text = configuration(Path::new("/cache"));
        for option in ["AllowUnauthenticated", "AllowInsecureRepositories"] {
            assert!(text.contains(&format!("{option} \"false\"")), "{option}");
        }
    }
}
