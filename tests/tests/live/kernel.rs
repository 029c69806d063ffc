//! What the kernel itself says, for the tests of the rig and for comparison.

use std::fs;

use anyhow::{Context, Result};
use lockwatch_tests::harness::{FileId, patience};

/// The lines of `/proc/locks` about one file, without their number, blanks made single:
/// `FLOCK ADVISORY WRITE 123 0 EOF`, a waiter's with `-> ` before it.
pub(crate) fn proc_locks_on(file: &FileId) -> Result<Vec<String>> {
    // The file is read a page at a time, by position: while others take and give up locks, a
    // reader can miss what was there all the time. So look until two looks agree.
    let mut before = None;
    patience::until("a steady /proc/locks", || {
        let text = fs::read_to_string("/proc/locks").context("/proc/locks")?;
        let identity = format!("{}:{}", file.dev, file.ino);
        let now: Vec<_> =
            text.lines().filter_map(|line| without_identity(line, &identity)).collect();
        let steady = before.as_ref() == Some(&now);
        before = Some(now);
        Ok(steady.then(|| before.take()).flatten())
    })
}

/// The same of the `lock:` lines of `/proc/PID/fdinfo`, of all descriptors.
pub(crate) fn fdinfo_locks_on(pid: i32, file: &FileId) -> Result<Vec<String>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let identity = format!("{}:{}", file.dev, file.ino);
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        // A descriptor may be closed while we look.
        let Ok(text) = fs::read_to_string(entry.context("fdinfo")?.path()) else { continue };
        let locks = text.lines().filter_map(|line| line.strip_prefix("lock:"));
        found.extend(locks.filter_map(|line| without_identity(line, &identity)));
    }
    Ok(found)
}

fn without_identity(line: &str, identity: &str) -> Option<String> {
    let words: Vec<_> = line.split_ascii_whitespace().skip(1).collect();
    let rest: Vec<_> = words.iter().copied().filter(|word| *word != identity).collect();
    (rest.len() < words.len()).then(|| rest.join(" "))
}

/// The descriptors of a process, as links, by number.
pub(crate) fn descriptors(pid: i32) -> Result<Vec<(i32, String)>> {
    let folder = format!("/proc/{pid}/fd");
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.clone())? {
        let entry = entry.context("fd")?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(link) = fs::read_link(entry.path()) {
            found.push((number, link.to_string_lossy().into_owned()));
        }
    }
    found.sort();
    Ok(found)
}

/// True where the process has not exec'd since it was forked (`PF_FORKNOEXEC`).
pub(crate) fn has_not_execd(pid: i32) -> Result<bool> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("stat")?;
    let flags: u64 = fields.split(' ').nth(6).context("no flags")?.parse().context("flags")?;
    Ok(flags & 0x40 != 0)
}
