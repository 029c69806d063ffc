//! What scrapes and probes see of the daemon: counts of the newest view, of the events, of the
//! kernel side.
//!
//! Refuses to make the loop wait: it publishes, and the listener's own thread reads.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::urgency;
use crate::config::{Config, Listen};
use crate::engine::event::Event;
use crate::engine::input::{Moment, Watched};
use crate::engine::view::View;
use crate::sink::clock::Clock;
use crate::sink::http::{AskKernel, Board, Door, Server};
use crate::sink::metrics::{Activity, ActivityKind, Buckets, Counts, OfKind, Tally};
use crate::source::history::{Tables, Totals};

/// How often the loop steps where nothing else makes it.
pub(super) const PULSE: Duration = Duration::from_secs(2);
/// Without a step for so long the engine counts as stuck.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// The publishing side.
pub(super) struct Scrapes {
    board: Arc<Board>,
    tally: Tally,
    /// Whether the tally is another one than what is published.
    counted: bool,
    _server: Option<Server>,
}

impl Scrapes {
    /// Listens where the configuration says so.
    ///
    /// # Errors
    /// Where it cannot be listened there.
    pub(super) fn start(
        config: &Config,
        kernel: String,
        now: Moment,
        tables: Arc<Tables>,
    ) -> anyhow::Result<Self> {
        let ask: AskKernel = Box::new(move || {
            tables.totals().map(|totals| activity(&totals)).map_err(std::io::Error::other)
        });
        let version = env!("CARGO_PKG_VERSION");
        let board = Arc::new(Board::new(version, kernel, now.unix, STUCK_AFTER, Some(ask)));
        let door = match &config.metrics_listen {
            Listen::Off => None,
            Listen::Tcp(address) => Some(Door::tcp(*address).context("daemon")?),
            Listen::Unix(path) => Some(Door::unix(path).context("daemon")?),
        };
        let urgent = || {
            // That it may not the loop has said.
            let _ = urgency::prefer_this_thread_to_answer();
        };
        let server = door.map(|door| {
            let started = Server::start(door, Arc::clone(&board), urgent);
            started.context("daemon: starting the listener")
        });
        Ok(Self { board, tally: Tally::default(), counted: true, _server: server.transpose()? })
    }

    /// The engine told an event.
    pub(super) fn event(&mut self, event: &Event) {
        self.tally.event(event);
        self.counted = true;
    }

    /// The engine took a reading in.
    pub(super) fn reading(&mut self, view: &View, watched: &[Watched], now: Moment) {
        self.tally.gc_run();
        self.board.tell(&self.tally);
        self.board.show(Counts::of(view, watched, Clock { unix: now.unix, boot: now.boot.0 }));
    }

    /// The engine took a step.
    pub(super) fn stepped(&mut self, now: Moment) {
        if std::mem::take(&mut self.counted) {
            self.board.tell(&self.tally);
        }
        self.board.beat(now.unix);
    }

    /// The first reading is done.
    pub(super) fn ready(&self) {
        self.board.swept();
    }

    /// Whether the tree is there, as far as there is to be one.
    pub(super) fn mounted(&self, is_mounted: bool) {
        self.board.mounted(is_mounted);
    }
}

/// What the kernel side counted, as the sink wants it.
fn activity(totals: &Totals) -> Activity {
    let buckets = |(counts, sum): ([u64; _], u64)| Some(Buckets { counts, sum });
    let mut activity = Activity::default();
    for (at, kind) in ActivityKind::ALL.into_iter().enumerate() {
        // Whether a lease is given, and when one ends by the last close, the kernel side does not
        // see; what it does count of them would read as if there were no more.
        let whole = kind != ActivityKind::Lease;
        activity.kinds[at] = OfKind {
            acquisitions: whole.then_some(totals.acquisitions[at]),
            releases: whole.then_some(totals.releases[at]),
            refusals: Some(totals.refusals[at]),
            wait: buckets(totals.wait[at]),
            hold: buckets(totals.hold[at]).filter(|_| whole),
        };
    }
    activity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counters_keep_their_kinds_and_powers() {
        let mut totals =
            Totals { acquisitions: [1, 2, 3, 4], refusals: [5, 6, 7, 8], ..Totals::default() };
        totals.wait[1].0[20] = 9;
        totals.wait[1].1 = 10;
        let activity = activity(&totals);
        let taken: Vec<_> = activity.kinds.iter().map(|kind| kind.acquisitions).collect();
        assert_eq!(taken, [Some(1), Some(2), Some(3), None]);
        assert_eq!(activity.kinds[3].refusals, Some(8));
        let wait = activity.kinds[1].wait.unwrap();
        assert_eq!((wait.counts[20], wait.count(), wait.sum), (9, 9, 10));
    }
}
