//! A lock of lockwatch's own on every CPU, on a file that nobody else can reach: from each the
//! program walks to all older locks of that CPU.
//!
//! Refuses to touch anybody's file, and to pretend: a CPU that could not be seeded is told.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const ONLINE: &str = "/sys/devices/system/cpu/online";

/// The seeds; they are gone with their descriptor.
pub(super) struct Seeds {
    file: OwnedFd,
    /// Tells the CPUs that are online, each time that it is read.
    online: File,
    /// CPUs on which no seed could be taken.
    pub(super) missing: Vec<usize>,
    /// CPUs on which one is held.
    held: Vec<usize>,
}

impl Seeds {
    /// Takes a lock on each CPU that is online. The thread goes from one to the next, and back.
    pub(super) fn take() -> io::Result<Self> {
        let file = memfd_create(c"lockwatch", MemfdFlags::CLOEXEC)?;
        let online = File::open(ONLINE)?;
        let mut seeds = Self { file, online, missing: Vec::new(), held: Vec::new() };
        seeds.take_anew()?;
        Ok(seeds)
    }

    /// Takes each anew, so that it is younger than every lock of now.
    pub(super) fn take_anew(&mut self) -> io::Result<()> {
        self.give_up()?;
        // The kernel writes it on one page.
        let mut list = [0; 4096];
        let length = self.online.read_at(&mut list, 0)?;
        let list = std::str::from_utf8(&list[..length]).ok();
        let online = list
            .and_then(parse)
            .ok_or_else(|| io::Error::other(format!("{ONLINE}: not a list of CPUs")))?;
        let home = sched_getaffinity(None)?;
        self.missing.clear();
        for cpu in online {
            if cpu >= CpuSet::MAX_CPU {
                self.missing.push(cpu);
                continue;
            }
            let mut only = CpuSet::new();
            only.set(cpu);
            match sched_setaffinity(None, &only) {
                Ok(()) => {
                    set(self.file.as_fd(), libc::F_RDLCK, cpu)?;
                    self.held.push(cpu);
                }
                Err(_) => self.missing.push(cpu),
            }
        }
        sched_setaffinity(None, &home)?;
        Ok(())
    }

    /// Gives all of them up, each as it was taken: so does the history see nothing unusual.
    pub(super) fn give_up(&mut self) -> io::Result<()> {
        for cpu in self.held.drain(..) {
            set(self.file.as_fd(), libc::F_UNLCK, cpu)?;
        }
        Ok(())
    }

    /// The descriptor that they are on.
    pub(super) fn descriptor(&self) -> u32 {
        self.file.as_raw_fd().unsigned_abs()
    }
}

/// Sets or gives up the byte of a CPU: every second one, so that the kernel does not make one lock of
/// two.
fn set(file: BorrowedFd<'_>, access: libc::c_int, cpu: usize) -> io::Result<()> {
    let lock = libc::flock {
        l_type: access as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(2 * cpu).map_err(io::Error::other)?,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and the kernel only reads `lock`.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `0-3,8`.
fn parse(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_understood() {
        assert_eq!(parse("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse("0\n"), Some(vec![0]));
        assert_eq!(parse("x"), None);
        assert_eq!(parse(""), None);
    }
}
