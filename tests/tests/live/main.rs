//! The live tests: `lockwatch` on the real kernel, with real locks.
//!
//! Each file is a theme; each test is a sentence about what `lockwatch` does. The same program
//! runs on the host and, without cargo, in virtual machines.

mod base64;
mod classification;
mod columns;
mod containers;
mod daemon;
mod drill;
mod dying;
mod exit_codes;
mod fleet;
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
mod reclaim_killed;
mod reclaim_nobody;
mod reclaim_policy;
mod reclaim_races;
mod reclaim_soak;
mod reclaim_ways;
mod refused;
mod registered;
mod replay;
mod rig;
mod scrapes;
mod service;
mod shared_tables;
mod soak;
mod sources;
mod stories;
mod targets;
mod tree;
mod tree_around;
mod tree_events;
mod tree_releases;
mod tree_shell;
mod unseen;
mod unseen_table;
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
    ("reclaim_soak", reclaim_soak::TESTS),
    ("reclaim_soak", reclaim_killed::TESTS),
    ("reclaim_nobody", reclaim_nobody::TESTS),
    ("reclaim_policy", reclaim_policy::TESTS),
    ("reclaim_races", reclaim_races::TESTS),
    ("refused", refused::TESTS),
    ("peers", peers::TESTS),
    ("unseen", unseen::TESTS),
    ("in_flight", in_flight::TESTS),
    ("registered", registered::TESTS),
    ("mapped", mapped::TESTS),
    ("kernel_held", kernel_held::TESTS),
    ("unseen_table", unseen_table::TESTS),
    ("replay", replay::TESTS),
    ("daemon", daemon::TESTS),
    ("scrapes", scrapes::TESTS),
    ("fleet", fleet::TESTS),
    ("service", service::TESTS),
    ("tree", tree::TESTS),
    ("tree_around", tree_around::TESTS),
    ("tree_events", tree_events::TESTS),
    ("tree_releases", tree_releases::TESTS),
    ("tree_shell", tree_shell::TESTS),
    ("drill", drill::TESTS),
    ("history", history::TESTS),
    ("history_ranges", history::ranges::TESTS),
    ("history_moments", history::moments::TESTS),
    ("soak_races", soak::races::TESTS),
    ("soak_ordinary", soak::ordinary::TESTS),
    ("soak_mixed", soak::mixed::TESTS),
    ("soak_stressors", soak::stressors::TESTS),
    ("soak_kill", soak::kill::TESTS),
    ("soak_traces", soak::traces::TESTS),
    ("soak_fleet", soak::fleet::TESTS),
    ("soak_tree", soak::tree::TESTS),
    ("containers", containers::TESTS),
    ("dying", dying::TESTS),
    ("shared_tables", shared_tables::TESTS),
];

fn main() -> ExitCode {
    runner::main(THEMES)
}
