//! Kernel time as people read it.
//!
//! Refuses to ask a clock: what relates boot time to the calendar is handed in.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use crate::engine::identity::{BootTime, StartTime};

/// When a reading was taken, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// `CLOCK_REALTIME`, nanoseconds since 1970.
    pub unix: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds, at the same moment.
    pub boot: u64,
}

impl Clock {
    /// The moment of the reading.
    pub fn now(self) -> Timestamp {
        Timestamp(self.unix)
    }

    /// A process's start on the calendar.
    pub fn at(self, start: StartTime) -> Timestamp {
        self.moment(BootTime(start.0))
    }

    /// How long ago a moment was: to the millisecond below a minute, else to the second.
    pub fn since(self, at: BootTime) -> humantime::FormattedDuration {
        const MINUTE: Duration = Duration::from_secs(60);
        let age = Duration::from_nanos(self.boot.saturating_sub(at.0));
        humantime::format_duration(if age < MINUTE {
            Duration::from_millis(age.as_millis() as u64)
        } else {
            Duration::from_secs(age.as_secs())
        })
    }

    /// A moment on the calendar.
    pub fn moment(self, at: BootTime) -> Timestamp {
        Timestamp(self.unix.saturating_add(at.0).saturating_sub(self.boot))
    }
}

/// A moment, written as RFC 3339 in UTC with nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(self.0)).fmt(f)
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_since_boot_becomes_a_moment_of_the_calendar() {
        let clock = Clock { unix: 1_700_000_000_000_000_000, boot: 100_000_000_000 };
        assert_eq!(
            clock.at(StartTime(99_000_000_001)).to_string(),
            "2023-11-14T22:13:19.000000001Z"
        );
        assert_eq!(clock.now().to_string(), "2023-11-14T22:13:20.000000000Z");
    }
}
