//! One daemon for each kernel-side state.
//!
//! Refuses to go by files that a dead daemon leaves behind: what counts is a lock that ends with
//! the process.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

/// Why this daemon may not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstanceError {
    /// Another one runs.
    #[error("{}: another daemon{} watches with it", .state.display(), told(.pid))]
    Taken {
        /// Where its kernel side is.
        state: PathBuf,
        /// Its pid, where its socket tells.
        pid: Option<i32>,
    },
    /// It cannot be told.
    #[error("{}: {error}", .path.display())]
    Unknown {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

fn told(pid: &Option<i32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (pid {pid})"))
}

/// The right to be the daemon of a state; given up when dropped.
#[derive(Debug)]
pub(super) struct Instance {
    _folder: File,
}

impl Instance {
    /// Takes it. `socket` is where another daemon would say who it is.
    pub(super) fn take(state: &Path, socket: &Path) -> Result<Self, InstanceError> {
        let unknown =
            |error: std::io::Error| InstanceError::Unknown { path: state.to_owned(), error };
        fs::create_dir_all(state).map_err(unknown)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(state, flags, Mode::empty());
        let folder = folder.map_err(|error| unknown(error.into()))?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _folder: folder.into() }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(InstanceError::Taken { state: state.to_owned(), pid: peer(socket) })
            }
            Err(error) => Err(unknown(error.into())),
        }
    }
}

/// The pid of whoever listens on a socket.
fn peer(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    Some(peer.pid.as_raw_nonzero().get())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_second_one_is_told_who_runs_and_the_first_ones_end_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let (state, socket) = (folder.path().join("a/state"), folder.path().join("sock"));
        let first = Instance::take(&state, &socket).unwrap();
        let error = Instance::take(&state, &socket).unwrap_err().to_string();
        assert!(error.ends_with("a/state: another daemon watches with it"), "{error}");
        let _listener = UnixListener::bind(&socket).unwrap();
        let error = Instance::take(&state, &socket).unwrap_err().to_string();
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(first);
        Instance::take(&state, &socket).unwrap();
    }
}
