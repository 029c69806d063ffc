//! The init of a test VM: mounts what a machine has, loads the modules it was given, runs the
//! tests as its child, reports, and powers off.
//!
//! Only for process 1 of a VM that `cargo xtask vm` made: it refuses to run as anything else.
//! It judges no test: it carries the results out over the second serial port and says on the
//! console, with a number that only this boot knows, that it came to its end.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, mount};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use rustix::process::{WaitOptions, getpid, wait};
use rustix::system::{RebootCommand, finit_module, reboot, sethostname, uname};
use serde_json::{Value, json};

/// The same names stand in `xtask/src/vm/initramfs.rs`.
const MODULES_FILE: &str = "/vm/modules";
const RUN_FILE: &str = "/vm/run.json";
/// The same form is looked for in `xtask/src/vm/verdict.rs`.
const END_MARK: &str = "lockwatch-vm-end";
/// The same words are looked for in `xtask/src/vm/boot.rs`: what comes before them has nothing to
/// do with what is tested.
const BEGIN_MARK: &str = "vm-init: begins";
const RESULTS: &str = "/run/test-results.json";
const RESULTS_PORT: &str = "/dev/ttyS1";

/// (type, where, whether the tests cannot do without)
const MOUNTS: [(&str, &str, &str, bool); 13] = [
    ("proc", "/proc", "", true),
    ("sysfs", "/sys", "", true),
    ("devtmpfs", "/dev", "", true),
    ("devpts", "/dev/pts", "ptmxmode=666", false),
    ("tmpfs", "/dev/shm", "mode=1777", false),
    ("mqueue", "/dev/mqueue", "", false),
    ("tmpfs", "/run", "mode=755", true),
    ("tmpfs", "/tmp", "mode=1777", true),
    ("bpf", "/sys/fs/bpf", "mode=700", true),
    ("cgroup2", "/sys/fs/cgroup", "", true),
    ("tracefs", "/sys/kernel/tracing", "", true),
    ("debugfs", "/sys/kernel/debug", "", false),
    ("securityfs", "/sys/kernel/security", "", false),
];

fn main() {
    if getpid().as_raw_nonzero().get() != 1 {
        eprintln!("vm-init is the first process of a test VM and nothing else");
        std::process::exit(2);
    }
    eprintln!("\n{BEGIN_MARK}");
    if let Err(error) = run() {
        // The host repeats what follows these words.
        eprintln!("\nvm-init: failed: {error:#}");
    }
    rustix::fs::sync();
    // A return would be a panic of the kernel, which the host tells apart by its console.
    let _ = reboot(RebootCommand::PowerOff);
    let _ = reboot(RebootCommand::Restart);
}

fn run() -> Result<()> {
    for (kind, target, data, needed) in MOUNTS {
        let mounted = mount_one(kind, target, data);
        if let Err(error) = mounted {
            ensure!(!needed, "{error:#}");
            eprintln!("vm-init: {error:#}");
        }
    }
    // An initramfs's root can be written by everybody, and lockwatch obeys no file below such a one.
    fs::set_permissions("/", fs::Permissions::from_mode(0o755)).context("the mode of /")?;
    let nonce = nonce()?;
    sethostname(b"lockwatch-vm").context("cannot set the host's name")?;
    load_modules()?;
    loopback_up().context("cannot bring lo up")?;
    let kernel = uname().release().to_string_lossy().into_owned();
    let booted_in = uptime()?;
    let mut log = kernel_log()?;
    drain(&mut log)?;

    let started = Instant::now();
    let exit = run_tests()?;
    let seconds = started.elapsed().as_secs_f64();

    let tests = match fs::read_to_string(RESULTS) {
        Ok(text) => results(&text)?,
        Err(error) => bail!("the tests (exit status {exit}) left no results: {error}"),
    };
    let complaints: Vec<String> = drain(&mut log)?.into_iter().filter(|l| is_grave(l)).collect();
    let report = json!({
        "nonce": nonce,
        "kernel": kernel,
        "exit": exit,
        "boot_seconds": booted_in,
        "test_seconds": seconds,
        "complaints": complaints,
        "tests": tests,
    });
    send(&report)?;
    // The nonce is on the kernel's command line too, but never in this form.
    writeln!(std::io::stdout(), "\n{END_MARK} nonce={nonce} exit={exit} tests={}", tests.len())?;
    Ok(())
}

/// One JSON object a line, one a test.
fn results(text: &str) -> Result<Vec<Value>> {
    let read = |line| serde_json::from_str(line).with_context(|| format!("no result: {line}"));
    text.lines().map(read).collect()
}

fn mount_one(kind: &str, target: &str, data: &str) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
    let data = CString::new(data)?;
    match mount(kind, target, kind, MountFlags::empty(), Some(data.as_c_str())) {
        // The kernel may have mounted /dev itself.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot mount {kind} on {target}")),
    }
}

fn nonce() -> Result<String> {
    let line = fs::read_to_string("/proc/cmdline").context("cannot read the command line")?;
    let nonce = line.split_whitespace().find_map(|word| word.strip_prefix("lockwatch.nonce="));
    Ok(nonce.context("the command line has no lockwatch.nonce")?.to_owned())
}

/// Each line is a module's file, or `built-in NAME` for what the host found no file of.
fn load_modules() -> Result<()> {
    let list = fs::read_to_string(MODULES_FILE).context("cannot read the list of modules")?;
    for line in list.lines() {
        if let Some(name) = line.strip_prefix("built-in ") {
            // A file system without a file is built in or absent; the tests see which.
            eprintln!("vm-init: no module {name} in this kernel's packages: built in, or absent");
            continue;
        }
        let file = File::open(line).with_context(|| format!("cannot open {line}"))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot load {line}")),
        }
    }
    Ok(())
}

/// An RTM_NEWLINK request that sets IFF_UP on interface 1, which is lo in every namespace.
fn loopback_up() -> Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST: u16 = 1;
    const IFF_UP: u32 = 1;
    const LOOPBACK: i32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    message.extend([0; 8]); // sequence number, port
    message.extend([0; 4]); // family, padding, device type
    message.extend(LOOPBACK.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them are meant
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    Ok(())
}

fn uptime() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime").context("cannot read /proc/uptime")?;
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

/// Runs the program that the host chose and reaps everything until it ends. A death by signal
/// gives 128 and the signal's number, as in a shell.
fn run_tests() -> Result<i32> {
    let run: Value = serde_json::from_slice(&fs::read(RUN_FILE).context("cannot read the run")?)
        .context("the run is no JSON")?;
    let program = run["program"].as_str().context("the run names no program")?;
    let mut command = Command::new(program);
    command.arg("--json").arg(RESULTS).current_dir("/tmp").env_clear();
    command.env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin").env("HOME", "/root").env("TERM", "dumb");
    command.args(run["arguments"].as_array().into_iter().flatten().filter_map(Value::as_str));
    for (name, value) in run["environment"].as_object().into_iter().flatten() {
        // What was not brought along is not to be looked for.
        let value = value.as_str().unwrap_or_default();
        if !value.starts_with('/') || Path::new(value).exists() {
            command.env(name, value);
        }
    }
    let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() as u32 == child.id() => {
                let by_signal = status.terminating_signal().map_or(-1, |signal| 128 + signal);
                return Ok(status.exit_status().unwrap_or(by_signal));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("lost the tests"),
        }
    }
}

fn kernel_log() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open("/dev/kmsg")
        .context("cannot open /dev/kmsg")
}

/// Every record since the last call. A record overwritten before it was read is not missed: the
/// log is for complaints, and those come in crowds.
fn drain(log: &mut File) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(lines),
            Ok(size) => {
                let text = String::from_utf8_lossy(&record[..size]).into_owned();
                let message = text.split_once(';').map_or(text.as_str(), |(_, message)| message);
                lines.push(message.lines().next().unwrap_or_default().to_owned());
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error).context("cannot read /dev/kmsg"),
        }
    }
}

/// Whether the kernel found fault with itself.
fn is_grave(line: &str) -> bool {
    ["BUG:", "WARNING:", "Oops", "general protection fault", "blocked for more than", "rcu: INFO"]
        .iter()
        .any(|sign| line.contains(sign))
}

/// One line of JSON. The port is made raw first, or it would add carriage returns.
fn send(report: &Value) -> Result<()> {
    let mut port = OpenOptions::new()
        .write(true)
        .open(RESULTS_PORT)
        .with_context(|| format!("cannot open {RESULTS_PORT}"))?;
    let mut settings = rustix::termios::tcgetattr(&port)?;
    settings.make_raw();
    rustix::termios::tcsetattr(&port, rustix::termios::OptionalActions::Now, &settings)?;
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    port.write_all(&line).with_context(|| format!("cannot write to {RESULTS_PORT}"))?;
    rustix::termios::tcdrain(&port)?;
    Ok(())
}
