//! The records of a search for references that no fd table shows, and its maps.
//!
//! First every descriptor and every mapping is passed, for sockets and rings that hold something;
//! then user space names those, and each is walked. What is found inside and is itself such a
//! container, user space names in the next round: so nothing here recurses.

use crate::snapshot::{Header, TaskRecord};

/// The name of the map of descriptions that are looked for: `struct file *` → 1.
pub const WANTED_MAP: &str = "WANTED";
/// The name of the ring buffer through which records pass.
pub const RECORDS_MAP: &str = "RECORDS";
/// The name of the array of containers that are to be walked: address and kind.
pub const CONTAINERS_MAP: &str = "CONTAINERS";
/// The name of the array whose only entry is a [`Walk`].
pub const WALK_MAP: &str = "WALK";
/// Containers of one round.
pub const CONTAINERS: u32 = 4096;
/// Bytes of the ring buffer.
pub const RECORDS_BYTES: u32 = 1 << 20;
/// Buffers of one queue, or files of one ring, that are passed before the walk of it is cut.
pub const STEPS_PER_CONTAINER: u64 = 4_000_000;
/// Times that the walk of one queue is begun anew after it changed underfoot.
pub const RESTARTS_PER_CONTAINER: u64 = 64;
/// Bytes of the longest name that a unix socket can be bound to (`UNIX_PATH_MAX` is 108).
pub const NAME_MAX: usize = 112;

/// A container by its `struct file`.
pub const BY_FILE: u64 = 0;
/// A container by its `struct sock`: one that waits to be accepted and has no file yet.
pub const BY_SOCK: u64 = 1;

/// A [`HoldRecord`].
pub const KIND_HOLD: u32 = 1;
/// A [`ContainerRecord`].
pub const KIND_CONTAINER: u32 = 2;
/// An [`InsideRecord`].
pub const KIND_INSIDE: u32 = 3;

/// [`HoldRecord::what`]: a descriptor of a wanted description.
pub const HOLDS_WANTED: u32 = 1;
/// [`HoldRecord::what`]: a descriptor of a unix socket that holds something.
pub const HOLDS_SOCKET: u32 = 2;
/// [`HoldRecord::what`]: a descriptor of a ring that holds something.
pub const HOLDS_RING: u32 = 3;
/// [`HoldRecord::what`]: a mapping of a wanted description.
pub const MAPS_WANTED: u32 = 4;
/// [`HoldRecord::what`]: a mapping of a ring that holds something.
pub const MAPS_RING: u32 = 5;

/// [`HoldRecord::flags`]: of the file of this description there is no mapping anywhere.
pub const NOT_MAPPED: u64 = 1;

/// No descriptor: the hold is a mapping.
pub const NO_FD: u32 = u32::MAX;

/// A process that holds a wanted description, or something that may hold one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldRecord {
    /// Kind and length.
    pub header: Header,
    /// The `struct file` that is held.
    pub file: u64,
    /// What it is: one of the `HOLDS_` and `MAPS_` constants.
    pub what: u32,
    /// The descriptor, or [`NO_FD`].
    pub fd: u32,
    /// First address of the mapping.
    pub start: u64,
    /// First address behind the mapping.
    pub end: u64,
    /// `vm_flags` of the mapping; of a wanted description's descriptor [`NOT_MAPPED`] or 0.
    pub flags: u64,
    /// The fd table of whoever holds it.
    pub files: u64,
    /// The credentials that whoever holds it has now.
    pub cred: u64,
    /// Those with which the file was opened.
    pub file_cred: u64,
    /// Who holds it.
    pub task: TaskRecord,
}

/// A container in which something was found; what it holds follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    /// Kind and length.
    pub header: Header,
    /// Its address, as user space named it.
    pub address: u64,
    /// Inode number of the socket; 0 where it has no file.
    pub ino: u64,
    /// 1 for a ring, 0 for a unix socket.
    pub ring: u32,
    /// Length of the name that the socket is bound to, bytes.
    pub name_len: u32,
    /// That name; one of the abstract namespace begins with NUL.
    pub name: [u8; NAME_MAX],
}

/// [`InsideRecord::what`]: a wanted description.
pub const INSIDE_WANTED: u32 = 1;
/// [`InsideRecord::what`]: another container, by its `struct file`.
pub const INSIDE_FILE: u32 = 2;
/// [`InsideRecord::what`]: a socket that waits to be accepted, by its `struct sock`.
pub const INSIDE_SOCK: u32 = 3;

/// Something that a container holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsideRecord {
    /// Kind and length.
    pub header: Header,
    /// The container.
    pub container: u64,
    /// What it holds.
    pub address: u64,
    /// The credentials with which a wanted description was opened; else 0.
    pub file_cred: u64,
    /// What that is: one of the `INSIDE_` constants.
    pub what: u32,
    /// Its place in the ring's table.
    pub slot: u32,
}

/// The place of the program in its walk over the containers. User space writes zeros and the
/// count, and reads the counters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Containers of this round.
    pub count: u64,
    /// The one that is being walked.
    pub index: u64,
    /// 0 before it is begun; else what it is: [`WALKS_QUEUE`] and so on.
    pub stage: u64,
    /// The `struct sock`, or the address of the ring's array.
    pub base: u64,
    /// The buffer at which the walk of a queue stands; 0 before the first.
    pub buffer: u64,
    /// The `scm_fp_list` of that buffer whose files are being passed, or 0.
    pub list: u64,
    /// The next file of that list, or of the ring's array.
    pub slot: u64,
    /// How many there are.
    pub slots: u64,
    /// Steps that were spent on this container.
    pub steps: u64,
    /// Times that its walk was begun anew.
    pub restarts: u64,
    /// 1 where its [`ContainerRecord`] was written.
    pub told: u64,
    /// Containers whose walk was cut: something may be missing. Never begun anew.
    pub cut: u64,
}

impl Walk {
    /// Number of words.
    pub const WORDS: usize = 12;

    /// The beginning of a round over `count` containers.
    pub fn begin(count: u64) -> [u64; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        words[0] = count;
        words
    }

    /// The number of containers that were finished, and of those that were cut.
    pub fn progress(words: &[u64; Self::WORDS]) -> (u64, u64) {
        (words[1], words[11])
    }
}

/// [`Walk::stage`]: the queue of a unix socket.
pub const WALKS_QUEUE: u64 = 1;
/// [`Walk::stage`]: the queue of a listening one, whose buffers are sockets that wait.
pub const WALKS_LISTENER: u64 = 2;
/// [`Walk::stage`]: the table of a ring.
pub const WALKS_RING: u64 = 3;

const _: () = {
    assert!(size_of::<HoldRecord>() == 136);
    assert!(size_of::<ContainerRecord>() == 32 + NAME_MAX);
    assert!(size_of::<InsideRecord>() == 40);
    assert!(size_of::<Walk>() == Walk::WORDS * 8);
};

// SAFETY: `repr(C)`, integers alone, no padding (the sizes above are the sums of the members).
unsafe impl crate::wire::Wire for HoldRecord {}
// SAFETY: as for `HoldRecord`.
unsafe impl crate::wire::Wire for ContainerRecord {}
// SAFETY: as for `HoldRecord`.
unsafe impl crate::wire::Wire for InsideRecord {}
