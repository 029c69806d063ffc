//! Reading kernel structures at offsets that user space resolved.
//!
//! Refuses to know a layout: every offset comes from [`OFFSETS`].

use core::ptr;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use lockwatch_common::offsets::Offsets;

/// Written by user space before the programs are loaded.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::ZERO;

/// One entry of the table.
macro_rules! offset {
    ($name:ident) => {
        $crate::kernel::load(&$crate::kernel::OFFSETS.$name)
    };
}
pub(crate) use offset;

/// Volatile, because the compiler would else take the zeros of the object file for the truth.
#[inline(always)]
pub(crate) fn load(entry: &'static u32) -> u32 {
    // SAFETY: a reference is valid for reads.
    unsafe { ptr::read_volatile(entry) }
}

/// Reads a member through a pointer that the verifier knows the type of.
///
/// # Safety
/// `base` must be a pointer that the verifier tracks (of a context or loaded from one), and the
/// offset one of [`OFFSETS`] for its type. A pointer that went stale reads as 0.
#[inline(always)]
pub(crate) unsafe fn member<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the caller's promise; the verifier checks it again at load time.
    unsafe { ptr::read_volatile(base.add(offset as usize).cast::<T>()) }
}

/// Reads `len` bytes of kernel memory at any address; false where it is not readable.
///
/// # Safety
/// `to` must be valid for writes of `len` bytes.
#[inline(always)]
pub(crate) unsafe fn read_into(to: *mut u8, len: u32, address: u64) -> bool {
    // SAFETY: the caller's promise; the helper tolerates every source address.
    unsafe { bpf_probe_read_kernel(to.cast(), len, address as *const _) == 0 }
}

/// Reads one value of kernel memory at any address; 0 where it is not readable.
#[inline(always)]
pub(crate) fn read_u64(address: u64) -> u64 {
    let mut value = 0u64;
    // SAFETY: `value` is valid for 8 bytes.
    unsafe { read_into((&raw mut value).cast(), 8, address) };
    value
}

/// Like [`read_u64`].
#[inline(always)]
pub(crate) fn read_u32(address: u64) -> u32 {
    let mut value = 0u32;
    // SAFETY: `value` is valid for 4 bytes.
    unsafe { read_into((&raw mut value).cast(), 4, address) };
    value
}
