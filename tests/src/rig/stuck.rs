//! A file system in which every name is a file that cannot be closed: who ends with one open is
//! stuck on its way out. It speaks as much of FUSE as that takes.
//!
//! Refuses to outlive its server: the kernel gives everybody up when the server is gone.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::thread;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, MountPropagationFlags};

/// Opcodes of `linux/fuse.h`.
mod op {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const OPEN: u32 = 14;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const BATCH_FORGET: u32 = 42;
}

const ROOT: u64 = 1;
const FILE: u64 = 2;
/// Bytes of `struct fuse_in_header`.
const HEADER: usize = 40;
/// No request is longer: the header, and what may be written at once.
const REQUEST: usize = 1 << 17;

/// Mounts it on `folder`, for this mount namespace only, and serves it from a thread.
pub(super) fn serve(folder: &[u8]) -> Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("making the mounts private")?;
    let device = File::options().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let data = CString::new(data)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(c"stuck", folder, c"fuse", flags, Some(&*data))
        .with_context(|| format!("mounting FUSE on {:?}", OsStr::from_bytes(folder)))?;
    let work = move || {
        if let Err(error) = answer_all(device) {
            eprintln!("rig: stick: {error:#}");
        }
    };
    thread::Builder::new().spawn(work).context("starting a thread").map(drop)
}

fn answer_all(mut device: File) -> Result<()> {
    let mut request = vec![0; REQUEST];
    loop {
        let len = device.read(&mut request).context("reading /dev/fuse")?;
        let word = |at: usize| -> u32 {
            let bytes = request.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        anyhow::ensure!(len >= HEADER, "a request of {len} bytes");
        let (opcode, unique, node) = (word(4), long(&request, 8), long(&request, 16));
        let answer = match opcode {
            // Never answered: whoever closes the file waits.
            op::FLUSH | op::FORGET | op::BATCH_FORGET | op::INTERRUPT => continue,
            op::INIT => Ok(init(&request)),
            op::LOOKUP => Ok(entry()),
            op::GETATTR => Ok(attributes_of(node)),
            // A handle and flags.
            op::OPEN => Ok(vec![0; 16]),
            op::RELEASE => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let mut reply = Vec::with_capacity(16 + body.len());
        reply.extend(u32::try_from(16 + body.len())?.to_ne_bytes());
        reply.extend(error.to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        device.write_all(&reply).context("writing /dev/fuse")?;
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_ne_bytes)
}

/// `struct fuse_init_out`: version 7.31, no features.
fn init(request: &[u8]) -> Vec<u8> {
    let readahead = &request[HEADER + 8..HEADER + 12];
    let mut out = Vec::new();
    out.extend(7_u32.to_ne_bytes());
    out.extend(31_u32.to_ne_bytes());
    out.extend(readahead);
    // Flags, then the numbers of requests in the background.
    out.extend(0_u32.to_ne_bytes());
    out.extend(0_u32.to_ne_bytes());
    // The most that may be written at once.
    out.extend(4096_u32.to_ne_bytes());
    out.resize(64, 0);
    out
}

/// `struct fuse_entry_out`: every name is the same file.
fn entry() -> Vec<u8> {
    let mut out = Vec::new();
    for value in [FILE, 0, 60, 60] {
        out.extend(value.to_ne_bytes());
    }
    out.extend(0_u64.to_ne_bytes());
    out.extend(attributes(FILE, 0o100_644));
    out
}

/// `struct fuse_attr_out`.
fn attributes_of(node: u64) -> Vec<u8> {
    let mode = if node == ROOT { 0o040_755 } else { 0o100_644 };
    let mut out = Vec::new();
    out.extend(60_u64.to_ne_bytes());
    out.extend(0_u64.to_ne_bytes());
    out.extend(attributes(node, mode));
    out
}

/// `struct fuse_attr`.
fn attributes(node: u64, mode: u32) -> Vec<u8> {
    let mut out = Vec::new();
    // Inode number, size, blocks, three times.
    for value in [node, 0, 0, 0, 0, 0] {
        out.extend(value.to_ne_bytes());
    }
    // Their nanoseconds, mode, links, owner, group, device, block size, flags.
    for value in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        out.extend(u32::to_ne_bytes(value));
    }
    out
}
