//! `iter/bpf_map`: walks the containers that user space named. Which map the iterator stands at
//! means nothing: it is a way to run, and there is always at least one.
//!
//! Queues are walked without their lock: a buffer counts only while its successor points back to
//! it, a queue that changed underfoot is begun anew, and a walk that cannot be finished is counted
//! as cut.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use lockwatch_common::search::{
    BY_SOCK, CONTAINERS as MANY, ContainerRecord, INSIDE_FILE, INSIDE_SOCK, INSIDE_WANTED,
    InsideRecord, KIND_CONTAINER, KIND_INSIDE, NAME_MAX, RESTARTS_PER_CONTAINER,
    STEPS_PER_CONTAINER, WALKS_LISTENER, WALKS_QUEUE, WALKS_RING, Walk,
};
use lockwatch_common::search_offsets::RING_NODES;

use crate::found::{AGAIN, NEXT, at, header, is_wanted, tell};
use crate::inside::{Container, LISTENING, container, is_filled};
use crate::kernel::{offset, read_into, read_u32, read_u64};

#[map]
static CONTAINERS: Array<[u64; 2]> = Array::with_max_entries(MANY, 0);

#[map]
static WALK: Array<Walk> = Array::with_max_entries(1, 0);

/// Steps in one run of the program: each more is as much again for the verifier to prove, and costs
/// more than the runs that it saves.
const STEPS: u32 = 1;
/// `SCM_MAX_FD` of `include/net/scm.h`.
const SCM_MAX: u64 = 253;
/// What a ring keeps in the low bits of a pointer to a file.
const FILE_FLAGS: u64 = 7;

enum Step {
    More,
    Full,
    Done,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map")]
extern "C" fn search_containers(_: *const u8) -> i32 {
    let Some(walk) = WALK.get_ptr_mut(0) else { return NEXT };
    // SAFETY: the map's value lives as long as the program; only one reader runs it at a time.
    let walk = unsafe { &mut *walk };
    for _ in 0..STEPS {
        match step(walk) {
            Step::More => {}
            Step::Full => return AGAIN,
            Step::Done => return NEXT,
        }
    }
    AGAIN
}

#[inline(always)]
fn step(walk: &mut Walk) -> Step {
    if walk.index >= walk.count {
        return Step::Done;
    }
    let Some(&[address, kind]) = CONTAINERS.get(walk.index as u32) else { return Step::Done };
    if walk.stage == 0 {
        return begin(walk, address, kind);
    }
    walk.steps += 1;
    if walk.steps > STEPS_PER_CONTAINER {
        walk.cut += 1;
        return end(walk);
    }
    if walk.stage == WALKS_RING { ring_step(walk, address) } else { queue_step(walk, address) }
}

#[inline(always)]
fn begin(walk: &mut Walk, address: u64, kind: u64) -> Step {
    let found = if kind == BY_SOCK {
        if is_filled(address) { Some(Container::Socket { sock: address }) } else { None }
    } else {
        container(address)
    };
    match found {
        None => end(walk),
        Some(Container::Socket { sock }) => {
            let state = read_u32(sock + at!(sock_state) as u64) as u8;
            walk.stage = if state == LISTENING { WALKS_LISTENER } else { WALKS_QUEUE };
            walk.base = sock;
            Step::More
        }
        Some(Container::Ring { files, count }) => {
            walk.stage = WALKS_RING;
            walk.base = files;
            walk.slots = count as u64;
            Step::More
        }
    }
}

/// Goes on to the next container.
#[inline(always)]
fn end(walk: &mut Walk) -> Step {
    walk.index += 1;
    walk.stage = 0;
    walk.told = 0;
    walk.steps = 0;
    walk.restarts = 0;
    first(walk);
    Step::More
}

/// Stands before the first buffer of a queue.
#[inline(always)]
fn first(walk: &mut Walk) {
    walk.buffer = 0;
    walk.list = 0;
    walk.slot = 0;
    walk.slots = 0;
}

/// The queue changed underfoot: begin anew. What is written twice is one to user space.
#[inline(always)]
fn stale(walk: &mut Walk) -> Step {
    walk.restarts += 1;
    if walk.restarts > RESTARTS_PER_CONTAINER {
        walk.cut += 1;
        return end(walk);
    }
    first(walk);
    Step::More
}

#[inline(always)]
fn ring_step(walk: &mut Walk, address: u64) -> Step {
    if walk.slot >= walk.slots {
        return end(walk);
    }
    let mut entry = read_u64(walk.base + walk.slot * 8);
    if entry != 0 && at!(ring_layout) == RING_NODES {
        entry = read_u64(entry + at!(node_file) as u64);
    }
    if !inside(walk, address, entry & !FILE_FLAGS) {
        return Step::Full;
    }
    walk.slot += 1;
    Step::More
}

#[inline(always)]
fn queue_step(walk: &mut Walk, address: u64) -> Step {
    if walk.list != 0 {
        if walk.slot < walk.slots {
            let file = read_u64(walk.list + at!(scm_files) as u64 + walk.slot * 8);
            if !inside(walk, address, file) {
                return Step::Full;
            }
            walk.slot += 1;
            return Step::More;
        }
        walk.list = 0;
    }
    // A queue's head begins with the same two links as a buffer.
    let head = walk.base + at!(sock_queue) as u64;
    let here = if walk.buffer == 0 { head } else { walk.buffer };
    let next = read_u64(here + at!(skb_next) as u64);
    // One that was taken off the queue has no way on, and its successor none back.
    if next == 0 || read_u64(next + at!(skb_prev) as u64) != here {
        return stale(walk);
    }
    if next == head {
        return end(walk);
    }
    if walk.stage == WALKS_LISTENER {
        let waiting = read_u64(next + at!(skb_sk) as u64);
        if is_filled(waiting) && !told(walk, address, waiting, INSIDE_SOCK) {
            return Step::Full;
        }
    } else {
        let list = read_u64(next + at!(skb_files) as u64);
        let count = read_u32(list + at!(scm_count) as u64) as u64 & 0xffff;
        if list != 0 && count > SCM_MAX {
            return stale(walk);
        }
        walk.list = list;
        walk.slot = 0;
        walk.slots = count;
    }
    walk.buffer = next;
    Step::More
}

/// Tells of a file inside a container, where that matters; false where the record did not fit.
#[inline(always)]
fn inside(walk: &mut Walk, address: u64, file: u64) -> bool {
    if file == 0 {
        return true;
    }
    let what = if is_wanted(file) {
        INSIDE_WANTED
    } else if container(file).is_some() {
        INSIDE_FILE
    } else {
        return true;
    };
    told(walk, address, file, what)
}

#[inline(always)]
fn told(walk: &mut Walk, address: u64, inner: u64, what: u32) -> bool {
    if walk.told == 0 {
        if !describe(walk, address) {
            return false;
        }
        walk.told = 1;
    }
    tell(InsideRecord {
        header: header::<InsideRecord>(KIND_INSIDE),
        container: address,
        address: inner,
        file_cred: if what == INSIDE_WANTED {
            read_u64(inner + offset!(file_cred) as u64)
        } else {
            0
        },
        what,
        slot: walk.slot as u32,
    })
}

/// Tells of the container itself.
#[inline(always)]
fn describe(walk: &mut Walk, address: u64) -> bool {
    let ring = walk.stage == WALKS_RING;
    let mut record = ContainerRecord {
        header: header::<ContainerRecord>(KIND_CONTAINER),
        address,
        ino: 0,
        ring: ring as u32,
        name_len: 0,
        name: [0; NAME_MAX],
    };
    if !ring {
        let socket = read_u64(walk.base + at!(sock_socket) as u64);
        if socket != 0 {
            let file = read_u64(socket + at!(socket_file) as u64);
            let inode = read_u64(file + offset!(file_inode) as u64);
            record.ino = read_u64(inode + offset!(inode_ino) as u64);
        }
        let name = read_u64(walk.base + at!(unix_address) as u64);
        if name != 0 {
            // The length counts the address family in.
            let len = read_u32(name + at!(address_len) as u64);
            let to = (&raw mut record.name).cast();
            // SAFETY: `name` of the record is valid for as many bytes.
            let read = unsafe { read_into(to, NAME_MAX as u32, name + at!(address_path) as u64) };
            if read && len > 2 && len as usize <= NAME_MAX + 2 {
                record.name_len = len - 2;
            }
        }
    }
    tell(record)
}
