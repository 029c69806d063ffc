//! `iter/task_file`: every descriptor of a description that is looked for, and of everything that
//! may hold one.
//!
//! Sockets are found here and not with `iter/unix`, which shows those of one network namespace
//! alone and does not say whose they are.

use lockwatch_common::search::{
    HOLDS_RING, HOLDS_SOCKET, HOLDS_WANTED, HoldRecord, KIND_HOLD, NOT_MAPPED,
};

use crate::found::{AGAIN, NEXT, at, header, is_wanted, tell};
use crate::inside::{Container, is_anonymous, is_socket, ring, socket};
use crate::kernel::{member, offset, read_u64};
use crate::task;

/// `struct bpf_iter__task_file`: the same from 5.8 on.
#[repr(C)]
struct Context {
    meta: *const u8,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn search_descriptors(context: *const Context) -> i32 {
    // SAFETY: the kernel calls with its context, whose members the verifier knows.
    let (task, fd, file) = unsafe { ((*context).task, (*context).fd, (*context).file) };
    if task.is_null() || file.is_null() {
        return NEXT;
    }
    // SAFETY: `file` is a trusted pointer of the context.
    let Some(what) = (unsafe { what(file) }) else { return NEXT };
    // SAFETY: `task` and `file` are trusted pointers of the context.
    let record = unsafe {
        HoldRecord {
            header: header::<HoldRecord>(KIND_HOLD),
            file: file as u64,
            what,
            fd,
            start: 0,
            end: 0,
            flags: if what == HOLDS_WANTED { mapped(file) } else { 0 },
            files: member(task, offset!(task_files)),
            cred: member(task, offset!(task_cred)),
            file_cred: member(file, offset!(file_cred)),
            task: task::describe(task),
        }
    };
    if tell(record) { NEXT } else { AGAIN }
}

/// [`NOT_MAPPED`] where the tree in which the kernel keeps every mapping of the file is empty.
#[inline(always)]
unsafe fn mapped(file: *const u8) -> u64 {
    if at!(has_mapped) == 0 {
        return 0;
    }
    // SAFETY: the caller gives a file of the context.
    let mapping: u64 = unsafe { member(file, at!(file_mapping)) };
    // What cannot be read reads as 0.
    if mapping != 0 && read_u64(mapping + at!(mapping_root) as u64) == 0 { NOT_MAPPED } else { 0 }
}

#[inline(always)]
unsafe fn what(file: *const u8) -> Option<u32> {
    if is_wanted(file as u64) {
        return Some(HOLDS_WANTED);
    }
    // SAFETY: the caller gives a file of the context.
    unsafe {
        let inode: *const u8 = member(file, offset!(file_inode));
        if is_socket(member::<u16>(inode, at!(inode_mode)) as u32) {
            return socket(file as u64).map(|_| HOLDS_SOCKET);
        }
        let sb: *const u8 = member(inode, offset!(inode_sb));
        if !is_anonymous(member(sb, at!(sb_magic))) {
            return None;
        }
    }
    match ring(file as u64) {
        Some(Container::Ring { .. }) => Some(HOLDS_RING),
        _ => None,
    }
}
