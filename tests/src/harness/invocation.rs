//! One run of a program under test: its arguments, its surroundings, what came of it.
//!
//! Everything that runs is written to the transcript, which is shown where the test fails.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::patience;
use super::scene::note;
use crate::rig::language::escape;

/// The user "nobody".
pub const NOBODY: u32 = 65534;
/// How much of an output the transcript keeps.
const KEPT: usize = 6000;

/// A part of root's rights, by its number in `include/uapi/linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "capabilities(7) says what they are")]
pub enum Capability {
    DacReadSearch = 2,
    Kill = 5,
    SysPtrace = 19,
    SysAdmin = 21,
    SysNice = 23,
    SysResource = 24,
    PerfMon = 38,
    Bpf = 39,
}

impl Capability {
    /// The one with a name as `CAP_SYS_ADMIN`.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "CAP_DAC_READ_SEARCH" => Self::DacReadSearch,
            "CAP_KILL" => Self::Kill,
            "CAP_SYS_PTRACE" => Self::SysPtrace,
            "CAP_SYS_ADMIN" => Self::SysAdmin,
            "CAP_SYS_NICE" => Self::SysNice,
            "CAP_SYS_RESOURCE" => Self::SysResource,
            "CAP_PERFMON" => Self::PerfMon,
            "CAP_BPF" => Self::Bpf,
            _ => return None,
        })
    }
}

/// Capabilities have numbers below this (`CAP_LAST_CAP` is 40 today).
const CAPABILITIES: u8 = 64;

/// A run that is about to be.
#[derive(Clone)]
pub struct Invocation {
    program: PathBuf,
    args: Vec<OsString>,
    variables: Vec<(&'static str, OsString)>,
    folder: PathBuf,
    as_nobody: bool,
    without: Vec<u8>,
    on_terminal: bool,
    no_reader: bool,
}

impl Invocation {
    /// Of a program, in a folder.
    pub fn new(program: &Path, folder: &Path) -> Self {
        Self {
            program: program.to_owned(),
            args: Vec::new(),
            variables: Vec::new(),
            folder: folder.to_owned(),
            as_nobody: false,
            without: Vec::new(),
            on_terminal: false,
            no_reader: false,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Started by another program of the machine, which becomes it: `nsenter`, `setpriv`.
    #[must_use]
    pub fn through(mut self, program: &'static str, args: &[&str]) -> Self {
        let inner = std::mem::replace(&mut self.program, PathBuf::from(program));
        let outer = args.iter().map(OsString::from).chain([inner.into_os_string()]);
        self.args = outer.chain(std::mem::take(&mut self.args)).collect();
        self
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name, value.as_ref().to_owned()));
        self
    }

    /// As user and group "nobody", without a capability.
    #[must_use]
    pub fn as_nobody(mut self) -> Self {
        self.as_nobody = true;
        self
    }

    /// As root without some of root's capabilities, which it cannot get back.
    #[must_use]
    pub fn without(mut self, capabilities: &[Capability]) -> Self {
        self.without.extend(capabilities.iter().map(|capability| *capability as u8));
        self
    }

    /// As root with these capabilities and no others, which it cannot get back.
    #[must_use]
    pub fn with_only(mut self, capabilities: &[Capability]) -> Self {
        let kept = |number: &u8| capabilities.iter().any(|kept| *kept as u8 == *number);
        self.without.extend((0..CAPABILITIES).filter(|number| !kept(number)));
        self
    }

    /// With its standard output on a terminal.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        self.on_terminal = true;
        self
    }

    /// With a standard output that nobody reads, as `| head -0` leaves it.
    #[must_use]
    pub fn with_nobody_reading(mut self) -> Self {
        self.no_reader = true;
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Result<Run> {
        self.start()?.finish()
    }

    /// Starts it.
    pub fn start(self) -> Result<Running> {
        let line = self.line();
        note(&format!("$ {line}"));
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.folder).stdin(Stdio::null());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if self.as_nobody {
            // The standard library gives up the other groups with the user.
            command.uid(NOBODY).gid(NOBODY);
        }
        if !self.without.is_empty() {
            let without = self.without.clone();
            // What the bounding set lacks, an exec does not give root either.
            let drop_them = move || {
                for capability in &without {
                    let number = u64::from(*capability);
                    // SAFETY: takes numbers only, and is but a system call.
                    if unsafe { libc::prctl(libc::PR_CAPBSET_READ, number) } < 0 {
                        // This kernel has no such capability.
                        continue;
                    }
                    // SAFETY: takes numbers only, and is but a system call.
                    let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number) };
                    if done != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            };
            // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
            unsafe { command.pre_exec(drop_them) };
        }
        let (stdout, theirs) = if self.on_terminal {
            let (ours, theirs) = terminal()?;
            (File::from(ours), Stdio::from(theirs))
        } else {
            let (ours, theirs) = io::pipe().context("a pipe")?;
            (File::from(OwnedFd::from(ours)), Stdio::from(theirs))
        };
        command.stdout(theirs).stderr(Stdio::piped());
        let stdout = (!self.no_reader).then_some(stdout);
        let mut child = command.spawn().with_context(|| format!("starting {line}"))?;
        // The command has the other end of the pipe as well, and must not keep it open.
        drop(command);
        let stderr = child.stderr.take().context("no stderr")?;
        let stdout = stdout.map(collect);
        let pid = Pid::from_child(&child);
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        Ok(Running {
            line,
            child,
            handle,
            stdout,
            stderr: collect(stderr),
            started: Instant::now(),
        })
    }

    fn line(&self) -> String {
        let program = self.program.file_name().unwrap_or(self.program.as_os_str());
        let mut words = vec![escape(program.as_bytes())];
        words.extend(self.args.iter().map(|arg| escape(arg.as_bytes())));
        let user = if self.as_nobody { "(as nobody) " } else { "" };
        let without = match self.without.as_slice() {
            [] => String::new(),
            numbers => format!("(without capabilities {numbers:?}) "),
        };
        format!("{user}{without}{}", words.join(" "))
    }
}

/// An output that is being read.
struct Collected {
    reader: JoinHandle<io::Result<Vec<u8>>>,
    so_far: Arc<AtomicUsize>,
}

fn collect(mut stream: impl Read + Send + 'static) -> Collected {
    let so_far = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&so_far);
    let reader = thread::spawn(move || {
        let (mut bytes, mut chunk) = (Vec::new(), [0; 65536]);
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(bytes),
                Ok(length) => bytes.extend_from_slice(&chunk[..length]),
                // How a terminal ends.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            count.store(bytes.len(), Ordering::Relaxed);
        }
    });
    Collected { reader, so_far }
}

fn terminal() -> Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("a pseudo-terminal")?;
    grantpt(&ours).context("grantpt")?;
    unlockpt(&ours).context("unlockpt")?;
    let name = ptsname(&ours, Vec::new()).context("ptsname")?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, Mode::empty()).context("the terminal")?;
    Ok((ours, theirs))
}

/// A run that has begun.
pub struct Running {
    line: String,
    child: std::process::Child,
    handle: OwnedFd,
    stdout: Option<Collected>,
    stderr: Collected,
    started: Instant,
}

impl Running {
    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        note(&format!("# signal {signal:?} for {}", self.line));
        rustix::process::pidfd_send_signal(&self.handle, signal).context("sending a signal")
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        Pid::from_child(&self.child).as_raw_nonzero().get()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> Result<bool> {
        let mut wait = [PollFd::from_borrowed_fd(self.handle.as_fd(), PollFlags::IN)];
        let ready = rustix::event::poll(&mut wait, Some(&Timespec::default()));
        Ok(ready.context("asking whether the program runs")? > 0)
    }

    /// How many bytes it has written to its standard output.
    pub fn written_so_far(&self) -> usize {
        self.stdout.as_ref().map_or(0, |stdout| stdout.so_far.load(Ordering::Relaxed))
    }

    /// Counts the time that it may take from now on.
    #[must_use]
    pub fn patiently(mut self) -> Self {
        self.started = Instant::now();
        self
    }

    /// Waits for its end, for as long as a run may take.
    pub fn finish(mut self) -> Result<Run> {
        let limit = patience::stretched(patience::USUAL * 2);
        let left = limit.saturating_sub(self.started.elapsed());
        let left = Timespec::try_from(left).context("the time limit")?;
        let mut wait = [PollFd::from_borrowed_fd(self.handle.as_fd(), PollFlags::IN)];
        let ended = loop {
            match rustix::event::poll(&mut wait, Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("waiting for the program"),
                Ok(ready) => break ready > 0,
            }
        };
        if !ended {
            self.child.kill().context("killing the program")?;
        }
        let status = self.child.wait().context("waiting for the program")?;
        let text = |stream: Collected| -> Result<Vec<u8>> {
            let bytes = stream.reader.join().map_err(|_| anyhow!("reading the output panicked"))?;
            bytes.context("reading the output")
        };
        let run = Run {
            line: self.line,
            status,
            stdout: self.stdout.map_or_else(|| Ok(Vec::new()), text)?,
            stderr: text(self.stderr)?,
            seconds: self.started.elapsed().as_secs_f64(),
        };
        run.write_down();
        if !ended {
            bail!("{}: still running after {} s", run.line, limit.as_secs());
        }
        Ok(run)
    }
}

/// What came of a run.
pub struct Run {
    line: String,
    status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub seconds: f64,
}

impl Run {
    /// A run whose output went to files, and whose end somebody else awaited.
    pub(super) fn from_parts(line: &str, code: i32, stdout: Vec<u8>, stderr: Vec<u8>) -> Self {
        let status = ExitStatus::from_raw(code << 8);
        let run = Self { line: line.to_owned(), status, stdout, stderr, seconds: 0.0 };
        note(&format!("$ {line}"));
        run.write_down();
        run
    }

    fn write_down(&self) {
        for (mark, stream) in [("| ", &self.stdout), ("! ", &self.stderr)] {
            for line in shorten(stream).lines() {
                note(&format!("{mark}{}", line.escape_debug()));
            }
        }
        note(&format!("# {}", self.status));
    }

    /// The exit code, if it had one.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails unless it ended with this exit code.
    pub fn exits(&self, code: i32) -> Result<&Self> {
        ensure!(
            self.status.code() == Some(code),
            "{}: ended with {} instead of {code}",
            self.line,
            self.status
        );
        Ok(self)
    }

    /// Its standard output, which must be UTF-8.
    pub fn text(&self) -> Result<&str> {
        std::str::from_utf8(&self.stdout).with_context(|| format!("{}: its output", self.line))
    }

    /// The lines of its standard output.
    pub fn lines(&self) -> Result<Vec<&str>> {
        Ok(self.text()?.lines().collect())
    }

    /// The last line of its standard output.
    pub fn last_line(&self) -> Result<&str> {
        self.text()?.lines().last().with_context(|| format!("{}: wrote nothing", self.line))
    }

    /// The lines of its standard error.
    pub fn complaints(&self) -> Result<Vec<&str>> {
        let text = std::str::from_utf8(&self.stderr)
            .with_context(|| format!("{}: its standard error", self.line))?;
        Ok(text.lines().collect())
    }

    /// Fails unless it wrote nothing, complained in exactly one line of `lockwatch: …`, and ended
    /// with exit code 2. Returns the line.
    pub fn fails_in_one_line(&self) -> Result<&str> {
        self.exits(2)?;
        ensure!(self.stdout.is_empty(), "{}: failed, but wrote something", self.line);
        match self.complaints()?.as_slice() {
            [line] if line.starts_with("lockwatch: ") => Ok(line),
            lines => bail!("{}: complained {lines:?}", self.line),
        }
    }
}

/// The beginning and the end of a long output.
fn shorten(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.len() <= KEPT {
        return text.into_owned();
    }
    let head = text.floor_char_boundary(KEPT / 2);
    let tail = text.ceil_char_boundary(text.len() - KEPT / 2);
    format!("{}\n… {} bytes …\n{}", &text[..head], tail - head, &text[tail..])
}
