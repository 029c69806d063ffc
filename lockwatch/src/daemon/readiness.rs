//! What the service manager is told: ready, alive, stopping (the sd_notify protocol).
//!
//! Refuses to fail, and to wait: a manager that cannot be told is logged, one that does not listen
//! stops a thread of its own, and the watch goes on.

use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::time::Duration;

use sd_notify::NotifyState;

/// Where the manager listens, as `sd_notify(3)` has it.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Messages that wait for a manager that does not listen; further ones are dropped.
const WAITING: usize = 64;
/// How long the end of the daemon waits for the manager to hear of it.
const FAREWELL: Duration = Duration::from_secs(1);

/// The service manager, where there is one.
pub(super) struct Manager {
    tell: Option<SyncSender<Message>>,
}

enum Message {
    Ready(String),
    NotYet(u32),
    Status(String),
    Alive,
    /// Nothing is told after it; that it was told is.
    Stopping(SyncSender<()>),
}

impl Manager {
    /// Finds it.
    pub(super) fn find() -> Self {
        if std::env::var_os(SOCKET).is_none() {
            return Self { tell: None };
        }
        let (tell, told) = mpsc::sync_channel(WAITING);
        let run = move || told.into_iter().for_each(|message| pass_on(&message));
        let thread = std::thread::Builder::new().name("manager".into()).spawn(run);
        if let Err(error) = &thread {
            log::warn!("telling the service manager: no thread: {error}");
        }
        Self { tell: thread.ok().map(|_| tell) }
    }

    /// Says that the first reading is done and every entrance is open.
    pub(super) fn ready(&self, status: &str) {
        self.tell(Message::Ready(status.into()));
    }

    /// Asks for so much more time to become ready.
    pub(super) fn not_yet(&self, time: Duration) {
        self.tell(Message::NotYet(u32::try_from(time.as_micros()).unwrap_or(u32::MAX)));
    }

    /// Says in a line how things are.
    pub(super) fn status(&self, status: &str) {
        self.tell(Message::Status(status.into()));
    }

    /// Says that the loop goes round.
    pub(super) fn alive(&self) {
        self.tell(Message::Alive);
    }

    /// Says that the end has begun, and waits until that is heard, for a moment.
    pub(super) fn stopping(&self) {
        let (heard, hears) = mpsc::sync_channel(1);
        self.tell(Message::Stopping(heard));
        // A manager that does not listen must not keep anybody from ending.
        let _ = hears.recv_timeout(FAREWELL);
    }

    fn tell(&self, message: Message) {
        match self.tell.as_ref().map(|tell| tell.try_send(message)) {
            None | Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => {
                log::debug!("the service manager does not listen: a message is dropped");
            }
            Some(Err(TrySendError::Disconnected(_))) => {
                log::debug!("the service manager cannot be told any more");
            }
        }
    }
}

/// How often the manager wants to hear that the loop goes round: twice in its patience.
pub(super) fn heartbeat() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

fn pass_on(message: &Message) {
    let told = match message {
        Message::Ready(status) => {
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)])
        }
        Message::NotYet(time) => sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(*time)]),
        Message::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
        Message::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
        Message::Stopping(_) => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        log::warn!("telling the service manager: {error}");
    }
    if let Message::Stopping(heard) = message {
        // Whoever waited may be gone.
        let _ = heard.send(());
    }
}
