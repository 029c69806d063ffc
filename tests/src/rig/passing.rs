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

/// `LOOP_CTL_GET_FREE` and `LOOP_CONFIGURE` (5.8) of `linux/loop.h`.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
/// `LO_FLAGS_AUTOCLEAR`: the device is given back with its last descriptor.
const AUTOCLEAR: u32 = 4;
/// Attempts to take a device that somebody else may take first.
const ATTEMPTS: usize = 20;

/// `struct loop_config` of `linux/loop.h`: a descriptor, a block size, `struct loop_info64` and 64
/// reserved bytes.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// Five `__u64`, then four `__u32` of which the last one is the flags, then names and keys.
    before_flags: [u64; 5],
    type_and_key: [u32; 3],
    flags: u32,
    rest: [u8; 232 - 56],
    reserved: [u64; 8],
}

/// Makes a loop device over an open file; answers with it and its number.
pub(super) fn loop_device(file: BorrowedFd<'_>) -> Result<(OwnedFd, libc::c_int)> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let control = open("/dev/loop-control", flags, Mode::empty()).context("/dev/loop-control")?;
    let mut last = io::Error::other("no attempt");
    for _ in 0..ATTEMPTS {
        // SAFETY: the call takes no pointer.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error()).context("LOOP_CTL_GET_FREE");
        }
        let path = format!("/dev/loop{number}");
        let device = open(path.as_str(), flags, Mode::empty()).context(path)?;
        let config = LoopConfig {
            fd: file.as_raw_fd().unsigned_abs(),
            block_size: 0,
            before_flags: [0; 5],
            type_and_key: [0; 3],
            flags: AUTOCLEAR,
            rest: [0; 232 - 56],
            reserved: [0; 8],
        };
        // SAFETY: the kernel reads one `struct loop_config` at the pointer.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } == 0 {
            return Ok((device, number));
        }
        last = io::Error::last_os_error();
        if last.raw_os_error() != Some(libc::EBUSY) {
            break;
        }
    }
    Err(last).context("LOOP_CONFIGURE")
}

/// Gives up ownership: from here on the play decides when the number is closed.
pub(super) fn number(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}
