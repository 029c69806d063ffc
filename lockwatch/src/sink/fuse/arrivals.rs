//! Waits for the kernel's next request.
//!
//! Whoever walks through the tree asks time and again, and most of what that takes is the sleep of
//! this thread from one request to the next and its waking. So while requests follow each other
//! quickly it stays awake for a moment.
//!
//! Refuses to stay awake where there is one processor, which whoever asks needs, and for longer than
//! [`AWAKE`] after any request.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

/// How long it stays awake for the next one. Waking up takes about as long on a virtual machine.
const AWAKE: Duration = Duration::from_micros(80);
/// Requests that follow each other so before that is done.
const IN_A_ROW: u32 = 16;

/// The requests of one mount.
pub(super) struct Arrivals<'a> {
    device: &'a OwnedFd,
    may_stay_awake: bool,
    /// When it was last asked for one.
    asked: Instant,
    in_a_row: u32,
}

impl<'a> Arrivals<'a> {
    /// Those of a device that does not block.
    pub(super) fn of(device: &'a OwnedFd) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { device, may_stay_awake: processors > 1, asked: Instant::now(), in_a_row: 0 }
    }

    /// The next one: how many bytes of it are in the buffer.
    ///
    /// # Errors
    /// Those of `/dev/fuse`, but for `EAGAIN`.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.asked = Instant::now();
        loop {
            match rustix::io::read(self.device, &mut *buffer) {
                Err(Errno::AGAIN) if self.stays_awake() => std::hint::spin_loop(),
                Err(Errno::AGAIN) => self.sleep()?,
                answer => {
                    let soon = self.asked.elapsed() < 2 * AWAKE;
                    self.in_a_row = if soon { self.in_a_row.saturating_add(1) } else { 0 };
                    return answer;
                }
            }
        }
    }

    fn stays_awake(&self) -> bool {
        self.may_stay_awake && self.in_a_row >= IN_A_ROW && self.asked.elapsed() < AWAKE
    }

    fn sleep(&self) -> Result<(), Errno> {
        let mut wait = [PollFd::new(self.device, PollFlags::IN)];
        match rustix::event::poll(&mut wait, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
