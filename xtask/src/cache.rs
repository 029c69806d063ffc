//! The cache folder: things that were fetched or built once, each whole or not there at all.
//!
//! An entry is made in a folder beside its place and renamed when it is complete, under a lock
//! that lets one set-up at a time through. Knows nothing of what the entries are.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{interrupt, progress};

const PARTIAL: &str = ".partial-";
const POLL: Duration = Duration::from_millis(200);

/// The cache folder; it need not exist yet.
pub(crate) struct Cache {
    root: PathBuf,
}

/// The right to add entries, held by one process at a time.
pub(crate) struct Guard<'a> {
    cache: &'a Cache,
    // The lock ends with the descriptor, also when this process is killed.
    _lock: File,
}

impl Cache {
    /// The caller's cache folder.
    pub(crate) fn of_caller() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let root = place(variable("LOCKWATCH_CACHE"), variable("XDG_CACHE_HOME"), variable("HOME"))
            .context("finding a cache folder: neither LOCKWATCH_CACHE nor HOME is set; set one")?;
        Ok(Self { root: std::path::absolute(root).context("finding the cache folder")? })
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// Where an entry of this name is or would be.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The names of the complete entries that begin with `prefix`, newest first.
    pub(crate) fn entries(&self, prefix: &str) -> Vec<String> {
        let mut found: Vec<_> = fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let made = entry.metadata().ok()?.modified().ok()?;
                name.starts_with(prefix).then_some((made, name))
            })
            .collect();
        found.sort();
        found.into_iter().rev().map(|(_, name)| name).collect()
    }

    /// Waits until no other set-up is at work, and removes what interrupted ones left.
    pub(crate) fn lock(&self) -> Result<Guard<'_>> {
        let root = self.root.display();
        fs::create_dir_all(&self.root).with_context(|| {
            format!("making the cache folder {root} (LOCKWATCH_CACHE names another)")
        })?;
        let path = self.root.join(".lock");
        let lock = File::create(&path).with_context(|| {
            format!("opening {} (LOCKWATCH_CACHE names another folder)", path.display())
        })?;
        let mut said = false;
        // Asked again and again, not waited for in one call: the caller may interrupt the wait.
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if interrupt::happened() => bail!("interrupted"),
                Err(TryLockError::WouldBlock) => {
                    if !said {
                        progress::say("another set-up is at work, waiting for it");
                        said = true;
                    }
                    thread::sleep(POLL);
                }
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
        }
        for name in self.entries(PARTIAL) {
            remove(&self.root.join(name))?;
        }
        Ok(Guard { cache: self, _lock: lock })
    }
}

impl Guard<'_> {
    /// Makes an entry through `fill`, which gets an empty folder. The entry appears only when
    /// `fill` succeeded.
    pub(crate) fn make(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        // A killed set-up can leave a child that still writes: never share its folder.
        let partial = self.cache.path(&format!("{PARTIAL}{}-{name}", std::process::id()));
        fs::create_dir(&partial).with_context(|| format!("making {}", partial.display()))?;
        let whole = self.cache.path(name);
        let made = fill(&partial).and_then(|()| {
            if whole.exists() {
                remove(&whole)?;
            }
            fs::rename(&partial, &whole).with_context(|| format!("making {}", whole.display()))
        });
        if made.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_dir_all(&partial);
        }
        made.map(|()| whole)
    }
}

fn remove(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))
}

fn place(
    lockwatch: Option<PathBuf>,
    xdg: Option<PathBuf>,
    home: Option<PathBuf>,
) -> Option<PathBuf> {
    let set = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
    set(lockwatch)
        // The XDG specification: a relative path there is to be ignored.
        .or_else(|| set(xdg).filter(|path| path.is_absolute()).map(|path| path.join("lockwatch")))
        .or_else(|| set(home).map(|path| path.join(".cache/lockwatch")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_choice_comes_first() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(place(path("/c"), path("/x"), path("/h")), path("/c"));
        assert_eq!(place(path(""), path("/x"), path("/h")), path("/x/lockwatch"));
        assert_eq!(place(None, path("x"), path("/h")), path("/h/.cache/lockwatch"));
        assert_eq!(place(None, None, None), None);
    }

    #[test]
    fn an_entry_that_failed_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let guard = cache.lock().unwrap();
        let failed = guard.make("tool-1", |partial| {
            fs::write(partial.join("half"), "")?;
            bail!("the network went away")
        });
        assert!(failed.is_err());
        assert_eq!(cache.entries(""), [".lock"]);
    }

    #[test]
    fn an_entry_that_succeeded_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let path = cache
            .lock()
            .unwrap()
            .make("tool-1", |partial| Ok(fs::write(partial.join("all"), "x")?))
            .unwrap();
        assert_eq!(fs::read(path.join("all")).unwrap(), b"x");
        assert_eq!(cache.entries("tool-"), ["tool-1"]);
    }

    #[test]
    fn what_an_interrupted_set_up_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        fs::create_dir_all(folder.path().join(".partial-1-tool-1/deep")).unwrap();
        assert_eq!(cache.entries("tool-"), Vec::<String>::new());
        drop(cache.lock().unwrap());
        assert_eq!(cache.entries(".partial"), Vec::<String>::new());
    }

    #[test]
    fn one_set_up_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let guard = cache.lock().unwrap();
        let other = File::create(folder.path().join(".lock")).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(guard);
        other.try_lock().unwrap();
    }
}
