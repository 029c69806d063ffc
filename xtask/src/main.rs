//! Set-up, build, test and checks of lockwatch: `cargo xtask`.
//!
//! Starts the command line and turns its answer into an exit code. Each verb has a file of its
//! own; this one decides nothing.

mod bench;
mod bpf;
mod build;
mod cache;
mod check;
mod ci;
mod cli;
mod command;
mod demo;
mod deploy;
mod dist;
mod interrupt;
mod privilege;
mod progress;
mod scan;
mod setup;
mod soak;
mod tally;
mod test;
mod unseen;
mod vm;
mod workspace;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
