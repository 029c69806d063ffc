//! What the service manager is told: ready, alive, stopping (the sd_notify protocol).
//!
//! Refuses to fail: a manager that cannot be told is logged, and the watch goes on.

use std::time::Duration;

use sd_notify::NotifyState;

/// Says that the first reading is done and every entrance is open.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Asks for so much more time to become ready.
pub(super) fn not_yet(time: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(time.as_micros()).unwrap_or(u32::MAX))]);
}

/// Says in a line how things are.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Says that the loop goes round.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Says that the end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often the manager wants to hear that the loop goes round: twice in its patience.
pub(super) fn heartbeat() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::warn!("telling the service manager: {error}");
    }
}
