//! Readings of the kernel's tables, taken on a thread of their own: the loop goes on meanwhile.
//!
//! Refuses to take two at once: who asks while one is under way gets one that is begun after it. One
//! that failed is begun anew by itself: until the next one nobody would see anything.

use std::path::PathBuf;
use std::sync::mpsc as blocking;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::urgency;
use crate::source::history::{HistoryError, Reader, Taken};

type Outcome = Result<Taken, HistoryError>;

/// From a reading that failed to the next attempt; twice as long with each that fails, too.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The thread that takes them.
pub(super) struct Readings {
    ask: blocking::Sender<()>,
    taken: mpsc::UnboundedReceiver<Outcome>,
    under_way: bool,
    again: bool,
    /// How long the next pause is.
    pause: Duration,
    /// When the next attempt is made, where the last one failed.
    retry: Option<Instant>,
}

impl Readings {
    /// Starts the thread; each reading also finds out what is at `paths`.
    pub(super) fn start(mut reader: Reader, paths: Vec<PathBuf>) -> std::io::Result<Self> {
        let (ask, asked) = blocking::channel();
        let (give, taken) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("readings".into()).spawn(move || {
            // That it may not the loop has said.
            let _ = urgency::prefer_this_thread();
            while asked.recv().is_ok() {
                if give.send(reader.read(&paths)).is_err() {
                    break;
                }
                reader.tidy();
                reader.prepare();
            }
        })?;
        Ok(Self { ask, taken, under_way: false, again: false, pause: PAUSE, retry: None })
    }

    /// Asks for one that is begun from now on.
    pub(super) fn ask(&mut self) {
        if self.under_way {
            self.again = true;
            return;
        }
        if self.retry.is_some() {
            // That one is begun from now on, too.
            return;
        }
        // Where the thread has ended, `next` tells.
        self.under_way = self.ask.send(()).is_ok();
    }

    /// Waits for the one that is under way; for ever where none is. `None` where the thread ended.
    pub(super) async fn next(&mut self) -> Option<Outcome> {
        let outcome = loop {
            let Some(retry) = self.retry else { break self.taken.recv().await? };
            tokio::select! {
                outcome = self.taken.recv() => break outcome?,
                () = tokio::time::sleep_until(retry) => {
                    self.retry = None;
                    self.ask();
                }
            }
        };
        self.under_way = false;
        if outcome.is_ok() {
            self.pause = PAUSE;
            if std::mem::take(&mut self.again) {
                self.ask();
            }
        } else {
            self.again = false;
            self.retry = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
        Some(outcome)
    }
}
