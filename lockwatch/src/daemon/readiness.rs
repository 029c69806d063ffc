//! What the service manager is told: ready, alive, stopping (the sd_notify protocol).
//!
//! Refuses to fail, and to wait: a manager that cannot be told, or does not listen, is logged, and
//! the watch goes on.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// Says that the first reading is done and every entrance is open.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says in a line how things are.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Says that the loop goes round.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Says that the end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often the manager wants to hear that the loop goes round: twice in its patience.
pub(super) fn heartbeat() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    let Some(manager) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let message: String = states.iter().map(|state| format!("{state}\n")).collect();
    if let Err(error) = send(&manager, message.as_bytes()) {
        log::warn!("telling the service manager: {error}");
    }
}

/// The crate's own way waits while the manager's queue is full, and the loop with it.
fn send(manager: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match manager.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(manager)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_does_not_listen_keeps_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let full = (0..100_000).find_map(|_| send(path.as_os_str(), b"STATUS=hot\n").err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
        let mut message = [0; 64];
        let length = manager.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"STATUS=hot\n");
    }
}
