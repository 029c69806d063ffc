//! aya's usual way: rustup's nightly with rust-src.
//!
//! Only looks, at the disk: asking rustup could make it fetch a toolchain.

use std::path::{Path, PathBuf};

use crate::command;

/// The name of an installed nightly that has the source of `core`, if rustup is here to run it.
pub(crate) fn nightly_with_source() -> Option<String> {
    command::find("rustup")?;
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".rustup")))?;
    nightly_in(&home)
}

fn nightly_in(home: &Path) -> Option<String> {
    let toolchains = home.join("toolchains");
    let mut names: Vec<String> = std::fs::read_dir(&toolchains)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("nightly"))
        .filter(|name| {
            toolchains.join(name).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
        })
        .collect();
    // `nightly-<host>`, which is kept up to date, sorts after the dated ones.
    names.sort();
    names.pop()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_nightly_counts_only_with_its_source() {
        let home = tempfile::tempdir().unwrap();
        let bare = home.path().join("toolchains/nightly-x86_64-unknown-linux-gnu");
        fs::create_dir_all(&bare).unwrap();
        assert_eq!(nightly_in(home.path()), None);

        let source = bare.join("lib/rustlib/src/rust/library/core/src");
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("lib.rs"), "").unwrap();
        fs::create_dir_all(home.path().join("toolchains/stable-x86_64-unknown-linux-gnu")).unwrap();
        assert_eq!(nightly_in(home.path()).unwrap(), "nightly-x86_64-unknown-linux-gnu");
    }
}
