//! Who descends from a process, and the end of all of them.
//!
//! Everything that a test starts descends from the test's own process, which adopts orphans: so
//! nothing is ever looked for by name, and nobody else's processes are touched.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions};

use super::patience;

/// What `/proc/PID/stat` says of a process.
pub(super) struct Stat {
    pub(super) comm: String,
    pub(super) state: char,
    pub(super) parent: i32,
    /// In clock ticks since boot: with the pid its identity.
    pub(super) start: u64,
    /// On its way out (`PF_EXITING`), or dead by now.
    pub(super) exiting: bool,
}

/// `PF_EXITING` of `include/linux/sched.h`.
const PF_EXITING: u64 = 4;

/// Reads it; `None` where there is no such process (any more).
pub(super) fn stat(pid: i32) -> Option<Stat> {
    // A comm need not be UTF-8.
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The comm may hold anything, also ") "; the fields after it cannot.
    let (head, rest) = text.rsplit_once(") ")?;
    let (_, comm) = head.split_once('(')?;
    let fields: Vec<_> = rest.split(' ').collect();
    Some(Stat {
        comm: comm.to_owned(),
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        exiting: fields.get(6)?.parse::<u64>().ok()? & PF_EXITING != 0,
    })
}

/// Every process below `root` that lives, with its start.
pub fn alive_below(root: i32) -> Result<Vec<(i32, u64)>> {
    let start = |pid| stat(pid).filter(|stat| stat.state != 'Z').map(|stat| (pid, stat.start));
    Ok(descendants(root)?.into_iter().filter_map(start).collect())
}

/// Whether a process lives still.
pub fn is_alive((pid, start): (i32, u64)) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.start == start)
}

/// Every process below `root`, zombies included.
pub(super) fn descendants(root: i32) -> Result<Vec<i32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry.context("/proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if let Some(stat) = stat(pid) {
            parents.push((pid, stat.parent));
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.remove(0);
    Ok(found)
}

/// Kills everything below `root`; true where nothing was left but exit statuses.
pub(super) fn kill_below(root: i32) -> Result<bool> {
    let mut all_dead = true;
    for pid in descendants(root)? {
        if stat(pid).is_some_and(|stat| stat.state != 'Z') {
            all_dead = false;
            kill(pid)?;
        }
    }
    Ok(all_dead)
}

/// Kills everything below this process and waits until it is gone.
pub(super) fn end_all() -> Result<()> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    patience::until("the end of all descendants", || {
        kill_below(own)?;
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        Ok(descendants(own)?.is_empty().then_some(()))
    })
}

/// Sends SIGKILL; a process that is gone is fine.
pub(super) fn kill(pid: i32) -> Result<()> {
    let Some(target) = Pid::from_raw(pid) else { return Ok(()) };
    match rustix::process::kill_process(target, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("killing {pid}")),
    }
}

/// True where the kernel can give the number to a new process. Since Linux 6.13 that is a moment
/// after the process is gone from /proc, and until then its locks still show its pid to readers
/// in other pid namespaces.
pub(super) fn is_free(pid: i32) -> Result<bool> {
    let (pipe, _) = io::pipe().context("a pipe")?;
    // Unlike kill(2), F_SETOWN asks for the number alone, and not for a process behind it.
    // SAFETY: takes numbers only; the pipe that gets an owner is closed again.
    let answer = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETOWN, pid) };
    if answer != -1 {
        return Ok(false);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
        error => Err(error).context("F_SETOWN"),
    }
}

/// Takes the exit status of a child that died, if it is one.
pub(super) fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // Not a child, or not dead: its own parent reaps it, or nobody yet.
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// Makes this process adopt what its descendants leave, and die with the one that started it.
pub(super) fn adopt_and_die_with_parent() -> Result<()> {
    use rustix::process;
    let parent = process::getppid();
    process::set_child_subreaper(Some(process::getpid())).context("PR_SET_CHILD_SUBREAPER")?;
    process::set_parent_process_death_signal(Some(Signal::KILL)).context("PR_SET_PDEATHSIG")?;
    // The parent may have died before that was set.
    ensure!(process::getppid() == parent, "the runner is gone");
    Ok(())
}
