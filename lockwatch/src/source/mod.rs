//! Where facts come from: each source reads the world into an
//! [`engine::snapshot::Snapshot`](crate::engine::snapshot::Snapshot).
//!
//! Refuses to conclude anything, and no source knows of another.

pub mod procfs;
