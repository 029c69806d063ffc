//! A toolchain that compiles Rust for BPF: what the caller has, else Debian's in the cache.
//!
//! Chooses the way; each way has its own file. Changes nothing on the machine outside the cache
//! and cargo's own folders, except apt's package lists where they are needed and absent.

mod apt;
mod debian;
mod rustup;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::{bpf, command, progress};

/// A toolchain that is ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// rustup's nightly of this name, with rust-src; bpf-linker is on PATH.
    Rustup { name: String },
    /// Debian's rustc with its prebuilt core, and a bpf-linker built for it.
    Debian { rustc: PathBuf, linker_folder: PathBuf, version: String },
}

impl Toolchain {
    /// What distinguishes the objects of one toolchain from those of another.
    pub(crate) fn id(&self) -> String {
        match self {
            Self::Rustup { name } => format!("rustup {name}"),
            Self::Debian { version, .. } => format!("debian {version}"),
        }
    }
}

/// `cargo xtask setup`: the toolchain and the BPF objects, after which plain `cargo build` works.
pub(crate) fn run() -> Result<()> {
    let toolchain = toolchain()?;
    let objects = bpf::build(&toolchain)?;
    progress::say(&format!("ready: {} with {}", objects.display(), toolchain.id()));
    Ok(())
}

/// The toolchain, set up if need be. Quick when it is there.
pub(crate) fn toolchain() -> Result<Toolchain> {
    let nightly = rustup::nightly_with_source();
    let facts = Facts {
        nightly_with_source: nightly.is_some(),
        linker: command::find("bpf-linker").is_some(),
        missing_for_debian: apt::missing_tools(),
    };
    match (choose(&facts), nightly) {
        (Way::Rustup, Some(name)) => Ok(Toolchain::Rustup { name }),
        (Way::Debian, _) => debian::toolchain(&Cache::of_caller()?),
        (Way::Rustup | Way::Neither, _) => bail!(neither(&facts)),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    Rustup,
    Debian,
    Neither,
}

struct Facts {
    nightly_with_source: bool,
    linker: bool,
    missing_for_debian: Vec<&'static str>,
}

fn choose(facts: &Facts) -> Way {
    if facts.nightly_with_source && facts.linker {
        Way::Rustup
    } else if facts.missing_for_debian.is_empty() {
        Way::Debian
    } else {
        Way::Neither
    }
}

const WITH_RUSTUP: &str = "rustup toolchain install nightly --component rust-src \
                           && cargo install bpf-linker --locked";

fn neither(facts: &Facts) -> String {
    let mut missing = Vec::new();
    if !facts.nightly_with_source {
        missing.push("a nightly with rust-src");
    }
    if !facts.linker {
        missing.push("bpf-linker on PATH");
    }
    format!(
        "nothing here compiles Rust for BPF. One of these two is needed:\n  \
         with rustup: {} missing; run: {WITH_RUSTUP}\n  \
         with Debian's packages (12 or newer): {} missing; set-up fetches the rest by itself \
         where apt is",
        missing.join(" and "),
        facts.missing_for_debian.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(nightly_with_source: bool, linker: bool, missing: &[&'static str]) -> Facts {
        Facts { nightly_with_source, linker, missing_for_debian: missing.to_vec() }
    }

    #[test]
    fn a_complete_rustup_comes_first() {
        assert_eq!(choose(&facts(true, true, &[])), Way::Rustup);
        assert_eq!(choose(&facts(true, true, &["apt-get"])), Way::Rustup);
    }

    #[test]
    fn half_a_rustup_is_none() {
        assert_eq!(choose(&facts(true, false, &[])), Way::Debian);
        assert_eq!(choose(&facts(false, true, &[])), Way::Debian);
    }

    #[test]
    fn one_message_says_what_is_missing_for_either_way() {
        let facts = facts(false, false, &["apt-get", "dpkg-deb"]);
        assert_eq!(choose(&facts), Way::Neither);
        let text = neither(&facts);
        for part in ["rust-src", "bpf-linker", "apt-get, dpkg-deb", "rustup toolchain install"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
