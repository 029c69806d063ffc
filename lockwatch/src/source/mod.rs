//! The world, read into the engine's terms.
//!
//! Sources refuse to conclude anything, and to hide what they could not read.

pub mod bpf;
