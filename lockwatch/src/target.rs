//! What a verb is asked about: paths, folders, names, processes, lock ids.
//!
//! Refuses to open a file for reading or writing: that would break a lease. A path is opened with
//! `O_PATH`, which tells its identity and nothing else.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::engine::identity::{Dev, Pid, RecordedPid};
use crate::engine::view::{LockView, View};
use crate::sink::escape::Escaped;
use crate::sink::labels;

/// One thing that was asked about.
#[derive(Debug)]
enum Target {
    /// `pid:N`: what the process took, holds or waits for.
    Process(Pid),
    /// A lock by its id.
    Id(String),
    /// A name, matched against the last component of paths.
    Name(OsString),
    /// A file, by identity; by path where that has no file any more.
    File { path: PathBuf, handle: Option<usize> },
    /// Everything below a folder.
    Folder(PathBuf),
}

/// What a folder stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Folders {
    AllBelow,
    Themselves,
}

/// All that was asked about.
#[derive(Debug, Default)]
pub struct Targets {
    targets: Vec<Target>,
    /// Handles on the files among them, for the source to identify.
    pub handles: Vec<OwnedFd>,
}

impl Targets {
    /// Understands what was written on the command line.
    ///
    /// # Errors
    /// Names what cannot be understood or opened.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a OsStr>) -> anyhow::Result<Self> {
        let mut targets = Self::default();
        for text in texts {
            targets.add(text)?;
        }
        Ok(targets)
    }

    /// One file, which must be told by a path or a lock id.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn file(text: &OsStr) -> anyhow::Result<Self> {
        let mut targets = Self::default();
        if is_lock_id(text) {
            targets.add(text)?;
        } else {
            targets.add_path(text, Folders::AllBelow)?;
        }
        Ok(targets)
    }

    /// Like [`Self::file`], but a folder is a file as well, and nothing below it is meant.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn itself(text: &OsStr) -> anyhow::Result<Self> {
        let mut targets = Self::default();
        if is_lock_id(text) {
            targets.add(text)?;
        } else {
            targets.add_path(text, Folders::Themselves)?;
        }
        Ok(targets)
    }

    fn add(&mut self, text: &OsStr) -> anyhow::Result<()> {
        if text.is_empty() {
            anyhow::bail!("target: \"\": an empty name names nothing");
        }
        if let Some(pid) = text.to_str().and_then(|text| text.strip_prefix("pid:")) {
            let number = pid.parse::<Pid>().ok().filter(|&pid| pid > 0);
            let pid = number.with_context(|| format!("target: pid:{pid}: not a process number"))?;
            self.targets.push(Target::Process(pid));
        } else if is_lock_id(text) {
            self.targets.push(Target::Id(text.to_string_lossy().into_owned()));
        } else if text.as_bytes().contains(&b'/') || text == "." || text == ".." {
            self.add_path(text, Folders::AllBelow)?;
        } else {
            self.targets.push(Target::Name(text.to_owned()));
        }
        Ok(())
    }

    fn add_path(&mut self, text: &OsStr, folders: Folders) -> anyhow::Result<()> {
        let path = Path::new(text);
        let what = || format!("target: {}", shown(path));
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let handle = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(handle) => Some(handle),
            // A lock outlives the name of its file: it may be found by the path that it had.
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error).with_context(what),
        };
        match handle {
            Some(handle)
                if folders == Folders::AllBelow
                    && fs::metadata(path).with_context(what)?.is_dir() =>
            {
                drop(handle);
                let folder = fs::canonicalize(path).with_context(what)?;
                self.targets.push(Target::Folder(folder));
            }
            handle => {
                let path = std::path::absolute(path).with_context(what)?;
                let handle = handle.map(|handle| {
                    self.handles.push(handle);
                    self.handles.len() - 1
                });
                self.targets.push(Target::File { path, handle });
            }
        }
        Ok(())
    }

    /// Places in `view.locks` of what was asked about; of all locks where nothing was.
    ///
    /// `files` are the kernel's identities of [`Self::handles`].
    ///
    /// # Errors
    /// Where a path names no file and no lock remembers it, or a file could not be identified.
    pub fn select(&self, view: &View, files: &[Option<(Dev, u64)>]) -> anyhow::Result<Vec<u32>> {
        let all = 0..view.locks.len() as u32;
        if self.targets.is_empty() {
            return Ok(all.collect());
        }
        let mut wanted = vec![false; view.locks.len()];
        for target in &self.targets {
            let identity = self.identity(target, files)?;
            let mut found = false;
            for (lock, wanted) in view.locks.iter().zip(&mut wanted) {
                if target.is(view, lock, identity) {
                    *wanted = true;
                    found = true;
                }
            }
            if let Target::File { path, handle: None } = target
                && !found
            {
                anyhow::bail!(
                    "target: {}: no such file, and no lock remembers that path",
                    shown(path)
                );
            }
        }
        Ok(all.filter(|&place| wanted[place as usize]).collect())
    }

    fn identity(
        &self,
        target: &Target,
        files: &[Option<(Dev, u64)>],
    ) -> anyhow::Result<Option<(Dev, u64)>> {
        match target {
            Target::File { path, handle: Some(handle) } => {
                let identity = files.get(*handle).copied().flatten();
                let what = || format!("target: {}: its device could not be told", shown(path));
                Ok(Some(identity.with_context(what)?))
            }
            _ => Ok(None),
        }
    }
}

impl Target {
    fn is(&self, view: &View, lock: &LockView, identity: Option<(Dev, u64)>) -> bool {
        let file = view.file(lock);
        let path = file.path.as_deref().map(|path| Path::new(OsStr::from_bytes(path)));
        match self {
            Self::Process(pid) => concerns(view, lock, *pid),
            Self::Id(id) => lock.id.to_string() == *id,
            Self::Name(name) => path.and_then(Path::file_name) == Some(name),
            Self::File { .. } if identity.is_some() => identity == Some((file.dev, file.ino)),
            Self::File { path: wanted, .. } => path == Some(wanted),
            Self::Folder(folder) => path.is_some_and(|path| path.starts_with(folder)),
        }
    }
}

/// True where the process took the lock, holds it or waits for it.
fn concerns(view: &View, lock: &LockView, pid: Pid) -> bool {
    let is = |of: Pid| labels::reader_pid(view, of) == pid;
    let recorded = |recorded| matches!(recorded, RecordedPid::Local(of) if is(of));
    recorded(view.lock(lock).acquirer)
        || view.holdings(lock).any(|holding| holding.pid.is_some_and(is))
        || view
            .waiters(lock)
            .iter()
            .any(|&waiter| recorded(view.snapshot.waiters[waiter as usize].requester))
}

fn shown(path: &Path) -> Escaped<'_> {
    Escaped(path.as_os_str().as_bytes())
}

/// `MAJOR:MINOR:INODE-HASH`, the first two and the last in hexadecimal.
fn is_lock_id(text: &OsStr) -> bool {
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some((place, hash)) = text.to_str().and_then(|text| text.split_once('-')) else {
        return false;
    };
    let mut parts = place.split(':');
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    hex(hash)
        && parts.next().is_some_and(hex)
        && parts.next().is_some_and(hex)
        && parts.next().is_some_and(number)
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_told_from_a_file_name() {
        for id in ["fe:00:131-a1b2c3d4", "103:1a:7-0011223344556677"] {
            assert!(is_lock_id(OsStr::new(id)), "{id}");
        }
        for name in ["a-b", "fe:00-a1", "fe:00:131-", "fe:00:13x-a1", "fe:00:1:2-a1", "x:0:1-a"] {
            assert!(!is_lock_id(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn what_names_no_process_is_an_error_that_names_it() {
        for text in ["pid:", "pid:x", "pid:-1", "pid:0", "pid:99999999999"] {
            let error = Targets::parse([OsStr::new(text)]).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(Targets::parse([OsStr::new("")]).is_err());
    }
}
