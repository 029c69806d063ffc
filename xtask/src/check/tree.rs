//! The text files of the workspace, as the rules see them.
//!
//! Judges nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A text file of the workspace.
#[derive(Debug)]
pub(super) struct Source {
    /// Relative to the workspace.
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl Source {
    #[cfg(test)]
    pub(super) fn new(path: &str, text: &str) -> Self {
        Self { path: PathBuf::from(path), text: text.to_owned() }
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "rs")
    }

    /// Whether the file is nothing but tests, as `tests.rs` beside the module it tests is.
    pub(super) fn is_test(&self) -> bool {
        self.path.file_stem().is_some_and(|stem| stem == "tests")
            || self.path.iter().any(|part| part == "tests")
    }
}

/// Every text file, in the order of their names.
pub(super) fn read(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    collect(root, root, &mut sources)?;
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn collect(root: &Path, folder: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let reading = |path: &Path| format!("reading {}", path.display());
    for entry in fs::read_dir(folder).with_context(|| reading(folder))? {
        let entry = entry.with_context(|| reading(folder))?;
        let (path, name) = (entry.path(), entry.file_name());
        let kind = entry.file_type().with_context(|| reading(&path))?;
        if kind.is_dir() {
            if name != "target" && name != ".git" {
                collect(root, &path, sources)?;
            }
        // Cargo writes Cargo.lock, nobody else.
        } else if kind.is_file() && name != "Cargo.lock" && name != ".git" {
            let bytes = fs::read(&path).with_context(|| reading(&path))?;
            if let Ok(text) = String::from_utf8(bytes) {
                let path = path.strip_prefix(root).unwrap_or(&path).to_path_buf();
                sources.push(Source { path, text });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_what_cargo_makes_is_not() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["a/src", "target/debug", ".ci"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in ["a/src/lib.rs", "target/debug/x.rs", ".ci/run", "Cargo.lock"] {
            fs::write(root.path().join(file), "text").unwrap();
        }
        fs::write(root.path().join("a/trace.bin"), [0xff, 0xfe]).unwrap();
        let found = read(root.path()).unwrap();
        let paths: Vec<_> = found.iter().map(|source| source.path.to_str().unwrap()).collect();
        assert_eq!(paths, [".ci/run", "a/src/lib.rs"]);
    }
}
