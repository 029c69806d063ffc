//! What every object needs: the compiler's handler, and the licence that the kernel asks for.

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
