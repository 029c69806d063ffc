//! The object of the history: who took each lock and when, who waits since when, who died how.
//!
//! Refuses to wake user space for what is ordinary: a lock that is taken and given up again leaves
//! a table as it was. Whatever does not fit a table or the ring is counted, and nothing waits.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod again;
mod attempt;
mod attention;
mod cleared;
mod conflict;
mod counters;
mod exit;
mod flock;
mod fork;
#[path = "../kernel.rs"]
mod kernel;
mod lease;
mod moment;
#[path = "../object.rs"]
mod object;
mod owners;
mod party;
mod posix;
mod tables;
mod taking;
mod waits;
mod words;
