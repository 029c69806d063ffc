//! The process that a hook runs under: it adopts whatever the hook leaves behind and ends all of
//! it, so that nothing of a hook outlives its time, whatever becomes of lockwatch itself.
//!
//! Refuses to signal anything but its own descendants, each through a handle that proves it.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

/// How long what is left has to end itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the kernel has to take apart what was killed.
pub(super) const KILLED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// What a warden is told on its command line.
#[derive(Debug)]
pub struct Ward {
    /// The descriptor of the program.
    pub program: RawFd,
    /// The descriptor of the line to lockward.
    pub line: RawFd,
    /// How long the hook may take.
    pub limit: Duration,
    /// Its name and its arguments.
    pub argv: Vec<std::ffi::OsString>,
}

/// How it came to its end.
enum Why {
    Ended(ExitStatus),
    TimeIsUp,
    Interrupted,
}

/// Runs the hook to its end, ends what is left, and tells how it went.
///
/// # Errors
/// Where it could not be started or watched. Nobody but lockwatch itself runs this.
pub fn run(ward: &Ward) -> anyhow::Result<()> {
    // SAFETY: lockwatch made the two descriptors for this process and named them to it; nothing
    // else here knows their numbers.
    let (program, line) =
        unsafe { (OwnedFd::from_raw_fd(ward.program), OwnedFd::from_raw_fd(ward.line)) };
    fcntl_setfd(&line, FdFlags::CLOEXEC).context("hook: the line to lockwatch")?;
    let mut line = UnixStream::from(line);
    let answer = match watched(ward, &program, &mut line) {
        Ok(answer) => answer,
        Err(error) => format!("failed 0 {error:#}"),
    };
    // Where nobody listens any more there is nobody to tell.
    let _ = line.write_all(answer.as_bytes());
    Ok(())
}

fn watched(ward: &Ward, program: &OwnedFd, line: &mut UnixStream) -> anyhow::Result<String> {
    // A terminal's Ctrl-C is lockwatch's to understand.
    rustix::process::setsid().context("setsid")?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).context("become the reaper of orphans")?;
    let mut child = start(ward, program)?;
    let why = wait(ward, &mut child, line)?;
    let leftovers = end_all(&mut child)?;
    Ok(match why {
        Why::TimeIsUp => format!("timeout {leftovers}"),
        Why::Interrupted => format!("interrupted {leftovers}"),
        Why::Ended(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exited {leftovers} {code}"),
            (None, Some(signal)) => format!("signalled {leftovers} {signal}"),
            (None, None) => format!("failed {leftovers} neither an exit code nor a signal"),
        },
    })
}

/// Starts the very file that was found trustworthy, by its descriptor: a script's interpreter opens
/// it by the same name, so the descriptor stays open in the hook.
fn start(ward: &Ward, program: &OwnedFd) -> anyhow::Result<Child> {
    fcntl_setfd(program, FdFlags::empty()).context("the program's descriptor")?;
    let mut command = Command::new(format!("/proc/self/fd/{}", ward.program));
    if let [name, args @ ..] = &ward.argv[..] {
        command.arg0(name).args(args);
    }
    command.current_dir("/").process_group(0);
    command.spawn().context("start it")
}

fn wait(ward: &Ward, child: &mut Child, line: &mut UnixStream) -> anyhow::Result<Why> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())
        .context("a handle on it")?;
    let deadline = Instant::now() + ward.limit;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
        let mut events = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&*line, PollFlags::IN)];
        match poll(&mut events, Some(&left)) {
            Ok(0) => return Ok(Why::TimeIsUp),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error).context("wait for it"),
        }
        if !events[0].revents().is_empty() {
            return Ok(Why::Ended(child.wait().context("wait for it")?));
        }
        // A word, or the end of the line: lockwatch wants no more of it, or is gone.
        if !events[1].revents().is_empty() {
            let _ = line.read(&mut [0]);
            return Ok(Why::Interrupted);
        }
    }
}

/// Ends every descendant: how many there were.
fn end_all(child: &mut Child) -> anyhow::Result<usize> {
    let first = signal_all(Signal::TERM)?;
    if first == 0 {
        return Ok(0);
    }
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        reap(child);
        if descendants()?.is_empty() {
            return Ok(first);
        }
        std::thread::sleep(PAUSE);
    }
    while begun.elapsed() < PATIENCE + KILLED {
        if signal_all(Signal::KILL)? == 0 {
            return Ok(first);
        }
        reap(child);
        std::thread::sleep(PAUSE);
    }
    anyhow::bail!("{} processes of it could not be ended", descendants()?.len())
}

/// Takes the exit status of everything that has ended, adopted or not.
fn reap(child: &mut Child) {
    let _ = child.try_wait();
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Signals every descendant that has not ended.
fn signal_all(signal: Signal) -> anyhow::Result<usize> {
    let found = descendants()?;
    for process in &found {
        let Some(pid) = Pid::from_raw(process.pid) else { continue };
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The handle's process is the one that was seen if it is still there by that start.
        if Relative::read(process.pid).is_some_and(|now| now.start == process.start) {
            let _ = rustix::process::pidfd_send_signal(handle.as_fd(), signal);
        }
    }
    Ok(found.len())
}

struct Relative {
    pid: i32,
    parent: i32,
    start: u64,
    ended: bool,
}

impl Relative {
    fn read(pid: i32) -> Option<Self> {
        Self::of(&procfs::process::Process::new(pid).ok()?)
    }

    /// `None` where it has gone in the meantime.
    fn of(process: &procfs::process::Process) -> Option<Self> {
        let stat = process.stat().ok()?;
        Some(Self {
            pid: stat.pid,
            parent: stat.ppid,
            start: stat.starttime,
            ended: matches!(stat.state, 'Z' | 'X'),
        })
    }
}

/// Everything below this process that has not ended. As it adopts what loses its parent, that is
/// everything that came from the hook.
fn descendants() -> anyhow::Result<Vec<Relative>> {
    let all: Vec<Relative> = procfs::process::all_processes()
        .context("read /proc")?
        .filter_map(|process| Relative::of(&process.ok()?))
        .collect();
    let mut family = vec![rustix::process::getpid().as_raw_nonzero().get()];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        family.extend(all.iter().filter(|of| of.parent == parent).map(|of| of.pid));
        next += 1;
    }
    family.remove(0);
    Ok(all.into_iter().filter(|of| !of.ended && family.contains(&of.pid)).collect())
}
