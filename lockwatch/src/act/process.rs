//! A handle on one process: the one that was planned, whoever gets its pid later.
//!
//! Refuses a pid alone: the start time is read while the handle proves that the pid is still the
//! handle's own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Signal};

use super::ActError;
use crate::engine::identity::{Pid, StartTime};
use crate::engine::reclaim::{Holder, Race};

/// `PIDFD_THREAD` of `include/uapi/linux/pidfd.h`, from 6.9 on.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// A pidfd of a process that is known by pid and start.
pub struct Handle {
    pidfd: OwnedFd,
    pid: Pid,
}

impl Handle {
    /// Opens a handle on the planned process.
    ///
    /// # Errors
    /// [`ActError::Race`] where it is gone or another process has its pid.
    pub fn open(holder: &Holder) -> Result<Self, ActError> {
        let pidfd = pidfd(holder.reader_pid, PidfdFlags::empty())?;
        let handle = Self { pidfd, pid: holder.reader_pid };
        handle.is_the_one(holder.process.start)?;
        Ok(handle)
    }

    /// Opens a handle on the planned thread, which has an fd table of its own.
    ///
    /// # Errors
    /// As for [`Self::open`], and where the kernel has no handles on threads (before 6.9).
    pub fn open_thread(holder: &Holder) -> Result<Self, ActError> {
        let process = Self::open(holder)?;
        let flags = PidfdFlags::from_bits_retain(PIDFD_THREAD);
        let pidfd = match pidfd(holder.tid, flags) {
            Err(ActError::Call { error, .. }) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(ActError::Impossible(format!(
                    "the descriptor is in a table of thread {} alone, and this kernel has no \
                     handles on threads (they came with 6.9)",
                    holder.tid
                )));
            }
            pidfd => pidfd?,
        };
        let thread = Self { pidfd, pid: holder.tid };
        // The handle keeps the number from being given away: while both live, it is the
        // process's thread if it is listed below it.
        let listed = format!("/proc/{}/task/{}", holder.reader_pid, holder.tid);
        if !std::path::Path::new(&listed).exists() || !thread.runs()? || !process.runs()? {
            return Err(gone(holder.tid));
        }
        Ok(thread)
    }

    /// The start of whoever has the pid now is that of the handle's process as long as that one
    /// lives afterwards: a pid is not given away before its process is reaped.
    fn is_the_one(&self, start: StartTime) -> Result<(), ActError> {
        let what = || format!("read /proc/{}/stat", self.pid);
        let stat = procfs::process::Process::new(self.pid).and_then(|process| process.stat());
        let ticks = match stat {
            Ok(stat) => stat.starttime,
            Err(procfs::ProcError::NotFound(_)) => return Err(gone(self.pid)),
            Err(error) => return Err(ActError::call(what(), io::Error::other(error))),
        };
        if !self.runs()? {
            return Err(gone(self.pid));
        }
        if ticks != start.ticks() {
            let what = "is another process";
            return Err(ActError::Race(Race::Process { pid: self.pid, what }));
        }
        Ok(())
    }

    /// True while the process has not ended.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn runs(&self) -> Result<bool, ActError> {
        Ok(!self.ends_within(Duration::ZERO)?)
    }

    /// Waits for the end of the process; false where it did not come in time.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn ends_within(&self, time: Duration) -> Result<bool, ActError> {
        let what = || format!("wait for pid {}", self.pid);
        let deadline = std::time::Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let left = Timespec::try_from(left)
                .map_err(|error| ActError::call(what(), io::Error::other(error)))?;
            let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut ended, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(ActError::call(what(), error)),
            }
        }
    }

    /// Sends a signal to this very process.
    ///
    /// # Errors
    /// [`ActError::Race`] where it is gone.
    pub fn send(&self, signal: Signal) -> Result<(), ActError> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(gone(self.pid)),
            Err(error) => Err(ActError::call(format!("signal pid {}", self.pid), error)),
        }
    }

    /// Fetches one of its descriptors: the same description, in a table of our own.
    ///
    /// # Errors
    /// [`ActError::Race`] where it has no such descriptor, or is gone.
    pub fn fetch(&self, fd: u32) -> Result<OwnedFd, ActError> {
        let number = i32::try_from(fd).map_err(|_| {
            ActError::Impossible(format!("descriptor {fd} is not a number that can be fetched"))
        })?;
        match rustix::process::pidfd_getfd(&self.pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(fetched) => Ok(fetched),
            Err(Errno::SRCH) => Err(gone(self.pid)),
            Err(Errno::BADF) => {
                let what = "has closed that descriptor";
                Err(ActError::Race(Race::Process { pid: self.pid, what }))
            }
            Err(error) => {
                Err(ActError::call(format!("fetch descriptor {fd} of pid {}", self.pid), error))
            }
        }
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn gone(pid: Pid) -> ActError {
    ActError::Race(Race::Process { pid, what: "is gone" })
}

fn pidfd(pid: Pid, flags: PidfdFlags) -> Result<OwnedFd, ActError> {
    let number = rustix::process::Pid::from_raw(pid).ok_or_else(|| gone(pid))?;
    match rustix::process::pidfd_open(number, flags) {
        Ok(pidfd) => Ok(pidfd),
        Err(Errno::SRCH) => Err(gone(pid)),
        Err(error) => Err(ActError::call(format!("open a handle on pid {pid}"), error)),
    }
}
