//! The daemon is killed at each step of a reclaim that its policy ordered, by itself or with all
//! that it started: what is released was planned, nothing is done twice, and the record tells how
//! far a reclaim came that has no end.
//!
//! A run is halted at each of its system calls by ptrace(2), so that each step is met exactly.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde_json::Value;

use crate::reclaim_policy::{configure, hook, is_free, records};
use crate::reclaim_soak::{Ends, LONG, Part, rounds};
use crate::stories::LEAKED;

pub(crate) const TESTS: &[Test] =
    &[once!(a_daemon_that_is_killed_at_any_step_leaves_nothing_half_known)
        .needs(&["root", "iter/task_file", "tp_btf", "mounts", "pidfd_getfd", "kcmp", "program:sh"])
        .within(LONG)];

/// How far a run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// It is on record that it begins.
    Begun,
    /// The drain has ended.
    Drained,
    /// Everything is proven, and nothing is done.
    Rechecked,
    /// The description is unlocked.
    Released,
    /// The tables were read again.
    Verified,
    /// The canary has ended.
    Canary,
    /// Resume has ended.
    Resumed,
}

const STEPS: [Step; 7] = [
    Step::Begun,
    Step::Drained,
    Step::Rechecked,
    Step::Released,
    Step::Verified,
    Step::Canary,
    Step::Resumed,
];

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The daemon alone: its run sees that, and stops.
    Daemon,
    /// The daemon and its run at once, as a service manager does it.
    Service,
}

fn a_daemon_that_is_killed_at_any_step_leaves_nothing_half_known(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let log = house.path("hooks.log");
    let mut hooks = String::new();
    for name in ["drain", "canary", "resume"] {
        hooks.push_str(&hook(&house, name, &format!("echo {name} >> {}", log.display()))?);
    }
    configure(scene, &house, "per_minute = 1000000\nretry = \"1h\"", &hooks)?;
    let mut ends = Ends::default();
    let mut daemon = house.start(scene, &[])?;
    // Every kind; where everything takes long, some of them.
    let usual = if patience::rounds(2) == 1 { 3 } else { 2 * STEPS.len() };
    for round in rounds(Part::Killed, u32::try_from(usual)?)? {
        // Each is unlike the one before.
        let kind = round as usize * 5 % (2 * STEPS.len());
        let victim = if kind.is_multiple_of(2) { Victim::Daemon } else { Victim::Service };
        let step = STEPS[kind / 2];
        let again = round as usize / (2 * STEPS.len()) % 2 == 1;
        let came;
        (daemon, came) = play(scene, &house, daemon, round, (victim, step, again))
            .with_context(|| format!("round {round}: {victim:?} killed at {step:?}"))?;
        ends.count(format!("{victim:?} killed at {step:?}: {came}"));
    }
    daemon.stop()?;
    ends.tell()
}

fn play(
    scene: &mut Scene,
    house: &House,
    daemon: Daemon,
    round: u32,
    (victim, step, again): (Victim, Step, bool),
) -> Result<(Daemon, String)> {
    let heir = format!("heir{round}");
    let _ = fs::remove_file(house.path("hooks.log"));
    let _ = fs::remove_file(house.path("audit.jsonl"));
    scene.play(&LEAKED.replace("owner", &format!("owner{round}")).replace("heir", &heir))?;
    scene.play(&format!(
        "{heir}: open own own
         {heir}: flock own ex"
    ))?;
    let run = run_of(&daemon)?;
    let handle = pidfd_open(run, PidfdFlags::empty()).context("a handle on the run")?;
    let traced = Traced::seize(run)?;
    traced.up_to(step, &house.path("audit.jsonl"))?;
    daemon.kill()?;
    match victim {
        Victim::Service => {
            rustix::process::pidfd_send_signal(&handle, Signal::KILL).context("killing the run")?
        }
        // It has a thread that waits for the daemon's end.
        Victim::Daemon => patience::until("that the run has seen the daemon's end", || {
            Ok((!has_thread(run, "attended")?).then_some(()))
        })?,
    }
    drop(traced);
    await_end(&handle)?;

    let is_released = is_free(scene)?;
    let expected = match victim {
        // Up to the last moment it is asked whether that is still wanted.
        Victim::Daemon => step >= Step::Released,
        Victim::Service => step >= Step::Released,
    };
    same!("released", is_released, expected);
    let broken = records(house)?;
    tells_how_far(&broken, scene.pid(&heir)?, victim, step)?;
    let hooks = hooks(house)?;
    same!("hooks", hooks, hooks_until(victim, step, &hooks));

    // What was let go in between and taken anew is another lock, which nobody planned to release.
    let again = again && !is_released;
    if again {
        scene.play(&format!(
            "{heir}: flock a un
             {heir}: flock a ex"
        ))?;
    }
    let daemon = house.start(scene, &[])?;
    let after = records(house)?.split_off(broken.len());
    let later: Vec<String> = self::hooks(house)?.split_off(hooks.len());
    if again {
        ensure!(!is_free(scene)?, "what its holder took anew was released");
        same!("what the next daemon did", after.len(), 0);
    } else if is_released {
        same!("what the next daemon did about it", after, Vec::<Value>::new());
        same!("what it ran", later, Vec::<String>::new());
    } else {
        ensure!(is_free(scene)?, "the next daemon is ready, and the lock is still there");
        let (first, last) = (after.first().context("no record")?, after.last());
        same!("begun", first["plans"][0]["through"]["pid"], scene.pid(&heir)?);
        same!("plans", first["plans"].as_array().map(Vec::len), Some(1));
        same!("end", last.map(|last| last["success"].clone()), Some(Value::Bool(true)));
        let begun = after.iter().filter(|record| record["record"] == "begun").count();
        same!("how often", begun, 1);
        same!("what it ran", later, ["drain", "canary", "resume"]);
    }
    let report = scene.scan_by_bpf()?;
    report.only_lock_on(&scene.file("own")?)?.held_by(&[scene.pid(&heir)?])?;
    scene.play(&format!("kill {heir}"))?;
    let came = match (is_released, again) {
        (true, _) => "it was released, and not touched again",
        (false, true) => "it was not released, and what was taken anew stayed",
        (false, false) => "it was not released, and the next daemon did it",
    };
    Ok((daemon, came.to_owned()))
}

/// The run that the daemon has started.
fn run_of(daemon: &Daemon) -> Result<Pid> {
    let parent = format!(" {} ", daemon.pid());
    let is_run = |folder: &Path| {
        // Either is gone where the process is.
        let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
        let rest = stat.rsplit(')').next().and_then(|rest| rest.get(2..)).unwrap_or_default();
        rest.starts_with(&parent)
            && fs::read(folder.join("cmdline"))
                .is_ok_and(|line| line.windows(10).any(|word| word == b"--attended"))
    };
    patience::until("the daemon's run", || {
        for entry in fs::read_dir("/proc")? {
            let folder = entry?.path();
            let pid = folder.file_name().and_then(|name| name.to_str()?.parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw)
                && is_run(&folder)
            {
                return Ok(Some(pid));
            }
        }
        Ok(None)
    })
}

fn has_thread(pid: Pid, name: &str) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()))? {
        let comm = fs::read_to_string(thread?.path().join("comm")).unwrap_or_default();
        if comm.trim_end() == name {
            return Ok(true);
        }
    }
    Ok(false)
}

fn await_end(handle: &OwnedFd) -> Result<()> {
    let limit = Timespec::try_from(patience::stretched(patience::USUAL))?;
    let mut ended = [PollFd::new(handle, PollFlags::IN)];
    ensure!(poll(&mut ended, Some(&limit))? == 1, "the run does not end");
    Ok(())
}

/// The hooks that were run, in order.
fn hooks(house: &House) -> Result<Vec<String>> {
    match fs::read_to_string(house.path("hooks.log")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        text => Ok(text.context("the hooks' log")?.lines().map(str::to_owned).collect()),
    }
}

/// What hooks must have run by the end; `ran` decides where either is right.
fn hooks_until(victim: Victim, step: Step, ran: &[String]) -> Vec<String> {
    let mut expected = match step {
        Step::Begun => vec![],
        Step::Drained | Step::Rechecked | Step::Released | Step::Verified => vec!["drain"],
        Step::Canary => vec!["drain", "canary"],
        Step::Resumed => vec!["drain", "canary", "resume"],
    };
    let has = |name: &str| ran.iter().any(|hook| hook == name);
    if victim == Victim::Daemon && step != Step::Resumed {
        // Interrupted as it begins: whether it comes to its first line is chance.
        if step == Step::Begun && has("drain") {
            expected.push("drain");
        }
        if matches!(step, Step::Released | Step::Verified) && has("canary") {
            expected.push("canary");
        }
        expected.push("resume");
    }
    expected.into_iter().map(str::to_owned).collect()
}

/// Finds that the record of the broken reclaim says what was planned, and how far it came.
fn tells_how_far(records: &[Value], heir: i32, victim: Victim, step: Step) -> Result<()> {
    let [begun, rest @ ..] = records else { bail!("nothing is on record") };
    same!("first", begun["record"], "begun");
    same!("plans", begun["plans"].as_array().map(Vec::len), Some(1));
    same!("through", begun["plans"][0]["through"]["pid"], heir);
    same!("how sure it was", begun["plans"][0]["confidence"], "certain");
    for record in rest {
        same!("of the same", record["reclaim"], begun["reclaim"]);
    }
    let is_end = |record: &&Value| record["record"] == "ended";
    let steps: Vec<&str> = rest
        .iter()
        .filter(|record| record["record"] == "step")
        .filter_map(|record| record["step"].as_str())
        .collect();
    let noted = |until: &[&'static str]| -> Vec<&str> {
        let all = ["drain", "opened", "fetched", "rechecked", "proven", "unlocked", "verified"];
        let last = until.last().and_then(|last| all.iter().position(|name| name == last));
        last.map_or_else(Vec::new, |last| all[..=last].to_vec())
    };
    if victim == Victim::Service {
        ensure!(!rest.iter().any(|record| is_end(&record)), "an end of what was killed: {rest:?}");
        let mut expected = match step {
            Step::Begun => noted(&[]),
            Step::Drained => noted(&["drain"]),
            // Between look and act nothing is written down.
            Step::Rechecked | Step::Released => noted(&["fetched"]),
            Step::Verified | Step::Canary | Step::Resumed => noted(&["verified"]),
        };
        if step >= Step::Canary {
            expected.push("canary");
        }
        if step >= Step::Resumed {
            expected.push("resume");
        }
        same!("steps", steps, expected);
        return Ok(());
    }
    let ended = rest.last().filter(is_end).context("the run lived on, and has no end on record")?;
    let result = if step >= Step::Released { "released" } else { "not_tried" };
    same!("result", ended["outcomes"][0]["result"], result);
    same!("the last step", steps.last(), Some(&"resume"));
    Ok(())
}

/// A run whose main thread is halted at each system call.
struct Traced(Pid);

/// `struct ptrace_syscall_info` of `include/uapi/linux/ptrace.h`, as far as it is needed.
#[repr(C)]
#[derive(Default)]
struct SyscallInfo {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    /// At an entry: the number of the call.
    number: u64,
    arguments: [u64; 6],
}

const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;
const EXIT: u8 = 2;

impl Traced {
    fn seize(run: Pid) -> Result<Self> {
        let options = libc::PTRACE_O_TRACESYSGOOD;
        ptrace(libc::PTRACE_SEIZE, run, 0, options as usize).context("PTRACE_SEIZE")?;
        let traced = Self(run);
        ptrace(libc::PTRACE_INTERRUPT, run, 0, 0).context("PTRACE_INTERRUPT")?;
        traced.wait()?;
        Ok(traced)
    }

    /// Lets it go on up to a step, where it stands still.
    fn up_to(&self, step: Step, audit: &Path) -> Result<()> {
        let (mut signal, mut entered) = (0, 0);
        loop {
            ptrace(libc::PTRACE_SYSCALL, self.0, 0, signal).context("PTRACE_SYSCALL")?;
            signal = self.wait()?;
            let mut info = SyscallInfo::default();
            let size = size_of::<SyscallInfo>();
            ptrace(GET_SYSCALL_INFO, self.0, size, &raw mut info as usize)
                .context("PTRACE_GET_SYSCALL_INFO")?;
            match info.op {
                ENTRY => entered = info.number,
                EXIT if is_reached(step, entered, audit)? => return Ok(()),
                _ => {}
            }
        }
    }

    /// Waits until it stands still; answers the signal that it is to get when it goes on.
    fn wait(&self) -> Result<usize> {
        let mut status = 0;
        // SAFETY: the kernel writes one int at the pointer.
        let found =
            unsafe { libc::waitpid(self.0.as_raw_nonzero().get(), &raw mut status, libc::__WALL) };
        ensure!(found > 0, "waiting for the run: {}", std::io::Error::last_os_error());
        ensure!(libc::WIFSTOPPED(status), "the run ended before that step");
        let signal = libc::WSTOPSIG(status);
        let is_event = signal & 0x80 != 0 || status >> 16 != 0;
        Ok(if is_event { 0 } else { signal.unsigned_abs() as usize })
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if ptrace(libc::PTRACE_DETACH, self.0, 0, 0).is_err() {
            // It was killed: its end is told to whoever traces it first.
            // SAFETY: no status is asked for, so the kernel writes nothing.
            unsafe {
                libc::waitpid(self.0.as_raw_nonzero().get(), std::ptr::null_mut(), libc::__WALL)
            };
        }
    }
}

fn ptrace(request: libc::c_uint, pid: Pid, address: usize, data: usize) -> Result<()> {
    // SAFETY: the requests of this file take numbers, but for PTRACE_GET_SYSCALL_INFO, which
    // writes at most `address` bytes at `data`: a `SyscallInfo`, which any bytes are one of.
    let answer = unsafe {
        libc::ptrace(request as _, pid.as_raw_nonzero().get(), address as *mut u8, data as *mut u8)
    };
    ensure!(answer != -1, "{}", std::io::Error::last_os_error());
    Ok(())
}

/// Whether the call that has just ended made the step.
fn is_reached(step: Step, call: u64, audit: &Path) -> Result<bool> {
    let called = |number: libc::c_long| call == number.unsigned_abs();
    let noted = |name: &str| -> Result<bool> {
        let text = match fs::read_to_string(audit) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            text => text.context("the record")?,
        };
        let last = text.lines().last().unwrap_or_default();
        let last: Value = serde_json::from_str(last).unwrap_or_default();
        Ok(last["record"] == name || last["step"] == name)
    };
    match step {
        Step::Rechecked => Ok(called(libc::SYS_kcmp)),
        Step::Released => Ok(called(libc::SYS_flock) && noted("fetched")?),
        _ if !called(libc::SYS_write) => Ok(false),
        Step::Begun => noted("begun"),
        Step::Drained => noted("drain"),
        Step::Verified => noted("verified"),
        Step::Canary => noted("canary"),
        Step::Resumed => noted("resume"),
    }
}
