//! What BPF does not tell of a snapshot: processes without a descriptor, paths on old kernels,
//! whether a path names another file by now.
//!
//! Refuses to look up what nobody asks for: a healthy machine costs one look a process.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::OnceLock;

use super::acquaintance::Acquaintance;
use super::assemble::{Loose, Unlinked};
use hashbrown::HashMap;

use crate::engine::identity::{Dev, Pid, RecordedPid};
use crate::engine::snapshot::{FileIx, Process, Snapshot};
use crate::source::octal::unescape;
use crate::source::procfs::ProcRoot;
use crate::source::procfs::limits::Limits;
use crate::source::procfs::processes::{Processes, Reader};

/// Completes `snapshot` from `/proc`, and of who is known from a moment ago from there.
///
/// # Errors
/// Where `/proc` itself cannot be opened.
pub(super) fn enrich(
    snapshot: &mut Snapshot,
    loose: &Loose,
    known: &mut Acquaintance,
) -> io::Result<()> {
    let root = ProcRoot::live();
    let mut limits = Limits::default();
    let reader = here(&root, &mut limits)?;
    snapshot.nested = reader.is_nested();
    if snapshot.nested {
        limits.hides_holders(
            "BPF iterators show the processes of this pid namespace only: acquirers and holders \
             outside of it are not seen",
        );
    }
    name_files(snapshot);
    mount_names(snapshot, &loose.names);
    for unlinked in &loose.unlinked {
        let (place, now) = (unlinked.file.0 as usize, is_replaced(snapshot, unlinked));
        if snapshot.files[place].replaced != now {
            snapshot.files[place].replaced = now;
        }
    }
    let mut wanted = interesting(snapshot);
    known.introduce(snapshot, &mut wanted);
    let strangers = wanted.clone();
    look_up(snapshot, &root, reader, wanted, &mut limits)?;
    known.remember(snapshot, &strangers);
    snapshot.limits.extend(limits.into_list());
    Ok(())
}

/// Finds out how births can be ordered by pid.
///
/// # Errors
/// Where `/proc` itself cannot be opened.
pub(super) fn births(snapshot: &mut Snapshot) -> io::Result<()> {
    let root = ProcRoot::live();
    let mut limits = Limits::default();
    snapshot.births = here(&root, &mut limits)?.births(&root, &mut limits)?;
    snapshot.limits.extend(limits.into_list());
    Ok(())
}

/// Completes the processes of `pids`, which a search found.
///
/// # Errors
/// Where `/proc` itself cannot be opened.
pub(super) fn complete(snapshot: &mut Snapshot, pids: BTreeSet<Pid>) -> io::Result<()> {
    let root = ProcRoot::live();
    let mut limits = Limits::default();
    let reader = here(&root, &mut limits)?;
    look_up(snapshot, &root, reader, pids, &mut limits)?;
    snapshot.limits.extend(limits.into_list());
    Ok(())
}

/// Where this process stands, which does not change while it lives.
fn here(root: &ProcRoot, limits: &mut Limits) -> io::Result<Reader> {
    static HERE: OnceLock<Reader> = OnceLock::new();
    if let Some(&reader) = HERE.get() {
        return Ok(reader);
    }
    let reader = Reader::of(root, limits)?;
    // What could not be told is asked for each time.
    if reader.is_known() {
        let _ = HERE.set(reader);
    }
    Ok(reader)
}

fn look_up(
    snapshot: &mut Snapshot,
    root: &ProcRoot,
    reader: Reader,
    wanted: BTreeSet<Pid>,
    limits: &mut Limits,
) -> io::Result<()> {
    // A pid of the initial namespace says nothing in the /proc of a nested one; of a process that
    // is seen there the reader's own number is known.
    let number = |snapshot: &Snapshot, pid: Pid| match snapshot.processes.get(&pid) {
        Some(process) => Some(process.reader_pid.unwrap_or(pid)),
        None => (!snapshot.nested).then_some(pid),
    };
    let wanted: BTreeMap<Pid, Pid> =
        wanted.into_iter().filter_map(|pid| Some((number(snapshot, pid)?, pid))).collect();
    let found = Processes::new(root, reader)?.read(wanted.keys().copied(), |_| false, limits);
    for (shown, process) in found {
        let Some(&pid) = wanted.get(&shown) else { continue };
        merge(snapshot, pid, process);
    }
    Ok(())
}

/// Acquirers and requesters, and the holders of locks whose acquirer is not among them.
fn interesting(snapshot: &Snapshot) -> BTreeSet<Pid> {
    let local = |pid| match pid {
        RecordedPid::Local(pid) => Some(pid),
        _ => None,
    };
    let mut bereft = BTreeSet::new();
    let mut pids = BTreeSet::new();
    for lock in &snapshot.locks {
        let acquirer = local(lock.acquirer);
        pids.extend(acquirer);
        if acquirer.is_none_or(|pid| !snapshot.processes.contains_key(&pid)) {
            bereft.insert(lock.file);
        }
    }
    pids.extend(snapshot.waiters.iter().filter_map(|waiter| local(waiter.requester)));
    if !bereft.is_empty() {
        let holders = snapshot.references.iter().filter(|of| bereft.contains(&of.file));
        pids.extend(holders.map(|reference| reference.pid));
    }
    pids
}

fn merge(snapshot: &mut Snapshot, pid: Pid, read: Process) {
    match snapshot.processes.get_mut(&pid) {
        None => {
            snapshot.processes.insert(pid, read);
        }
        Some(known) => {
            let same =
                known.start.map(|start| start.ticks()) == read.start.map(|start| start.ticks());
            if same {
                known.group = read.group;
                known.session = read.session;
                known.threads = read.threads;
                known.exe = read.exe;
                known.cgroup = read.cgroup;
            }
        }
    }
}

/// Before 5.13 an iterator may not ask for paths: the descriptor's link in `/proc` has them.
fn name_files(snapshot: &mut Snapshot) {
    for reference in &snapshot.references {
        let file = reference.file.0 as usize;
        if snapshot.files[file].path.is_some() {
            continue;
        }
        let Some(fd) = reference.fd else { continue };
        let pid = snapshot
            .processes
            .get(&reference.pid)
            .and_then(|process| process.reader_pid)
            .unwrap_or(reference.pid);
        if let Ok(link) = fs::read_link(format!("/proc/{pid}/task/{}/fd/{fd}", reference.tid))
            .or_else(|_| fs::read_link(format!("/proc/{pid}/fd/{fd}")))
        {
            let file = &mut snapshot.files[file];
            let mut path = link.into_os_string().into_vec();
            if file.replaced.is_none() && path.ends_with(b" (deleted)") {
                path.truncate(path.len() - b" (deleted)".len());
            }
            file.path = Some(path.into());
        }
    }
}

/// Puts the mount point before the path of a file that no descriptor leads to. Where its file
/// system is not mounted here the path is told from its root.
fn mount_names(snapshot: &mut Snapshot, names: &HashMap<FileIx, Vec<u8>>) {
    if names.is_empty() {
        return;
    }
    let mounts = mounts();
    for (index, file) in snapshot.files.iter_mut().enumerate() {
        let Some(name) = names.get(&FileIx(index as u32)) else { continue };
        if file.path.is_none() {
            let point = mounts.get(&file.dev).map_or(&[][..], Vec::as_slice);
            let point = point.strip_suffix(b"/").unwrap_or(point);
            file.path = Some([point, name].concat().into());
        }
    }
}

/// Where each device's root is mounted.
fn mounts() -> HashMap<Dev, Vec<u8>> {
    let mut mounts = HashMap::new();
    for line in fs::read("/proc/self/mountinfo").unwrap_or_default().split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.splitn(6, |&byte| byte == b' ').collect();
        let [_, _, device, root, point, _] = fields[..] else { continue };
        let device = std::str::from_utf8(device).ok().and_then(|text| text.split_once(':'));
        if let Some((major, minor)) = device
            && let (Ok(major), Ok(minor)) = (major.parse(), minor.parse())
            && let Some(dev) = Dev::exact(major, minor)
            && root == b"/"
        {
            mounts.entry(dev).or_insert_with(|| unescape(point));
        }
    }
    mounts
}

/// Both sides are asked of the file system, because what the kernel keeps in an inode and what
/// stat(2) tells differ on btrfs and overlayfs.
fn is_replaced(snapshot: &Snapshot, unlinked: &Unlinked) -> Option<bool> {
    let file = &snapshot.files[unlinked.file.0 as usize];
    let path = Path::new(OsStr::from_bytes(file.path.as_deref()?));
    let now = match fs::metadata(path) {
        Ok(now) => now,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(false),
        Err(_) => return None,
    };
    let (pid, fd) = unlinked.reference?;
    let pid = snapshot.processes.get(&pid).and_then(|process| process.reader_pid).unwrap_or(pid);
    let own = fs::metadata(format!("/proc/{pid}/fd/{fd}")).ok()?;
    Some((own.dev(), own.ino()) != (now.dev(), now.ino()))
}
