//! Whatever there is to do to locks, at random, on files that many processes share.
//!
//! Refuses to wait for ever: two that wait for each other are woken by an alarm.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use rustix::io::Errno;

use super::chance::Chance;
use super::{Set, child, open};
use crate::rig::language::{Access, Asked, Range, Record};
use crate::rig::locking::{self, Patience};

/// Files that all crowds in a folder share.
const FILES: u64 = 6;
/// Descriptions that a process has at once.
const OPEN: u64 = 8;
/// How long anybody waits, microseconds.
const PATIENCE: i64 = 2_000;

/// Does so many operations.
pub(super) fn play(set: &Set, count: u32, mut chance: Chance) -> Result<u32> {
    wake_from_waits()?;
    let shared =
        |chance: &mut Chance| open(&set.folder.join(format!("mixed-{}", chance.below(FILES))));
    let mut files: Vec<OwnedFd> = Vec::new();
    for _ in 0..OPEN {
        files.push(shared(&mut chance)?);
    }
    let leased = open(&set.path("lease", 0))?;
    for _ in 0..count {
        let place = chance.below(OPEN) as usize;
        match chance.below(64) {
            0 => files[place] = shared(&mut chance)?,
            1 => heir(&files[place], &mut chance)?,
            2 | 3 => {
                let access = chance.of(&[Access::Exclusive, Access::Shared, Access::Unlock]);
                // A read lease is refused on a file that is open for writing, and so on.
                let _ = locking::take(leased.as_fd(), Asked::Lease(access), Patience::None);
            }
            4 => {
                alarm(PATIENCE)?;
                tolerate(locking::take(files[place].as_fd(), any(&mut chance), Patience::Endless))?;
                alarm(0)?;
            }
            _ => {
                tolerate(locking::take(files[place].as_fd(), any(&mut chance), Patience::None))?;
            }
        }
    }
    Ok(count)
}

fn any(chance: &mut Chance) -> Asked {
    use Access::{Exclusive, Shared, Unlock};
    let access = chance.of(&[Shared, Shared, Exclusive, Unlock, Unlock]);
    let kind = chance.below(3);
    if kind == 0 {
        return Asked::Flock(access);
    }
    let record = if kind == 1 { Record::Posix } else { Record::Ofd };
    let start = chance.below(32);
    let range = match chance.below(8) {
        0 => Range { start: 0, end: None },
        1 => Range { start, end: None },
        _ => Range { start, end: Some(start + chance.below(16)) },
    };
    // Locks would only become more.
    let access = if range.end.is_none() { Unlock } else { access };
    Asked::Record(record, access, range)
}

/// A refusal, a deadlock that the kernel saw, an alarm: all in the day's work.
fn tolerate(done: Result<()>) -> Result<()> {
    let Err(error) = done else { return Ok(()) };
    let code = error.chain().find_map(|cause| {
        let rustix = cause.downcast_ref::<Errno>().map(|errno| errno.raw_os_error());
        rustix.or_else(|| cause.downcast_ref::<std::io::Error>()?.raw_os_error())
    });
    match code {
        Some(libc::EAGAIN | libc::EACCES | libc::EDEADLK | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

/// A child has every descriptor for a moment, and may lock what is its parent's description.
fn heir(file: &OwnedFd, chance: &mut Chance) -> Result<()> {
    let (asked, end) = (any(chance), chance.of(&[child::End::Exit(0), child::CRASHES[0]]));
    let heir = child::fork(|| {
        tolerate(locking::take(file.as_fd(), asked, Patience::None))?;
        child::end(end)
    })?;
    child::wait(heir);
    Ok(())
}

fn wake_from_waits() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: all zeros are a valid action: no flags, so that calls are not begun anew.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: the action is whole, and its handler does nothing.
    if unsafe { libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()) } == -1 {
        return Err(std::io::Error::last_os_error()).context("sigaction");
    }
    Ok(())
}

/// Rings again and again until it is set to 0: one ring may come before the wait.
fn alarm(microseconds: i64) -> Result<()> {
    let time = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the timer is whole and outlives the call.
    let set = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    if set == -1 {
        return Err(std::io::Error::last_os_error()).context("setitimer");
    }
    Ok(())
}
