//! Files, their names, and many of them.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::descriptors::Descriptors;
use super::language::{Access, Asked, Mass, MountKind, OpenMode, Range, Record};
use super::locking::{self, Patience};
use super::passing;

/// Opens a file; one that may be written is made where it is absent.
pub(super) fn open(path: &[u8], mode: OpenMode, cloexec: bool) -> Result<OwnedFd> {
    let mut flags = match mode {
        OpenMode::Read => OFlags::RDONLY,
        OpenMode::Write => OFlags::WRONLY | OFlags::CREATE,
        OpenMode::Both => OFlags::RDWR | OFlags::CREATE,
    };
    flags.set(OFlags::CLOEXEC, cloexec);
    rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::from_raw_mode(0o644))
        .with_context(|| format!("opening {:?}", OsStr::from_bytes(path)))
}

/// All that a file holds.
pub(super) fn content(path: &[u8]) -> Result<Vec<u8>> {
    let path = Path::new(OsStr::from_bytes(path));
    fs::read(path).with_context(|| format!("reading {path:?}"))
}

/// Takes one byte, which may never come.
pub(super) fn read_byte(fd: BorrowedFd<'_>) -> Result<()> {
    rustix::io::read(fd, &mut [0_u8; 1]).map(drop).context("read")
}

/// Takes a name away.
pub(super) fn unlink(path: &[u8]) -> Result<()> {
    rustix::fs::unlink(path).with_context(|| format!("unlinking {:?}", OsStr::from_bytes(path)))
}

/// Puts a new file under an old name, as editors and package managers do.
pub(super) fn replace(path: &[u8]) -> Result<()> {
    let old = Path::new(OsStr::from_bytes(path));
    let mut new = old.as_os_str().to_owned().into_vec();
    new.extend(b".new");
    let new = Path::new(OsStr::from_bytes(&new));
    fs::write(new, b"replaced\n").with_context(|| format!("writing {new:?}"))?;
    fs::rename(new, old).with_context(|| format!("renaming {new:?} to {old:?}"))
}

/// Mounts a file system for this mount namespace only.
pub(super) fn mount(kind: MountKind, path: &[u8]) -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("making the mounts private")?;
    let name = match kind {
        MountKind::Proc => c"proc",
        MountKind::Tmpfs => c"tmpfs",
    };
    rustix::mount::mount(name, path, name, MountFlags::NOSUID | MountFlags::NODEV, None)
        .with_context(|| format!("mounting {name:?} on {:?}", OsStr::from_bytes(path)))
}

/// Takes `count` locks of one sort. The descriptors stay open and have no names.
pub(super) fn mass(descriptors: &Descriptors, count: u32, mass: &Mass) -> Result<()> {
    let patience = Patience::None;
    let exclusive = Asked::Flock(Access::Exclusive);
    match mass {
        Mass::Files(folder) => {
            allow_many_descriptors()?;
            let folder = Path::new(OsStr::from_bytes(folder));
            for number in 0..count {
                let path = folder.join(number.to_string());
                let fd = open(path.as_os_str().as_bytes(), OpenMode::Both, false)?;
                locking::take(fd.as_fd(), exclusive, patience)?;
                keep(fd);
            }
        }
        Mass::Shares(path) => {
            allow_many_descriptors()?;
            for _ in 0..count {
                let fd = open(path, OpenMode::Both, false)?;
                let shared = Asked::Flock(Access::Shared);
                locking::take(fd.as_fd(), shared, patience)?;
                keep(fd);
            }
        }
        Mass::Ranges(record, name) => ranges(descriptors, count, *record, name)?,
        Mass::Sockets => {
            allow_many_descriptors()?;
            for _ in 0..count {
                passing::byte_in_flight()?;
            }
        }
        Mass::Maps(name) => {
            let fd = descriptors.get(name)?;
            for _ in 0..count {
                passing::map(fd)?;
            }
        }
    }
    Ok(())
}

/// Single bytes with a free one between, so that the kernel does not merge them.
fn ranges(descriptors: &Descriptors, count: u32, record: Record, name: &str) -> Result<()> {
    let fd = descriptors.get(name)?;
    for number in 0..u64::from(count) {
        let range = Range { start: 2 * number, end: Some(2 * number) };
        locking::take(fd, Asked::Record(record, Access::Exclusive, range), Patience::None)?;
    }
    Ok(())
}

/// Leaves it open as long as the process lives.
fn keep(fd: OwnedFd) {
    let _ = fd.into_raw_fd();
}

/// As many as the kernel allows (`fs.nr_open`), where this user may raise the limit.
pub(super) fn allow_many_descriptors() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const MOST: u64 = 1 << 20;
    let raised = Rlimit { current: Some(MOST), maximum: Some(MOST) };
    setrlimit(Resource::Nofile, raised)
        .or_else(|_| {
            let mut limit = getrlimit(Resource::Nofile);
            limit.current = limit.maximum;
            setrlimit(Resource::Nofile, limit)
        })
        .context("raising the limit of open files")
}
