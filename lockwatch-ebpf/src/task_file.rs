//! `iter/task_file`: every descriptor of every task, and the locks on the file behind it.
//!
//! Each inode's lists are walked once, at the first descriptor that leads to them, so that the work
//! is linear in descriptors plus locks.

use aya_ebpf::bindings::path;
use aya_ebpf::helpers::generated::bpf_d_path;
use lockwatch_common::snapshot::{
    InodeRecord, KIND_INODE, KIND_REFERENCE, KIND_TARGET, KIND_TASK, MODE_ALL_LOCKS, PATH_MAX,
    ReferenceRecord, STEPS_PER_RUN, TargetRecord, TaskRecord, Window,
};

use crate::all_locks;
use crate::kernel::{load, member, offset, read_u64};
use crate::lists::{Step, abandon, begin, step};
use crate::task;
use crate::window::{advance, append, header, is_walked, room, set_walked, state, window};

/// `struct bpf_iter__task_file`: the same from 5.8 on.
#[repr(C)]
pub(crate) struct Context {
    meta: *const u8,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

/// The iterator's answer: go on to the next descriptor.
pub(crate) const NEXT: i32 = 0;
/// The iterator's answer: end the read with `EAGAIN` and come again for this descriptor.
pub(crate) const AGAIN: i32 = 1;

/// The descriptor of lockwatch's own on which it seeds; written before the programs are loaded.
#[unsafe(no_mangle)]
static SEED_FD: u32 = u32::MAX;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn task_file(context: *const Context) -> i32 {
    // SAFETY: the kernel calls with its context, whose members the verifier knows.
    let (task, fd, file) = unsafe { ((*context).task, (*context).fd, (*context).file) };
    if task.is_null() || file.is_null() {
        return NEXT;
    }
    let Some(window) = window() else { return NEXT };
    // SAFETY: `task` and `file` are trusted pointers of the context, `window` is the map's value.
    unsafe { visit(window, task, fd, file) }
}

#[inline(always)]
unsafe fn visit(window: *mut Window, task: *const u8, fd: u32, file: *const u8) -> i32 {
    // SAFETY: see `task_file`; each offset belongs to the pointer that it is used with.
    unsafe {
        let place = state(window);
        let tgid: i32 = member(task, offset!(task_tgid));
        if place.mode == MODE_ALL_LOCKS {
            if fd != load(&SEED_FD) || tgid != current_tgid() {
                return NEXT;
            }
            return all_locks::walk(window, read_u64(file as u64 + offset!(file_inode) as u64));
        }
        let inode: *const u8 = member(file, offset!(file_inode));
        if tgid == current_tgid() && !target(window, inode, fd) {
            return AGAIN;
        }
        let locks: *const u8 = member(inode, offset!(inode_flctx));
        if locks.is_null() || !any(locks) {
            return NEXT;
        }

        // A plain number, because the verifier allows no sums with a typed pointer.
        let address = read_u64(file as u64 + offset!(file_inode) as u64);
        if place.inode != inode as u64 {
            if place.inode != 0 {
                // The descriptor that led to that inode was closed between two reads.
                abandon(place);
            }
            if !is_walked(address) {
                if !file_record(window, file, inode) {
                    return AGAIN;
                }
                begin(place, address, locks as u64);
            }
        }
        if place.inode == inode as u64 {
            for _ in 0..STEPS_PER_RUN {
                match step(window, address, locks as u64) {
                    Step::Done => {
                        set_walked(address);
                        place.inode = 0;
                        break;
                    }
                    Step::Full => return AGAIN,
                    Step::More => {}
                }
            }
            if place.inode != 0 {
                return AGAIN;
            }
        }

        let tid: i32 = member(task, offset!(task_pid));
        let start: u64 = member(task, offset!(task_start));
        if place.tid != tid || place.tid_start != start {
            let header = header::<TaskRecord>(KIND_TASK);
            if !append(window, TaskRecord { header, ..task::describe(task) }) {
                return AGAIN;
            }
            place.tid = tid;
            place.tid_start = start;
        }
        let reference = ReferenceRecord {
            header: header::<ReferenceRecord>(KIND_REFERENCE),
            file: file as u64,
            inode: inode as u64,
            files: member(task, offset!(task_files)),
            tgid,
            tid,
            fd,
            mode: member(file, offset!(file_mode)),
            opener: (member::<u64>(file, offset!(file_cred))
                == member::<u64>(task, offset!(task_cred))) as u32,
            reserved: 0,
        };
        if !append(window, reference) {
            return AGAIN;
        }
        place.visited += 1;
    }
    NEXT
}

#[inline(always)]
fn current_tgid() -> i32 {
    // SAFETY: no arguments, always allowed.
    (unsafe { aya_ebpf::helpers::generated::bpf_get_current_pid_tgid() } >> 32) as i32
}

/// True where one of the three lists has an entry.
#[inline(always)]
unsafe fn any(locks: *const u8) -> bool {
    // SAFETY: the caller gives a `file_lock_context`; `next` is the first member of a list head.
    unsafe {
        let flock: u64 = member(locks, offset!(ctx_flock));
        let posix: u64 = member(locks, offset!(ctx_posix));
        let lease: u64 = member(locks, offset!(ctx_lease));
        let base = locks as u64;
        flock != base + offset!(ctx_flock) as u64
            || posix != base + offset!(ctx_posix) as u64
            || lease != base + offset!(ctx_lease) as u64
    }
}

#[inline(always)]
unsafe fn target(window: *mut Window, inode: *const u8, fd: u32) -> bool {
    // SAFETY: the caller gives an inode of the context's file.
    unsafe {
        let sb: *const u8 = member(inode, offset!(inode_sb));
        append(
            window,
            TargetRecord {
                header: header::<TargetRecord>(KIND_TARGET),
                ino: member(inode, offset!(inode_ino)),
                dev: member(sb, offset!(sb_dev)),
                fd,
            },
        )
    }
}

#[inline(always)]
unsafe fn file_record(window: *mut Window, file: *const u8, inode: *const u8) -> bool {
    const HEAD: usize = size_of::<InodeRecord>();
    // SAFETY: the caller gives a file and its inode, both of the context.
    unsafe {
        let Some(to) = room::<{ HEAD + PATH_MAX }>(window) else { return false };
        let mut path_len = 0u64;
        if offset!(has_d_path) == 1 {
            let path = file.add(offset!(file_path) as usize).cast_mut().cast::<path>();
            let len = bpf_d_path(path, to.add(HEAD).cast(), PATH_MAX as u32);
            if len > 1 && len <= PATH_MAX as i64 {
                // Without the closing NUL.
                path_len = len as u64 - 1;
            }
        }
        let sb: *const u8 = member(inode, offset!(inode_sb));
        let dentry: *const u8 = member(file, offset!(file_path) + offset!(path_dentry));
        let hashed: u64 = member(dentry, offset!(dentry_hash_pprev));
        let parent: u64 = member(dentry, offset!(dentry_parent));
        let len = HEAD as u64 + ((path_len + 7) & !7);
        to.cast::<InodeRecord>().write(InodeRecord {
            header: lockwatch_common::snapshot::Header { kind: KIND_INODE, len: len as u32 },
            inode: inode as u64,
            ino: member(inode, offset!(inode_ino)),
            size: member(inode, offset!(inode_size)),
            dev: member(sb, offset!(sb_dev)),
            nlink: member(inode, offset!(inode_nlink)),
            unlinked: (hashed == 0 && parent != dentry as u64) as u32,
            path_len: path_len as u32,
        });
        advance(window, len);
    }
    true
}
