//! A crowd: children by the thousand, each forked to do one thing with a lock and to end.
//!
//! A rig would be told each step and answer it; here a test is about what happens a thousand times.
//! Refuses to judge: it writes down what it provoked, and the test compares.

mod chance;
mod child;
mod mixed;
mod ordinary;
mod part;
mod races;

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::files;
use super::language::OpenMode;
use chance::Chance;

pub use part::{Crowd, Part};

/// What crowds left alive.
#[derive(Default)]
pub(super) struct Crowds {
    children: Vec<libc::pid_t>,
    open: Vec<OwnedFd>,
}

impl Crowds {
    /// Plays a part.
    pub(super) fn play(&mut self, crowd: &Crowd) -> Result<String> {
        let folder = Path::new(OsStr::from_bytes(&crowd.folder));
        let mut set = Set { folder: folder.to_owned(), seed: crowd.seed };
        let output = Path::new(OsStr::from_bytes(&crowd.output));
        files::allow_many_descriptors()?;
        let count = crowd.count;
        let mut story = Story::default();
        match crowd.part {
            Part::Handoffs => races::handoffs(&mut set, count, &mut story)?,
            Part::Exits => races::exits(&mut set, count, &mut story)?,
            Part::Deadlocks => races::deadlocks(self, &mut set, count, &mut story)?,
            Part::Recycled => races::recycled(self, &mut set, count, &mut story)?,
            Part::Replaced => races::replaced(self, &mut set, count, &mut story)?,
            Part::Orphans => races::orphans(self, &mut set, count, &mut story)?,
            Part::Ordinary | Part::Mixed => return self.work(crowd, set, output),
        }
        story.write(output)?;
        Ok(String::new())
    }

    /// Leaves the work to a child.
    fn work(&mut self, crowd: &Crowd, set: Set, output: &Path) -> Result<String> {
        let (part, count, chance) = (crowd.part, crowd.count, Chance::new(crowd.seed));
        let worker = child::fork(|| {
            let done = match part {
                Part::Ordinary => ordinary::play(&set, count, chance),
                _ => mixed::play(&set, count, chance),
            }?;
            let mut story = Story::default();
            story.line(&[&done]);
            story.write(output)
        })?;
        self.children.push(worker);
        Ok(format!("pid={worker}"))
    }

    /// Ends everybody and closes everything.
    pub(super) fn dismiss(&mut self) {
        for &pid in &self.children {
            child::kill(pid);
        }
        for pid in self.children.drain(..) {
            child::wait(pid);
        }
        self.open.clear();
    }
}

/// Where a crowd plays.
struct Set {
    folder: PathBuf,
    seed: u64,
}

impl Set {
    /// The path of a file that no other crowd with another seed has.
    fn path(&self, name: &str, number: u32) -> PathBuf {
        self.folder.join(format!("{name}-{}-{number}", self.seed))
    }
}

fn open(path: &Path) -> Result<OwnedFd> {
    files::open(path.as_os_str().as_bytes(), OpenMode::Both, false)
}

fn inode(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.ino())
}

/// What was provoked, a line each.
#[derive(Default)]
struct Story {
    text: String,
}

impl Story {
    fn line(&mut self, words: &[&dyn fmt::Display]) {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        self.text.push_str(&words.join(" "));
        self.text.push('\n');
    }

    /// Whoever finds the file finds it whole.
    fn write(&self, to: &Path) -> Result<()> {
        let draft = to.with_extension("draft");
        fs::write(&draft, &self.text).with_context(|| draft.display().to_string())?;
        fs::rename(&draft, to).with_context(|| to.display().to_string())
    }
}
