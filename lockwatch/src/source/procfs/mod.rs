//! A snapshot of all file locks from `/proc` alone, for users without BPF or without root.
//!
//! The order of the steps is what makes it true: first one pass over the fd tables, then one
//! reading of `/proc/locks`, then a second look at whatever only one of the two showed. A lock
//! that was taken in between is thus found at its acquirer, and one that was released in between
//! is not called a lock without a holder.
//!
//! Refuses to poll, to open a locked file, to take or break a lock, and to turn an error into an
//! empty result: what could not be read is an error or one of the snapshot's limits.

mod assemble;
mod descriptions;
pub mod fault;
pub mod fdinfo;
mod files;
mod identity;
pub(super) mod limits;
pub mod locks_line;
mod order;
pub(super) mod processes;
mod recheck;
mod root;
pub mod stat;
mod table;
mod tasks;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use identity::kernel_identity;
pub use root::{FileFacts, Lookups, ProcRoot};

use crate::engine::identity::{Pid, RecordedPid, Size};
use crate::engine::snapshot::{File, Search, Snapshot};
use files::{Labels, Witness};
use limits::Limits;
use processes::{Processes, Reader};
use table::Table;
use tasks::{ProcessScan, Scanner, Sight, Unsearched};

/// Why there is no snapshot at all. Whatever leaves a part of one is a limit in it instead.
#[derive(Debug, thiserror::Error)]
pub enum ProcfsError {
    /// The folder itself or its `locks` could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// How much may be spent on a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads that read fd tables, at least 1.
    pub workers: usize,
    /// Threads of other processes that are asked, at about a microsecond each, whether they have
    /// an fd table of their own. What goes beyond is said in a limit.
    pub thread_checks: usize,
}

impl Default for Options {
    fn default() -> Self {
        // The kernel's own locks on the fd tables and dentries leave nothing to gain beyond.
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
        Self { workers, thread_checks: 65_536 }
    }
}

/// The first kernel of which `/proc/locks` shows whole queues.
const QUEUES_SHOWN: (u32, u32) = (5, 13);

/// Reads one snapshot.
///
/// Takes time in proportion to the number of descriptors of the machine, and to the square of the
/// number of locks because the kernel's own listing does.
///
/// # Errors
/// Where the folder cannot be listed or `locks` cannot be read.
pub fn read(root: &ProcRoot, options: Options) -> Result<Snapshot, ProcfsError> {
    let failed = |source| ProcfsError::Read { path: root.path().to_owned(), source };
    let mut limits = Limits::default();
    let reader = Reader::of(root, &mut limits).map_err(failed)?;
    let scanner = Scanner::new(root, options.thread_checks).map_err(failed)?;
    let mut labels = Labels::new(root).map_err(failed)?;

    let pids = scanner.pids().map_err(failed)?;
    let mut scans = scanner.scan(&pids, options.workers);
    let table = std::thread::scope(|scope| {
        // Names are looked up while the kernel is busy with its listing; without a thread to
        // spare they are looked up afterwards.
        let work = || labels.add(witnesses(&scans));
        let helper = std::thread::Builder::new().spawn_scoped(scope, work);
        let table = Table::read(root, |fault| limits.fault(fault));
        if let Ok(Err(panic)) = helper.map(std::thread::ScopedJoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
        table
    })?;
    let released = recheck::recheck(&scanner, &mut scans, &table, options.workers);
    let grouped = descriptions::group(&scans, &table.locks, root.lookups());
    let made = assemble::assemble(&grouped, &table, &released);
    labels.add(witnesses(&scans));

    tell_sight(&pids, &scans, reader, &mut limits);
    if grouped.undecided {
        limits.hides_holders(
            "which of several equal locks a descriptor holds could not be told: \
             kcmp(2) is not allowed or not built in",
        );
    }
    if made.lost_waiters > 0 {
        limits
            .hides_holders(format!("the file of {} waiters could not be told", made.lost_waiters));
    }
    if let Some((major, minor)) = reader.kernel
        && (major, minor) < QUEUES_SHOWN
    {
        limits.lacks("before 5.13 /proc/locks leaves out requests that wait behind other requests");
    }
    if made.unreferenced > 0 {
        limits.lacks(format!(
            "{} locks are in /proc/locks alone: one that was released during the reading looks \
             the same",
            made.unreferenced
        ));
    }

    let named = |pid: RecordedPid| match pid {
        RecordedPid::Local(pid) => Some(pid),
        _ => None,
    };
    let wanted: BTreeSet<Pid> = made
        .references
        .iter()
        .map(|reference| reference.pid)
        .chain(made.locks.iter().filter_map(|lock| named(lock.acquirer)))
        .chain(made.waiters.iter().filter_map(|waiter| named(waiter.requester)))
        .collect();
    let is_listed = |pid| pids.binary_search(&pid).is_ok();
    let processes = Processes::new(root, reader).map_err(failed)?.read(
        wanted.into_iter(),
        is_listed,
        &mut limits,
    );
    let births = reader.births(root, &mut limits).map_err(failed)?;
    let file = |(dev, ino)| {
        let files::Label { size, path, deleted, replaced } = labels.get((dev, ino));
        File {
            dev,
            ino,
            size: size.and_then(Size::new),
            path: path.map(Arc::from),
            deleted,
            replaced,
        }
    };
    Ok(Snapshot {
        files: made.files.into_iter().map(file).collect(),
        locks: made.locks.into(),
        waiters: made.waiters,
        references: made.references.into(),
        search: Search::none("/proc does not show it"),
        processes,
        births,
        limits: limits.into_list(),
        nested: reader.is_nested(),
        ..Snapshot::default()
    })
}

/// Every locked file that a descriptor leads to, in the order of the processes.
fn witnesses(scans: &BTreeMap<Pid, ProcessScan>) -> impl Iterator<Item = Witness> {
    scans.iter().flat_map(|(&pid, scan)| {
        scan.descriptors().filter_map(move |(table, descriptor)| {
            let file = descriptor.info.locks.first()?.body.inode?;
            let mount = descriptor.info.mount;
            Some(Witness { file, pid, tid: table.tid, fd: descriptor.fd, mount })
        })
    })
}

/// Says what the pass could not see.
fn tell_sight(
    pids: &[Pid],
    scans: &BTreeMap<Pid, ProcessScan>,
    reader: Reader,
    limits: &mut Limits,
) {
    limits.lacks(
        "/proc shows the descriptors of processes only: descriptions in flight in a unix socket, \
         registered with io_uring, behind a mapping or in use by the kernel are not found",
    );
    if reader.is_nested() {
        limits.hides_locks(
            "in this pid namespace /proc/locks leaves out locks whose acquirer is dead or in \
             another pid namespace; processes of other pid namespaces are not seen",
        );
    }
    if pids.binary_search(&1).is_err() {
        limits.hides_holders(
            "processes of other users are not listed: /proc is mounted with hidepid",
        );
    }
    let mut denied = 0;
    let mut failed = BTreeMap::new();
    let mut unsearched = BTreeMap::new();
    for scan in scans.values() {
        match scan.sight {
            Sight::Denied => denied += 1,
            Sight::Failed(error) => *failed.entry(error.raw_os_error()).or_insert(0) += 1,
            Sight::Whole | Sight::Gone => {}
        }
        if let Some(why) = scan.unsearched {
            *unsearched.entry(why).or_insert(0) += 1;
        }
        scan.faults.iter().cloned().for_each(|fault| limits.fault(fault));
    }
    if denied > 0 {
        limits.hides_holders(format!(
            "descriptors of {denied} processes of other users could not be read: \
             Permission denied; run as root"
        ));
    }
    for (error, count) in failed {
        let error = io::Error::from_raw_os_error(error);
        limits
            .hides_holders(format!("descriptors of {count} processes could not be read: {error}"));
    }
    for (why, count) in unsearched {
        let why = match why {
            Unsearched::NotAllowed => "kcmp(2) is not allowed or not built in",
            Unsearched::TooMany => "too many threads",
        };
        limits.hides_holders(format!(
            "threads of {count} processes were not searched for fd tables of their own: {why}"
        ));
    }
}
