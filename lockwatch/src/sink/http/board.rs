//! What the daemon publishes and the listener reads.
//!
//! Refuses to make either wait for the other: a lock is held for the exchange of a pointer, never
//! while anything is counted, written or sent.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sink::metrics::{self, Activity, Counts, Format, Sheet, Tally};

/// Asks the kernel side for its counters; called at each scrape, by the listener's own thread.
pub type AskKernel = Box<dyn Fn() -> io::Result<Activity> + Send + Sync>;

/// The published state of a daemon.
pub struct Board {
    version: &'static str,
    kernel: String,
    /// Nanoseconds since 1970.
    started: u64,
    base: Instant,
    /// Nanoseconds from `base` to the last beat, and 1 more; 0 before the first.
    beat: AtomicU64,
    /// The same moment, nanoseconds since 1970.
    heartbeat: AtomicU64,
    /// Without a beat for so long the engine counts as stuck.
    stuck_after: Duration,
    swept: AtomicBool,
    mounted: AtomicBool,
    counts: Mutex<Option<Arc<Counts>>>,
    tally: Mutex<Arc<Tally>>,
    ask_kernel: Option<AskKernel>,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("started", &self.started).finish_non_exhaustive()
    }
}

/// Why a daemon is not well, or not ready.
pub type Complaint = String;

impl Board {
    /// Nothing published yet. `started` is in nanoseconds since 1970; without a
    /// [`beat`](Self::beat) for `stuck_after` the engine counts as stuck.
    pub fn new(
        version: &'static str,
        kernel: String,
        started: u64,
        stuck_after: Duration,
        ask_kernel: Option<AskKernel>,
    ) -> Self {
        Self {
            version,
            kernel,
            started,
            base: Instant::now(),
            beat: AtomicU64::new(0),
            heartbeat: AtomicU64::new(0),
            stuck_after,
            swept: AtomicBool::new(false),
            mounted: AtomicBool::new(false),
            counts: Mutex::default(),
            tally: Mutex::default(),
            ask_kernel,
        }
    }

    /// The engine took a step; `unix` is now, in nanoseconds since 1970.
    pub fn beat(&self, unix: u64) {
        let since = u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        self.heartbeat.store(unix, Ordering::Relaxed);
        self.beat.store(since + 1, Ordering::Release);
    }

    /// The first sweep is done.
    pub fn swept(&self) {
        self.swept.store(true, Ordering::Release);
    }

    /// The tree is mounted, or no longer.
    pub fn mounted(&self, mounted: bool) {
        self.mounted.store(mounted, Ordering::Release);
    }

    /// Shows the counts of a new view.
    pub fn show(&self, counts: Counts) {
        let counts = Some(Arc::new(counts));
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner) = counts;
    }

    /// Shows what was counted.
    pub fn tell(&self, tally: &Tally) {
        let tally = Arc::new(tally.clone());
        *self.tally.lock().unwrap_or_else(PoisonError::into_inner) = tally;
    }

    /// Whether the engine stepped lately.
    ///
    /// # Errors
    /// Says since when it did not.
    pub fn health(&self) -> Result<(), Complaint> {
        let Some(beat) = self.beat.load(Ordering::Acquire).checked_sub(1) else {
            return Err("the engine has not taken a step yet".into());
        };
        let quiet = self.base.elapsed().saturating_sub(Duration::from_nanos(beat));
        if quiet > self.stuck_after {
            return Err(format!("the engine took its last step {} s ago", quiet.as_secs()));
        }
        Ok(())
    }

    /// Whether it swept and mounted.
    ///
    /// # Errors
    /// Says what it has not done yet.
    pub fn readiness(&self) -> Result<(), Complaint> {
        let mut missing = Vec::new();
        if !self.swept.load(Ordering::Acquire) {
            missing.push("not swept yet");
        }
        if !self.mounted.load(Ordering::Acquire) {
            missing.push("the tree is not mounted");
        }
        if missing.is_empty() { Ok(()) } else { Err(missing.join(", ")) }
    }

    /// Every metric.
    pub fn metrics(&self, format: Format) -> String {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tally = Arc::clone(&self.tally.lock().unwrap_or_else(PoisonError::into_inner));
        let activity = self.ask_kernel.as_ref().and_then(|ask| {
            ask().inspect_err(|error| log::warn!("metrics: the kernel's counters: {error}")).ok()
        });
        let beaten = self.beat.load(Ordering::Acquire) != 0;
        let sheet = Sheet {
            version: self.version,
            kernel: &self.kernel,
            started: self.started,
            heartbeat: beaten.then(|| self.heartbeat.load(Ordering::Relaxed)),
            counts: counts.as_deref(),
            tally: &tally,
            activity: activity.as_ref(),
        };
        metrics::write(&sheet, format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(stuck_after: Duration) -> Board {
        Board::new("0", "6.18".into(), 0, stuck_after, None)
    }

    #[test]
    fn an_engine_is_well_while_it_steps() {
        let board = board(Duration::from_millis(40));
        assert!(board.health().is_err_and(|why| why.contains("not taken a step")));
        board.beat(1);
        board.health().unwrap();
        std::thread::sleep(Duration::from_millis(60));
        assert!(board.health().is_err_and(|why| why.contains("last step")));
        board.beat(2);
        board.health().unwrap();
    }

    #[test]
    fn it_is_ready_when_it_swept_and_mounted() {
        let board = board(Duration::from_secs(1));
        board.swept();
        assert_eq!(board.readiness(), Err("the tree is not mounted".into()));
        board.mounted(true);
        board.readiness().unwrap();
        board.mounted(false);
        assert!(board.readiness().is_err());
    }

    #[test]
    fn counters_that_cannot_be_asked_are_left_out_and_the_rest_is_there() {
        let ask: AskKernel = Box::new(|| Err(io::Error::other("gone")));
        let board = Board::new("0", "6.18".into(), 0, Duration::from_secs(1), Some(ask));
        let text = board.metrics(Format::Prometheus);
        assert!(!text.contains("lockwatch_acquisitions_total"), "{text}");
        assert!(!text.contains("\nlockwatch_heartbeat_timestamp_seconds "), "{text}");
        assert!(text.contains("lockwatch_gc_runs_total 0\n"), "{text}");
    }

    #[test]
    fn a_scrape_that_is_stuck_keeps_the_daemon_from_nothing() {
        let (free, stuck) = std::sync::mpsc::channel::<()>();
        let (stuck, (at_work, works)) = (Mutex::new(stuck), std::sync::mpsc::channel());
        let ask: AskKernel = Box::new(move || {
            at_work.send(()).unwrap();
            // Until the other end is dropped.
            let _ = stuck.lock().unwrap().recv();
            Err(io::Error::other("stuck"))
        });
        let board = Board::new("0", "6.18".into(), 0, Duration::from_secs(60), Some(ask));
        let board = Arc::new(board);
        let scrape = std::thread::spawn({
            let board = Arc::clone(&board);
            move || board.metrics(Format::Prometheus)
        });
        works.recv().unwrap();
        let (done, published) = std::sync::mpsc::channel();
        let daemon = std::thread::spawn({
            let board = Arc::clone(&board);
            move || {
                board.beat(1);
                board.tell(&Tally::default());
                board.show(Counts::default());
                board.swept();
                board.mounted(true);
                done.send(()).unwrap();
            }
        });
        let is_published = published.recv_timeout(Duration::from_secs(10)).is_ok();
        drop(free);
        daemon.join().unwrap();
        assert!(is_published, "the daemon waited for a scrape");
        assert!(scrape.join().unwrap().contains("lockwatch_gc_runs_total"));
    }
}
