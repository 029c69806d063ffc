//! The object of a search: references to descriptions that no fd table shows. Loaded only where a
//! snapshot left a lock unexplained.
//!
//! Refuses to decide anything: programs read kernel structures into records, bound every loop and
//! count whatever they cut short.
#![no_std]
#![no_main]

mod containers;
mod descriptors;
mod found;
mod inside;
mod kernel;
mod mappings;
mod object;
mod task;
