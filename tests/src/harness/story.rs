//! A story that a test tells while it plays: for people who watch (`live --aloud`), and in its
//! transcript.
//!
//! Refuses to decide anything: a story that cannot be told changes no verdict.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::scene::note;

/// Where the test of this process writes it.
static BOOK: OnceLock<PathBuf> = OnceLock::new();

fn book(folder: &Path) -> PathBuf {
    folder.join("story")
}

/// Says in which folder the test plays.
pub(super) fn begin(folder: &Path) {
    let _ = BOOK.set(book(folder));
}

/// Tells some lines.
pub fn tell(lines: &str) {
    for line in lines.lines() {
        note(line);
    }
    if let Some(book) = BOOK.get()
        && let Ok(mut book) = OpenOptions::new().append(true).create(true).open(book)
    {
        let _ = writeln!(book, "{lines}");
    }
}

/// Follows the story of a test that another process plays.
#[derive(Debug, Default)]
pub(super) struct Listener {
    heard: u64,
}

impl Listener {
    /// What was told since the last call.
    pub(super) fn hear(&mut self, folder: &Path) -> String {
        let mut text = String::new();
        let Ok(mut book) = File::open(book(folder)) else { return text };
        if book.seek(SeekFrom::Start(self.heard)).is_ok()
            && let Ok(length) = book.read_to_string(&mut text)
        {
            self.heard += length as u64;
        }
        text
    }
}
