//! Takes locks: at once, or waiting in a thread.
//!
//! Refuses to wait in the actor's own thread: an actor must always hear the next command, and the
//! end of the test.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::FlockOperation;

use super::language::{Access, Asked, Range, Record};

/// Whether a lock that is not free is an error or is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    None,
    Endless,
}

/// Takes (or gives up) a lock.
pub(super) fn take(fd: BorrowedFd<'_>, asked: Asked, patience: Patience) -> Result<()> {
    let waits = patience == Patience::Endless;
    match asked {
        Asked::Flock(access) => {
            let operation = match (access, waits) {
                (Access::Shared, false) => FlockOperation::NonBlockingLockShared,
                (Access::Shared, true) => FlockOperation::LockShared,
                (Access::Exclusive, false) => FlockOperation::NonBlockingLockExclusive,
                (Access::Exclusive, true) => FlockOperation::LockExclusive,
                (Access::Unlock, _) => FlockOperation::Unlock,
            };
            rustix::fs::flock(fd, operation).context("flock")
        }
        Asked::Record(record, access, range) => {
            let operation = match (record, waits) {
                (Record::Posix, false) => libc::F_SETLK,
                (Record::Posix, true) => libc::F_SETLKW,
                (Record::Ofd, false) => libc::F_OFD_SETLK,
                (Record::Ofd, true) => libc::F_OFD_SETLKW,
            };
            let request = request(access, range)?;
            // SAFETY: `request` is a whole `struct flock` that outlives the call.
            let answer = unsafe { libc::fcntl(fd.as_raw_fd(), operation, &raw const request) };
            done(answer).context("fcntl lock")
        }
        Asked::Lease(access) => {
            // SAFETY: the call takes numbers only.
            let answer = unsafe {
                libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::c_int::from(kind(access)))
            };
            done(answer).context("fcntl lease")
        }
    }
}

/// Tries again and again until the lock is there.
pub(super) fn insist(fd: BorrowedFd<'_>, asked: Asked) -> Result<()> {
    loop {
        match take(fd, asked, Patience::None) {
            Err(error) if is_refusal(&error) => {}
            result => return result,
        }
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let errno = cause.downcast_ref::<rustix::io::Errno>();
        kind == Some(io::ErrorKind::WouldBlock) || errno == Some(&rustix::io::Errno::WOULDBLOCK)
    })
}

/// How many locks come and go at once in a churn.
const CHURNED: u64 = 64;

/// Takes many locks and gives them up again, in a thread, for as long as the process lives.
pub(super) fn churn(fd: BorrowedFd<'static>) -> Result<()> {
    let round = move || -> Result<()> {
        for number in 0..CHURNED {
            let range = Range { start: 2 * number, end: Some(2 * number) };
            let asked = Asked::Record(Record::Posix, Access::Exclusive, range);
            take(fd, asked, Patience::None)?;
        }
        let whole = Range { start: 0, end: None };
        take(fd, Asked::Record(Record::Posix, Access::Unlock, whole), Patience::None)
    };
    // Once here, so that what is wrong is said.
    round()?;
    let work = move || {
        let failed = std::iter::repeat_with(round).find_map(Result::err);
        eprintln!("rig: churn: {failed:?}");
    };
    thread::Builder::new().spawn(work).context("starting a thread")?;
    Ok(())
}

fn request(access: Access, range: Range) -> Result<libc::flock> {
    // A length of 0 is the kernel's way to say "to the end of the file".
    let length = range.end.map_or(0, |end| end - range.start + 1);
    let (whence, kind) = (i16::try_from(libc::SEEK_SET)?, i16::try_from(kind(access))?);
    Ok(libc::flock {
        l_type: kind,
        l_whence: whence,
        l_start: range.start.try_into().context("the first byte")?,
        l_len: length.try_into().context("the last byte")?,
        l_pid: 0,
    })
}

fn kind(access: Access) -> libc::c_int {
    match access {
        Access::Shared => libc::F_RDLCK,
        Access::Exclusive => libc::F_WRLCK,
        Access::Unlock => libc::F_UNLCK,
    }
}

fn done(answer: libc::c_int) -> io::Result<()> {
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a thread brings back: a descriptor that it opened, or nothing.
type Outcome = Result<Option<(String, RawFd)>>;

/// Something that was left for later.
pub(super) struct Later {
    thread: JoinHandle<Outcome>,
    /// The thread's folder under /proc.
    task: PathBuf,
}

/// How far it is.
pub(super) enum Progress {
    Running,
    Blocked,
    Done(Option<(String, RawFd)>),
    Failed(anyhow::Error),
}

impl Later {
    /// Starts `work` in a thread of its own.
    pub(super) fn start(work: impl FnOnce() -> Outcome + Send + 'static) -> Result<Self> {
        let (tell, hear) = mpsc::channel();
        let thread = thread::Builder::new()
            .spawn(move || {
                // The link, unlike gettid(), counts as the mounted /proc does.
                let task = fs::read_link("/proc/thread-self").context("/proc/thread-self");
                tell.send(task).map_err(|_| anyhow!("nobody waits for the thread's id"))?;
                work()
            })
            .context("starting a thread")?;
        let task = hear.recv().context("hearing from the thread")??;
        Ok(Self { thread, task: PathBuf::from("/proc").join(task) })
    }

    /// Looks how far it is; the thread itself comes back as long as it is not done.
    pub(super) fn progress(self) -> Result<(Option<Self>, Progress)> {
        if self.thread.is_finished() {
            let outcome = match self.thread.join() {
                Ok(Ok(opened)) => Progress::Done(opened),
                Ok(Err(error)) => Progress::Failed(error),
                Err(_) => bail!("the thread panicked"),
            };
            return Ok((None, outcome));
        }
        let blocked = self.is_blocked();
        Ok((Some(self), if blocked { Progress::Blocked } else { Progress::Running }))
    }

    /// True where the thread sleeps in one of the calls that may be left for later. The names of the kernel
    /// functions that they sleep in differ between kernels, the calls do not.
    fn is_blocked(&self) -> bool {
        // The thread may end at any moment, and its folder with it.
        let (Ok(stat), Ok(call)) = (
            fs::read_to_string(self.task.join("stat")),
            fs::read_to_string(self.task.join("syscall")),
        ) else {
            return false;
        };
        let asleep = stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['S', 'D']));
        let number = call.split(' ').next().and_then(|word| word.parse::<libc::c_long>().ok());
        let calls = [
            libc::SYS_flock,
            libc::SYS_fcntl,
            libc::SYS_openat,
            libc::SYS_read,
            libc::SYS_nanosleep,
            libc::SYS_poll,
            libc::SYS_epoll_wait,
            libc::SYS_futex,
            // What is taken up again in the middle of a wait.
            libc::SYS_restart_syscall,
        ];
        asleep && number.is_some_and(|number| calls.contains(&number))
    }

    /// For a forked child, in which the thread does not exist.
    pub(super) fn forget(self) {
        std::mem::forget(self.thread);
    }
}
