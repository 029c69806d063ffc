//! The `/proc` that is read, and the questions that only the running kernel can answer.
//!
//! Refuses to hold state: a folder of hand-made files and the live `/proc` differ in one value,
//! and nothing outside the root is touched except through [`Lookups`].

use std::cmp::Ordering;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, StatxFlags};
use rustix::path::Arg;

use crate::engine::identity::Pid;

/// Identity and size of a file, as statx(2) tells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Device as stat(2) shows it, which on btrfs and overlay is not the `s_dev` of a lock line.
    pub dev: (u32, u32),
    /// Inode number.
    pub ino: u64,
    /// Number of names.
    pub links: u32,
    /// Size in bytes.
    pub size: u64,
}

/// Questions about live tasks and files, for which a folder of texts has no answer.
pub trait Lookups: Send + Sync {
    /// Compares the open file descriptions behind two (task, descriptor) pairs, in an order that
    /// is total while the descriptions live (kcmp(2), `KCMP_FILE`).
    ///
    /// # Errors
    /// What the kernel answered: `ESRCH` and `EBADF` for what is gone, `EPERM` without the right
    /// to look, `ENOSYS` on a kernel built without kcmp.
    fn compare_descriptions(&self, left: (Pid, u32), right: (Pid, u32)) -> io::Result<Ordering>;

    /// Compares the fd tables of two tasks in the same way (kcmp(2), `KCMP_FILES`).
    ///
    /// # Errors
    /// As for [`Self::compare_descriptions`].
    fn compare_tables(&self, left: Pid, right: Pid) -> io::Result<Ordering>;

    /// Looks through a link of `/proc/PID/fd` at the open file itself.
    ///
    /// # Errors
    /// That of statx(2).
    fn open_file(&self, folder: BorrowedFd<'_>, link: &str) -> io::Result<FileFacts>;

    /// Looks at whatever has a path now, without opening it.
    ///
    /// # Errors
    /// That of statx(2).
    fn named_file(&self, path: &[u8]) -> io::Result<FileFacts>;
}

/// The running kernel.
struct Live {
    /// kcmp(2) counts pids in the caller's namespace; false where `/proc` counts in another.
    same_pids: bool,
}

const KCMP_FILE: libc::c_int = 0;
const KCMP_FILES: libc::c_int = 2;

impl Live {
    fn kcmp(&self, kind: libc::c_int, left: (Pid, u32), right: (Pid, u32)) -> io::Result<Ordering> {
        if !self.same_pids {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: kcmp(2) takes five plain numbers, dereferences no memory of ours and changes
        // nothing; wrong pids or descriptors make it fail.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_kcmp,
                left.0,
                right.0,
                kind,
                libc::c_ulong::from(left.1),
                libc::c_ulong::from(right.1),
            )
        };
        match answer {
            0 => Ok(Ordering::Equal),
            1 => Ok(Ordering::Less),
            2 => Ok(Ordering::Greater),
            -1 => Err(io::Error::last_os_error()),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Lookups for Live {
    fn compare_descriptions(&self, left: (Pid, u32), right: (Pid, u32)) -> io::Result<Ordering> {
        self.kcmp(KCMP_FILE, left, right)
    }

    fn compare_tables(&self, left: Pid, right: Pid) -> io::Result<Ordering> {
        self.kcmp(KCMP_FILES, (left, 0), (right, 0))
    }

    fn open_file(&self, folder: BorrowedFd<'_>, link: &str) -> io::Result<FileFacts> {
        facts(folder, link)
    }

    fn named_file(&self, path: &[u8]) -> io::Result<FileFacts> {
        facts(CWD, path)
    }
}

/// Asks for what the kernel has at hand: a file server that does not answer must not stall the
/// report, and a look must not mount anything.
fn facts(folder: BorrowedFd<'_>, path: impl Arg) -> io::Result<FileFacts> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::INO | StatxFlags::NLINK | StatxFlags::SIZE;
    let stat = rustix::fs::statx(folder, path, flags, wanted)?;
    Ok(FileFacts {
        dev: (stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        links: stat.stx_nlink,
        size: stat.stx_size,
    })
}

/// No kernel at all: the answers of a folder of texts.
struct Folder;

impl Lookups for Folder {
    fn compare_descriptions(&self, _: (Pid, u32), _: (Pid, u32)) -> io::Result<Ordering> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn compare_tables(&self, _: Pid, _: Pid) -> io::Result<Ordering> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open_file(&self, _: BorrowedFd<'_>, _: &str) -> io::Result<FileFacts> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn named_file(&self, _: &[u8]) -> io::Result<FileFacts> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A folder in the form of `/proc`, and who answers what its texts cannot.
pub struct ProcRoot {
    path: PathBuf,
    lookups: Box<dyn Lookups>,
}

impl ProcRoot {
    /// The machine's own `/proc`.
    pub fn live() -> Self {
        let path = PathBuf::from("/proc");
        let me = std::fs::read_link(path.join("self")).ok();
        let same_pids =
            me.is_some_and(|me| me.as_os_str() == std::process::id().to_string().as_str());
        Self { path, lookups: Box::new(Live { same_pids }) }
    }

    /// A folder of texts, with nobody to ask: descriptions are told apart only where the texts
    /// suffice, and files have no size and no known names.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self::with(path, Box::new(Folder))
    }

    /// A folder with answers of the caller's choice.
    pub fn with(path: impl Into<PathBuf>, lookups: Box<dyn Lookups>) -> Self {
        Self { path: path.into(), lookups }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn lookups(&self) -> &dyn Lookups {
        &*self.lookups
    }

    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        Ok(rustix::fs::open(&self.path, FOLDER, Mode::empty())?)
    }
}

/// A folder to look into, without reading it.
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a folder only as a starting point of further paths.
pub(super) fn open_folder(folder: impl AsFd, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(folder, path, FOLDER, Mode::empty())
}

/// Reads a file whole, into a buffer that is used again.
pub(super) fn read_file(
    folder: impl AsFd,
    path: impl Arg,
    buffer: &mut Vec<u8>,
) -> rustix::io::Result<&[u8]> {
    fill(folder, path, buffer, false)
}

/// Reads a text of which the kernel makes one record (`single_open`): a read that leaves room has
/// brought all of it, which spares the read(2) that says so.
pub(super) fn read_record(
    folder: impl AsFd,
    path: impl Arg,
    buffer: &mut Vec<u8>,
) -> rustix::io::Result<&[u8]> {
    fill(folder, path, buffer, true)
}

/// Room for the text of a descriptor with a few hundred locks.
const ROOM: usize = 32 * 1024;

fn fill(
    folder: impl AsFd,
    path: impl Arg,
    buffer: &mut Vec<u8>,
    one_record: bool,
) -> rustix::io::Result<&[u8]> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, path, flags, Mode::empty())?;
    if buffer.len() < ROOM {
        buffer.resize(ROOM, 0);
    }
    let mut filled = 0;
    loop {
        let count = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut buffer[filled..]))?;
        filled += count;
        if count == 0 || (one_record && filled < buffer.len()) {
            return Ok(&buffer[..filled]);
        }
        if filled == buffer.len() {
            let larger = buffer.len() * 2;
            buffer.resize(larger, 0);
        }
    }
}

/// The target of a link.
pub(super) fn read_link(folder: impl AsFd, path: impl Arg) -> rustix::io::Result<Vec<u8>> {
    rustix::fs::readlinkat(folder, path, Vec::new()).map(std::ffi::CString::into_bytes)
}

/// The names in a folder that are plain numbers (pids, descriptors), ascending.
pub(super) fn numbers(folder: impl AsFd, path: impl Arg) -> rustix::io::Result<Vec<u32>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listing = rustix::fs::openat(folder, path, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 64 * 1024];
    let mut entries = RawDir::new(&listing, &mut buffer);
    let mut found = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let number = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|_| name.first().is_some_and(u8::is_ascii_digit)) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}
