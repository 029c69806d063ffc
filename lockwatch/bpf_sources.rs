//! The BPF objects by name, and a digest of the sources that they are made of.
//!
//! Shared by `build.rs`, which refuses objects that are older than their sources, and by xtask,
//! which writes the digest beside them: two copies of this could disagree. Depends on
//! nothing but the files' names and bytes, so a fresh checkout or a touched file changes nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The objects: each is a program of `lockwatch-ebpf`, loaded apart from the others, so that nobody
/// pays for what he does not use.
pub(crate) const OBJECTS: [&str; 5] = ["history", "overhead", "probe", "search", "snapshot"];

/// The packages that the objects are made of, as folders of the workspace.
pub(crate) const PACKAGES: [&str; 2] = ["lockwatch-common", "lockwatch-ebpf"];

/// Where the objects are, below the target folder.
pub(crate) const FOLDER: &str = "bpf";

/// Their stamp, in the same folder: lines of `key value`.
pub(crate) const STAMP: &str = "bpf/lockwatch.bpf.stamp";

/// The file of an object.
pub(crate) fn file_name(object: &str) -> String {
    format!("{object}.bpf.o")
}

/// The stamp's line about the sources.
pub(crate) fn stamp_line(workspace: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for package in PACKAGES {
        collect(&workspace.join(package), &mut files)?;
    }
    files.sort();
    let mut digest = Digest::default();
    for file in files {
        let name = file.strip_prefix(workspace).unwrap_or(&file);
        digest.add(name.as_os_str().as_encoded_bytes());
        digest.add(&fs::read(&file)?);
    }
    Ok(format!("sources {:016x}", digest.0))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        // Editors leave hidden files; cargo run inside the package leaves `target`.
        if name.as_encoded_bytes().starts_with(b".") || name == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// FNV-1a: it need only notice edits, not withstand an adversary.
pub(crate) struct Digest(pub(crate) u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds one item, kept apart from the next by its length.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
