//! The kernel's side of FUSE in bytes (`include/uapi/linux/fuse.h`, version 7.31): requests out of
//! them, answers into them.
//!
//! Refuses to know a file: node numbers, handles and bytes are all that there is here. Any bytes
//! give a request or none, never a panic. Numbers are those of this machine's byte order, as the
//! kernel writes them.

/// The version of the protocol that is spoken. A kernel that knows a newer one comes down to it.
pub(super) const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// The most that a write hands over at once, bytes; the least that the kernel allows. More comes
/// in pieces, of which the first is already too long for any value.
const MAX_WRITE: u32 = 4096;
/// What a buffer for requests must hold, bytes: more than the least that the kernel accepts
/// (`FUSE_MIN_READ_BUFFER`, and a write with its heads).
pub(super) const REQUEST_MAX: usize = 16 * 1024;

// Of the answer to OPEN. An older kernel passes over those that it does not know.
const DIRECT_IO: u32 = 1 << 0;
const NONSEEKABLE: u32 = 1 << 2;
const STREAM: u32 = 1 << 4;
const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

const ASYNC_READ: u32 = 1 << 0;
const ATOMIC_O_TRUNC: u32 = 1 << 3;
const BIG_WRITES: u32 = 1 << 5;
const DO_READDIRPLUS: u32 = 1 << 13;
const READDIRPLUS_AUTO: u32 = 1 << 14;
const PARALLEL_DIROPS: u32 = 1 << 18;

/// `FATTR_SIZE`, `FATTR_FH` and `FATTR_LOCKOWNER` of a `SETATTR`.
pub(super) const SETS_SIZE_ALONE: u32 = 1 << 3 | 1 << 6 | 1 << 9;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request<'a> {
    /// What an answer must name.
    pub(super) unique: u64,
    /// The node.
    pub(super) node: u64,
    /// The user on whose behalf it is.
    pub(super) uid: u32,
    /// What is wanted.
    pub(super) op: Op<'a>,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op<'a> {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    Destroy,
    /// Needs no answer.
    Forget,
    Interrupt {
        unique: u64,
    },
    Lookup {
        name: &'a [u8],
    },
    Getattr {
        handle: Option<u64>,
    },
    Setattr {
        valid: u32,
    },
    Open {
        flags: u32,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
        flags: u32,
    },
    Write {
        handle: u64,
        bytes: &'a [u8],
    },
    Release {
        handle: u64,
    },
    Opendir,
    /// `with_nodes`: what `LOOKUP` would tell comes along.
    Readdir {
        handle: u64,
        offset: u64,
        size: u32,
        with_nodes: bool,
    },
    Releasedir {
        handle: u64,
    },
    Statfs,
    Poll {
        handle: u64,
        kernel_handle: u64,
        wants_notice: bool,
    },
    /// Something that makes, removes or renames.
    Change,
    Other,
}

impl<'a> Request<'a> {
    /// Understands a message; `None` where it is not even a head.
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        let length = usize::try_from(u32_at(message, 0)?).ok()?;
        let (opcode, unique) = (u32_at(message, 4)?, u64_at(message, 8)?);
        let (node, uid) = (u64_at(message, 16)?, u32_at(message, 24)?);
        let body = message.get(IN_HEADER..length.min(message.len()))?;
        let op = Op::parse(opcode, body).unwrap_or(Op::Other);
        Some(Self { unique, node, uid, op })
    }
}

impl<'a> Op<'a> {
    /// `None` where the body is shorter than the opcode's.
    fn parse(opcode: u32, body: &'a [u8]) -> Option<Self> {
        Some(match opcode {
            1 => Self::Lookup { name: body.split(|&byte| byte == 0).next()? },
            2 | 42 => Self::Forget,
            3 => {
                let has_handle = u32_at(body, 0)? & 1 != 0;
                Self::Getattr { handle: has_handle.then(|| u64_at(body, 8)).flatten() }
            }
            4 => Self::Setattr { valid: u32_at(body, 0)? },
            // MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, SETXATTR, REMOVEXATTR, CREATE, RENAME2,
            // SYMLINK
            6 | 8 | 9 | 10 | 11 | 12 | 13 | 21 | 24 | 35 | 45 => Self::Change,
            14 => Self::Open { flags: u32_at(body, 0)? },
            15 => Self::Read {
                handle: u64_at(body, 0)?,
                offset: u64_at(body, 8)?,
                size: u32_at(body, 16)?,
                flags: u32_at(body, 32)?,
            },
            16 => {
                let size = usize::try_from(u32_at(body, 16)?).ok()?;
                let bytes = body.get(40..)?;
                Self::Write { handle: u64_at(body, 0)?, bytes: bytes.get(..size)? }
            }
            17 => Self::Statfs,
            18 => Self::Release { handle: u64_at(body, 0)? },
            26 => Self::Init {
                major: u32_at(body, 0)?,
                minor: u32_at(body, 4)?,
                max_readahead: u32_at(body, 8)?,
                flags: u32_at(body, 12)?,
            },
            27 => Self::Opendir,
            28 | 44 => Self::Readdir {
                handle: u64_at(body, 0)?,
                offset: u64_at(body, 8)?,
                size: u32_at(body, 16)?,
                with_nodes: opcode == 44,
            },
            29 => Self::Releasedir { handle: u64_at(body, 0)? },
            36 => Self::Interrupt { unique: u64_at(body, 0)? },
            38 => Self::Destroy,
            40 => Self::Poll {
                handle: u64_at(body, 0)?,
                kernel_handle: u64_at(body, 8)?,
                wants_notice: u32_at(body, 16)? & 1 != 0,
            },
            _ => Self::Other,
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A node, as `struct fuse_attr` has it. Everything belongs to root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attr {
    pub(super) ino: u64,
    pub(super) size: u64,
    /// With the type (`S_IFDIR`, `S_IFREG`).
    pub(super) mode: u32,
    pub(super) links: u32,
    /// Nanoseconds since 1970.
    pub(super) changed: u64,
}

/// An answer that is being written.
pub(super) struct Answer(Vec<u8>);

impl Answer {
    /// To a request.
    fn new(unique: u64) -> Self {
        let mut bytes = Vec::with_capacity(160);
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&unique.to_ne_bytes());
        Self(bytes)
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn attr(self, attr: &Attr) -> Self {
        const SECOND: u64 = 1_000_000_000;
        let (seconds, nanos) = (attr.changed / SECOND, (attr.changed % SECOND) as u32);
        self.u64(attr.ino)
            .u64(attr.size)
            .u64(attr.size.div_ceil(512))
            .u64(seconds)
            .u64(seconds)
            .u64(seconds)
            .u32(nanos)
            .u32(nanos)
            .u32(nanos)
            .u32(attr.mode)
            .u32(attr.links)
            .u32(0) // uid
            .u32(0) // gid
            .u32(0) // rdev
            .u32(4096)
            .u32(0)
    }

    fn end(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// Done, with nothing to say.
pub(super) fn done(unique: u64) -> Vec<u8> {
    Answer::new(unique).end()
}

/// Not done; `errno` is a positive number.
pub(super) fn error(unique: u64, errno: i32) -> Vec<u8> {
    let mut bytes = Answer::new(unique).end();
    bytes[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    bytes
}

/// To `INIT`.
pub(super) fn init(unique: u64, max_readahead: u32, offered: u32) -> Vec<u8> {
    let wanted = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | DO_READDIRPLUS
        | READDIRPLUS_AUTO
        | PARALLEL_DIROPS;
    Answer::new(unique)
        .u32(MAJOR)
        .u32(MINOR)
        .u32(max_readahead)
        .u32(offered & wanted)
        .u16(16) // max_background
        .u16(12) // congestion_threshold
        .u32(MAX_WRITE)
        .u32(1) // time_gran, nanoseconds
        .u16(0) // max_pages
        .u16(0)
        .u32(0)
        .u64(0)
        .u64(0)
        .u64(0)
        .u32(0)
        .end()
}

/// To `INIT` of a kernel that knows a newer major version: it asks again with this one.
pub(super) fn init_major(unique: u64) -> Vec<u8> {
    Answer::new(unique).u32(MAJOR).u32(MINOR).u64(0).u64(0).u64(0).u64(0).u64(0).u64(0).u64(0).end()
}

/// A node under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The number by which the kernel shall know it; 0 is none.
    pub(super) number: u64,
    /// For how long the name may be believed, nanoseconds, less than a second.
    pub(super) name_for: u32,
    /// The same of the rest.
    pub(super) attr_for: u32,
    /// The rest.
    pub(super) attr: Attr,
}

impl Entry {
    /// No node.
    pub(super) const NONE: Self = Self {
        number: 0,
        name_for: 0,
        attr_for: 0,
        attr: Attr { ino: 0, size: 0, mode: 0, links: 0, changed: 0 },
    };
}

impl Answer {
    fn entry(self, entry: &Entry) -> Self {
        self.u64(entry.number)
            .u64(0)
            .u64(0)
            .u64(0)
            .u32(entry.name_for)
            .u32(entry.attr_for)
            .attr(&entry.attr)
    }
}

/// To `LOOKUP`.
pub(super) fn entry(unique: u64, entry: &Entry) -> Vec<u8> {
    Answer::new(unique).entry(entry).end()
}

/// To `GETATTR` and `SETATTR`.
pub(super) fn attr(unique: u64, attr_for: u32, attr: &Attr) -> Vec<u8> {
    Answer::new(unique).u64(0).u32(attr_for).u32(0).attr(attr).end()
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening(u32);

impl Opening {
    /// A folder.
    pub(super) const FOLDER: Self = Self(0);
    /// Each read and write comes here.
    pub(super) const DIRECT: Self = Self(DIRECT_IO | PARALLEL_DIRECT_WRITES);
    /// The same of a file without positions: nobody waits for another's position lock.
    pub(super) const STREAM: Self = Self(DIRECT_IO | NONSEEKABLE | STREAM | PARALLEL_DIRECT_WRITES);
}

/// To `OPEN` and `OPENDIR`.
pub(super) fn opened(unique: u64, handle: u64, opening: Opening) -> Vec<u8> {
    Answer::new(unique).u64(handle).u32(opening.0).u32(0).end()
}

/// To `READ` and `READDIR`.
pub(super) fn data(unique: u64, bytes: &[u8]) -> Vec<u8> {
    let mut answer = Answer::new(unique);
    answer.0.extend_from_slice(bytes);
    answer.end()
}

/// To `WRITE`.
pub(super) fn written(unique: u64, bytes: u32) -> Vec<u8> {
    Answer::new(unique).u32(bytes).u32(0).end()
}

/// To `POLL`.
pub(super) fn polled(unique: u64, events: u32) -> Vec<u8> {
    Answer::new(unique).u32(events).u32(0).end()
}

/// To `STATFS`: nothing that could fill up.
pub(super) fn statfs(unique: u64, files: u64) -> Vec<u8> {
    let mut answer = Answer::new(unique)
        .u64(0)
        .u64(0)
        .u64(0)
        .u64(files)
        .u64(0)
        .u32(4096)
        .u32(255)
        .u32(4096)
        .u32(0);
    answer.0.resize(OUT_HEADER + 80, 0);
    answer.end()
}

/// A notice that a polled handle should be looked at again.
pub(super) fn poll_notice(kernel_handle: u64) -> Vec<u8> {
    const FUSE_NOTIFY_POLL: i32 = 1;
    let mut bytes = Answer::new(0).u64(kernel_handle).end();
    bytes[4..8].copy_from_slice(&FUSE_NOTIFY_POLL.to_ne_bytes());
    bytes
}

/// The entries of a folder that fit into an answer.
pub(super) struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    /// For an answer of at most so many bytes.
    pub(super) fn new(room: usize) -> Self {
        Self { bytes: Vec::new(), room }
    }

    /// Appends an entry; false where it does not fit any more. `next` is the offset of the entry
    /// behind it; `node` is what `LOOKUP` would tell, where that is wanted.
    pub(super) fn add(
        &mut self,
        ino: u64,
        next: u64,
        is_folder: bool,
        name: &str,
        node: Option<&Entry>,
    ) -> bool {
        const DT_DIR: u32 = 4;
        const DT_REG: u32 = 8;
        const ENTRY: usize = 128;
        let length = (24 + name.len()).next_multiple_of(8) + node.map_or(0, |_| ENTRY);
        if self.bytes.len() + length > self.room {
            return false;
        }
        let end = self.bytes.len() + length;
        let mut answer = Answer(std::mem::take(&mut self.bytes));
        if let Some(node) = node {
            answer = answer.entry(node);
        }
        let kind = if is_folder { DT_DIR } else { DT_REG };
        answer = answer.u64(ino).u64(next).u32(name.len() as u32).u32(kind);
        self.bytes = answer.0;
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.resize(end, 0);
        true
    }

    /// What has fitted.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((IN_HEADER + body.len()) as u32).to_ne_bytes());
        bytes.extend_from_slice(&opcode.to_ne_bytes());
        bytes.extend_from_slice(&7u64.to_ne_bytes());
        bytes.extend_from_slice(&42u64.to_ne_bytes());
        bytes.extend_from_slice(&1000u32.to_ne_bytes());
        bytes.resize(IN_HEADER, 0);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_request_names_itself_its_node_and_its_user() {
        let bytes = message(1, b"status\0");
        let op = Op::Lookup { name: b"status" };
        assert_eq!(Request::parse(&bytes), Some(Request { unique: 7, node: 42, uid: 1000, op }));
    }

    #[test]
    fn a_write_carries_its_bytes() {
        let mut body = vec![0; 40];
        body[..8].copy_from_slice(&9u64.to_ne_bytes());
        body[16..20].copy_from_slice(&2u32.to_ne_bytes());
        body.extend_from_slice(b"0\n");
        let op = Op::Write { handle: 9, bytes: b"0\n" };
        assert_eq!(Request::parse(&message(16, &body)).unwrap().op, op);
        body.truncate(41);
        assert_eq!(Request::parse(&message(16, &body)).unwrap().op, Op::Other);
    }

    #[test]
    fn answers_have_the_length_of_the_kernels_structures() {
        let attr = Attr { ino: 1, size: 2, mode: 0o100_444, links: 1, changed: 3 };
        let body = |bytes: Vec<u8>| {
            assert_eq!(u32_at(&bytes, 0), Some(bytes.len() as u32));
            assert_eq!(u64_at(&bytes, 8), Some(7));
            bytes.len() - OUT_HEADER
        };
        assert_eq!(body(init(7, 0, u32::MAX)), 64);
        assert_eq!(body(init_major(7)), 64);
        let named = Entry { number: 1, name_for: 0, attr_for: 0, attr };
        assert_eq!(body(entry(7, &named)), 128);
        assert_eq!(body(super::attr(7, 0, &attr)), 104);
        assert_eq!(body(opened(7, 1, Opening::DIRECT)), 16);
        assert_eq!(body(written(7, 2)), 8);
        assert_eq!(body(polled(7, 1)), 8);
        assert_eq!(body(statfs(7, 1)), 80);
        assert_eq!(body(error(7, 5)), 0);
        assert_eq!(poll_notice(3).len() - OUT_HEADER, 8);
    }

    #[test]
    fn entries_of_a_folder_are_padded_and_stop_where_the_room_ends() {
        let mut list = Listing::new(64);
        assert!(list.add(5, 1, false, "state", None));
        assert!(list.add(6, 2, true, "locks", None));
        assert!(!list.add(7, 3, true, "x", None));
        let bytes = list.into_bytes();
        assert_eq!((bytes.len(), u64_at(&bytes, 32)), (64, Some(6)));
        let attr = Attr { ino: 5, size: 0, mode: 0, links: 1, changed: 0 };
        let node = Entry { number: 9, name_for: 0, attr_for: 0, attr };
        let mut list = Listing::new(200);
        assert!(list.add(5, 1, false, "state", Some(&node)));
        let bytes = list.into_bytes();
        assert_eq!((u64_at(&bytes, 0), u64_at(&bytes, 128)), (Some(9), Some(5)));
        assert_eq!(bytes.len(), 160);
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_request_or_none(
            opcode in 0u32..60,
            body in prop::collection::vec(any::<u8>(), 0..120),
            cut in 0usize..160,
        ) {
            let bytes = message(opcode, &body);
            let cut = cut.min(bytes.len());
            let _ = Request::parse(&bytes[..cut]);
            prop_assert!(Request::parse(&bytes).is_some());
        }
    }
}
