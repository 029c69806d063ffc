//! The live tests: `lockwatch` on the real kernel, with real locks.
//!
//! Each file is a theme; each test is a sentence about what `lockwatch` does. The same program
//! runs on the host and, without cargo, in virtual machines.

mod base64;
mod classification;
mod columns;
mod daemon;
mod exit_codes;
mod history;
mod identity;
mod in_flight;
mod kernel;
mod kernel_held;
mod listing;
mod mapped;
mod names;
mod namespaces;
mod peers;
mod reclaim;
mod reclaim_hooks;
mod reclaim_inject;
mod reclaim_races;
mod reclaim_ways;
mod refused;
mod registered;
mod replay;
mod rig;
mod service;
mod sources;
mod stories;
mod targets;
mod unseen;
mod verbs;
mod waits;

use std::process::ExitCode;

use lockwatch_tests::harness::{Test, runner};

const THEMES: &[(&str, &[Test])] = &[
    ("rig", rig::TESTS),
    ("listing", listing::TESTS),
    ("identity", identity::TESTS),
    ("classification", classification::TESTS),
    ("waits", waits::TESTS),
    ("namespaces", namespaces::TESTS),
    ("names", names::TESTS),
    ("targets", targets::TESTS),
    ("columns", columns::TESTS),
    ("exit_codes", exit_codes::TESTS),
    ("verbs", verbs::TESTS),
    ("sources", sources::TESTS),
    ("reclaim", reclaim::TESTS),
    ("reclaim_ways", reclaim_ways::TESTS),
    ("reclaim_hooks", reclaim_hooks::TESTS),
    ("reclaim_inject", reclaim_inject::TESTS),
    ("reclaim_races", reclaim_races::TESTS),
    ("refused", refused::TESTS),
    ("peers", peers::TESTS),
    ("unseen", unseen::TESTS),
    ("in_flight", in_flight::TESTS),
    ("registered", registered::TESTS),
    ("mapped", mapped::TESTS),
    ("kernel_held", kernel_held::TESTS),
    ("replay", replay::TESTS),
    ("daemon", daemon::TESTS),
    ("service", service::TESTS),
    ("history", history::TESTS),
    ("history_ranges", history::ranges::TESTS),
    ("history_moments", history::moments::TESTS),
];

fn main() -> ExitCode {
    runner::main(THEMES)
}
