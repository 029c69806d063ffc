//! The window that the iterator program writes its records to, mapped into this process.
//!
//! Refuses to interpret the records, and to be used while the program runs: draining takes `&mut`.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use lockwatch_common::snapshot::{State, WALKED_WAYS, WINDOW_BYTES, Window};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The mapped window.
pub(super) struct MappedWindow {
    window: NonNull<Window>,
}

// SAFETY: the mapping belongs to the process and to this value alone, whichever thread has it.
unsafe impl Send for MappedWindow {}

const PAGE: usize = 4096;
const LENGTH: usize = size_of::<Window>().next_multiple_of(PAGE);

impl MappedWindow {
    /// Maps the value of the map behind `map`.
    pub(super) fn new(map: impl AsFd) -> io::Result<Self> {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let window =
            unsafe { mmap(std::ptr::null_mut(), LENGTH, flags, MapFlags::SHARED, map.as_fd(), 0)? };
        let window = NonNull::new(window.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { window })
    }

    /// The program's place and counters.
    pub(super) fn state(&self) -> State {
        // SAFETY: the mapping is of that size and lives as long as `self`; the program only runs
        // inside the read(2) of the thread that has `self`.
        unsafe { (&raw const (*self.window.as_ptr()).state).read_volatile() }
    }

    /// Has the program begin anew.
    pub(super) fn reset(&mut self) {
        // SAFETY: as for `state`; zeros are a state.
        unsafe { (&raw mut (*self.window.as_ptr()).state).write_bytes(0, 1) };
    }

    /// Says what the program is to do next.
    pub(super) fn set_mode(&mut self, mode: u64) {
        // SAFETY: as for `state`.
        unsafe { (&raw mut (*self.window.as_ptr()).state.mode).write_volatile(mode) };
    }

    /// Hands the records that were written to `take`, then empties the window.
    pub(super) fn drain<T>(&mut self, take: impl FnOnce(&[u8]) -> T) -> T {
        let used = usize::try_from(self.state().used).unwrap_or(WINDOW_BYTES).min(WINDOW_BYTES);
        // SAFETY: as for `state`; `used` lies within the records.
        let records = unsafe {
            let records = (&raw const (*self.window.as_ptr()).records).cast::<u8>();
            std::slice::from_raw_parts(records, used)
        };
        let taken = take(records);
        // SAFETY: as for `state`.
        unsafe { (&raw mut (*self.window.as_ptr()).state.used).write_volatile(0) };
        taken
    }
}

/// The mapped table of inodes that were walked.
pub(super) struct MappedWalked {
    buckets: NonNull<u8>,
    length: usize,
}

// SAFETY: as for `MappedWindow`.
unsafe impl Send for MappedWalked {}

impl MappedWalked {
    /// Maps the values of the map behind `map`, which has so many buckets.
    pub(super) fn new(map: impl AsFd, buckets: u32) -> io::Result<Self> {
        let length = (buckets as usize * WALKED_WAYS * size_of::<u64>()).next_multiple_of(PAGE);
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let at =
            unsafe { mmap(std::ptr::null_mut(), length, flags, MapFlags::SHARED, map.as_fd(), 0)? };
        let buckets = NonNull::new(at.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { buckets, length })
    }

    /// Forgets every inode.
    pub(super) fn clear(&mut self) {
        // SAFETY: the mapping is of that size; the program runs only inside the read(2) of the
        // thread that has `self`.
        unsafe { self.buckets.as_ptr().write_bytes(0, self.length) };
    }
}

impl Drop for MappedWalked {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more.
        let _ = unsafe { munmap(self.buckets.as_ptr().cast(), self.length) };
    }
}

impl Drop for MappedWindow {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more. That a mapping of our own
        // cannot be unmapped would be a bug of the kernel; there is nobody to tell.
        let _ = unsafe { munmap(self.window.as_ptr().cast(), LENGTH) };
    }
}
