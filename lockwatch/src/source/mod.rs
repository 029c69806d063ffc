//! Where facts come from: each source reads the world into an
//! [`engine::snapshot::Snapshot`](crate::engine::snapshot::Snapshot).
//!
//! Refuses to conclude anything, and to hide what could not be read. The BPF source asks procfs
//! about the processes that it names; procfs knows of no other source.

pub mod bpf;
pub mod history;
mod octal;
pub mod procfs;
pub mod remote;
pub mod trace;
pub mod writes;
