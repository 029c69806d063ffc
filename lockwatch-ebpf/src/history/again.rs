//! The second program on a tracepoint, for what the first could not see.
//!
//! Since 7.0 a program on a tracepoint may be preempted, and as long as it is, the kernel does not
//! run it for anybody else on the same CPU. Then the second runs, which is attached behind it. That
//! both are preempted at once is left, and the kernel counts it.
//!
//! Only a thread itself writes whether what it does was seen, so nothing is needed to keep order.

use lockwatch_common::history::Held;

use crate::counters;
use crate::kernel::load;
use crate::party;
use crate::tables::held;

/// 1 where there are second programs; written by user space before the programs are loaded.
#[unsafe(no_mangle)]
static TWICE: u32 = 0;

/// The first program on a tracepoint runs.
#[inline(always)]
pub(crate) fn first(seat: u32) {
    if load(&TWICE) == 1
        && let Some(held) = current()
    {
        // SAFETY: the map's value, and one of its bytes.
        unsafe { (*held).seen[seat as usize % 8] = 1 };
    }
}

/// The second one runs, in the seat `own`: true where the first did not.
#[inline(always)]
pub(crate) fn was_missed(seat: u32, own: u32) -> bool {
    let Some(held) = current() else { return false };
    // SAFETY: the map's value, and one of its bytes.
    unsafe {
        if (*held).seen[seat as usize % 8] == 1 {
            (*held).seen[seat as usize % 8] = 0;
            return false;
        }
    }
    counters::instead(own);
    true
}

/// The hint about the current thread.
#[inline(always)]
fn current() -> Option<*mut Held> {
    held(party::ids().1)
}
