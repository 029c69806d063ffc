//! Who does what is being seen: the current task.
//!
//! Kernels before 5.11 give no typed pointer to it: there each member is read by a helper.

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_get_current_task, bpf_get_current_task_btf,
};
use lockwatch_common::history::Party;
use lockwatch_common::offsets::ABSENT;

use crate::kernel::{member, offset, read_into, read_u32, read_u64};

/// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`: the initial pid namespace.
const INITIAL_PID_NS: u32 = 0xefff_fffc;

/// Thread-group id and thread id.
#[inline(always)]
pub(crate) fn ids() -> (i32, i32) {
    // SAFETY: no arguments, always allowed.
    let both = unsafe { bpf_get_current_pid_tgid() };
    ((both >> 32) as i32, both as i32)
}

/// Flags (`PF_*`) of the current task, and the start of its thread group's leader. Costs more than it
/// looks: for what is not ordinary.
#[inline(always)]
pub(crate) fn flags_and_start() -> (u32, u64) {
    // SAFETY: a helper without arguments; members at offsets of their type.
    unsafe {
        if offset!(has_task_btf) == 1 {
            of_task::<true>(bpf_get_current_task_btf().cast())
        } else {
            of_task::<false>(bpf_get_current_task() as *const u8)
        }
    }
}

#[inline(always)]
unsafe fn of_task<const TYPED: bool>(task: *const u8) -> (u32, u64) {
    // SAFETY: the caller gives the current task.
    unsafe {
        let leader: *const u8 = hop::<TYPED, _>(task, offset!(task_leader));
        (hop::<TYPED, _>(task, offset!(task_flags)), hop::<TYPED, _>(leader, offset!(task_start)))
    }
}

/// Writes down the current task where it is not written there already.
///
/// What cannot change without an exec is not looked at where no exec was.
///
/// # Safety
/// `to` must be valid for reads and writes.
#[inline(always)]
pub(crate) unsafe fn renew(to: *mut Party) {
    // SAFETY: the caller's promise; a helper without arguments, and members of the current task.
    unsafe {
        if offset!(has_task_btf) != 1 || offset!(task_exec_id) == ABSENT {
            return current(to);
        }
        let task: *const u8 = bpf_get_current_task_btf().cast();
        let leader: *const u8 = member(task, offset!(task_leader));
        let comm = (&raw const (*to).comm).cast::<u64>();
        if (*to).tid == member::<i32>(task, offset!(task_pid))
            && (*to).start == member::<u64>(leader, offset!(task_start))
            && (*to).exec_id == member::<u32>(task, offset!(task_exec_id))
            && comm.read() == member::<u64>(task, offset!(task_comm))
            && comm.add(1).read() == member::<u64>(task, offset!(task_comm) + 8)
            && (*to).cgroup == bpf_get_current_cgroup_id()
        {
            return;
        }
        current(to);
    }
}

/// Writes down the current task, every member of it.
///
/// # Safety
/// `to` must be valid for writes.
#[inline(never)]
pub(crate) unsafe fn current(to: *mut Party) {
    let (tgid, tid) = ids();
    // SAFETY: the caller's promise; helpers that are always allowed, with a buffer of the size that
    // is told.
    unsafe {
        (*to).tgid = tgid;
        (*to).tid = tid;
        (*to).cgroup = bpf_get_current_cgroup_id();
        bpf_get_current_comm((&raw mut (*to).comm).cast(), 16);
        if offset!(has_task_btf) == 1 {
            describe::<true>(bpf_get_current_task_btf().cast(), to);
        } else {
            describe::<false>(bpf_get_current_task() as *const u8, to);
        }
    }
}

#[inline(always)]
unsafe fn describe<const TYPED: bool>(task: *const u8, to: *mut Party) {
    // SAFETY: the caller gives the current task, typed where `TYPED`, and a place to write to.
    unsafe {
        let to = &mut *to;
        to.exec_id = 0;
        if TYPED && offset!(task_exec_id) != ABSENT {
            to.exec_id = hop::<TYPED, _>(task, offset!(task_exec_id));
        }
        let leader: *const u8 = hop::<TYPED, _>(task, offset!(task_leader));
        to.start = hop::<TYPED, _>(leader, offset!(task_start));
        let pid: *const u8 = hop::<TYPED, _>(leader, offset!(task_thread_pid));
        let level: u32 = if pid.is_null() { 0 } else { hop::<TYPED, _>(pid, offset!(pid_level)) };
        (to.pid_ns, to.ns_pid) = (INITIAL_PID_NS, to.tgid);
        if level > 0 {
            nested(leader as u64, level, to);
        }
        (to.exe_ino, to.exe_dev) = (0, 0);
        if offset!(task_mm) == ABSENT || offset!(mm_exe_file) == ABSENT {
            return;
        }
        let mm: *const u8 = hop::<TYPED, _>(task, offset!(task_mm));
        if mm.is_null() {
            return;
        }
        let exe: *const u8 = hop::<TYPED, _>(mm, offset!(mm_exe_file));
        if exe.is_null() {
            return;
        }
        let inode: *const u8 = hop::<TYPED, _>(exe, offset!(file_inode));
        if inode.is_null() {
            return;
        }
        to.exe_ino = hop::<TYPED, _>(inode, offset!(inode_ino));
        let sb: *const u8 = hop::<TYPED, _>(inode, offset!(inode_sb));
        if !sb.is_null() {
            to.exe_dev = hop::<TYPED, _>(sb, offset!(sb_dev));
        }
    }
}

/// The number in the innermost of nested pid namespaces, and which that is.
#[inline(always)]
fn nested(leader: u64, level: u32, to: &mut Party) {
    // By a helper: with a number the verifier allows sums that are not known in advance.
    let pid = read_u64(leader + offset!(task_thread_pid) as u64);
    let own = pid + offset!(pid_numbers) as u64 + level as u64 * offset!(upid_size) as u64;
    to.ns_pid = read_u32(own + offset!(upid_nr) as u64) as i32;
    to.pid_ns = read_u32(read_u64(own + offset!(upid_ns) as u64) + offset!(pid_ns_inum) as u64);
}

/// A member, by a load where the verifier knows the pointer's type, else by a helper.
#[inline(always)]
unsafe fn hop<const TYPED: bool, T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the caller's promise is that of `member`; `value` has the size that is told, the
    // helper writes all of it (zeros where it cannot read), and callers ask for integers and plain
    // pointers alone.
    unsafe {
        if TYPED {
            return member(base, offset);
        }
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        read_into(value.as_mut_ptr().cast(), size_of::<T>() as u32, base as u64 + offset as u64);
        value.assume_init()
    }
}
