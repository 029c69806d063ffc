//! One reclaim of a file at a time, on the whole machine.
//!
//! Refuses to wait: who comes second finds another state of things than was planned for.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::ActError;
use crate::engine::input::FileId;
use crate::engine::reclaim::Race;

/// The file whose bytes stand for the files that are being reclaimed.
pub const PATH: &str = "/run/lockwatch.turns";

/// The turn; it ends when this is dropped, or this process ends.
pub struct Turn {
    _lock: OwnedFd,
}

impl Turn {
    /// Takes the turn for a file.
    ///
    /// # Errors
    /// [`Race::Busy`] where somebody else has it.
    pub fn take(file: FileId) -> Result<Self, ActError> {
        Self::take_in(Path::new(PATH), file)
    }

    fn take_in(path: &Path, file: FileId) -> Result<Self, ActError> {
        let what = || format!("take a turn: {}", path.display());
        let turns = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| ActError::call(what(), error))?;
        let meta = turns.metadata().map_err(|error| ActError::call(what(), error))?;
        let own = rustix::process::geteuid().as_raw();
        if !meta.is_file() || meta.uid() != own || meta.mode() & 0o022 != 0 {
            let error = io::Error::other("not a file of one's own that nobody else may write");
            return Err(ActError::call(what(), error));
        }
        let request = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte_of(file),
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open, and the kernel only reads `request`.
        match unsafe { libc::fcntl(turns.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) } {
            0 => Ok(Self { _lock: turns.into() }),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => {
                    Err(ActError::Race(Race::Busy))
                }
                error => Err(ActError::call(what(), error)),
            },
        }
    }
}

/// Two files may share a byte; then one waits for its turn in vain, and nothing worse.
fn byte_of(file: FileId) -> i64 {
    let device = u64::from(file.dev.to_kernel());
    let mixed = (file.ino ^ device.rotate_left(40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Every second byte, so that the kernel does not make one lock of two.
    i64::try_from(mixed >> 2).unwrap_or(0) & !1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::identity::Dev;

    #[test]
    fn a_file_is_one_reclaims_at_a_time_and_others_are_not_in_its_way() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("turns");
        let file = |ino| FileId { dev: Dev::new(1, 2), ino };
        let first = Turn::take_in(&path, file(5)).unwrap();
        let second = Turn::take_in(&path, file(5));
        assert!(matches!(second, Err(ActError::Race(Race::Busy))));
        Turn::take_in(&path, file(6)).unwrap();
        drop(first);
        Turn::take_in(&path, file(5)).unwrap();
    }

    #[test]
    fn turns_that_others_could_write_are_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("turns");
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&path, open).unwrap();
        let file = FileId { dev: Dev::new(1, 2), ino: 5 };
        assert!(Turn::take_in(&path, file).is_err());
    }
}
