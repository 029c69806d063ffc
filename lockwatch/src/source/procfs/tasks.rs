//! One pass over the processes of `/proc`: every fd table, and in it every descriptor whose
//! description carries locks (`fdinfo` shows a lock with each descriptor of its `struct file`).
//!
//! Refuses to conclude which descriptors are one description, and to look at anything that holds
//! no lock.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::path::DecInt;

use super::fault::BadLine;
use super::fdinfo::FdInfo;
use super::order;
use super::root::{ProcRoot, numbers, open_folder, read_record};
use super::stat::Stat;
use crate::engine::identity::Pid;

/// A descriptor whose description carries locks.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub fd: u32,
    pub info: FdInfo,
}

/// An fd table, by the task through which it was read.
#[derive(Clone, Debug)]
pub(super) struct TableScan {
    pub tid: Pid,
    /// Those with locks, by number.
    pub descriptors: Vec<Descriptor>,
}

/// How much of a process could be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sight {
    /// All of it.
    #[default]
    Whole,
    /// Nothing: it belongs to someone whom the reader may not look at.
    Denied,
    /// It is no longer there.
    Gone,
    /// The kernel refused for another reason.
    Failed(Errno),
}

/// What was found in a process.
#[derive(Clone, Debug, Default)]
pub(super) struct ProcessScan {
    pub sight: Sight,
    /// Tables with locks.
    pub tables: Vec<TableScan>,
    pub faults: Vec<BadLine>,
    /// Why threads were not searched for fd tables of their own.
    pub unsearched: Option<Unsearched>,
}

/// Why threads were not searched for fd tables of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Unsearched {
    /// kcmp(2) did not answer.
    NotAllowed,
    /// There were too many of them.
    TooMany,
}

impl ProcessScan {
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (&TableScan, &Descriptor)> {
        self.tables.iter().flat_map(|table| table.descriptors.iter().map(move |fd| (table, fd)))
    }
}

/// Reads processes.
pub(super) struct Scanner<'root> {
    root: &'root ProcRoot,
    folder: OwnedFd,
    /// How many more threads may be asked about.
    thread_checks: AtomicUsize,
}

impl<'root> Scanner<'root> {
    pub(super) fn new(root: &'root ProcRoot, thread_checks: usize) -> io::Result<Self> {
        let folder = root.open()?;
        Ok(Self { root, folder, thread_checks: AtomicUsize::new(thread_checks) })
    }

    /// The processes that are there now.
    pub(super) fn pids(&self) -> io::Result<Vec<Pid>> {
        let found = numbers(&self.folder, ".")?;
        Ok(found.into_iter().filter_map(|pid| Pid::try_from(pid).ok()).collect())
    }

    /// Reads the named processes, on so many threads.
    pub(super) fn scan(&self, pids: &[Pid], workers: usize) -> BTreeMap<Pid, ProcessScan> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Vec::new();
            let mut buffer = Vec::new();
            while let Some(&pid) = pids.get(next.fetch_add(1, Ordering::Relaxed)) {
                found.push((pid, self.process(pid, &mut buffer)));
            }
            found
        };
        let helpers = workers.min(pids.len()).saturating_sub(1);
        std::thread::scope(|scope| {
            // A thread that cannot be had is no loss but of time: this one does all that is left.
            let helpers: Vec<_> = (0..helpers)
                .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let mut found: BTreeMap<_, _> = work().into_iter().collect();
            for helper in helpers {
                match helper.join() {
                    Ok(more) => found.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            found
        })
    }

    fn process(&self, pid: Pid, buffer: &mut Vec<u8>) -> ProcessScan {
        let mut scan = ProcessScan::default();
        let sight = self.look_into(pid, buffer, &mut scan);
        scan.sight = sight.err().unwrap_or_default();
        scan
    }

    fn look_into(
        &self,
        pid: Pid,
        buffer: &mut Vec<u8>,
        scan: &mut ProcessScan,
    ) -> Result<(), Sight> {
        let process = open_folder(&self.folder, DecInt::new(pid)).map_err(sight)?;
        let leader = self.table(&process, pid, pid, buffer, scan);
        if matches!(leader, Err(Sight::Gone)) {
            return leader.map(drop);
        }
        // Each thread is a folder, and each folder one link more on its parent: far cheaper than
        // the listing, and right for procfs (`proc_task_getattr`).
        let threads = rustix::fs::statat(&process, "task", AtFlags::empty())
            .map_or(0, |stat| u64::from(stat.st_nlink as u32).saturating_sub(2));

        if let Ok(1..) = leader {
            if threads > 1 {
                self.threads(&process, pid, Some(pid), buffer, scan)?;
            }
            return Ok(());
        }
        // An empty or forbidden table may be that of an exited leader, or of a kernel thread.
        let stat = read_record(&process, "stat", buffer).map_err(sight)?;
        match Stat::parse(stat, || format!("{pid}/stat")) {
            Ok(stat) if stat.is_kernel_thread() || stat.is_zombie() => return Ok(()),
            Ok(stat) if stat.leader_exited() => {
                return self.threads(&process, pid, None, buffer, scan);
            }
            Ok(_) => {}
            Err(fault) => scan.faults.push(fault),
        }
        leader?;
        if threads > 1 {
            self.threads(&process, pid, Some(pid), buffer, scan)?;
        }
        Ok(())
    }

    /// Reads one fd table and says how many descriptors it has.
    fn table(
        &self,
        process: &OwnedFd,
        pid: Pid,
        tid: Pid,
        buffer: &mut Vec<u8>,
        scan: &mut ProcessScan,
    ) -> Result<usize, Sight> {
        let path = table_path(pid, tid, "fdinfo");
        // One descriptor serves for the listing and as the starting point of every file.
        let folder = open_folder(process, path.as_str()).map_err(sight)?;
        let fds = numbers(&folder, ".").map_err(sight)?;
        let mut descriptors = Vec::new();
        for &fd in &fds {
            let text = match read_record(&folder, DecInt::new(fd), buffer) {
                Ok(text) => text,
                Err(error) => match sight(error) {
                    // Closed meanwhile.
                    Sight::Gone => continue,
                    other => return Err(other),
                },
            };
            if !text.windows(6).any(|window| window == b"\nlock:") {
                continue;
            }
            let name = || format!("{pid}/{path}/{fd}");
            let info = FdInfo::parse(text, name, |fault| scan.faults.push(fault));
            if !info.locks.is_empty() {
                descriptors.push(Descriptor { fd, info });
            }
        }
        if !descriptors.is_empty() {
            scan.tables.push(TableScan { tid, descriptors });
        }
        Ok(fds.len())
    }

    /// Reads the fd tables that threads have besides that of `known`, which has been read.
    fn threads(
        &self,
        process: &OwnedFd,
        pid: Pid,
        known: Option<Pid>,
        buffer: &mut Vec<u8>,
        scan: &mut ProcessScan,
    ) -> Result<(), Sight> {
        let tids = numbers(process, "task").map_err(sight)?;
        let tids: Vec<Pid> = tids
            .into_iter()
            .filter_map(|tid| Pid::try_from(tid).ok())
            .filter(|&tid| tid != pid)
            .collect();
        let budget =
            self.thread_checks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(tids.len())
            });
        if budget.is_err() {
            scan.unsearched = Some(Unsearched::TooMany);
        }

        let lookups = self.root.lookups();
        let mut others = Vec::new();
        let mut base = known;
        for &tid in &tids {
            let Some(base) = base else {
                // The leader is gone: the first thread with a table stands in for it.
                match self.table(process, pid, tid, buffer, scan) {
                    Ok(1..) => base = Some(tid),
                    Ok(0) | Err(Sight::Gone) => {}
                    Err(other) => return Err(other),
                }
                continue;
            };
            if budget.is_err() {
                break;
            }
            match lookups.compare_tables(base, tid) {
                Ok(std::cmp::Ordering::Equal) => {}
                Ok(_) => others.push(tid),
                Err(error) if is_gone(&error) => {}
                Err(_) => {
                    scan.unsearched = Some(Unsearched::NotAllowed);
                    break;
                }
            }
        }

        // Of threads that share a table among themselves, one is read. When the comparison fails
        // half way, all are read: the same table twice is found out later by its owner.
        let mut twins = HashSet::new();
        let compare = |left, right| lookups.compare_tables(left, right);
        let sorted = order::pair_up(&mut others, compare, |_, twin| {
            twins.insert(twin);
        });
        if sorted.is_err() {
            twins.clear();
        }
        for tid in others.into_iter().filter(|tid| !twins.contains(tid)) {
            match self.table(process, pid, tid, buffer, scan) {
                Ok(_) | Err(Sight::Gone) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }
}

/// Where a task's table is, below its process's folder.
pub(super) fn table_path(pid: Pid, tid: Pid, table: &str) -> String {
    if tid == pid { table.to_owned() } else { format!("task/{tid}/{table}") }
}

/// True for what the kernel says of a task or descriptor that is no longer there.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::EBADF))
}

fn sight(error: Errno) -> Sight {
    match error {
        Errno::NOENT | Errno::SRCH => Sight::Gone,
        Errno::ACCESS | Errno::PERM => Sight::Denied,
        other => Sight::Failed(other),
    }
}
