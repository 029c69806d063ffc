//! The exit of processes: those that took locks which are still there are written down, before
//! anything of theirs is given back.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use lockwatch_common::history::{
    DYING_WINDOW, DiedRecord, Ending, Header, KIND_DIED, ProcessKey, SEAT_EXIT, SEAT_EXIT_AGAIN,
};

use crate::kernel::{member, offset};
use crate::tables::{DEAD, MOMENTS, WAITERS, add, globals, held};
use crate::taking::now;
use crate::{again, counters};

/// By which the logger is asked for what is said here.
const TARGET: &str = "lockwatch_ebpf";
/// `SIGNAL_GROUP_EXIT` of `include/linux/sched/signal.h`.
const SIGNAL_GROUP_EXIT: u32 = 4;
/// `BPF_NOEXIST` of `include/uapi/linux/bpf.h`.
const BPF_NOEXIST: u64 = 1;

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(context: BtfTracePointContext) -> i32 {
    again::first(SEAT_EXIT);
    look(&context, SEAT_EXIT);
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit_again(context: BtfTracePointContext) -> i32 {
    if again::was_missed(SEAT_EXIT, SEAT_EXIT_AGAIN) {
        look(&context, SEAT_EXIT_AGAIN);
    }
    0
}

#[inline(always)]
fn look(context: &BtfTracePointContext, seat: u32) {
    let task: *const u8 = context.arg(0);
    if !task.is_null() {
        // SAFETY: the tracepoint's argument.
        unsafe { exits(task, seat) };
    }
}

#[inline(always)]
unsafe fn exits(task: *const u8, seat: u32) {
    // SAFETY: members of the task at offsets of their types; the maps' values.
    unsafe {
        let tid: i32 = member(task, offset!(task_pid));
        if let Some(held) = held(tid)
            && (*held).places > 0
            && let Some(wait) = WAITERS.get_ptr(tid as u64)
        {
            let waits = (*wait).since != 0;
            if WAITERS.remove(tid as u64).is_ok() {
                add(&raw mut (*held).waits, -(waits as i64));
                add(&raw mut (*held).places, -1);
            }
        }
        let tgid: i32 = member(task, offset!(task_tgid));
        let Some(held) = held(tgid) else { return };
        if (*held).locks <= 0 {
            return;
        }
        let signal: *const u8 = member(task, offset!(task_signal));
        if signal.is_null() || member::<i32>(signal, offset!(signal_live)) != 0 {
            return;
        }
        let leader: *const u8 = member(task, offset!(task_leader));
        if leader.is_null() {
            return;
        }
        // What wait(2) tells.
        let status = if member::<u32>(signal, offset!(signal_flags)) & SIGNAL_GROUP_EXIT != 0 {
            member(signal, offset!(signal_group_exit_code))
        } else {
            member(leader, offset!(task_exit_code))
        };
        let now = now();
        let process = ProcessKey { start: member(leader, offset!(task_start)), tgid, reserved: 0 };
        let ending = Ending { at: now, status, dead: 1 };
        // Two last threads may both be the last one: the first tells.
        match DEAD.insert(process, ending, BPF_NOEXIST) {
            Ok(()) => {}
            Err(EEXIST) => return,
            Err(_) => counters::lost_other(seat),
        }
        debug!(task, target: TARGET, "process {} ends with {} and has locks", tgid, status);
        if let Some(globals) = globals() {
            (*globals).dying_until = now + DYING_WINDOW;
        }
        let Some(mut room) = MOMENTS.reserve::<DiedRecord>(0) else {
            counters::lost_record(seat);
            return;
        };
        let header = Header { kind: KIND_DIED, len: size_of::<DiedRecord>() as u32, at: now };
        room.write(DiedRecord { header, process, ending });
        room.submit(0);
    }
}

const EEXIST: i32 = -17;
