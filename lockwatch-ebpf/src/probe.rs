//! Programs that do nothing: `doctor` loads each to learn what this kernel allows.
#![no_std]
#![no_main]

mod object;

use core::ffi::c_void;

use aya_ebpf::macros::{btf_tracepoint, fentry, fexit, lsm, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, FExitContext, LsmContext};

/// That maps are allowed is asked by having one.
#[map]
static PROBE: Array<u64> = Array::with_max_entries(1, 0);

/// Constants are a map that is frozen: 5.10 lets anybody have maps, but freeze none.
#[unsafe(no_mangle)]
static FROZEN: i32 = 0;

#[btf_tracepoint(function = "flock_lock_inode")]
fn probe_tp_btf(_: BtfTracePointContext) -> i32 {
    // SAFETY: a reference is valid for reads. Volatile, so that the constant stays one of the map.
    unsafe { core::ptr::read_volatile(&raw const FROZEN) }
}

#[fentry(function = "locks_remove_posix")]
fn probe_fentry(_: FEntryContext) -> i32 {
    0
}

#[fexit(function = "locks_remove_posix")]
fn probe_fexit(_: FExitContext) -> i32 {
    0
}

#[lsm(hook = "file_lock")]
fn probe_lsm(_: LsmContext) -> i32 {
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_vma")]
extern "C" fn probe_task_vma(_: *const c_void) -> i32 {
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/unix")]
extern "C" fn probe_unix(_: *const c_void) -> i32 {
    0
}
