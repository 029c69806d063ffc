//! The records that cross the border between the BPF programs and user space.
//!
//! Everything here is `#[repr(C)]` without padding, and made of integers alone: no `bool`, no
//! `Option`, nothing of which a bit pattern could be invalid. Sizes are asserted at compile time.
//! Refuses to interpret: what a value means is decided on either side.
#![no_std]

pub mod history;
pub mod offsets;
pub mod ranges;
pub mod search;
pub mod search_offsets;
pub mod snapshot;
pub mod wire;
