//! Threads that stand still, and go on when they are let go.
//!
//! Refuses to wait for ever for one that does not halt, and to touch one that somebody traces.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::super::ActError;
use super::super::process::Handle;
use super::registers::Registers;
use crate::engine::identity::Pid;
use crate::engine::reclaim::Race;

/// `PTRACE_EVENT_STOP` of `include/uapi/linux/ptrace.h`.
const EVENT_STOP: i32 = 128;
/// How long a thread has to come to a halt: one that waits uninterruptibly does not.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_micros(100);
/// Looks at a process's list of threads until no new one is there.
const LISTINGS: u32 = 100;

/// Halted threads. Whatever happens, they go on when this is dropped or the tracing thread ends.
#[derive(Default)]
pub(super) struct Halted {
    /// With the registers that they were halted with, those that have come to a halt.
    pub(super) threads: BTreeMap<i32, Option<Registers>>,
}

/// How a thread was found to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stand {
    /// Halted where a signal would be taken: the only place from which it goes on undisturbed.
    Halted,
    /// Before or behind a system call.
    Call,
    /// About to take this signal.
    Signal(i32),
    /// It has ended.
    Gone,
}

impl Halted {
    /// Halts every thread of a process.
    pub(super) fn halt(&mut self, pid: Pid, handle: &Handle) -> Result<(), ActError> {
        for _ in 0..LISTINGS {
            let mut new = Vec::new();
            for tid in threads(pid)? {
                if !self.threads.contains_key(&tid) && seize(tid)? {
                    self.threads.insert(tid, None);
                    new.push(tid);
                }
            }
            // The pid was the process's own all the while.
            if !handle.runs()? {
                return Err(ActError::Race(Race::Process { pid, what: "is gone" }));
            }
            if new.is_empty() {
                return Ok(());
            }
            for tid in new {
                if stand_still(tid)? {
                    self.threads.insert(tid, Some(Registers::read(tid)?));
                } else {
                    self.threads.remove(&tid);
                }
            }
        }
        Err(ActError::Impossible(format!("pid {pid} makes threads faster than they are halted")))
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        for (&tid, registers) in &self.threads {
            if let Some(again) = registers.and_then(|registers| registers.taken_up_again()) {
                // One that has ended meanwhile has no registers.
                let _ = again.write(tid);
            }
            request(libc::PTRACE_DETACH, tid, 0);
        }
    }
}

/// A request that takes numbers alone; false where the kernel refused it.
pub(super) fn request(request: libc::c_uint, tid: i32, data: usize) -> bool {
    // SAFETY: none of the requests made here has the kernel read or write this process's memory.
    unsafe { libc::ptrace(request, tid, 0_usize, data) != -1 }
}

fn threads(pid: Pid) -> Result<Vec<i32>, ActError> {
    let path = format!("/proc/{pid}/task");
    let listing = std::fs::read_dir(&path).map_err(|error| ActError::call(path.clone(), error))?;
    Ok(listing.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Begins to trace a thread and asks it to halt; false where nothing is left of it.
fn seize(tid: i32) -> Result<bool, ActError> {
    // SAFETY: PTRACE_O_TRACESYSGOOD is a number.
    let seized =
        unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0_usize, libc::PTRACE_O_TRACESYSGOOD) };
    if seized == -1 {
        let error = std::io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(false),
            Some(libc::EPERM) if is_dead(tid) => Ok(false),
            Some(libc::EPERM) => Err(ActError::Impossible(format!(
                "thread {tid} may not be traced, or somebody traces it already"
            ))),
            _ => Err(ActError::call(format!("trace thread {tid}"), error)),
        };
    }
    request(libc::PTRACE_INTERRUPT, tid, 0);
    Ok(true)
}

fn is_dead(tid: i32) -> bool {
    let stat = procfs::process::Process::new(tid).and_then(|process| process.stat());
    stat.map_or(true, |stat| matches!(stat.state, 'Z' | 'X'))
}

/// Waits until a thread that was asked to has halted; false where it has ended instead.
pub(super) fn stand_still(tid: i32) -> Result<bool, ActError> {
    loop {
        match stand(tid)? {
            Stand::Halted => return Ok(true),
            Stand::Gone => return Ok(false),
            // It takes its signal, and then halts.
            Stand::Signal(signal) => {
                request(libc::PTRACE_CONT, tid, signal.unsigned_abs() as usize);
            }
            Stand::Call => {
                request(libc::PTRACE_CONT, tid, 0);
            }
        }
    }
}

/// Waits for the next news of a thread.
pub(super) fn stand(tid: i32) -> Result<Stand, ActError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int at the pointer.
        let waited = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        match waited {
            0 if Instant::now() < deadline => std::thread::sleep(PAUSE),
            0 => {
                return Err(ActError::Impossible(format!(
                    "thread {tid} did not come to a halt: it waits in the kernel, uninterruptibly"
                )));
            }
            -1 => match std::io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Stand::Gone),
                error => return Err(ActError::call(format!("wait for thread {tid}"), error)),
            },
            _ if !libc::WIFSTOPPED(status) => return Ok(Stand::Gone),
            _ if status >> 16 == EVENT_STOP => return Ok(Stand::Halted),
            _ if libc::WSTOPSIG(status) == libc::SIGTRAP | 0x80 => return Ok(Stand::Call),
            _ => return Ok(Stand::Signal(libc::WSTOPSIG(status))),
        }
    }
}
