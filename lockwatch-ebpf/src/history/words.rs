//! Copying and clearing word by word.
//!
//! The compiler has no copy of its own for this machine: for whole records it calls a function that
//! goes byte by byte. Volatile, so that it does not see a copy in these.

use core::ptr::{read_volatile, write_volatile};

/// Copies a record of whole words.
///
/// # Safety
/// Both must be valid and aligned to 8.
#[inline(always)]
pub(crate) unsafe fn copy<T>(to: *mut T, from: *const T) {
    const { assert!(size_of::<T>() % 8 == 0) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: the caller's promise.
        unsafe {
            write_volatile(to.cast::<u64>().add(word), read_volatile(from.cast::<u64>().add(word)));
        }
    }
}

/// Clears a record of whole words.
///
/// # Safety
/// `to` must be valid and aligned to 8.
#[inline(always)]
pub(crate) unsafe fn clear<T>(to: *mut T) {
    const { assert!(size_of::<T>() % 8 == 0) };
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: the caller's promise.
        unsafe { write_volatile(to.cast::<u64>().add(word), 0) };
    }
}
