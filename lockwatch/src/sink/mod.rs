//! A view, written down.
//!
//! Sinks refuse to conclude and to look anything up: view in, bytes out.

pub mod clock;
pub mod columns;
pub mod escape;
pub mod events;
pub mod explain;
pub mod fuse;
pub mod http;
pub mod json;
pub mod labels;
pub mod metrics;
pub mod reclaim;
pub mod table;
pub mod tree;

use clock::Clock;

use crate::engine::view::View;

/// A view with what a reader wants to know about the reading.
pub struct Report<'a> {
    /// The view.
    pub view: &'a View,
    /// Places in `view.locks` of the locks that were asked about.
    pub asked: &'a [u32],
    /// Those of them that are to be listed.
    pub listed: &'a [u32],
    /// Host name.
    pub host: &'a str,
    /// Kernel release.
    pub kernel: &'a str,
    /// Name of the source.
    pub source: &'a str,
    /// Places in which a holder was not looked for, and other limits, are in the view.
    pub clock: Clock,
}

impl Report<'_> {
    /// How many of the locks that were asked about are orphaned.
    pub fn orphaned(&self) -> usize {
        self.asked
            .iter()
            .filter(|&&place| labels::is_finding(&self.view.locks[place as usize]))
            .count()
    }

    /// How many requests wait for the locks that were asked about, each counted once.
    pub fn waiters(&self) -> usize {
        let mut waiters: Vec<u32> = self
            .asked
            .iter()
            .flat_map(|&place| self.view.waiters(&self.view.locks[place as usize]).iter().copied())
            .collect();
        waiters.sort_unstable();
        waiters.dedup();
        waiters.len()
    }
}
