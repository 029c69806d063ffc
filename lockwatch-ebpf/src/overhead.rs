//! The object of `cargo xtask bench overhead`: what a program on the locks' tracepoints costs that
//! does nothing, and one that only inserts into a table and deletes from it. No lockwatch loads it.
#![no_std]
#![no_main]

#[allow(dead_code, reason = "it reads nothing at addresses that the verifier does not know")]
mod kernel;
mod object;
#[path = "history/words.rs"]
#[allow(dead_code, reason = "it only writes zeros")]
mod words;

use core::mem::MaybeUninit;

use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::BtfTracePointContext;
use lockwatch_common::history::{Entry, F_UNLCK, Key};

use kernel::{member, offset};

/// Keys and values as large as those of the history's table of locks.
#[map]
static TABLE: HashMap<Key, Entry> = HashMap::with_max_entries(160 * 1024, 0);

#[btf_tracepoint(function = "flock_lock_inode")]
fn empty_flock(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "posix_lock_inode")]
fn empty_posix(_: BtfTracePointContext) -> i32 {
    0
}

#[btf_tracepoint(function = "flock_lock_inode")]
fn table_flock(context: BtfTracePointContext) -> i32 {
    insert_or_delete(&context)
}

#[btf_tracepoint(function = "posix_lock_inode")]
fn table_posix(context: BtfTracePointContext) -> i32 {
    insert_or_delete(&context)
}

#[inline(always)]
fn insert_or_delete(context: &BtfTracePointContext) -> i32 {
    let (inode, lock): (*const u8, *const u8) = (context.arg(0), context.arg(1));
    if inode.is_null() || lock.is_null() || context.arg::<i32>(2) != 0 {
        return 0;
    }
    // SAFETY: the tracepoint's arguments, and offsets of the lock.
    unsafe {
        let key = Key {
            inode: inode as u64,
            owner: member(lock, offset!(lock_owner)),
            start: core::hint::black_box(0),
            class: 1,
            reserved: 0,
        };
        if member::<u8>(lock, offset!(lock_type)) as u32 == F_UNLCK {
            let _ = TABLE.remove(key);
        } else {
            let mut entry = MaybeUninit::<Entry>::uninit();
            words::clear(entry.as_mut_ptr());
            let _ = TABLE.insert(key, entry.assume_init_ref(), 0);
        }
    }
    0
}
