//! The folder of the locked files, which is gone when the benchmark is.
//!
//! Puts nothing into it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A new folder below the machine's folder for temporary files.
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Makes it.
    pub(super) fn new() -> Result<Self> {
        let name = format!("lockwatch-bench-{}", std::process::id());
        let parent = std::env::temp_dir();
        // The kernel shows paths without symbolic links.
        let path = parent.canonicalize().unwrap_or(parent).join(name);
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    /// A folder in it, made by whoever uses it.
    pub(super) fn below(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_gone_with_all_that_is_in_it() {
        let folder = Folder::new().unwrap();
        let path = folder.path.clone();
        fs::create_dir(folder.below("deeper")).unwrap();
        fs::write(path.join("deeper/file"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
