//! What a search looks for, and the ring buffer through which it tells what it found.
//!
//! Refuses to drop: what does not fit is told as not written, and the caller comes again.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, RingBuf};
use lockwatch_common::search::RECORDS_BYTES;
use lockwatch_common::search_offsets::SearchOffsets;
use lockwatch_common::snapshot::Header;

/// Written by user space before the programs are loaded.
#[unsafe(no_mangle)]
pub(crate) static SEARCH_OFFSETS: SearchOffsets = SearchOffsets::ZERO;

/// One entry of the table.
macro_rules! at {
    ($name:ident) => {
        $crate::kernel::load(&$crate::found::SEARCH_OFFSETS.$name)
    };
}
pub(crate) use at;

/// Descriptions that are looked for.
#[map]
static WANTED: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);

#[map]
static RECORDS: RingBuf = RingBuf::with_byte_size(RECORDS_BYTES, 0);

/// Nobody sleeps on the buffer: its reader is the one who runs the program.
const NO_WAKEUP: u64 = 1;

/// The iterator's answer: go on.
pub(crate) const NEXT: i32 = 0;
/// The iterator's answer: end the read with `EAGAIN` and come again for the same.
pub(crate) const AGAIN: i32 = 1;

/// True where the description is looked for.
#[inline(always)]
pub(crate) fn is_wanted(file: u64) -> bool {
    // SAFETY: user space writes the map only while no program runs.
    unsafe { WANTED.get(file) }.is_some()
}

/// Writes a record; false where it did not fit.
#[inline(always)]
pub(crate) fn tell<T: Copy + 'static>(record: T) -> bool {
    const { assert!(size_of::<T>() % 8 == 0 && align_of::<T>() <= 8) };
    RECORDS.output::<T>(record, NO_WAKEUP).is_ok()
}

/// The beginning of a record of type `T`.
#[inline(always)]
pub(crate) const fn header<T>(kind: u32) -> Header {
    Header { kind, len: size_of::<T>() as u32 }
}
