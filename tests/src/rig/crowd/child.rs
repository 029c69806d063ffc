//! One child of a crowd: how it begins, waits and ends.
//!
//! The rig has no second thread while a crowd plays, so that a child may go on in the same code.

use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::rig::birth::{self, Born};
use crate::rig::language::Birth;

/// The exit code of a child in which something failed.
const FAILED: libc::c_int = 99;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exit(libc::c_int),
    Signal(libc::c_int),
}

/// The ends that are crashes.
pub(super) const CRASHES: [End; 4] = [
    End::Signal(libc::SIGKILL),
    End::Exit(3),
    End::Signal(libc::SIGTERM),
    End::Signal(libc::SIGABRT),
];

/// A child that does its part and exits: 0, or noisily where that fails.
pub(super) fn fork(part: impl FnOnce() -> Result<()>) -> Result<libc::pid_t> {
    fork_as(&Birth::default(), part)
}

/// The same with a pid of choice, say.
pub(super) fn fork_as(birth: &Birth, part: impl FnOnce() -> Result<()>) -> Result<libc::pid_t> {
    match birth::fork(birth).context("fork")? {
        Born::Parent { child } => Ok(child),
        Born::Child => {
            // SAFETY: takes numbers only.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if let Err(error) = part() {
                eprintln!("rig: crowd: {error:#}");
                end(End::Exit(FAILED));
            }
            end(End::Exit(0))
        }
    }
}

/// Ends this process.
pub(super) fn end(end: End) -> ! {
    match end {
        // SAFETY: takes a number, and does not come back.
        End::Exit(code) => unsafe { libc::_exit(code) },
        End::Signal(signal) => loop {
            // SAFETY: takes numbers only; a signal that is fatal by default.
            unsafe { libc::kill(libc::getpid(), signal) };
        },
    }
}

/// Ends another one.
pub(super) fn kill(pid: libc::pid_t) {
    // SAFETY: takes numbers only. A child that nobody waited for keeps its pid.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Closes every descriptor of this process but one and the standard three.
pub(super) fn keep_only(file: OwnedFd) -> Result<OwnedFd> {
    const FIRST: libc::c_int = 3;
    let file = file.into_raw_fd();
    // SAFETY: numbers only. Whatever has the others here is not used again: this process takes no
    // more than a lock, and ends.
    let kept = unsafe { libc::dup2(file, FIRST) };
    // SAFETY: as above.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, FIRST + 1, libc::c_uint::MAX, 0) };
    if kept == -1 || closed == -1 {
        return Err(io::Error::last_os_error()).context("closing what is others'");
    }
    // SAFETY: it is open, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(kept) })
}

/// From here on this process runs only where nobody else wants to.
pub(super) fn give_way() -> Result<()> {
    let nothing = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are whole and outlive the call.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const nothing) };
    if set == -1 {
        return Err(io::Error::last_os_error()).context("sched_setscheduler");
    }
    Ok(())
}

/// Waits until a child is gone. Its status is lost: children of a rig are reaped unseen.
pub(super) fn wait(pid: libc::pid_t) {
    // SAFETY: no status is asked for.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// Sleeps until somebody ends it.
pub(super) fn rest() -> ! {
    loop {
        // SAFETY: no arguments.
        unsafe { libc::pause() };
    }
}

/// A word that one process gives another: a pipe for one number.
pub(super) struct Word {
    hear: PipeReader,
    say: PipeWriter,
}

impl Word {
    pub(super) fn new() -> Result<Self> {
        let (hear, say) = io::pipe().context("a pipe")?;
        Ok(Self { hear, say })
    }

    pub(super) fn say(&self, number: i32) -> Result<()> {
        (&self.say).write_all(&number.to_ne_bytes()).context("saying a word")
    }

    /// Waits for it. For ever, where nobody says it: then the test is over its time.
    pub(super) fn hear(&self) -> Result<i32> {
        let mut number = [0; 4];
        (&self.hear).read_exact(&mut number).context("hearing a word")?;
        Ok(i32::from_ne_bytes(number))
    }
}
