//! A loader of BPF objects that has not read the kernel's type information.
//!
//! Refuses to bring that along: each object's offsets and each program's target are given to it by
//! whoever loads it, and what the loader reads by itself when it is made, tens of thousands of types,
//! would be thrown away.

use std::io;
use std::thread::Builder;

use aya::EbpfLoader;
use rustix::process::chroot;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A folder in which the loader finds nothing where it looks for the types.
const ELSEWHERE: &str = "/sys/kernel/btf";

/// A loader.
///
/// It cannot be told to leave the types alone, so it is made by a thread whose root folder is one
/// without them. Where that is not allowed it reads them, which only takes longer.
pub(in crate::source) fn loader() -> EbpfLoader<'static> {
    let make = || {
        if let Err(error) = step_aside() {
            log::debug!("the loader reads the kernel's types in vain: {error}");
        }
        EbpfLoader::new()
    };
    let made = Builder::new().spawn(make).ok().and_then(|thread| thread.join().ok());
    made.unwrap_or_default()
}

/// Gives the calling thread, which is to end soon, another root folder than its process has.
fn step_aside() -> io::Result<()> {
    // SAFETY: root and working folder are no longer shared with the other threads; descriptors,
    // for which the call is unsafe, still are.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    Ok(chroot(ELSEWHERE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_threads_root_stays_the_processes_own() {
        let before = std::fs::read_link("/proc/self/root").unwrap();
        drop(loader());
        assert_eq!(std::fs::read_link("/proc/self/root").unwrap(), before);
        assert!(std::fs::exists("/proc/self").unwrap());
    }
}
