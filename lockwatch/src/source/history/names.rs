//! Names for what the tables have as numbers: executables, control groups.
//!
//! Refuses to name what it did not see: an executable is read while its process lives, and kept.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use lockwatch_common::history::Party;

use crate::engine::identity::{ProcessId, StartTime};
use crate::engine::snapshot::Remembered;
use crate::source::procfs::stat::Stat;

/// Names that were looked up, by what they belong to.
#[derive(Debug, Default)]
pub struct Names {
    executables: Kept<(ProcessId, u64)>,
    groups: Kept<u64>,
    hierarchy: Option<Option<Hierarchy>>,
}

/// Names that are kept for certain since they were asked for last; of as many more, some may be.
const KEPT: usize = 8 * 1024;

/// Names that were asked for lately: those that nobody asks for any more make room.
#[derive(Debug)]
struct Kept<K> {
    young: BTreeMap<K, Option<Box<[u8]>>>,
    old: BTreeMap<K, Option<Box<[u8]>>>,
}

impl<K> Default for Kept<K> {
    fn default() -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new() }
    }
}

impl<K: Ord> Kept<K> {
    fn get(&mut self, key: K, look_up: impl FnOnce() -> Option<Box<[u8]>>) -> Option<Box<[u8]>> {
        if let Some(name) = self.young.get(&key) {
            return name.clone();
        }
        let name = self.old.remove(&key).unwrap_or_else(look_up);
        if self.young.len() == KEPT {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, name.clone());
        name
    }
}

impl Names {
    /// A process as the tables have it, with what can be told of it now.
    pub fn remembered(&mut self, party: &Party) -> Remembered {
        let id = ProcessId { pid: party.tgid, start: StartTime(party.start) };
        let end = party.comm.iter().position(|&byte| byte == 0).unwrap_or(party.comm.len());
        Remembered {
            id,
            comm: party.comm[..end].into(),
            ns_pid: (party.ns_pid > 0).then_some(party.ns_pid),
            pid_ns: (party.pid_ns != 0).then_some(u64::from(party.pid_ns)),
            exe: self.executable(id, party.exe_ino),
            cgroup: self.group(party.cgroup),
        }
    }

    fn executable(&mut self, id: ProcessId, ino: u64) -> Option<Box<[u8]>> {
        if ino == 0 {
            return None;
        }
        self.executables.get((id, ino), || executable(id, ino))
    }

    fn group(&mut self, number: u64) -> Option<Box<[u8]>> {
        let hierarchy = self.hierarchy.get_or_insert_with(Hierarchy::find);
        self.groups.get(number, || hierarchy.as_ref().and_then(|it| it.path(number)))
    }
}

/// The executable of a process that lives, where it is still the one with that inode number.
fn executable(id: ProcessId, ino: u64) -> Option<Box<[u8]>> {
    use std::os::unix::fs::MetadataExt as _;
    let exe = format!("/proc/{}/exe", id.pid);
    let path = fs::read_link(&exe).ok()?;
    // An exec since then has another file; a file system may show another number than the kernel's
    // own, and then the start alone must do.
    if fs::metadata(&exe).is_ok_and(|now| now.ino() != ino && now.ino() != 0) {
        return None;
    }
    // Last: the process that was looked at is the one that is meant.
    let stat = fs::read(format!("/proc/{}/stat", id.pid)).ok()?;
    let stat = Stat::parse(&stat, String::new).ok()?;
    (stat.start == id.start.ticks()).then(|| path.into_os_string().into_vec().into())
}

/// The unified hierarchy of control groups.
#[derive(Debug)]
struct Hierarchy {
    mount: OwnedFd,
    point: Vec<u8>,
}

/// A file handle as `open_by_handle_at(2)` takes it, for a control group: its number.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    number: u64,
}

/// `FILEID_KERNFS` of `include/linux/exportfs.h`.
const FILEID_KERNFS: i32 = 0xfe;

impl Hierarchy {
    fn find() -> Option<Self> {
        let mounts = fs::read("/proc/self/mountinfo").ok()?;
        let point = mounts.split(|&byte| byte == b'\n').find_map(|line| {
            let (mount, kind) = line
                .windows(3)
                .position(|three| three == b" - ")
                .map(|at| (&line[..at], &line[at + 3..]))?;
            let fields: Vec<&[u8]> = mount.split(|&byte| byte == b' ').collect();
            let is_root = fields.get(3) == Some(&&b"/"[..]);
            (is_root && kind.starts_with(b"cgroup2 "))
                .then(|| fields.get(4).map(|at| at.to_vec()))?
        })?;
        let mount = fs::File::open(std::ffi::OsStr::from_bytes(&point)).ok()?;
        Some(Self { mount: mount.into(), point })
    }

    /// The path of a group that is there still.
    fn path(&self, number: u64) -> Option<Box<[u8]>> {
        let mut handle = Handle { bytes: 8, kind: FILEID_KERNFS, number };
        // SAFETY: the handle has as many bytes as it says, and the mount is open.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                self.mount.as_raw_fd(),
                &raw mut handle,
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        let opened = i32::try_from(opened).ok().filter(|&fd| fd >= 0)?;
        // SAFETY: the kernel just gave it to this process alone.
        let group = unsafe { OwnedFd::from_raw_fd(opened) };
        let path = link(&format!("/proc/self/fd/{}", group.as_raw_fd())).ok()?;
        let below = path.strip_prefix(self.point.as_slice())?;
        Some(if below.is_empty() { b"/"[..].into() } else { below.into() })
    }
}

fn link(path: &str) -> io::Result<Vec<u8>> {
    let path = CString::new(path)?;
    Ok(rustix::fs::readlink(path.as_c_str(), Vec::new())?.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_looked_up_once_and_the_rest_makes_room() {
        let mut kept = Kept::default();
        let name = |number: usize| Some(number.to_string().into_bytes().into_boxed_slice());
        let look_up_in_vain = || panic!("looked up again");
        assert_eq!(kept.get(0, || name(0)), name(0));
        for number in 1..10 * KEPT {
            assert_eq!(kept.get(number, || name(number)), name(number));
            if number % 1000 == 0 {
                assert_eq!(kept.get(0, look_up_in_vain), name(0), "at {number}");
            }
            assert!(kept.young.len() + kept.old.len() <= 2 * KEPT);
        }
        assert_eq!(kept.get(1, || None), None, "nobody asked for it for long");
    }

    #[test]
    fn that_there_is_no_name_is_kept_too() {
        let mut kept = Kept::default();
        assert_eq!(kept.get(7, || None), None);
        assert_eq!(kept.get(7, || panic!("looked up again")), None);
    }
}
