//! The tables. User space sizes them before they are made, and pins them.
//!
//! Refuses to allocate on the way: every table is made whole, so that a lock never waits for memory.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use lockwatch_common::history::{
    CPUS, Counters, Ending, Entry, FileKey, Globals, Held, Key, NOTES, Note, Operation,
    OperationKey, Owner, OwnerKey, ProcessKey, REFUSALS, Refusal, SEATS, SLOTS,
    SURVIVED as SURVIVORS, Slot, Wait, held_of,
};

const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
pub(crate) static GLOBALS: Array<Globals> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static LOCKS: HashMap<Key, Entry> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static OWNERS: HashMap<OwnerKey, Owner> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static OPERATIONS: HashMap<OperationKey, Operation> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static WAITERS: HashMap<u64, Wait> = HashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static DEAD: LruHashMap<ProcessKey, Ending> = LruHashMap::with_max_entries(1024, 0);
#[map]
static SURVIVED: HashMap<ProcessKey, Ending> = HashMap::with_max_entries(SURVIVORS, 0);
#[map]
pub(crate) static ATTENDED: HashMap<FileKey, u64> = HashMap::with_max_entries(1024, 0);
#[map]
static TOLD: LruHashMap<u64, Note> = LruHashMap::with_max_entries(NOTES, 0);
#[map]
static HELD: Array<Held> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
static SLOTS_TABLE: Array<Slot> = Array::with_max_entries(SLOTS, BPF_F_MMAPABLE);
#[map]
static REFUSALS_TABLE: Array<Refusal> = Array::with_max_entries(REFUSALS, 0);
#[map]
static GIVEN_AWAY: Array<u64> = Array::with_max_entries(CPUS * SEATS, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(SEATS, 0);
#[map]
pub(crate) static MOMENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Elements of `HELD` less one; written by user space before the programs are loaded.
#[unsafe(no_mangle)]
static HELD_MASK: u32 = 0;

/// What is shared by all programs.
#[inline(always)]
pub(crate) fn globals() -> Option<*mut Globals> {
    GLOBALS.get_ptr_mut(0)
}

/// The hint about a pid or thread id.
#[inline(always)]
pub(crate) fn held(pid: i32) -> Option<*mut Held> {
    HELD.get_ptr_mut(held_of(pid as u32, crate::kernel::load(&HELD_MASK)))
}

/// Counts what a process has in or out of the hint about it: a lock, or an owner whose operations are
/// written down.
#[inline(always)]
pub(crate) fn count_of(tgid: i32, by: i64) {
    if let Some(held) = held(tgid) {
        // SAFETY: the map's value.
        unsafe { add(&raw mut (*held).locks, by) };
    }
}

/// The hint about an owner; `None` of one that has none.
#[inline(always)]
pub(crate) fn slot(place: u32) -> Option<*mut Slot> {
    SLOTS_TABLE.get_ptr_mut(place)
}

/// What a keeper of places shows while it gives one away, or 0.
#[inline(always)]
pub(crate) fn given_away(keeper: u32) -> Option<*mut u64> {
    GIVEN_AWAY.get_ptr_mut(keeper)
}

/// The refused attempt that was told last, of those that share a place with this one.
#[inline(always)]
pub(crate) fn refusal(of: u64) -> Option<*mut Refusal> {
    REFUSALS_TABLE.get_ptr_mut((of >> 48) as u32 % REFUSALS)
}

/// Adds to a hint that several CPUs write.
///
/// # Safety
/// `to` must point into a map's value.
#[inline(always)]
pub(crate) unsafe fn add(to: *mut i64, by: i64) {
    // The compiler knows this machine's atomic addition, but its library offers none.
    // SAFETY: the caller's promise; map values are aligned to 8.
    unsafe {
        core::arch::asm!("lock *(u64 *)({to} + 0) += {by}", to = in(reg) to, by = in(reg) by);
    }
}
