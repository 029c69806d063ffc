//! The metrics of the contract, as OpenMetrics 1.0 and as Prometheus' own text.
//!
//! Refuses to count locks: [`Counts`] are made once a view, so that a scrape costs the same with
//! one lock and with a hundred thousand. No label holds a pid, a path or anything else that grows
//! with use: only the names of the code, the version, the kernel's release and the watches of the
//! configuration.
//!
//! prometheus-client is not used: it writes OpenMetrics alone, and its histograms are fed with
//! observations, while ours come counted from the kernel.

mod accept;
mod activity;
mod buckets;
mod counts;
mod families;
mod tally;
mod text;

pub use accept::negotiate;
pub use activity::{Activity, ActivityKind, OfKind};
pub use buckets::{BUCKETS, Buckets};
pub use counts::{Counts, WatchCounts};
pub use families::write;
pub use tally::{Race, ReclaimResult, Tally};
pub use text::Format;

/// All that one scrape shows.
#[derive(Clone, Copy, Debug)]
pub struct Sheet<'a> {
    /// lockwatch's version.
    pub version: &'a str,
    /// The kernel's release.
    pub kernel: &'a str,
    /// When the daemon began, nanoseconds since 1970.
    pub started: u64,
    /// When the engine last took a step, nanoseconds since 1970; `None` before the first.
    pub heartbeat: Option<u64>,
    /// What the newest view shows; `None` before the first.
    pub counts: Option<&'a Counts>,
    /// What the daemon counted.
    pub tally: &'a Tally,
    /// What the kernel counted; `None` where it could not be asked: then it is not shown.
    pub activity: Option<&'a Activity>,
}

#[cfg(test)]
mod tests;
