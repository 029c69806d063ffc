//! The window through which records pass to user space.
//!
//! Refuses to overwrite: a record that does not fit is not begun, and the caller asks the iterator
//! to come again.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use lockwatch_common::snapshot::{Header, State, WALKED_WAYS, WINDOW_BYTES, Window};

const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
static WINDOW: Array<Window> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Inodes whose lists were walked, in buckets by the hash of their address. User space sizes it by
/// the number of open files, so that a bucket hardly ever overflows. An inode that is pushed out is
/// walked again where it is met again, which user space takes for what it is; so nothing here need
/// be allocated or freed.
#[map]
static WALKED: Array<[u64; WALKED_WAYS]> = Array::with_max_entries(1024, BPF_F_MMAPABLE);

/// Buckets in [`WALKED`] less one; written by user space before the programs are loaded.
#[unsafe(no_mangle)]
static WALKED_MASK: u32 = 0;

#[inline(always)]
fn bucket(inode: u64) -> Option<*mut [u64; WALKED_WAYS]> {
    // Fibonacci hashing: inodes are apart by the size of their slab's objects.
    let hash = (inode.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    WALKED.get_ptr_mut(hash & crate::kernel::load(&WALKED_MASK))
}

/// True where the inode's lists were walked and it was not pushed out since.
#[inline(always)]
pub(crate) fn is_walked(inode: u64) -> bool {
    let Some(bucket) = bucket(inode) else { return false };
    // SAFETY: the map's values live as long as the program; only one reader runs it at a time.
    // Without branches, of which the verifier would follow each.
    let bucket = unsafe { &*bucket };
    let mut apart = u64::MAX;
    for walked in bucket {
        apart = apart.min(walked ^ inode);
    }
    apart == 0
}

/// Remembers that the inode's lists were walked. The oldest of its bucket is pushed out.
#[inline(always)]
pub(crate) fn set_walked(inode: u64) {
    let Some(bucket) = bucket(inode) else { return };
    // SAFETY: as in `is_walked`.
    let bucket = unsafe { &mut *bucket };
    for way in (1..WALKED_WAYS).rev() {
        bucket[way] = bucket[way - 1];
    }
    bucket[0] = inode;
}

/// The window, with the program's place in it.
pub(crate) fn window() -> Option<*mut Window> {
    WINDOW.get_ptr_mut(0)
}

/// The program's place in the iteration.
///
/// # Safety
/// `window` must come from [`window`]. Only one reader runs the iterator at a time.
#[inline(always)]
pub(crate) unsafe fn state<'a>(window: *mut Window) -> &'a mut State {
    // SAFETY: the map's value lives as long as the program, and nothing else refers to it.
    unsafe { &mut (*window).state }
}

/// Room for a record of at most `N` bytes, or `None` where the window is too full for it.
///
/// # Safety
/// As for [`state`].
#[inline(always)]
pub(crate) unsafe fn room<const N: usize>(window: *mut Window) -> Option<*mut u8> {
    // SAFETY: as above. Volatile, so that the value that is compared is the one that is added.
    let used = unsafe { core::ptr::read_volatile(&raw const (*window).state.used) };
    if used > (WINDOW_BYTES - N) as u64 {
        return None;
    }
    // SAFETY: `used + N` is within the records.
    Some(unsafe { (&raw mut (*window).records).cast::<u8>().add(used as usize) })
}

/// Appends one record; false where it did not fit.
///
/// # Safety
/// As for [`state`].
#[inline(always)]
pub(crate) unsafe fn append<T: Copy>(window: *mut Window, record: T) -> bool {
    const { assert!(size_of::<T>() % 8 == 0) };
    macro_rules! room_of {
        ($($size:literal)*) => {
            match size_of::<T>() {
                // SAFETY: the caller's promise.
                $( $size => unsafe { room::<$size>(window) }, )*
                _ => None,
            }
        };
    }
    let Some(to) = room_of!(24 56 64 80) else { return false };
    // SAFETY: `room` gave as many bytes as the record has, aligned to 8.
    unsafe { to.cast::<T>().write(record) };
    // SAFETY: the caller's promise.
    unsafe { advance(window, size_of::<T>() as u64) };
    true
}

/// Counts `len` bytes, a multiple of 8, as written.
///
/// # Safety
/// As for [`state`].
#[inline(always)]
pub(crate) unsafe fn advance(window: *mut Window, len: u64) {
    // SAFETY: the caller's promise.
    unsafe { (*window).state.used += len };
}

/// The beginning of a record of type `T`.
#[inline(always)]
pub(crate) const fn header<T>(kind: u32) -> Header {
    Header { kind, len: size_of::<T>() as u32 }
}
