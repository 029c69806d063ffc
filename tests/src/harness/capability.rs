//! What the machine, the user and the kernel allow, by name.
//!
//! A test that needs what is missing is skipped, loudly; it never passes for lack of it.
//!
//! The names are those of `lockwatch doctor`'s probes, and these of the harness's own:
//! `root`, `nobody` (becoming another user), `mounts` (mount namespaces with a tmpfs), `overlay`,
//! `pidns`, `netns`, `io_uring`, `loop-devices`, `fuse-mounts`, `cgroup2`, `choose-pid` (a child with a chosen pid in the initial pid namespace), `file-events` (fanotify
//! that opens nothing, on the file system of the tests), `pid-order` (no pid can have been given out twice since boot), `terminal`, `every-process` (root can read the
//! descriptors of every process in /proc), `queues-in-proc` (/proc/locks shows requests that wait
//! behind requests: 5.13), `lockdown` (the kernel is locked down, confidentiality), and
//! `program:NAME`. `no-NAME` is there where NAME is not.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::FromRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use serde_json::Value;

use super::place;

/// The inode number of the initial pid namespace (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
const LOCKDOWN: &str = "lockdown";

/// What is there, and why the rest is not.
pub struct Capabilities {
    own: BTreeMap<&'static str, Result<()>>,
    doctor: Result<BTreeMap<String, Result<()>>>,
}

impl Capabilities {
    /// Tries everything; `scratch` is a folder for the trials.
    pub fn probe(scratch: &Path) -> Self {
        let own = [
            ("root", root()),
            ("nobody", root()),
            ("mounts", in_private_mounts(|| tmpfs(scratch))),
            ("overlay", in_private_mounts(|| overlay(scratch))),
            ("pidns", in_a_thread(|| unshare(UnshareFlags::NEWPID))),
            ("netns", in_a_thread(|| unshare(UnshareFlags::NEWNET))),
            ("io_uring", io_uring()),
            ("loop-devices", loop_devices()),
            ("cgroup2", super::control_group::hierarchy().map(drop)),
            ("fuse-mounts", in_private_mounts(fuse_opens)),
            ("choose-pid", choose_pid()),
            ("file-events", file_events(scratch)),
            ("pid-order", pid_order()),
            ("terminal", terminal()),
            ("every-process", every_process()),
            ("queues-in-proc", queues_in_proc()),
            (LOCKDOWN, lockdown()),
        ];
        Self { own: own.into(), doctor: doctor() }
    }

    /// Why a need is not met, or `None` where it is.
    pub fn lacks(&self, need: &str) -> Option<String> {
        if let Some(program) = need.strip_prefix("program:") {
            let found = place::system_program(program).is_some();
            return (!found).then(|| format!("{program} is not installed"));
        }
        if let Some(absent) = need.strip_prefix("no-") {
            return match self.lacks(absent) {
                Some(_) => None,
                None => Some(format!("{absent} is there")),
            };
        }
        if let Some(own) = self.own.get(need) {
            return own.as_ref().err().map(|why| format!("{why:#}"));
        }
        match &self.doctor {
            Err(why) => Some(format!("lockwatch doctor: {why:#}")),
            Ok(probes) => match probes.get(need) {
                None => Some("lockwatch doctor has no probe of that name".to_owned()),
                Some(probe) => probe.as_ref().err().map(|why| format!("{why:#}")),
            },
        }
    }

    /// Everything that is missing and why, but for what only a kernel that refuses has.
    pub fn missing(&self) -> Vec<(String, String)> {
        let why = |result: &Result<()>| result.as_ref().err().map(|why| format!("{why:#}"));
        let own = self.own.iter().filter(|(name, _)| **name != LOCKDOWN);
        let mut missing: Vec<_> =
            own.filter_map(|(name, probe)| Some(((*name).to_owned(), why(probe)?))).collect();
        match &self.doctor {
            Ok(probes) => missing.extend(
                probes.iter().filter_map(|(name, probe)| Some((name.clone(), why(probe)?))),
            ),
            Err(error) => missing.push(("doctor".to_owned(), format!("{error:#}"))),
        }
        missing
    }

    /// Why the doctor could not be asked, if so: then everything that it knows counts as missing.
    pub fn doctor_failure(&self) -> Option<String> {
        self.doctor.as_ref().err().map(|why| format!("{why:#}"))
    }
}

/// Whether fanotify names files of this file system without opening them.
fn file_events(folder: &Path) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_REPORT_FID;
    // SAFETY: takes numbers only.
    let group = unsafe { libc::fanotify_init(flags, 0) };
    if group < 0 {
        return Err(std::io::Error::last_os_error()).context("fanotify_init");
    }
    // SAFETY: the kernel just made it, and nobody else has it.
    let group = unsafe { std::os::fd::OwnedFd::from_raw_fd(group) };
    let file = tempfile::NamedTempFile::new_in(folder).context("a file")?;
    let path = file.path().as_os_str();
    let path = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path))?;
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
    ensure!(marked == 0, "fanotify_mark: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Asks `lockwatch doctor --json`.
fn doctor() -> Result<BTreeMap<String, Result<()>>> {
    let binary = place::lockwatch()?;
    let output = Command::new(&binary)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| binary.display().to_string())?;
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| {
        format!("{}; {}", output.status, String::from_utf8_lossy(&output.stderr).trim())
    })?;
    let probes = report["probes"].as_array().context("no probes")?;
    let mut found = BTreeMap::new();
    for probe in probes {
        let name = probe["name"].as_str().context("a probe without a name")?;
        let result = match probe["ok"].as_bool().context("a probe without `ok`")? {
            true => Ok(()),
            false => Err(anyhow!("{}", probe["detail"].as_str().unwrap_or("no detail"))),
        };
        found.insert(name.to_owned(), result);
    }
    Ok(found)
}

fn root() -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "not root");
    Ok(())
}

/// What a thread unshares ends with the thread.
fn in_a_thread(probe: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(probe).join().map_err(|_| anyhow!("the probe panicked"))?
    })
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: no descriptor table is unshared, which is what the call is unsafe for.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("unshare")
}

fn in_private_mounts(probe: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    in_a_thread(|| {
        private_mounts()?;
        probe()
    })
}

/// Gives the calling thread, and what it starts from now on, mounts of its own.
pub(super) fn private_mounts() -> Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    let change = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", change).context("making the mounts private")
}

/// Mounts a fresh tmpfs, readable by everyone.
pub fn tmpfs(folder: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(c"tmpfs", folder, c"tmpfs", flags, Some(c"mode=0755"))
        .with_context(|| format!("mounting a tmpfs on {}", folder.display()))
}

/// Mounts an overlay inside a fresh tmpfs: `lower`, `upper`, `work` and `merged` of `folder`.
pub(super) fn overlay(folder: &Path) -> Result<()> {
    tmpfs(folder)?;
    for part in ["lower", "upper", "work", "merged"] {
        fs::create_dir(folder.join(part)).with_context(|| part.to_owned())?;
    }
    let root = folder.display();
    let data = format!("lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work");
    let data = std::ffi::CString::new(data)?;
    let merged = folder.join("merged");
    rustix::mount::mount(c"overlay", &merged, c"overlay", MountFlags::NODEV, Some(&*data))
        .context("mounting an overlay")
}

/// The kernel records a locker's pid in the initial pid namespace, so that is where it must be
/// possible to hand out a pid again.
fn choose_pid() -> Result<()> {
    root()?;
    let own = fs::read_link("/proc/self/ns/pid").context("/proc/self/ns/pid")?;
    ensure!(own.as_os_str() == INITIAL_PID_NAMESPACE, "not in the initial pid namespace");
    Ok(())
}

fn pid_order() -> Result<()> {
    let number = |path: &str, text: &str| -> Result<u64> {
        text.trim().parse().with_context(|| path.to_owned())
    };
    let limit = fs::read_to_string("/proc/sys/kernel/pid_max").context("pid_max")?;
    let limit = number("pid_max", &limit)?;
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let forks = stat.lines().find_map(|line| line.strip_prefix("processes "));
    let forks = number("/proc/stat", forks.context("/proc/stat: no processes")?)?;
    if forks >= limit {
        bail!("{forks} processes since boot, and only {limit} pids");
    }
    Ok(())
}

fn fuse_opens() -> Result<()> {
    let path = "/dev/fuse";
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map(drop).context(path)
}

fn loop_devices() -> Result<()> {
    root()?;
    let path = "/dev/loop-control";
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).context(path)?;
    fs::metadata("/dev/loop0").map(drop).context("/dev/loop0")
}

fn io_uring() -> Result<()> {
    let mut params = [0_u64; 15];
    // SAFETY: the kernel reads and writes one `struct io_uring_params`, 120 bytes, at the pointer.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let ring = i32::try_from(ring).context("io_uring_setup")?;
    if ring < 0 {
        return Err(std::io::Error::last_os_error()).context("io_uring_setup");
    }
    // SAFETY: the descriptor was opened above and is nobody else's.
    drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(ring) });
    Ok(())
}

fn terminal() -> Result<()> {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    rustix::pty::openpt(flags).map(drop).context("opening a pseudo-terminal")
}

fn every_process() -> Result<()> {
    root()?;
    for entry in fs::read_dir("/proc").context("/proc")? {
        let path = entry.context("/proc")?.path();
        let is_process = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()));
        if !is_process {
            continue;
        }
        match fs::read_dir(path.join("fdinfo")) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                bail!("{}/fdinfo: {error}, even for root", path.display())
            }
            _ => {}
        }
    }
    Ok(())
}

fn queues_in_proc() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("osrelease")?;
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().context("osrelease")?, numbers.next().context("osrelease")?);
    ensure!(version >= (5, 13), "kernel {}.{} is older than 5.13", version.0, version.1);
    Ok(())
}

fn lockdown() -> Result<()> {
    let path = "/sys/kernel/security/lockdown";
    let mode = fs::read_to_string(path).context(path)?;
    ensure!(mode.contains("[confidentiality]"), "lockdown is {}", mode.trim());
    Ok(())
}
