//! Readings of the kernel's tables, taken on a thread of their own: the loop goes on meanwhile.
//!
//! Refuses to take two at once: who asks while one is under way gets one that is begun after it.

use std::path::PathBuf;
use std::sync::mpsc as blocking;

use tokio::sync::mpsc;

use crate::source::history::{HistoryError, Reader, Taken};

type Outcome = Result<Taken, HistoryError>;

/// The thread that takes them.
pub(super) struct Readings {
    ask: blocking::Sender<()>,
    taken: mpsc::UnboundedReceiver<Outcome>,
    under_way: bool,
    again: bool,
}

impl Readings {
    /// Starts the thread; each reading also finds out what is at `paths`.
    pub(super) fn start(mut reader: Reader, paths: Vec<PathBuf>) -> std::io::Result<Self> {
        let (ask, asked) = blocking::channel();
        let (give, taken) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("readings".into()).spawn(move || {
            while asked.recv().is_ok() {
                if give.send(reader.read(&paths)).is_err() {
                    break;
                }
                reader.prepare();
            }
        })?;
        Ok(Self { ask, taken, under_way: false, again: false })
    }

    /// Asks for one that is begun from now on.
    pub(super) fn ask(&mut self) {
        if self.under_way {
            self.again = true;
            return;
        }
        // Where the thread has ended, `next` tells.
        self.under_way = self.ask.send(()).is_ok();
    }

    /// Waits for the one that is under way; for ever where none is. `None` where the thread ended.
    pub(super) async fn next(&mut self) -> Option<Outcome> {
        let taken = self.taken.recv().await?;
        self.under_way = false;
        if std::mem::take(&mut self.again) {
            self.ask();
        }
        Some(taken)
    }
}
