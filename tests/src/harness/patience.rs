//! Waiting: always for something, and never for ever.

use std::env;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The variable that multiplies every time limit: emulated machines are slow.
pub const FACTOR: &str = "LIVE_PATIENCE";

/// How long anything but a whole test may take.
pub const USUAL: Duration = Duration::from_secs(10);

/// A time limit as it holds on this machine.
pub fn stretched(limit: Duration) -> Duration {
    limit * factor()
}

/// How often to do what is done several times: once is enough where everything takes long.
pub fn rounds(usual: u32) -> u32 {
    if factor() > 1 { 1 } else { usual }
}

fn factor() -> u32 {
    static VALUE: OnceLock<u32> = OnceLock::new();
    *VALUE.get_or_init(|| {
        env::var(FACTOR).ok().and_then(|word| word.parse().ok()).filter(|&n| n > 0).unwrap_or(1)
    })
}

/// Looks again and again until there is something to see.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let limit = stretched(USUAL);
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if started.elapsed() > limit {
            bail!("{what}: did not happen within {} s", limit.as_secs());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
