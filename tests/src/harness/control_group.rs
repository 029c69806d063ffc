//! A control group for a test, in the place where a container runtime would put it.
//!
//! Refuses to leave anything: its processes go back to where the test is, and the group away, when
//! the value does.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The folder of the unified hierarchy.
pub(super) fn hierarchy() -> Result<PathBuf> {
    ensure!(rustix::process::geteuid().is_root(), "not root");
    let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let folder = line.and_then(|line| line.split(' ').nth(1)).context("no cgroup2 is mounted")?;
    Ok(PathBuf::from(folder))
}

/// The group.
pub struct ControlGroup {
    hierarchy: PathBuf,
    /// The folders that were made, the innermost last.
    made: Vec<PathBuf>,
}

impl ControlGroup {
    /// Makes the group `path`, relative to the hierarchy's root, with what is missing above it.
    pub fn new(path: &str) -> Result<Self> {
        let hierarchy = hierarchy()?;
        let mut group = Self { made: Vec::new(), hierarchy: hierarchy.clone() };
        let mut folder = hierarchy;
        for part in path.split('/') {
            folder.push(part);
            if !folder.exists() {
                fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
                group.made.push(folder.clone());
            }
        }
        Ok(group)
    }

    /// Puts a process in.
    pub fn add(&self, pid: i32) -> Result<()> {
        let folder = self.made.last().context("the group was there already")?;
        let procs = folder.join("cgroup.procs");
        fs::write(&procs, pid.to_string()).with_context(|| procs.display().to_string())
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let root = self.hierarchy.join("cgroup.procs");
        for folder in self.made.iter().rev() {
            let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines() {
                // One that is dead meanwhile is in no group.
                let _ = fs::write(&root, pid);
            }
            if let Err(error) = fs::remove_dir(folder) {
                eprintln!("{}: {error}", folder.display());
            }
        }
    }
}
