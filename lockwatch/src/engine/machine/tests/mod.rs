//! The engine on simulated time: each test is a story of processes and locks, and what is told of it.

mod any_order;
mod bounds;
mod orphans;
mod races;
mod readings;
mod reclaims;
pub(crate) mod stage;
pub(crate) mod stories;
mod waits;
