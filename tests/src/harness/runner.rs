//! Runs the tests: each in a process of its own, within its time, and leaves nothing behind.
//!
//! The runner starts itself anew for each test (`--play FOLDER`). That process adopts whatever
//! the test's rigs leave, ends it, and says in a file of the folder how the test went. Should the
//! runner be killed, the test dies with it, and the rigs with the test.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use serde_json::json;

use super::capability::Capabilities;
use super::options::{Options, USAGE};
use super::patience::{self, stretched};
use super::play::{self, Verdict};
use super::story::Listener;
use super::table::{self, Case, Test};
use super::{descent, place};

/// How long a test may take to clean up after its time was over.
const GRACE: Duration = Duration::from_secs(5);
/// How often the runner looks for an interruption and for the end of somebody's time.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs what the command line asks for.
pub fn main(themes: &[(&'static str, &[Test])]) -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => return fail(&format!("{error:#}\n{USAGE}")),
    };
    let cases = table::cases(themes, &options.sources);
    if let Some(folder) = &options.play {
        return play::play(&cases, &options.filters, folder);
    }
    let wanted: Vec<_> = cases.into_iter().filter(|case| options.wants(&case.name())).collect();
    if options.help {
        print(USAGE);
        return ExitCode::SUCCESS;
    }
    if options.list {
        for case in &wanted {
            print(&case.name());
        }
        return ExitCode::SUCCESS;
    }
    match run(&options, &wanted) {
        Ok(code) => code,
        Err(error) => fail(&format!("{error:#}")),
    }
}

fn print(line: &str) {
    // Nobody reads it, as with `| head`: the exit code still says how it went.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn fail(why: &str) -> ExitCode {
    eprintln!("live: {why}");
    ExitCode::from(2)
}

/// A test that is being played.
struct Playing {
    index: usize,
    child: Child,
    handle: OwnedFd,
    folder: PathBuf,
    started: Instant,
    limit: Duration,
    overdue: bool,
    listener: Listener,
}

/// How one test went.
struct Played {
    verdict: Verdict,
    seconds: f64,
    transcript: String,
}

fn run(options: &Options, cases: &[Case]) -> Result<ExitCode> {
    prepare(options, cases)?;
    let root = tempfile::Builder::new()
        .prefix("lockwatch-live-")
        .tempdir()
        .context("making a folder for the tests")?;
    // Rigs and binaries that run as another user must be able to come here.
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).context("its mode")?;
    let scratch = root.path().join("scratch");
    fs::create_dir(&scratch).context("a scratch folder")?;
    let capabilities = Capabilities::probe(&scratch);
    for need in &options.require {
        if let Some(why) = capabilities.lacks(need) {
            anyhow::bail!("--require {need}: {why}");
        }
    }
    if let Some(why) = capabilities.doctor_failure()
        && cases.iter().any(|case| case.test.binary)
    {
        eprintln!("live: WARNING: lockwatch doctor --json: {why}");
    }
    let mut report = Report::new(options.json.as_deref())?;
    report.lacks(&capabilities)?;
    let interrupted = play_all(options, cases, &capabilities, root.path(), &mut report)?;
    report.add("nothing_is_left_behind", &nothing_left(root)?)?;
    print(&format!("\n{}", report.closing_line()));
    Ok(match (interrupted, report.failed) {
        (true, _) => ExitCode::from(130),
        // Who wants to hear a story is not content with none.
        (false, 0) if options.aloud && report.skipped > 0 => ExitCode::FAILURE,
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::FAILURE,
    })
}

/// Finds the programs, tells the tests where they are, and gets ready to clean up.
fn prepare(options: &Options, cases: &[Case]) -> Result<()> {
    let mut variables = vec![(place::RIG, place::rig()?)];
    if cases.iter().any(|case| case.test.binary) {
        variables.push((place::LOCKWATCH, place::lockwatch()?));
    }
    for (name, path) in variables {
        // SAFETY: the runner has no other thread yet.
        unsafe { std::env::set_var(name, path) };
    }
    if let Some(factor) = options.patience {
        // SAFETY: as above.
        unsafe { std::env::set_var(patience::FACTOR, factor.to_string()) };
    }
    keep_foreign_descriptors_to_ourselves()?;
    // Whatever the caller's, other users must be able to read what tests make for them.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).context("PR_SET_CHILD_SUBREAPER")?;
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(libc::c_int) = on_interruption;
        // SAFETY: the handler only stores to an atomic.
        let before = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
        ensure!(before != libc::SIG_ERR, "installing a signal handler");
    }
    Ok(())
}

/// Closes at exec what whoever started the runner left open: it would appear in every actor.
fn keep_foreign_descriptors_to_ourselves() -> Result<()> {
    for entry in fs::read_dir("/proc/self/fd").context("/proc/self/fd")? {
        let name = entry.context("/proc/self/fd")?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if fd > libc::STDERR_FILENO {
            // SAFETY: sets a flag of a descriptor number, and closes nothing now. The folder's own
            // may be among them, and has the flag already.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

extern "C" fn on_interruption(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Plays all; true where it was interrupted.
fn play_all(
    options: &Options,
    cases: &[Case],
    capabilities: &Capabilities,
    root: &Path,
    report: &mut Report,
) -> Result<bool> {
    let mut playing: Vec<Playing> = Vec::new();
    let mut waiting = cases.iter().enumerate();
    loop {
        while playing.len() < options.jobs {
            let Some((index, case)) = waiting.next() else { break };
            let lack = case.needs().into_iter().find_map(|need| {
                capabilities.lacks(need).map(|why| format!("needs {need} ({why})"))
            });
            if let Some(lack) = lack {
                let played = Played {
                    verdict: Verdict::Skipped(lack),
                    seconds: 0.0,
                    transcript: String::new(),
                };
                report.add(&case.name(), &played)?;
            } else {
                playing.push(Playing::start(index, case, root)?);
            }
        }
        if playing.is_empty() {
            return Ok(false);
        }
        let ended = wait(&mut playing)?;
        if options.aloud {
            playing.iter_mut().for_each(Playing::tell_on);
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            for mut test in playing {
                test.end()?;
            }
            return Ok(true);
        }
        for index in ended.into_iter().rev() {
            let test = playing.remove(index);
            let name = cases[test.index].name();
            report.add(&name, &test.finish()?)?;
        }
    }
}

/// Waits for a moment; returns the places of those tests that ended, in order.
fn wait(playing: &mut [Playing]) -> Result<Vec<usize>> {
    let mut handles: Vec<_> = playing
        .iter()
        .map(|test| PollFd::from_borrowed_fd(test.handle.as_fd(), PollFlags::IN))
        .collect();
    match rustix::event::poll(&mut handles, Some(&TICK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("waiting for a test"),
    }
    let ended: Vec<_> = handles
        .iter()
        .enumerate()
        .filter_map(|(place, handle)| (!handle.revents().is_empty()).then_some(place))
        .collect();
    for (place, test) in playing.iter_mut().enumerate() {
        if !ended.contains(&place) && !test.overdue && test.started.elapsed() > test.limit {
            test.overdue = true;
            test.end()?;
        }
    }
    Ok(ended)
}

impl Playing {
    fn start(index: usize, case: &Case, root: &Path) -> Result<Self> {
        let folder = root.join(index.to_string());
        fs::create_dir(&folder).context("a folder for the test")?;
        let transcript = File::create(folder.join("transcript")).context("a transcript")?;
        let both = transcript.try_clone().context("a transcript")?;
        let program = std::env::current_exe().context("finding this program")?;
        let child = Command::new(program)
            .arg0("live")
            .arg("--play")
            .arg(&folder)
            .arg(case.name())
            .stdin(Stdio::null())
            .stdout(transcript)
            .stderr(both)
            .spawn()
            .context("starting a test")?;
        let handle = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .context("pidfd_open")?;
        let limit = stretched(case.test.limit);
        Ok(Self {
            index,
            child,
            handle,
            folder,
            started: Instant::now(),
            limit,
            overdue: false,
            listener: Listener::default(),
        })
    }

    /// Shows what the test has told since the last time.
    fn tell_on(&mut self) {
        let told = self.listener.hear(&self.folder);
        if !told.is_empty() {
            print(told.trim_end_matches('\n'));
        }
    }

    /// Takes everything from the test that it started, which makes it fail and clean up; ends it
    /// too if that does not help.
    fn end(&mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid")?;
        let last_call = Instant::now();
        while self.child.try_wait().context("a test")?.is_none() {
            let bereft = descent::kill_below(pid)?;
            let late = last_call.elapsed() > GRACE || INTERRUPTED.load(Ordering::Relaxed);
            if late && bereft {
                self.child.kill().context("killing a test")?;
            }
            let mut handle = [PollFd::from_borrowed_fd(self.handle.as_fd(), PollFlags::IN)];
            // Whatever woke it up: the loop looks again.
            let _ = rustix::event::poll(&mut handle, Some(&TICK));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Played> {
        let status = self.child.wait().context("a test")?;
        let seconds = self.started.elapsed().as_secs_f64();
        let mut verdict = Verdict::read(&self.folder)
            .unwrap_or_else(|| Verdict::Failed(format!("the test ended with {status}")));
        if self.overdue {
            let limit = self.limit.as_secs();
            let rest = verdict.reason().map_or_else(String::new, |reason| format!("; {reason}"));
            verdict = Verdict::Failed(format!("not done within {limit} s{rest}"));
        }
        let transcript = fs::read(self.folder.join("transcript")).context("the transcript")?;
        let transcript = String::from_utf8_lossy(&transcript).into_owned();
        // Thousands of files of one test should not slow down the next.
        fs::remove_dir_all(&self.folder).context("removing a test's folder")?;
        Ok(Played { verdict, seconds, transcript })
    }
}

/// Looks for what the tests may have left, and removes it.
fn nothing_left(root: tempfile::TempDir) -> Result<Played> {
    let started = Instant::now();
    let mut left = Vec::new();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    for pid in descent::descendants(own)? {
        // Of a test that had to be killed, exit statuses are left, which is nothing.
        if let Some(stat) = descent::stat(pid)
            && stat.state != 'Z'
        {
            left.push(format!("process {pid} ({})", stat.comm));
        }
    }
    descent::end_all()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let folder = root.path().to_string_lossy().into_owned();
    left.extend(
        mounts.lines().filter(|line| line.contains(&folder)).map(|line| format!("mount {line}")),
    );
    root.close().context("removing the tests' folder")?;
    let verdict = if left.is_empty() { Verdict::Passed } else { Verdict::Failed(left.join("; ")) };
    let seconds = started.elapsed().as_secs_f64();
    Ok(Played { verdict, seconds, transcript: String::new() })
}

/// What is told of the tests, as they end.
struct Report {
    json: Option<File>,
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Report {
    fn new(json: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| File::create(path).with_context(|| path.display().to_string());
        Ok(Self { json: json.map(open).transpose()?, passed: 0, failed: 0, skipped: 0 })
    }

    /// What is missing here, for whoever compares machines.
    fn lacks(&mut self, capabilities: &Capabilities) -> Result<()> {
        let Some(json) = &mut self.json else { return Ok(()) };
        for (capability, why) in capabilities.missing() {
            let object = json!({ "capability": capability, "lacks": why });
            writeln!(json, "{object}").context("writing the JSON report")?;
        }
        Ok(())
    }

    fn add(&mut self, name: &str, played: &Played) -> Result<()> {
        let Played { verdict, seconds, transcript } = played;
        match verdict {
            Verdict::Passed => {
                self.passed += 1;
                print(&format!("test {name} ... ok ({seconds:.2} s)"));
            }
            Verdict::Failed(reason) => {
                self.failed += 1;
                print(&format!("test {name} ... FAILED ({seconds:.2} s)\n    {reason}"));
                if !transcript.is_empty() {
                    print(&format!("    what happened:\n{}", transcript.trim_end()));
                }
            }
            Verdict::Skipped(reason) => {
                self.skipped += 1;
                print(&format!("test {name} ... skipped: {reason}"));
            }
        }
        if let Some(json) = &mut self.json {
            let object = json!({
                "name": name,
                "result": verdict.name(),
                "reason": verdict.reason(),
                "seconds": seconds,
            });
            writeln!(json, "{object}").context("writing the JSON report")?;
        }
        Ok(())
    }

    fn closing_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}
