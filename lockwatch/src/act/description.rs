//! An open file description that was fetched: the proof that it is the planned one, and its
//! unlocking.
//!
//! Refuses to unlock a POSIX lock: it belongs to an fd table, and through a fetched descriptor the
//! kernel says success and the lock stays.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::fs::FlockOperation;

use super::ActError;
use crate::engine::identity::{LockKind, Pid, Range};
use crate::engine::input::LockName;
use crate::engine::reclaim::Race;

/// `KCMP_FILE` of `include/uapi/linux/kcmp.h`.
const KCMP_FILE: libc::c_int = 0;

/// A descriptor of our own on somebody's description.
pub struct Description(OwnedFd);

impl Description {
    /// What was fetched.
    pub fn new(fetched: OwnedFd) -> Self {
        Self(fetched)
    }

    /// The number of our descriptor.
    pub fn number(&self) -> u32 {
        self.0.as_raw_fd().unsigned_abs()
    }

    /// Finds that another task's descriptor is this very description now.
    ///
    /// # Errors
    /// [`ActError::Race`] where it is not; [`ActError::Call`] where the kernel does not tell.
    pub fn is_that_of(&self, tid: Pid, fd: u32) -> Result<(), ActError> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: takes numbers only.
        let order =
            unsafe { libc::syscall(libc::SYS_kcmp, own, tid, KCMP_FILE, self.0.as_raw_fd(), fd) };
        match order {
            0 => Ok(()),
            1.. => Err(ActError::Race(Race::Description)),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EBADF) => {
                    Err(ActError::Race(Race::Description))
                }
                error if error.raw_os_error() == Some(libc::ESRCH) => {
                    Err(ActError::Race(Race::Process { pid: tid, what: "is gone" }))
                }
                error => {
                    Err(ActError::call(format!("compare with descriptor {fd} of {tid}"), error))
                }
            },
        }
    }

    /// Its locks, as the kernel prints them: kind, access, who took them, bytes.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn locks(&self) -> Result<String, ActError> {
        locks_behind("self", self.number())
    }

    /// Finds that its locks are what they were: the last look before they are touched.
    ///
    /// # Errors
    /// [`ActError::Race`] where they are not.
    pub fn still_has(&self, locks: &str) -> Result<(), ActError> {
        if self.locks()? == locks {
            return Ok(());
        }
        Err(ActError::Race(Race::Another { what: "it changed at the last moment" }))
    }

    /// Gives up that one lock of the description.
    ///
    /// # Errors
    /// Those of the kernel, and for a kind that cannot be given up so.
    pub fn unlock(&self, lock: &LockName) -> Result<(), ActError> {
        match lock.kind {
            LockKind::Flock => rustix::fs::flock(&self.0, FlockOperation::Unlock)
                .map_err(|error| ActError::call("flock(LOCK_UN)", error)),
            LockKind::Ofd => self.unlock_range(lock.range),
            LockKind::Lease => {
                // SAFETY: the descriptor is open; takes numbers only.
                match unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) } {
                    0 => Ok(()),
                    _ => Err(ActError::last("fcntl(F_SETLEASE, F_UNLCK)")),
                }
            }
            LockKind::Posix | LockKind::Deleg | LockKind::Layout => Err(ActError::Impossible(
                format!("a {} lock does not belong to a description", lock.kind.name()),
            )),
        }
    }

    fn unlock_range(&self, range: Range) -> Result<(), ActError> {
        let request = unlock_request(range)?;
        // SAFETY: the descriptor is open, and the kernel only reads `request`.
        match unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) } {
            0 => Ok(()),
            _ => Err(ActError::last("fcntl(F_OFD_SETLK, F_UNLCK)")),
        }
    }
}

/// The locks of a descriptor of `/proc/TASK`.
pub(super) fn locks_behind(task: &str, fd: u32) -> Result<String, ActError> {
    let path = format!("/proc/{task}/fdinfo/{fd}");
    let text =
        std::fs::read_to_string(&path).map_err(|error| ActError::call(path.clone(), error))?;
    let locks = text.lines().filter(|line| line.starts_with("lock:"));
    // They are numbered by their place in the list, which others change.
    Ok(locks.map(|line| line.splitn(3, ':').last().unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}

/// The request that gives up exactly these bytes.
pub(super) fn unlock_request(range: Range) -> Result<libc::flock, ActError> {
    let out_of_range =
        || ActError::Impossible(format!("{range:?}: bytes that fcntl(2) cannot name"));
    let start = i64::try_from(range.start).map_err(|_| out_of_range())?;
    let len = match range.end() {
        None => 0,
        Some(end) => end
            .checked_sub(range.start)
            .and_then(|len| i64::try_from(len).ok()?.checked_add(1))
            .ok_or_else(out_of_range)?,
    };
    Ok(libc::flock {
        l_type: libc::F_UNLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_given_up_to_its_last_byte_and_no_further() {
        let request = |start, end| {
            let request = unlock_request(Range::new(start, end)).unwrap();
            (request.l_start, request.l_len)
        };
        assert_eq!(request(0, None), (0, 0), "length 0 is up to the end of the file");
        assert_eq!(request(10, Some(19)), (10, 10));
        assert_eq!(request(7, Some(7)), (7, 1));
        assert!(unlock_request(Range::new(u64::MAX, None)).is_err());
        assert!(unlock_request(Range::new(5, Some(4))).is_err());
    }
}
