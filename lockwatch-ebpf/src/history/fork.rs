//! Forks: a pid that is given to a new process although locks were taken under it is told of.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use lockwatch_common::history::{
    Header, KIND_REUSED, ProcessKey, ReusedRecord, SEAT_FORK, SEAT_FORK_AGAIN,
};

use crate::kernel::{member, offset};
use crate::tables::{MOMENTS, held};
use crate::taking::now;
use crate::{again, counters};

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(context: BtfTracePointContext) -> i32 {
    again::first(SEAT_FORK);
    look(&context, SEAT_FORK);
    0
}

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork_again(context: BtfTracePointContext) -> i32 {
    if again::was_missed(SEAT_FORK, SEAT_FORK_AGAIN) {
        look(&context, SEAT_FORK_AGAIN);
    }
    0
}

#[inline(always)]
fn look(context: &BtfTracePointContext, seat: u32) {
    let child: *const u8 = context.arg(1);
    if !child.is_null() {
        // SAFETY: the tracepoint's argument.
        unsafe { forked(child, seat) };
    }
}

#[inline(always)]
unsafe fn forked(child: *const u8, seat: u32) {
    // SAFETY: members of the task at offsets of their types; the map's value.
    unsafe {
        let tgid: i32 = member(child, offset!(task_tgid));
        if tgid != member::<i32>(child, offset!(task_pid)) {
            return;
        }
        let Some(held) = held(tgid) else { return };
        if (*held).locks <= 0 {
            return;
        }
        let Some(mut room) = MOMENTS.reserve::<ReusedRecord>(0) else {
            counters::lost_record(seat);
            return;
        };
        let header = Header { kind: KIND_REUSED, len: size_of::<ReusedRecord>() as u32, at: now() };
        let start = member(child, offset!(task_start));
        room.write(ReusedRecord { header, process: ProcessKey { start, tgid, reserved: 0 } });
        room.submit(0);
    }
}
