//! lockwatch says who really holds each file lock of a Linux machine, and which locks outlived
//! their owner.
//!
//! The way of the data is one way round: a source reads the world into an
//! [`engine::snapshot::Snapshot`], the engine concludes, a sink writes it down.

pub mod engine;
pub mod source;
