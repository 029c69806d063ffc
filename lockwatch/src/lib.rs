//! lockwatch says who really holds each file lock of a Linux machine, and which locks outlived
//! their owner.
//!
//! The way of the data is one way round: a source reads the world into an
//! [`engine::snapshot::Snapshot`], the engine concludes, a sink writes it down; a verb wires them
//! together.

pub mod act;
pub mod check;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod engine;
pub mod events;
pub mod explain;
pub mod failure;
pub mod id_key;
pub mod look;
pub mod machine;
pub mod reclaim;
pub mod replay;
pub mod scan;
pub mod sight;
pub mod sink;
pub mod source;
pub mod target;
