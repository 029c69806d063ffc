//! A task, as a record tells of it.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use lockwatch_common::snapshot::{Header, PF_FORKNOEXEC, TaskRecord};

use crate::kernel::{member, offset, read_into, read_u32, read_u64};

/// The record of a task, its header left to whoever writes it.
///
/// # Safety
/// `task` must be a task of the program's context.
#[inline(always)]
pub(crate) unsafe fn describe(task: *const u8) -> TaskRecord {
    // SAFETY: the caller's promise; each offset belongs to the pointer that it is used with.
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
        TaskRecord {
            header: Header { kind: 0, len: 0 },
            start: member(leader, offset!(task_start)),
            tgid: member(task, offset!(task_tgid)),
            tid: member(task, offset!(task_pid)),
            parent: member(parent, offset!(task_tgid)),
            flags: (own_flags & !PF_FORKNOEXEC) | (leader_flags & PF_FORKNOEXEC),
            ns_pid: read_u32(own + offset!(upid_nr) as u64) as i32,
            reader_pid: read_u32(reader + offset!(upid_nr) as u64) as i32,
            pid_ns: read_u32(read_u64(own + offset!(upid_ns) as u64) + offset!(pid_ns_inum) as u64),
            ns_level: level,
            comm: core::mem::transmute::<[u64; 2], [u8; 16]>(comm),
        }
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
