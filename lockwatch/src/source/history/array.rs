//! An array of the history, mapped into this process.
//!
//! Refuses to write anything but by atomic addition: the programs write it at the same time.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The mapped array; all its members are 8 bytes long.
pub(super) struct MappedArray {
    words: NonNull<u64>,
    length: usize,
}

// SAFETY: every access is atomic, so it does not matter which thread makes it.
unsafe impl Send for MappedArray {}
// SAFETY: as above.
unsafe impl Sync for MappedArray {}

const PAGE: usize = 4096;

impl MappedArray {
    /// Maps `elements` values of `words` words each. For reading alone where not `writable`.
    pub(super) fn new(
        map: impl AsFd,
        elements: u32,
        words: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let length = (elements as usize * words * 8).next_multiple_of(PAGE);
        let flags = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at =
            unsafe { mmap(std::ptr::null_mut(), length, flags, MapFlags::SHARED, map.as_fd(), 0)? };
        let words = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { words, length })
    }

    /// A word.
    pub(super) fn load(&self, index: usize) -> u64 {
        self.at(index).load(Ordering::Relaxed)
    }

    /// Adds to a word. The array must have been mapped writable.
    pub(super) fn add(&self, index: usize, by: i64) {
        // SAFETY: the same memory seen as signed.
        let word: &AtomicI64 = unsafe { &*std::ptr::from_ref(self.at(index)).cast() };
        word.fetch_add(by, Ordering::Relaxed);
    }

    /// Writes a word. The array must have been mapped writable.
    pub(super) fn store(&self, index: usize, value: u64) {
        self.at(index).store(value, Ordering::Relaxed);
    }

    fn at(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.length / 8, "word {index} of an array of {} bytes", self.length);
        // SAFETY: the index lies within the mapping, which lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.words.as_ptr().add(index)) }
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more.
        let _ = unsafe { munmap(self.words.as_ptr().cast(), self.length) };
    }
}
