//! The object of a snapshot: every descriptor, and every lock of the machine.
//!
//! Refuses to decide anything: programs read kernel structures into records, bound every loop and
//! count whatever they cut short.
#![no_std]
#![no_main]

mod all_locks;
mod kernel;
mod lists;
mod object;
mod task;
mod task_file;
mod window;
