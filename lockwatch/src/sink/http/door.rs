//! Where the listener listens: a TCP address or a unix socket.
//!
//! Refuses to take anybody's place: a socket that still answers, or a file that is no socket, is
//! left alone.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncWrite};

/// Who may connect to the unix socket, besides what its folder allows: its owner and its group.
const SOCKET_MODE: u32 = 0o660;

/// It cannot be listened there.
#[derive(Debug, thiserror::Error)]
#[error("listen for scrapes: {place}: {error}")]
pub struct DoorError {
    place: String,
    error: io::Error,
}

/// A place that is listened at.
#[derive(Debug)]
pub struct Door(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Door {
    /// A TCP address; port 0 is one that the kernel chooses.
    ///
    /// # Errors
    /// Where it is taken or not this machine's.
    pub fn tcp(address: SocketAddr) -> Result<Self, DoorError> {
        let listen = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(Self(Kind::Tcp(listener)))
        };
        listen().map_err(|error| DoorError { place: address.to_string(), error })
    }

    /// A unix socket, which must not be there unless a dead daemon left it.
    ///
    /// # Errors
    /// Where something else is there, or the folder is not.
    pub fn unix(path: &Path) -> Result<Self, DoorError> {
        let listen = || {
            remove_dead(path)?;
            let listener = UnixListener::bind(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
            listener.set_nonblocking(true)?;
            Ok(Self(Kind::Unix(listener, path.to_owned())))
        };
        listen().map_err(|error| DoorError { place: format!("unix:{}", path.display()), error })
    }

    /// The TCP address, where it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(..) => None,
        }
    }

    /// Makes it one of the runtime that calls this.
    pub(super) fn open(self) -> io::Result<OpenDoor> {
        Ok(match self.0 {
            Kind::Tcp(listener) => OpenDoor::Tcp(tokio::net::TcpListener::from_std(listener)?),
            Kind::Unix(listener, path) => {
                OpenDoor::Unix(tokio::net::UnixListener::from_std(listener)?, path)
            }
        })
    }
}

/// A place at which connections are accepted.
pub(super) enum OpenDoor {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener, PathBuf),
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl OpenDoor {
    pub(super) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener, _) => Box::new(listener.accept().await?.0),
        })
    }
}

impl Drop for OpenDoor {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self
            && let Err(error) = fs::remove_file(&*path)
        {
            log::debug!("metrics: remove {}: {error}", path.display());
        }
    }
}

fn remove_dead(path: &Path) -> io::Result<()> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        there => there?,
    };
    if !there.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file, no socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
    }
}
