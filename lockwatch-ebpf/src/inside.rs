//! Which files can hold others, and whether they do: unix sockets and rings.
//!
//! Refuses to take a file for what it is not: a socket must point back to its file, and a ring is
//! known by the name that the kernel alone gives, on the file system that nobody else can write.

use crate::found::at;
use crate::kernel::{offset, read_into, read_u32, read_u64};

const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
/// `FMODE_PATH` of `include/linux/fs.h`: opened with `O_PATH`, so without what the file is for.
const FMODE_PATH: u32 = 0x4000;
const AF_UNIX: u16 = 1;
/// `ANON_INODE_FS_MAGIC` of `include/uapi/linux/magic.h`.
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
/// `[io_uring]` and its NUL, as words.
const RING_NAME: [u64; 2] =
    [u64::from_ne_bytes(*b"[io_urin"), u64::from_ne_bytes(*b"g]\0\0\0\0\0\0")];
const RING_NAME_TAIL: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0, 0, 0, 0, 0]);

/// A file that holds something.
#[derive(Clone, Copy)]
pub(crate) enum Container {
    /// A unix socket with something in its queue.
    Socket {
        /// Its `struct sock`.
        sock: u64,
    },
    /// A ring with registered files.
    Ring {
        /// Address of their array.
        files: u64,
        /// Entries of the array.
        count: u32,
    },
}

/// What the file at any address is, or `None` where it holds nothing that can be looked into.
#[inline(always)]
pub(crate) fn container(file: u64) -> Option<Container> {
    let inode = read_u64(file + offset!(file_inode) as u64);
    let mode = read_u32(inode + at!(inode_mode) as u64);
    if is_socket(mode) {
        return socket(file);
    }
    let sb = read_u64(inode + offset!(inode_sb) as u64);
    if is_anonymous(read_u64(sb + at!(sb_magic) as u64)) { ring(file) } else { None }
}

/// `mode` is an `i_mode` and what follows it.
#[inline(always)]
pub(crate) fn is_socket(mode: u32) -> bool {
    mode & S_IFMT == S_IFSOCK
}

/// `magic` is an `s_magic`.
#[inline(always)]
pub(crate) fn is_anonymous(magic: u64) -> bool {
    magic == ANON_INODE_FS_MAGIC
}

/// The socket behind a file whose inode is one.
#[inline(always)]
pub(crate) fn socket(file: u64) -> Option<Container> {
    if at!(has_sockets) == 0 || read_u32(file + offset!(file_mode) as u64) & FMODE_PATH != 0 {
        return None;
    }
    let socket = read_u64(file + at!(file_private) as u64);
    if read_u64(socket + at!(socket_file) as u64) != file {
        return None;
    }
    let sock = read_u64(socket + at!(socket_sk) as u64);
    if is_filled(sock) && may_hold_files(sock) { Some(Container::Socket { sock }) } else { None }
}

/// Buffers of a queue that are looked at before it is worth a walk.
const PEEKED: u32 = 4;
/// `TCP_LISTEN`, which unix sockets use too.
pub(crate) const LISTENING: u8 = 10;

/// False where the queue is short and none of its buffers carries descriptors, as nearly all are.
#[inline(always)]
fn may_hold_files(sock: u64) -> bool {
    if read_u32(sock + at!(sock_state) as u64) as u8 == LISTENING {
        return true;
    }
    let queue = sock + at!(sock_queue) as u64;
    let mut buffer = read_u64(queue + at!(skb_next) as u64);
    for _ in 0..PEEKED {
        if buffer == queue {
            return false;
        }
        // One that was taken off the queue meanwhile: the walk will see.
        if buffer == 0 || read_u64(buffer + at!(skb_files) as u64) != 0 {
            return true;
        }
        buffer = read_u64(buffer + at!(skb_next) as u64);
    }
    true
}

/// True where it is a unix socket with something in its queue.
#[inline(always)]
pub(crate) fn is_filled(sock: u64) -> bool {
    if read_u32(sock + at!(sock_family) as u64) as u16 != AF_UNIX {
        return false;
    }
    let queue = sock + at!(sock_queue) as u64;
    let first = read_u64(queue);
    first != 0 && first != queue
}

/// The ring behind a file of the anonymous file system.
#[inline(always)]
pub(crate) fn ring(file: u64) -> Option<Container> {
    if at!(ring_layout) == 0 {
        return None;
    }
    let dentry = read_u64(file + offset!(file_path) as u64 + offset!(path_dentry) as u64);
    let name = read_u64(dentry + offset!(dentry_name) as u64);
    let mut text = [0u64; 2];
    // SAFETY: `text` is valid for 11 bytes.
    if !unsafe { read_into((&raw mut text).cast(), 11, name) }
        || text[0] != RING_NAME[0]
        || text[1] & RING_NAME_TAIL != RING_NAME[1]
    {
        return None;
    }
    let ring = read_u64(file + at!(file_private) as u64);
    let files = read_u64(ring + at!(ring_files) as u64);
    let count = read_u32(ring + at!(ring_count) as u64);
    if files == 0 || count == 0 { None } else { Some(Container::Ring { files, count }) }
}
