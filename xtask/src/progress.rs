//! What is going on, for a human on stderr: a line that moves on a terminal, a plain line a step
//! elsewhere.
//!
//! Decides nothing and never fails: progress that cannot be shown is no reason to stop.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(250);

/// One line on stderr.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "xtask: {line}");
}

/// A step that takes a while. Dropped without [`Step::done`], it only clears its line: the error
/// that follows says the rest.
pub(crate) struct Step {
    what: String,
    started: Instant,
    ticker: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Step {
    /// Begins a step.
    pub(crate) fn start(what: impl Into<String>) -> Self {
        Self::begin(what.into(), None)
    }

    /// Begins a step that fills `folder` up to `total` bytes.
    pub(crate) fn filling(what: impl Into<String>, folder: &Path, total: u64) -> Self {
        Self::begin(what.into(), Some((folder.to_path_buf(), total)))
    }

    fn begin(what: String, filling: Option<(PathBuf, u64)>) -> Self {
        let started = Instant::now();
        let ticker = if std::io::stderr().is_terminal() {
            let (stop, stopped) = channel();
            let what = what.clone();
            let handle = thread::spawn(move || {
                while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                    let size = filling.as_ref().map_or_else(String::new, |(folder, total)| {
                        format!(", {} of {}", size(size_below(folder)), size(*total))
                    });
                    let time = time(started.elapsed());
                    let _ = write!(std::io::stderr(), "\r\x1b[Kxtask: {what} … {time}{size}");
                }
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            });
            Some((stop, handle))
        } else {
            say(&format!("{what} …"));
            None
        };
        Self { what, started, ticker }
    }

    /// Ends a step that went well, with a word on the result.
    pub(crate) fn done(mut self, result: &str) {
        self.stop();
        let comma = if result.is_empty() { "" } else { ", " };
        say(&format!("{}: {}{comma}{result}", self.what, time(self.started.elapsed())));
    }

    fn stop(&mut self) {
        if let Some((stop, handle)) = self.ticker.take() {
            drop(stop);
            let _ = handle.join();
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Bytes as a human reads them.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// The bytes of all files below a folder; what cannot be read counts as nothing.
pub(crate) fn size_below(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, meta)| if meta.is_dir() { size_below(&path) } else { meta.len() })
        .sum()
}

fn time(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(size(12), "12 bytes");
        assert_eq!(size(26_500), "26 kB");
        assert_eq!(size(112_300_000), "112 MB");
    }

    #[test]
    fn sizes_are_summed_through_folders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("deeper")).unwrap();
        std::fs::write(folder.path().join("a"), "123").unwrap();
        std::fs::write(folder.path().join("deeper/b"), "4567").unwrap();
        assert_eq!(size_below(folder.path()), 7);
    }
}
