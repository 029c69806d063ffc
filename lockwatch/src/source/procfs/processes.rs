//! The processes that a snapshot names: who they are, whose children, and since when.
//!
//! Refuses to look at any other process, and to take a thread's number for a process.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::path::DecInt;

use super::limits::Limits;
use super::root::{ProcRoot, open_folder, read_file, read_link, read_record};
use super::stat::{self, Stat};
use crate::engine::identity::{Pid, StartTime};
use crate::engine::snapshot::{Births, Process};

/// Inode number of the initial pid namespace (`PROC_PID_INIT_INO` of `include/linux/proc_ns.h`).
const INITIAL_PID_NS: u64 = 0xEFFF_FFFC;

/// Where the reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::source) struct Reader {
    /// Its pid namespace, where the link could be read.
    pid_ns: Option<u64>,
    /// Version of its kernel.
    pub(in crate::source) kernel: Option<(u32, u32)>,
}

impl Reader {
    pub(in crate::source) fn of(root: &ProcRoot, limits: &mut Limits) -> io::Result<Self> {
        let folder = root.open()?;
        let link = read_link(&folder, "self/ns/pid").ok();
        let pid_ns = link.and_then(|link| {
            stat::namespace_inode(&link, || "self/ns/pid".to_owned())
                .map_err(|fault| limits.fault(fault))
                .ok()
        });
        let mut buffer = Vec::new();
        let release = read_file(&folder, "sys/kernel/osrelease", &mut buffer).ok();
        Ok(Self { pid_ns, kernel: release.and_then(version) })
    }

    /// True where all of it could be told.
    pub(in crate::source) fn is_known(self) -> bool {
        self.pid_ns.is_some() && self.kernel.is_some()
    }

    /// True where every task and lock of the machine has a pid here.
    pub(in crate::source) fn sees_all(self) -> bool {
        self.pid_ns == Some(INITIAL_PID_NS)
    }

    /// True where the reader is known to stand in a nested pid namespace.
    pub(in crate::source) fn is_nested(self) -> bool {
        self.pid_ns.is_some_and(|inode| inode != INITIAL_PID_NS)
    }

    pub(in crate::source) fn births(
        self,
        root: &ProcRoot,
        limits: &mut Limits,
    ) -> io::Result<Births> {
        let folder = root.open()?;
        let mut buffer = Vec::new();
        // Forks are counted machine-wide, but pids are given out anew in each namespace.
        let forks = match read_file(&folder, "stat", &mut buffer) {
            Ok(text) if self.sees_all() => stat::forks_since_boot(text).unwrap_or_else(|fault| {
                limits.fault(fault);
                None
            }),
            _ => None,
        };
        let pid_max = match read_file(&folder, "sys/kernel/pid_max", &mut buffer) {
            Ok(text) => super::fault::number(text.trim_ascii(), 10, "pid_max").ok(),
            Err(_) => None,
        };
        let mut field = |file: &str, index: usize| {
            let text = read_file(&folder, file, &mut buffer).ok()?;
            let field = text.trim_ascii().split(|&byte| byte == b' ').nth(index)?;
            std::str::from_utf8(field).ok().map(str::to_owned)
        };
        let last_pid = field("loadavg", 4).and_then(|text| text.parse().ok());
        let uptime = field("uptime", 0).and_then(|text| text.parse::<f64>().ok());
        let now = uptime.map(|seconds| StartTime((seconds * 1e9) as u64));
        Ok(Births { forks, pid_max, last_pid, now })
    }
}

/// Reads processes.
pub(in crate::source) struct Processes {
    folder: OwnedFd,
    reader: Reader,
    buffer: Vec<u8>,
    denied: usize,
}

impl Processes {
    pub(in crate::source) fn new(root: &ProcRoot, reader: Reader) -> io::Result<Self> {
        let folder = root.open()?;
        Ok(Self { folder, reader, buffer: Vec::new(), denied: 0 })
    }

    /// Reads each of `wanted` that exists. `is_listed` says of which it is known that they are
    /// processes and not threads.
    pub(in crate::source) fn read(
        mut self,
        wanted: impl Iterator<Item = Pid>,
        is_listed: impl Fn(Pid) -> bool,
        limits: &mut Limits,
    ) -> BTreeMap<Pid, Process> {
        let mut found = BTreeMap::new();
        for pid in wanted {
            if !found.contains_key(&pid)
                && let Some(process) = self.process(pid, is_listed(pid), limits)
            {
                found.insert(pid, process);
            }
        }
        if self.denied > 0 {
            limits.hides_holders(format!(
                "{} processes could not be looked at: Permission denied; run as root",
                self.denied
            ));
        }
        found
    }

    fn process(&mut self, pid: Pid, listed: bool, limits: &mut Limits) -> Option<Process> {
        let folder = open_folder(&self.folder, DecInt::new(pid));
        let folder = folder.map_err(|error| self.failed(error)).ok()?;
        if !listed {
            let status = read_record(&folder, "status", &mut self.buffer).ok()?;
            let group = stat::thread_group(status, || format!("{pid}/status"));
            match group {
                Ok(Some(group)) if group != pid => return None,
                Ok(_) => {}
                Err(fault) => limits.fault(fault),
            }
        }
        let text = match read_record(&folder, "stat", &mut self.buffer) {
            Ok(text) => text,
            Err(error) => {
                self.failed(error);
                return None;
            }
        };
        let stat = match Stat::parse(text, || format!("{pid}/stat")) {
            Ok(stat) => Some(stat),
            Err(fault) => {
                limits.fault(fault);
                None
            }
        };
        let mut process = stat.map_or_else(Process::default, |stat| Process {
            start: Some(StartTime::from_ticks(stat.start)),
            forked_no_exec: Some(stat.forked_no_exec()),
            kernel_thread: stat.is_kernel_thread(),
            exiting: stat.is_exiting(),
            zombie: stat.is_zombie(),
            parent: known(stat.parent),
            group: known(stat.group),
            session: known(stat.session),
            threads: Some(stat.threads),
            comm: stat.comm,
            ..Process::default()
        });
        self.namespaces(pid, &folder, &mut process, limits);
        process.exe = read_link(&folder, "exe").ok().map(Vec::into_boxed_slice);
        process.cgroup =
            read_record(&folder, "cgroup", &mut self.buffer).ok().and_then(control_group);
        Some(process)
    }

    fn namespaces(
        &mut self,
        pid: Pid,
        folder: &OwnedFd,
        process: &mut Process,
        limits: &mut Limits,
    ) {
        if let Ok(link) = read_link(folder, "ns/pid") {
            let inode = stat::namespace_inode(&link, || format!("{pid}/ns/pid"));
            process.pid_ns = inode.map_err(|fault| limits.fault(fault)).ok();
        }
        if process.pid_ns.is_some() && process.pid_ns == self.reader.pid_ns {
            process.ns_pid = Some(pid);
            process.ns_level = self.reader.sees_all().then_some(0);
            return;
        }
        let Ok(status) = read_record(folder, "status", &mut self.buffer) else { return };
        match stat::namespace_pids(status, || format!("{pid}/status")) {
            Ok(Some(pids)) => {
                process.ns_pid = pids.last().copied();
                let level = u32::try_from(pids.len() - 1).ok();
                process.ns_level = level.filter(|_| self.reader.sees_all());
            }
            Ok(None) => {}
            Err(fault) => limits.fault(fault),
        }
    }

    fn failed(&mut self, error: Errno) {
        if matches!(error, Errno::ACCESS | Errno::PERM) {
            self.denied += 1;
        }
    }
}

/// The kernel shows 0 for a parent or group that is outside of the reader's pid namespace, and
/// for the first process's parent.
fn known(pid: Pid) -> Option<Pid> {
    (pid > 0).then_some(pid)
}

/// `MAJOR.MINOR` at the beginning of a release.
fn version(release: &[u8]) -> Option<(u32, u32)> {
    let mut numbers = std::str::from_utf8(release).ok()?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The path in the unified hierarchy, else in systemd's own, else in the first one.
fn control_group(text: &[u8]) -> Option<Box<[u8]>> {
    let lines = || text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let path = |line: &[u8]| line.splitn(3, |&byte| byte == b':').nth(2).map(Into::into);
    let of = |controllers: &[u8]| {
        let named = |line: &&[u8]| line.splitn(3, |&byte| byte == b':').nth(1) == Some(controllers);
        lines().find(named)
    };
    of(b"").or_else(|| of(b"name=systemd")).or_else(|| lines().next()).and_then(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_its_version() {
        assert_eq!(version(b"5.10.0-46-cloud-amd64\n"), Some((5, 10)));
        assert_eq!(version(b"7.2.13+deb14"), Some((7, 2)));
        assert_eq!(version(b"unknown"), None);
    }

    #[test]
    fn the_control_group_is_that_of_the_unified_hierarchy() {
        let path = |text: &str| control_group(text.as_bytes());
        assert_eq!(path("0::/a:b\n").as_deref(), Some(&b"/a:b"[..]));
        assert_eq!(path("2:cpu:/x\n1:name=systemd:/y\n").as_deref(), Some(&b"/y"[..]));
        assert_eq!(path("1:name=systemd:/y\n0::/z\n").as_deref(), Some(&b"/z"[..]));
        assert_eq!(path("2:cpu:/x\n").as_deref(), Some(&b"/x"[..]));
        assert_eq!(path(""), None);
        assert_eq!(path("nonsense\n"), None);
    }
}
