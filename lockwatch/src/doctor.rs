//! `lockwatch doctor`: what this kernel and this user can and cannot do, probe by probe.

use std::io::{self, Write as _};

use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde::Serialize;

use crate::failure::{EXIT_CLEAR, EXIT_FINDINGS};
use crate::machine;
use crate::sink::json::SCHEMA;
use crate::source::bpf::probe::{self, Answer};

#[derive(Serialize)]
struct Examination {
    schema: u32,
    kernel: String,
    probes: Vec<Probe>,
}

#[derive(Serialize)]
struct Probe {
    name: &'static str,
    ok: bool,
    detail: String,
    needed_for: &'static str,
    #[serde(skip)]
    required: bool,
}

/// Runs the verb.
///
/// # Errors
/// Where the report cannot be written.
pub fn run(as_json: bool) -> anyhow::Result<u8> {
    let probes = probes();
    let fit = probes.iter().all(|probe| probe.ok || !probe.required);
    let examination = Examination { schema: SCHEMA, kernel: machine::names().1, probes };
    let mut out = io::stdout().lock();
    if as_json {
        serde_json::to_writer(&mut out, &examination)?;
        writeln!(out)?;
    } else {
        writeln!(out, "kernel {}", examination.kernel)?;
        for probe in &examination.probes {
            let mark = match (probe.ok, probe.required) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "no",
            };
            writeln!(out, "{mark:8}{:16}{}", probe.name, probe.detail)?;
            if !probe.ok {
                writeln!(out, "{:24}needed for {}", "", probe.needed_for)?;
            }
        }
        match fit {
            true => writeln!(out, "lockwatch reads the kernel's own lock tables here")?,
            false => writeln!(
                out,
                "lockwatch falls back to /proc here; run it as root (CAP_BPF, CAP_PERFMON, \
                 CAP_SYS_PTRACE) on a kernel with BTF, 5.10 or later, without \
                 lockdown=confidentiality"
            )?,
        }
    }
    Ok(if fit { EXIT_CLEAR } else { EXIT_FINDINGS })
}

fn probes() -> Vec<Probe> {
    let bpf = probe::ask();
    let probe = |name, required, needed_for, answer: Answer| {
        let ok = answer.is_ok();
        let detail = answer.unwrap_or_else(|why| why);
        Probe { name, ok, detail, needed_for, required }
    };
    vec![
        probe("btf", true, "reading the kernel's own tables", bpf.btf),
        probe("bpf", true, "reading the kernel's own tables", bpf.bpf),
        probe("iter/task_file", true, "exact holders, fast scans", bpf.task_file),
        probe("bpf_d_path", false, "paths without asking /proc", bpf.d_path),
        probe("search", false, "holders that no fd table shows", bpf.search),
        probe("iter/task_vma", false, "locks that only a mapping keeps", bpf.task_vma),
        probe("iter/unix", false, "nothing yet", bpf.unix),
        probe("tp_btf", false, "the daemon's history", bpf.tp_btf),
        probe("fentry", false, "nothing yet", bpf.fentry),
        probe("fexit", false, "nothing yet", bpf.fexit),
        probe("lsm", false, "nothing yet", bpf.lsm),
        probe("kcmp", false, "telling descriptions apart with /proc alone", kcmp()),
        probe("pidfd_getfd", false, "releasing a lock without ending its holder", getfd()),
        probe("fuse", false, "the daemon's tree", open("/dev/fuse", OFlags::RDWR)),
        probe("procfs", false, "working without BPF", open("/proc/locks", OFlags::RDONLY)),
    ]
}

fn open(path: &str, flags: OFlags) -> Answer {
    match rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(format!("{path} opens")),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

fn getfd() -> Answer {
    let (_open, mine) = rustix::pipe::pipe().map_err(|error| error.to_string())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&mine);
    let process = pidfd_open(getpid(), PidfdFlags::empty())
        .map_err(|error| format!("pidfd_open: {error}"))?;
    pidfd_getfd(process, number, PidfdGetfdFlags::empty())
        .map(|_| "descriptors can be fetched".into())
        .map_err(|error| format!("pidfd_getfd: {error}"))
}

fn kcmp() -> Answer {
    /// `KCMP_FILE` of `include/uapi/linux/kcmp.h`.
    const KCMP_FILE: i32 = 0;
    let own = std::process::id();
    let (a, b) = rustix::pipe::pipe().map_err(|error| error.to_string())?;
    let number = std::os::fd::AsRawFd::as_raw_fd;
    // SAFETY: kcmp(2) takes five integers and touches no memory of ours.
    let order =
        unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, number(&a), number(&b)) };
    match order {
        1 | 2 => Ok("descriptions can be compared".into()),
        -1 => Err(io::Error::last_os_error().to_string()),
        order => Err(format!("two descriptions compare as {order}")),
    }
}
