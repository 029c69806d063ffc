//! The bytes of the kernel's type information: mapped where the kernel allows that (6.16), else read.
//!
//! Refuses to interpret them.

use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Deref;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Where the kernel shows them.
pub(in crate::source) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The bytes.
pub(in crate::source) enum KernelTypes {
    /// The kernel's own pages, and how many bytes of them it is.
    Mapped(NonNull<u8>, usize),
    /// A copy, which it hands out page by page.
    Read(Vec<u8>),
}

impl KernelTypes {
    /// Maps or reads them.
    ///
    /// # Errors
    /// Where the kernel does not show them.
    pub(in crate::source) fn open() -> io::Result<Self> {
        let mut file = File::open(BTF_PATH)?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        if let Some(mapped) = Self::map(&file, length) {
            return Ok(mapped);
        }
        let mut bytes = Vec::with_capacity(length);
        file.read_to_end(&mut bytes)?;
        Ok(Self::Read(bytes))
    }

    fn map(file: &File, length: usize) -> Option<Self> {
        let flags = MapFlags::PRIVATE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let mapped =
            unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, flags, file, 0) }.ok()?;
        Some(Self::Mapped(NonNull::new(mapped.cast())?, length))
    }
}

impl Deref for KernelTypes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            // SAFETY: the mapping is of that length and lives as long as `self`. It shows a constant
            // of the running kernel, which nobody writes to.
            Self::Mapped(at, length) => unsafe { std::slice::from_raw_parts(at.as_ptr(), *length) },
            Self::Read(bytes) => bytes,
        }
    }
}

impl Drop for KernelTypes {
    fn drop(&mut self) {
        if let Self::Mapped(at, length) = self {
            // SAFETY: the mapping is this value's own, and nothing refers to it any more.
            let _ = unsafe { munmap(at.as_ptr().cast(), *length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_is_what_is_read() {
        // Not every machine that builds this shows its types.
        match (std::fs::read(BTF_PATH), KernelTypes::open()) {
            (Ok(read), Ok(opened)) => assert!(*opened == *read),
            (read, opened) => assert_eq!(read.err().unwrap().kind(), opened.err().unwrap().kind()),
        }
    }
}
