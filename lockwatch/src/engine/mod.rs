//! The pure core: from what a source read to what it means.
//!
//! Architecture invariant: nothing in here names a clock, a file, a process of its own, a thread,
//! a logger, a socket or anything asynchronous, and no unordered map is iterated into its output.
//! The same inputs give the same outputs, byte for byte.

pub mod births;
mod bytes;
pub mod classify;
pub mod conclude;
pub mod container;
pub mod event;
pub mod evidence;
pub mod grounds;
pub mod holders;
pub mod id;
pub mod identity;
pub mod input;
pub mod machine;
pub mod memory;
mod places;
pub mod reclaim;
pub mod shared;
pub mod snapshot;
pub mod view;
pub mod waits;
