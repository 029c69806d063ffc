//! The record of every reclaim that was carried out, which outlives whoever did it.
//!
//! Refuses a file that others could write or read, and to let an act begin that it cannot record.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The open record: lines of JSON, only ever appended to.
pub struct Audit {
    file: File,
    path: PathBuf,
}

/// It cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("audit: {path}: {error}", path = .path.display())]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

impl Audit {
    /// Opens the record; makes it, and its folder, where they are absent.
    ///
    /// # Errors
    /// Where that is not possible, or the file is another's.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        Self::attempt(path).map_err(|error| AuditError { path: path.to_owned(), error })
    }

    fn attempt(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let meta = file.metadata()?;
        let own = rustix::process::geteuid().as_raw();
        if !meta.is_file() || meta.uid() != own || meta.mode() & 0o077 != 0 {
            return Err(io::Error::other("not a file of one's own that nobody else may read"));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Appends one line, which is on the disk when this returns.
    ///
    /// # Errors
    /// Where it is not.
    pub fn append(&mut self, record: &serde_json::Value) -> Result<(), AuditError> {
        self.note(record)?;
        self.file.sync_data().map_err(|error| self.failed(error))
    }

    /// Appends one line without waiting for the disk: it outlives whoever writes it, but not the
    /// machine.
    ///
    /// # Errors
    /// Where it could not be written.
    pub fn note(&mut self, record: &serde_json::Value) -> Result<(), AuditError> {
        let mut line = record.to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: io::Error) -> AuditError {
        AuditError { path: self.path.clone(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_appended_to_a_file_that_nobody_else_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/audit.jsonl");
        Audit::open(&path).unwrap().append(&json!({"a": 1})).unwrap();
        Audit::open(&path).unwrap().append(&json!({"a": 2})).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"a\":2}\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_others_may_read_or_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "").unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&path, open).unwrap();
        assert!(Audit::open(&path).is_err());
        assert!(Audit::open(folder.path()).is_err());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("elsewhere", &link).unwrap();
        assert!(Audit::open(&link).is_err());
        assert!(Audit::open(Path::new("/dev/full")).is_err());
    }
}
