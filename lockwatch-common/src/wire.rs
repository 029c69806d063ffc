//! Taking a record out of bytes.

/// A record that any bytes of its size are a valid value of.
///
/// # Safety
/// The type must be `#[repr(C)]`, without padding, and made of integers and arrays of them alone.
pub unsafe trait Wire: Copy {}

// SAFETY: an integer.
unsafe impl Wire for u32 {}
// SAFETY: an integer.
unsafe impl Wire for u64 {}

/// The record at the beginning of `bytes`, or `None` where they are too short.
pub fn read<T: Wire>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, alignment is not asked for, and `Wire` says that every bit
    // pattern is a value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
