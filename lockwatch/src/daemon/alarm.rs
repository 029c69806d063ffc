//! Waking at a moment of the boot clock.
//!
//! The runtime's own timer counts in whole milliseconds of another clock; an orphan is to be told
//! as soon as its grace is over.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::engine::identity::BootTime;

/// A timer that is set again and again.
pub(super) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    set_to: Option<BootTime>,
}

impl Alarm {
    /// One that is not set.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        // SAFETY: an `OwnedFd` has one descriptor, and keeps it open while it lives.
        let timer = unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?;
        Ok(Self { timer, set_to: None })
    }

    /// Sets it to a moment, which may have passed; `None` is never.
    pub(super) fn set(&mut self, at: Option<BootTime>) -> io::Result<()> {
        if at == self.set_to {
            return Ok(());
        }
        const SECOND: u64 = 1_000_000_000;
        // All zeros would take the alarm away.
        let value = at.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |at| Timespec {
            tv_sec: (at.0.max(1) / SECOND) as i64,
            tv_nsec: (at.0.max(1) % SECOND) as i64,
        });
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Itimerspec { it_interval: never, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer)?;
        self.set_to = at;
        Ok(())
    }

    /// Waits for the moment; for ever where it is not set.
    pub(super) async fn rings(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.timer.readable().await?;
            let mut count = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer, &mut count)?)) {
                Ok(Ok(_)) => {
                    self.set_to = None;
                    return Ok(());
                }
                Ok(Err(error)) => return Err(error),
                // It was set to another moment meanwhile.
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    fn now() -> u64 {
        let time = clock_gettime(ClockId::Boottime);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    #[tokio::test]
    async fn it_rings_at_its_moment_and_at_once_where_that_has_passed() {
        let mut alarm = Alarm::new().unwrap();
        let at = now() + 20_000_000;
        alarm.set(Some(BootTime(at + 60_000_000_000))).unwrap();
        alarm.set(Some(BootTime(at))).unwrap();
        alarm.rings().await.unwrap();
        assert!(now() >= at);
        alarm.set(Some(BootTime(0))).unwrap();
        alarm.rings().await.unwrap();
        alarm.set(None).unwrap();
        let rings = tokio::time::timeout(std::time::Duration::from_millis(30), alarm.rings());
        assert!(rings.await.is_err(), "it rang without being set");
    }
}
