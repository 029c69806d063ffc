//! Mounting the tree, and taking it away again.
//!
//! Refuses to mount over anything that somebody may want: another mount, or a folder with files in
//! it. Only what a dead daemon left is taken away.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

const DEVICE: &str = "/dev/fuse";
/// The type by which the mount is known (`findmnt -t fuse.lockwatch`).
const TYPE: &str = "fuse.lockwatch";
/// Daemons that may have been killed one over the other.
const STALE_AT_MOST: usize = 16;

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Something is mounted there.
    #[error("{}: something is mounted there already; unmount it, or choose another `mount`", .0.display())]
    Busy(PathBuf),
    /// Files are there.
    #[error("{}: not empty; choose another `mount`", .0.display())]
    NotEmpty(PathBuf),
    /// No folder.
    #[error("{}: not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// The mount point cannot be made or looked into.
    #[error("{}: {error}", .path.display())]
    Point {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What a killed daemon left cannot be taken away.
    #[error("{}: a tree that nobody serves is mounted there and cannot be taken away: {error}", .path.display())]
    Stale {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no FUSE.
    #[error("/dev/fuse: {0}; load the module `fuse`, or give the container this device")]
    NoDevice(io::Error),
    /// It may not be mounted.
    #[error("{}: mounting is not allowed: {error}; a container needs CAP_SYS_ADMIN for it", .path.display())]
    NotAllowed {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The thread that would serve it cannot be started.
    #[error("starting the thread that serves the tree: {0}")]
    Thread(io::Error),
}

/// A mount point with the tree on it.
#[derive(Debug)]
pub(super) struct Point {
    path: PathBuf,
    /// Whether the folder was made for it.
    made: bool,
}

/// Mounts. What comes back is the kernel's end, which speaks at once.
pub(super) fn mount(path: &Path, allow_other: bool) -> Result<(Point, OwnedFd), MountError> {
    let made = prepare(path)?;
    let point = Point { path: path.to_owned(), made };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device = rustix::fs::open(DEVICE, flags, Mode::empty())
        .map_err(|error| MountError::NoDevice(error.into()));
    let mounted = device.and_then(|device| {
        let options = options(device.as_raw_fd(), allow_other);
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount("lockwatch", path, TYPE, flags, Some(&*options))
            .map(|()| device)
            .map_err(|error| refused(path, error))
    });
    match mounted {
        Ok(device) => Ok((point, device)),
        Err(error) => {
            point.remove_folder();
            Err(error)
        }
    }
}

fn options(device: i32, allow_other: bool) -> CString {
    let other = if allow_other { ",allow_other" } else { "" };
    let text =
        format!("fd={device},rootmode=40000,user_id=0,group_id=0,default_permissions{other}");
    CString::new(text).unwrap_or_default()
}

fn refused(path: &Path, error: Errno) -> MountError {
    match error {
        Errno::NODEV => MountError::NoDevice(error.into()),
        Errno::PERM | Errno::ACCESS => {
            MountError::NotAllowed { path: path.to_owned(), error: error.into() }
        }
        Errno::BUSY => MountError::Busy(path.to_owned()),
        _ => MountError::Point { path: path.to_owned(), error: error.into() },
    }
}

/// Makes sure that there is an empty folder with nothing mounted on it; true where it was made.
fn prepare(path: &Path) -> Result<bool, MountError> {
    let point = |error: io::Error| MountError::Point { path: path.to_owned(), error };
    let mut stale = 0;
    let meta = loop {
        // The kernel may know the folder's attributes from before its server died: statfs asks.
        let asked = rustix::fs::statfs(path).map_err(io::Error::from);
        match asked.and_then(|_| fs::metadata(path)) {
            // Nobody serves what is mounted there.
            Err(error) if is_dead(&error) => {
                let gone = rustix::mount::unmount(path, UnmountFlags::DETACH);
                stale += 1;
                if stale > STALE_AT_MOST {
                    return Err(MountError::Busy(path.to_owned()));
                }
                gone.map_err(|error| MountError::Stale {
                    path: path.to_owned(),
                    error: error.into(),
                })?;
                log::info!("{}: took away the tree of a daemon that was killed", path.display());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(point)?;
                return Ok(true);
            }
            Err(error) => return Err(point(error)),
            Ok(meta) => break meta,
        }
    };
    if !meta.is_dir() {
        return Err(MountError::NotAFolder(path.to_owned()));
    }
    let above = fs::metadata(path.join("..")).map_err(point)?;
    if above.dev() != meta.dev() {
        return Err(MountError::Busy(path.to_owned()));
    }
    match fs::read_dir(path).map_err(point)?.next() {
        None => Ok(false),
        Some(_) => Err(MountError::NotEmpty(path.to_owned())),
    }
}

/// How a FUSE mount answers when its server is gone.
fn is_dead(error: &io::Error) -> bool {
    [libc::ENOTCONN, libc::ECONNABORTED].map(Some).contains(&error.raw_os_error())
}

impl Point {
    /// Aborts the connection, so that nobody waits any more, and unmounts. False where that was not
    /// allowed.
    pub(super) fn unmount(&self) -> bool {
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
        match rustix::mount::unmount(&self.path, flags) {
            Ok(()) => {
                self.remove_folder();
                true
            }
            // Somebody else has unmounted it.
            Err(Errno::INVAL | Errno::NOENT) => true,
            Err(error) => {
                log::error!("unmounting {}: {error}", self.path.display());
                false
            }
        }
    }

    fn remove_folder(&self) {
        if self.made {
            // Somebody may have put something into it meanwhile: then it stays.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn says(error: &MountError, words: &str) {
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains('\n'), "{text}");
    }

    #[test]
    fn a_mount_point_that_somebody_uses_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        says(&prepare(&file).unwrap_err(), "not a folder");
        says(&prepare(folder.path()).unwrap_err(), "not empty");
        says(&prepare(Path::new("/proc")).unwrap_err(), "something is mounted there already");
        assert_eq!(fs::read_to_string(&file).unwrap(), "x");
    }

    #[test]
    fn a_missing_mount_point_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let point = folder.path().join("a/b");
        assert!(prepare(&point).unwrap());
        assert!(!prepare(&point).unwrap(), "it was there");
    }

    #[test]
    fn every_way_to_fail_is_one_line_with_what_to_try() {
        let path = Path::new("/run/lockwatch");
        says(&refused(path, Errno::PERM), "CAP_SYS_ADMIN");
        says(&refused(path, Errno::NODEV), "load the module");
        says(&refused(path, Errno::INVAL), "/run/lockwatch: Invalid argument");
    }
}
