//! The file of `--log`: every event, a line each.
//!
//! Refuses to lose the watch to a full disk: a line that cannot be written is counted, and said
//! when lines can be written again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// An append-only file that can be opened anew after it was renamed.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    missed: u64,
}

impl LogFile {
    /// Opens the file, makes it where it is absent.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: open(path)?, missed: 0 })
    }

    /// Goes on in the file that has the name now; in the old one where there can be none.
    pub(super) fn reopen(&mut self) {
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => {
                log::error!("{}: {error}: going on in the old file", self.path.display());
            }
        }
    }

    /// Appends one line, with its end, in one write.
    pub(super) fn line(&mut self, line: &[u8]) {
        match self.file.write_all(line) {
            Ok(()) if self.missed > 0 => {
                let missed = std::mem::take(&mut self.missed);
                log::error!("{}: {missed} events could not be written", self.path.display());
            }
            Ok(()) => {}
            Err(error) => {
                if self.missed == 0 {
                    log::error!("{}: {error}", self.path.display());
                }
                self.missed += 1;
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // Paths of locked files are in it: nobody but the owner need see them.
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_go_to_the_file_that_has_the_name_after_it_was_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let mut log = LogFile::open(&path).unwrap();
        log.line(b"one\n");
        fs::rename(&path, &old).unwrap();
        log.line(b"two\n");
        log.reopen();
        log.line(b"three\n");
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_full_disk_is_counted_and_does_no_more() {
        let mut log = LogFile::open(Path::new("/dev/full")).unwrap();
        log.line(b"one\n");
        log.line(b"two\n");
        assert_eq!(log.missed, 2);
    }
}
