//! One run of a hook: its surroundings, its time, its output.
//!
//! Refuses a shell, any part of lockwatch's own environment, and to wait for a hook that is over
//! its time.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, memfd_create};
use rustix::io::Errno;

use super::capture::Capture;
use super::warden;
use crate::engine::reclaim::{HookRun, HookStatus};

/// A hook that may be run: its program is open, and was found to be root's alone.
pub struct Hook {
    /// `drain`, `canary` or `resume`.
    pub name: &'static str,
    /// The path by which the program was opened.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// The program itself: this very file is executed.
    pub file: OwnedFd,
    /// How long it may take.
    pub timeout: Duration,
}

/// What a hook is told.
pub struct Told {
    /// On standard input.
    pub finding: Vec<u8>,
    /// Its whole environment.
    pub environment: Vec<(&'static str, OsString)>,
}

/// Beyond a hook's own time: for its warden to end what is left, and to say so.
const SLACK: Duration = Duration::from_secs(10);
/// How often it is asked whether lockwatch is to end.
const BEAT: Duration = Duration::from_millis(100);

impl Hook {
    /// Runs it to its end. Once `interrupted` is true it is ended.
    pub fn run(&self, told: &Told, interrupted: Option<&AtomicBool>) -> HookRun {
        let begun = Instant::now();
        let mut outputs = [Capture::default(), Capture::default()];
        let (status, leftovers) = match self.attempt(told, interrupted, &mut outputs) {
            Ok(ended) => ended,
            Err(error) => (HookStatus::NotRun(error.to_string()), 0),
        };
        let [stdout, stderr] = outputs.map(Capture::finish);
        HookRun {
            name: self.name,
            program: self.program.display().to_string(),
            status,
            took: u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX),
            leftovers,
            stdout,
            stderr,
        }
    }

    fn attempt(
        &self,
        told: &Told,
        interrupted: Option<&AtomicBool>,
        outputs: &mut [Capture; 2],
    ) -> io::Result<(HookStatus, u32)> {
        let (mut line, theirs) = UnixStream::pair()?;
        let pipes = [io::pipe()?, io::pipe()?];
        let [(stdout, their_stdout), (stderr, their_stderr)] = pipes;
        let mut warden = self.start(told, theirs, their_stdout.into(), their_stderr.into())?;
        let mut pipes = [File::from(OwnedFd::from(stdout)), File::from(OwnedFd::from(stderr))];
        for pipe in &pipes {
            rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?;
        }
        let answer = self.attend(&mut line, &mut pipes, outputs, interrupted);
        if answer.is_err() {
            // Without its line it ends the hook, and itself.
            drop(line);
            std::thread::sleep(BEAT);
        }
        for (pipe, output) in pipes.iter_mut().zip(outputs) {
            drain(pipe, output)?;
        }
        let answer = answer?;
        warden.wait()?;
        understand(&answer)
    }

    /// Starts the warden, which starts the program.
    fn start(
        &self,
        told: &Told,
        line: UnixStream,
        stdout: Stdio,
        stderr: Stdio,
    ) -> io::Result<Child> {
        let mut stdin = File::from(memfd_create(c"lockwatch-finding", MemfdFlags::CLOEXEC)?);
        stdin.write_all(&told.finding)?;
        stdin.rewind()?;
        let program = self.file.try_clone()?;
        let inherited = [program.as_raw_fd(), line.as_raw_fd()];
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("lockwatch-hook")
            .args(["hook-warden", "--program"])
            .arg(inherited[0].to_string())
            .arg("--line")
            .arg(inherited[1].to_string())
            .arg("--limit-ms")
            .arg(self.timeout.as_millis().to_string())
            .arg("--")
            .arg(&self.program)
            .args(&self.args)
            .env_clear()
            .envs(told.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::from(stdin))
            .stdout(stdout)
            .stderr(stderr);
        // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
        unsafe {
            command.pre_exec(move || {
                for fd in inherited {
                    if libc::fcntl(fd, libc::F_SETFD, 0) == -1 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        command.spawn()
    }

    /// Takes the output in, until the warden says how it ended.
    fn attend(
        &self,
        line: &mut UnixStream,
        pipes: &mut [File; 2],
        outputs: &mut [Capture; 2],
        interrupted: Option<&AtomicBool>,
    ) -> io::Result<String> {
        let deadline = Instant::now() + self.timeout + SLACK + warden::KILLED;
        let mut told_to_end = false;
        let mut open = [true; 2];
        loop {
            if !told_to_end && interrupted.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                told_to_end = true;
                line.write_all(b"x")?;
            }
            if Instant::now() > deadline {
                return Err(io::Error::other("its warden does not answer"));
            }
            let beat = Timespec::try_from(BEAT).map_err(io::Error::other)?;
            let flags = |open| if open { PollFlags::IN } else { PollFlags::empty() };
            let mut events = vec![PollFd::new(&*line, PollFlags::IN)];
            for (pipe, open) in pipes.iter().zip(open) {
                if open {
                    events.push(PollFd::new(pipe, flags(open)));
                }
            }
            match poll(&mut events, Some(&beat)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let answered = !events[0].revents().is_empty();
            for ((pipe, output), open) in pipes.iter_mut().zip(&mut *outputs).zip(&mut open) {
                if *open {
                    *open = drain(pipe, output)?;
                }
            }
            if answered {
                let mut answer = String::new();
                line.read_to_string(&mut answer)?;
                return Ok(answer);
            }
        }
    }
}

/// Takes what is there; false at the end.
fn drain(pipe: &mut File, output: &mut Capture) -> io::Result<bool> {
    /// Whoever writes without an end must not keep its reader from the clock.
    const PIECES: usize = 64;
    let mut piece = [0; 64 * 1024];
    for _ in 0..PIECES {
        match pipe.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(length) => output.take(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The warden's word: how it ended, how much was left of it, and a number or a reason.
fn understand(answer: &str) -> io::Result<(HookStatus, u32)> {
    let strange = || io::Error::other(format!("its warden said {answer:?}"));
    let mut words = answer.splitn(3, ' ');
    let how = words.next().ok_or_else(strange)?;
    let leftovers = words.next().and_then(|word| word.parse().ok()).ok_or_else(strange)?;
    let rest = words.next().unwrap_or("");
    let number = || rest.parse().map_err(|_| strange());
    let status = match how {
        "exited" => HookStatus::Exited(number()?),
        "signalled" => HookStatus::Signalled(number()?),
        "timeout" => HookStatus::TimedOut,
        "interrupted" => HookStatus::Interrupted,
        "failed" => HookStatus::NotRun(rest.to_owned()),
        _ => return Err(strange()),
    };
    Ok((status, leftovers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wardens_word_is_understood_or_an_error() {
        let understood = |answer| understand(answer).unwrap();
        assert_eq!(understood("exited 0 3"), (HookStatus::Exited(3), 0));
        assert_eq!(understood("signalled 2 9"), (HookStatus::Signalled(9), 2));
        assert_eq!(understood("timeout 4"), (HookStatus::TimedOut, 4));
        let failed = understood("failed 0 start it: No such file");
        assert_eq!(failed.0, HookStatus::NotRun("start it: No such file".into()));
        for nonsense in ["", "exited", "exited x 0", "exited 0", "exited 0 x", "sulked 0 1"] {
            assert!(understand(nonsense).is_err(), "{nonsense}");
        }
    }
}
