//! This machine's names and clocks, for reports.

use rustix::time::{ClockId, clock_gettime};

use crate::engine::identity::BootTime;
use crate::engine::input::Moment;

/// Host name and kernel release, as uname(2) gives them.
pub fn names() -> (String, String) {
    let uname = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    (text(uname.nodename()), text(uname.release()))
}

/// Now, by both clocks.
pub fn now() -> Moment {
    let nanos = |clock| {
        let time = clock_gettime(clock);
        (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
    };
    Moment { boot: BootTime(nanos(ClockId::Boottime)), unix: nanos(ClockId::Realtime) }
}
