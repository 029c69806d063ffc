//! Who writes into a file that lost its lock: fanotify on that one file, for a bounded time.
//!
//! Refuses to open the file: where the kernel cannot name it without (a file system without file
//! handles, a kernel before 5.1), nothing is watched, and that is an error. What is written through a
//! mapping no event tells.

use std::fs::File;
use std::io::{self, Read as _};
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use super::bpf;
use crate::engine::input::{FileId, Wrote};
use crate::engine::reclaim::progress::Evicted;

/// Files that are watched at once; the kernel allows a user 128 groups.
const MOST: usize = 64;

/// The file whose name leads to what a descriptor of ours is of.
fn own(fd: &OwnedFd) -> std::ffi::CString {
    // A number has no NUL.
    std::ffi::CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// How many files are watched.
#[derive(Clone, Debug, Default)]
pub struct Watches(Arc<AtomicUsize>);

/// One place among them, given back when it is dropped.
struct Place(Watches);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watches {
    /// Watches a file that `evicted` had locked, on a thread of its own: for `time`, or until each of
    /// them has written; `told` is called once for each that does.
    ///
    /// # Errors
    /// Where it cannot be watched.
    pub fn begin(
        &self,
        file: FileId,
        evicted: Vec<Evicted>,
        time: Duration,
        told: impl Fn(Wrote) + Send + 'static,
    ) -> io::Result<()> {
        let place = Place(self.clone());
        if self.0.fetch_add(1, Ordering::Relaxed) >= MOST {
            return Err(io::Error::other(format!("{MOST} files are watched already")));
        }
        let group = mark(file, &evicted)?;
        std::thread::Builder::new().name("writes".into()).spawn(move || {
            let _place = place;
            if let Err(error) = listen(group, file, evicted, time, told) {
                log::warn!("watching who writes to {}:{}: {error}", file.dev, file.ino);
            }
        })?;
        Ok(())
    }
}

/// A fanotify group with a mark on the file alone.
fn mark(file: FileId, evicted: &[Evicted]) -> io::Result<File> {
    let flags =
        libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | libc::FAN_REPORT_FID;
    // SAFETY: takes numbers only.
    let group = unsafe { libc::fanotify_init(flags, 0) };
    if group < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made it, and nobody else has it.
    let group = unsafe { OwnedFd::from_raw_fd(group) };
    let handle = handle(file, evicted)?;
    let path = own(&handle);
    // SAFETY: the group is open, and the path ends with NUL and lives until the call returns.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            libc::FAN_MARK_ADD,
            libc::FAN_MODIFY,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    };
    if marked == 0 { Ok(group.into()) } else { Err(io::Error::last_os_error()) }
}

/// The file itself, not opened for anything, through the descriptor of one who has it.
fn handle(file: FileId, evicted: &[Evicted]) -> io::Result<OwnedFd> {
    let mut why = io::Error::other("none of them has a descriptor of it any more");
    for (pid, fd) in evicted.iter().filter_map(|of| Some((of.reader_pid, of.fd?))) {
        let path = format!("/proc/{pid}/fd/{fd}");
        match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(handle) if rustix::fs::fstat(&handle)?.st_ino == file.ino => return Ok(handle),
            Ok(_) => {}
            Err(error) => why = error.into(),
        }
    }
    Err(why)
}

fn listen(
    mut group: File,
    file: FileId,
    mut evicted: Vec<Evicted>,
    time: Duration,
    told: impl Fn(Wrote),
) -> io::Result<()> {
    let end = Instant::now() + time;
    let mut bytes = vec![0; 4096];
    while !evicted.is_empty() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&group, PollFlags::IN)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let length = match group.read(&mut bytes) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let at = bpf::now();
        for pid in writers(&bytes[..length])? {
            let Some(place) = evicted.iter().position(|of| of.reader_pid == pid) else { continue };
            let process = evicted.remove(place).process;
            // Somebody else may have its pid by now: who is gone cannot be told from that one.
            let stat = ::procfs::process::Process::new(pid).and_then(|process| process.stat());
            if stat.is_ok_and(|stat| stat.starttime == process.start.ticks()) {
                told(Wrote { file, process, at });
            }
        }
    }
    Ok(())
}

/// The pids of a read's events (`struct fanotify_event_metadata`), in their order.
fn writers(mut bytes: &[u8]) -> io::Result<Vec<i32>> {
    /// The offset of `pid`, behind `event_len`, `vers`, `reserved`, `metadata_len`, `mask`, `fd`.
    const PID: usize = 20;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed event of fanotify");
    let mut pids = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        let length = word(0).map(u32::from_ne_bytes).ok_or_else(malformed)? as usize;
        if length < size_of::<libc::fanotify_event_metadata>() || length > bytes.len() {
            return Err(malformed());
        }
        pids.push(word(PID).map(i32::from_ne_bytes).ok_or_else(malformed)?);
        bytes = &bytes[length..];
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(pid: i32, more: usize) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<libc::fanotify_event_metadata>() + more];
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[20..24].copy_from_slice(&pid.to_ne_bytes());
        bytes
    }

    #[test]
    fn each_event_names_who_wrote_whatever_follows_it() {
        let bytes = [event(7, 0), event(8, 28), event(9, 4)].concat();
        assert_eq!(writers(&bytes).unwrap(), [7, 8, 9]);
        assert!(writers(&bytes[..bytes.len() - 1]).is_err());
        assert!(writers(&[]).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_pids_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = writers(&bytes);
        }
    }
}
