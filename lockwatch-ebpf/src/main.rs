//! lockwatch's BPF programs, one small file a hook.
//!
//! Refuses to decide anything: programs read kernel structures into records, bound every loop and
//! count whatever they cut short.
#![no_std]
#![no_main]

mod all_locks;
mod kernel;
mod lists;
mod probe;
mod task_file;
mod window;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The programs hold nothing that could panic; the compiler wants the handler all the same.
    loop {}
}

/// The helpers that read kernel memory are for programs with a GPL-compatible licence only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
