//! A description that is in flight: cloned out of a unix socket's queue, where it stays.
//!
//! Refuses to consume anything: messages are only peeked at, and the socket's peek offset is left
//! as it is.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::ActError;

/// Descriptors that one message carries at most (`SCM_MAX_FD`).
const MAX_IN_MESSAGE: usize = 253;

/// Clones the descriptors of the first message that carries any.
///
/// A peek ends at the first message with descriptors, and how far it begins into the queue is a
/// setting that the socket's own process would see change: so those behind it are out of reach.
///
/// # Errors
/// Those of recvmsg(2), and where there is no message with a descriptor.
pub(super) fn peek(socket: &OwnedFd) -> Result<Vec<OwnedFd>, ActError> {
    if peek_offset(socket)? >= 0 {
        return Err(ActError::Impossible(
            "the socket has a peek offset (SO_PEEK_OFF), which a peek would move".into(),
        ));
    }
    let mut space = vec![
        MaybeUninit::uninit();
        rustix::cmsg_space!(ScmRights(MAX_IN_MESSAGE), ScmCredentials(1))
    ];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // The bytes before that message must have room, or the peek ends among them.
    let mut bytes = vec![0; 1 << 20];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let mut into = [std::io::IoSliceMut::new(&mut bytes)];
    let peeked = loop {
        match recvmsg(socket, &mut into, &mut control, flags) {
            Err(Errno::INTR) => {}
            peeked => break peeked,
        }
    };
    match peeked {
        Ok(_) => {}
        Err(Errno::AGAIN) => return Ok(Vec::new()),
        Err(error) => return Err(ActError::call("peek into the socket's queue", error)),
    }
    let mut found = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            found.extend(descriptors);
        }
    }
    Ok(found)
}

/// Where the next peek at the socket begins; negative where that is the queue's beginning.
fn peek_offset(socket: &OwnedFd) -> Result<libc::c_int, ActError> {
    let mut offset: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open; the kernel writes one int and its length at the pointers.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEEK_OFF,
            (&raw mut offset).cast(),
            &raw mut length,
        )
    };
    if answer == 0 { Ok(offset) } else { Err(ActError::last("getsockopt(SO_PEEK_OFF)")) }
}
