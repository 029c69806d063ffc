//! `iter/task_vma` (5.12): every mapping of a description that is looked for, and of every ring:
//! one whose descriptor was closed lives on with its mapping.

use lockwatch_common::search::{HoldRecord, KIND_HOLD, MAPS_RING, MAPS_WANTED, NO_FD};

use crate::found::{AGAIN, NEXT, at, header, is_wanted, tell};
use crate::inside::{Container, container};
use crate::kernel::{member, offset, read_u64};
use crate::task;

/// `struct bpf_iter__task_vma`.
#[repr(C)]
struct Context {
    meta: *const u8,
    task: *const u8,
    vma: *const u8,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_vma")]
extern "C" fn search_mappings(context: *const Context) -> i32 {
    // SAFETY: the kernel calls with its context, whose members the verifier knows.
    let (task, vma) = unsafe { ((*context).task, (*context).vma) };
    if task.is_null() || vma.is_null() {
        return NEXT;
    }
    // SAFETY: `vma` is a trusted pointer of the context; of the file only its address is used.
    let file = unsafe { member::<u64>(vma, at!(vma_file)) };
    if file == 0 {
        return NEXT;
    }
    let what = if is_wanted(file) {
        MAPS_WANTED
    } else if let Some(Container::Ring { .. }) = container(file) {
        MAPS_RING
    } else {
        return NEXT;
    };
    // SAFETY: `task` and `vma` are trusted pointers of the context.
    let record = unsafe {
        HoldRecord {
            header: header::<HoldRecord>(KIND_HOLD),
            file,
            what,
            fd: NO_FD,
            start: member(vma, at!(vma_start)),
            end: member(vma, at!(vma_end)),
            flags: member(vma, at!(vma_flags)),
            files: member(task, offset!(task_files)),
            cred: member(task, offset!(task_cred)),
            file_cred: read_u64(file + offset!(file_cred) as u64),
            task: task::describe(task),
        }
    };
    if tell(record) { NEXT } else { AGAIN }
}
