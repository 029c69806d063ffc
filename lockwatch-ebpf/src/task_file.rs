//! `iter/task_file`: every descriptor of every task, and the locks on the file behind it.
//!
//! Each inode's lists are walked once, at the first descriptor that leads to them, so that the work
//! is linear in descriptors plus locks.

use aya_ebpf::bindings::path;
use aya_ebpf::helpers::generated::{bpf_d_path, bpf_get_current_task};
use lockwatch_common::snapshot::{
    InodeRecord, KIND_INODE, KIND_REFERENCE, KIND_TARGET, KIND_TASK, MODE_ALL_LOCKS, PATH_MAX,
    PF_FORKNOEXEC, ReferenceRecord, STEPS_PER_RUN, TargetRecord, TaskRecord, Window,
};

use crate::all_locks;
use crate::kernel::{load, member, offset, read_into, read_u32, read_u64};
use crate::lists::{Step, abandon, begin, step};
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
            if !task_record(window, task, tgid, tid) {
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

#[inline(always)]
unsafe fn task_record(window: *mut Window, task: *const u8, tgid: i32, tid: i32) -> bool {
    // SAFETY: the caller gives a task of the context.
    unsafe {
        let leader: *const u8 = member(task, offset!(task_leader));
        let parent: *const u8 = member(task, offset!(task_parent));
        // A plain number, because the verifier allows no sums with a typed pointer.
        let pid = read_u64(leader as u64 + offset!(task_thread_pid) as u64);
        let level = read_u32(pid + offset!(pid_level) as u64);
        let own = upid(pid, level);
        let reader = upid(pid, reader_level());
        let own_flags: u32 = member(task, offset!(task_flags));
        let leader_flags: u32 = member(leader, offset!(task_flags));
        let mut comm = [0u64; 2];
        read_into((&raw mut comm).cast(), 16, task as u64 + offset!(task_comm) as u64);
        append(
            window,
            TaskRecord {
                header: header::<TaskRecord>(KIND_TASK),
                start: member(leader, offset!(task_start)),
                tgid,
                tid,
                parent: member(parent, offset!(task_tgid)),
                flags: (own_flags & !PF_FORKNOEXEC) | (leader_flags & PF_FORKNOEXEC),
                ns_pid: read_u32(own + offset!(upid_nr) as u64) as i32,
                reader_pid: read_u32(reader + offset!(upid_nr) as u64) as i32,
                pid_ns: read_u32(
                    read_u64(own + offset!(upid_ns) as u64) + offset!(pid_ns_inum) as u64,
                ),
                ns_level: level,
                comm: core::mem::transmute::<[u64; 2], [u8; 16]>(comm),
            },
        )
    }
}

/// Address of the number that a pid has at a level of nested namespaces.
#[inline(always)]
fn upid(pid: u64, level: u32) -> u64 {
    pid + offset!(pid_numbers) as u64 + level as u64 * offset!(upid_size) as u64
}

/// Depth of the pid namespace of whoever reads the iterator.
#[inline(always)]
fn reader_level() -> u32 {
    // SAFETY: no arguments, always allowed.
    let current = unsafe { bpf_get_current_task() };
    let pid = read_u64(current + offset!(task_thread_pid) as u64);
    read_u32(pid + offset!(pid_level) as u64)
}
