//! Every lock of the machine, also those that no descriptor leads to.
//!
//! The kernel keeps each granted lock in a list of the CPU on which it was taken, newest first. The
//! lists' heads cannot be found from here, but any entry leads to all that are older: so user space
//! takes a lock of its own on each CPU, the seeds, all on one file, and the walk goes on from each.
//! What was locked after the seed is younger than the snapshot.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use lockwatch_common::snapshot::{
    Header, InodeRecord, KIND_INODE, KIND_NAME, LOCK_SPAN, NAME_MAX, NAMES, NameRecord,
    RESTARTS_PER_CHAIN, STEPS_PER_CHAIN, State, Window,
};

use crate::kernel::{offset, read_into, read_u32, read_u64};
use crate::lists::{Step, begin, field, step};
use crate::task_file::{AGAIN, NEXT};
use crate::window::{advance, is_walked, room, set_walked, state};

/// Steps in one run of the program.
const STEPS: u32 = 1;
/// Entries that may be passed in one step, as long as their files are known.
const PASSED: u32 = 24;

/// Goes on with the walk; `seeded` is the inode that carries the seeds.
///
/// # Safety
/// `window` must be the map's value.
#[inline(always)]
pub(crate) unsafe fn walk(window: *mut Window, seeded: u64) -> i32 {
    for _ in 0..STEPS {
        // SAFETY: the caller's promise.
        match unsafe { advance_walk(window, seeded) } {
            Step::Done => return NEXT,
            Step::Full => return AGAIN,
            Step::More => {}
        }
    }
    AGAIN
}

#[inline(always)]
unsafe fn advance_walk(window: *mut Window, seeded: u64) -> Step {
    // SAFETY: the caller's promise.
    unsafe {
        let place = state(window);
        if place.inode != 0 {
            let inode = place.inode;
            return match step(window, inode, locks_of(inode)) {
                Step::Done => {
                    set_walked(inode);
                    place.inode = 0;
                    Step::More
                }
                other => other,
            };
        }
        let head = locks_of(seeded) + offset!(ctx_posix) as u64;
        if place.seed == 0 && !next_seed(place, head, head) {
            return Step::Done;
        }
        for _ in 0..PASSED {
            match pass(window, seeded) {
                Pass::Known => {}
                Pass::Found => return Step::More,
                Pass::Full => return Step::Full,
                Pass::Stale => {
                    place.chain_restarts += 1;
                    // From where it stands, as long as that is still on the list: one that was
                    // taken off has no way back.
                    let link = place.chain + offset!(lock_link) as u64;
                    let at = if read_u64(link + 8) == 0 { place.seed } else { place.chain };
                    stand_at(place, at);
                    if place.chain_restarts > RESTARTS_PER_CHAIN {
                        place.cut += 1;
                        let seed = place.seed + offset!(lock_list) as u64;
                        return if next_seed(place, seed, head) { Step::More } else { Step::Done };
                    }
                    return Step::More;
                }
                Pass::End => {
                    place.chains += 1;
                    let seed = place.seed + offset!(lock_list) as u64;
                    return if next_seed(place, seed, head) { Step::More } else { Step::Done };
                }
            }
        }
        Step::More
    }
}

/// Address of an inode's `file_lock_context`, or 0.
#[inline(always)]
fn locks_of(inode: u64) -> u64 {
    read_u64(inode + offset!(inode_flctx) as u64)
}

/// Stands at the seed behind `at`, a member of the list of seeds; false at its end.
#[inline(always)]
fn next_seed(place: &mut State, at: u64, head: u64) -> bool {
    let next = read_u64(at);
    if next == head || next == 0 {
        return false;
    }
    place.seed = next - offset!(lock_list) as u64;
    place.chain_cpu = read_u32(place.seed + offset!(lock_link_cpu) as u64) as u64;
    place.chain_steps = 0;
    place.chain_restarts = 0;
    stand_at(place, place.seed);
    true
}

/// Stands at an entry of the list: its way on is read now.
#[inline(always)]
fn stand_at(place: &mut State, entry: u64) {
    place.chain = entry;
    place.chain_next = read_u64(entry + offset!(lock_link) as u64);
}

enum Pass {
    /// The entry's file was walked before.
    Known,
    /// Its file is to be walked now.
    Found,
    /// The window is full.
    Full,
    /// The list changed underfoot.
    Stale,
    /// It was the last one.
    End,
}

/// Goes on to the next entry of the CPU's list.
#[inline(always)]
unsafe fn pass(window: *mut Window, seeded: u64) -> Pass {
    // SAFETY: the caller's promise.
    unsafe {
        let place = state(window);
        let link = place.chain + offset!(lock_link) as u64;
        let next = place.chain_next;
        if next == 0 {
            return Pass::End;
        }
        place.chain_steps += 1;
        if place.chain_steps > STEPS_PER_CHAIN {
            place.cut += 1;
            return Pass::End;
        }
        let entry = next - offset!(lock_link) as u64;
        let scratch = (&raw mut place.scratch).cast::<u8>();
        if !read_into(scratch, LOCK_SPAN as u32, entry) {
            return Pass::Stale;
        }
        // One that was taken off the list, or that is now another's, has another way back.
        let back: u64 = field(scratch, offset!(lock_link) + 8);
        let cpu: u32 = field(scratch, offset!(lock_link_cpu));
        if back != link || cpu as u64 != place.chain_cpu {
            return Pass::Stale;
        }
        let way_on: u64 = field(scratch, offset!(lock_link));
        let file: u64 = field(scratch, offset!(lock_file));
        let inode = read_u64(file + offset!(file_inode) as u64);
        if file == 0 || inode == 0 || inode == seeded || is_walked(inode) {
            place.chain = entry;
            place.chain_next = way_on;
            return Pass::Known;
        }
        let locks = locks_of(inode);
        if locks == 0 {
            return Pass::Stale;
        }
        if !file_record(window, file, inode) {
            return Pass::Full;
        }
        place.chain = entry;
        place.chain_next = way_on;
        begin(place, inode, locks);
        Pass::Found
    }
}

/// Writes the file without the kernel's help for its path: name by name, the last one first.
#[inline(always)]
unsafe fn file_record(window: *mut Window, file: u64, inode: u64) -> bool {
    const HEAD: usize = size_of::<InodeRecord>();
    const NAME: usize = size_of::<NameRecord>();
    // SAFETY: the caller's promise; `room` gave as many bytes as are written.
    unsafe {
        let Some(to) = room::<{ HEAD + NAMES * NAME }>(window) else { return false };
        let path = file + offset!(file_path) as u64;
        let mut dentry = read_u64(path + offset!(path_dentry) as u64);
        let hashed = read_u64(dentry + offset!(dentry_hash_pprev) as u64);
        let is_root = read_u64(dentry + offset!(dentry_parent) as u64) == dentry;
        let sb = read_u64(inode + offset!(inode_sb) as u64);
        to.cast::<InodeRecord>().write(InodeRecord {
            header: Header { kind: KIND_INODE, len: HEAD as u32 },
            inode,
            ino: read_u64(inode + offset!(inode_ino) as u64),
            size: read_u64(inode + offset!(inode_size) as u64) as i64,
            dev: read_u32(sb + offset!(sb_dev) as u64),
            nlink: read_u32(inode + offset!(inode_nlink) as u64),
            unlinked: (hashed == 0 && !is_root) as u32,
            path_len: 0,
        });
        let mut written = HEAD as u64;
        for index in 0..NAMES {
            let parent = read_u64(dentry + offset!(dentry_parent) as u64);
            if parent == dentry || parent == 0 {
                break;
            }
            let record = to.add(HEAD + index * NAME).cast::<NameRecord>();
            (&raw mut (*record).header).write(Header { kind: KIND_NAME, len: NAME as u32 });
            (&raw mut (*record).inode).write(inode);
            let name = read_u64(dentry + offset!(dentry_name) as u64);
            let text = (&raw mut (*record).name).cast();
            bpf_probe_read_kernel_str(text, NAME_MAX as u32, name as *const _);
            written += NAME as u64;
            dentry = parent;
        }
        advance(window, written);
    }
    true
}
