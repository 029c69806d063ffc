//! The ways in which a description lives on without a descriptor: in flight over a unix socket,
//! registered with io_uring, mapped.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Two sockets that are each other's end.
pub(super) fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)
        .context("socketpair")
}

/// A socket that listens and never accepts: what is sent to it waits in its embryos.
pub(super) fn listen(path: &[u8]) -> Result<OwnedFd> {
    let socket = unix_socket()?;
    rustix::net::bind(&socket, &address(path)?).context("bind")?;
    rustix::net::listen(&socket, 8).context("listen")?;
    Ok(socket)
}

/// A socket that is connected to a listening one.
pub(super) fn connect(path: &[u8]) -> Result<OwnedFd> {
    let socket = unix_socket()?;
    rustix::net::connect(&socket, &address(path)?).context("connect")?;
    Ok(socket)
}

fn unix_socket() -> Result<OwnedFd> {
    rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).context("socket")
}

fn address(path: &[u8]) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).with_context(|| format!("{:?}", OsStr::from_bytes(path)))
}

/// Puts a descriptor in flight.
pub(super) fn send(socket: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> Result<()> {
    let descriptors = [descriptor];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "no room for SCM_RIGHTS");
    let sent =
        rustix::net::sendmsg(socket, &[io::IoSlice::new(b"d")], &mut control, SendFlags::DONTWAIT)
            .context("sendmsg")?;
    ensure!(sent == 1, "sendmsg sent {sent} bytes of 1");
    Ok(())
}

/// Two sockets that stay open, with a byte and no descriptor on its way between them.
pub(super) fn byte_in_flight() -> Result<()> {
    let (tx, rx) = socket_pair()?;
    rustix::net::send(&tx, b"b", SendFlags::DONTWAIT).context("send")?;
    number(tx);
    number(rx);
    Ok(())
}

/// Takes a descriptor that is in flight.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::DONTWAIT,
    )
    .context("recvmsg")?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.context("no descriptor was in flight")
}

/// Maps the file's first page for good.
pub(super) fn map(fd: BorrowedFd<'_>) -> Result<usize> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    // SAFETY: a new mapping where the kernel likes, which nothing here ever reads or writes.
    let address =
        unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, fd, 0) }
            .context("mmap")?;
    Ok(address.addr())
}

/// `IORING_REGISTER_FILES` of `linux/io_uring.h`.
const REGISTER_FILES: libc::c_uint = 2;

/// `IORING_SETUP_SQPOLL` of `linux/io_uring.h`.
const SETUP_SQPOLL: u64 = 2;

/// Makes an io_uring and registers one file with it.
pub(super) fn ring_with(descriptor: BorrowedFd<'_>, polled: bool) -> Result<RawFd> {
    // `struct io_uring_params` is 120 bytes; all zeros asks for nothing special. Its third `u32` is
    // the flags.
    let mut params = [0_u64; 15];
    if polled {
        params[1] = SETUP_SQPOLL;
    }
    // SAFETY: the kernel reads and writes one `struct io_uring_params` at the pointer.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(io::Error::last_os_error()).context("io_uring_setup");
    }
    let ring = i32::try_from(ring).context("io_uring_setup")?;
    let files = [descriptor.as_raw_fd()];
    // SAFETY: the kernel reads one descriptor number at the pointer.
    let answer = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_FILES, files.as_ptr(), 1)
    };
    if answer < 0 {
        return Err(io::Error::last_os_error()).context("io_uring_register");
    }
    Ok(ring)
}

/// Gives up ownership: from here on the play decides when the number is closed.
pub(super) fn number(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}
