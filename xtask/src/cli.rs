//! argv to a verb, and the verb's answer to an exit code.
//!
//! Does no work of a verb itself.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    bench, build, check, ci, demo, deploy, dist, interrupt, scan, setup, soak, test, unseen, vm,
};

/// Set-up, build, test, checks and benchmarks of lockwatch.
///
/// Every verb that needs the BPF toolchain sets it up first, once.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = EXAMPLES
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask scan                        every file lock of this machine
  cargo xtask scan -- --json -t /srv      the same as JSON, below /srv only
  cargo xtask test                        every test, the live ones on this kernel
  cargo xtask test deleted                those with `deleted` in their name
  cargo xtask vm 5.10 sid                 the live tests on these kernels, under qemu
  cargo xtask demo                        the incident that lockwatch exists for, as a story
  cargo xtask check                       formatting, lints, docs, the rules of the house
  cargo xtask bench scan                  what a scan costs, beside lslocks (some minutes)
  cargo xtask build                       target/release/lockwatch, one file
  cargo xtask dist                        a tarball and a Debian package of it

Environment:
  LOCKWATCH_CACHE   where set-up keeps what it fetched
                    (otherwise $XDG_CACHE_HOME/lockwatch or ~/.cache/lockwatch)";

#[derive(Subcommand)]
enum Verb {
    /// Fetch what is missing to compile BPF programs, and compile them
    Setup,
    /// Build target/release/lockwatch, with the BPF programs inside
    Build,
    /// Build, then run `lockwatch scan`, with root's rights where they can be had
    Scan {
        /// Handed to `lockwatch scan` as they are
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
    /// Run every test: unit, property, doc, and live on this kernel
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Run the live tests on real Debian kernels under qemu
    Vm(vm::Args),
    /// Check formatting, lints, docs and the rules of the architecture
    Check,
    /// Make a tarball and a Debian package, in target/dist
    Dist,
    /// Test what is shipped beside the binary: unit, rules, dashboard, package
    Deploy {
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Check, run every test, then the live tests on the matrix of kernels, and add it all up
    Ci,
    /// Live through the incident that lockwatch exists for: a story with real locks
    Demo,
    /// Measure what lockwatch costs on this machine, beside what its peers cost
    Bench {
        #[command(subcommand)]
        subject: bench::Subject,
    },
    /// Play what the live tests play once, for hours
    Soak {
        #[command(subcommand)]
        subject: soak::Subject,
    },
    /// Renew the table of docs/unseen-holders.md: what this machine's tools say of locks that no
    /// fd table shows
    Unseen,
    /// Take locks and keep them: the benchmark's own processes
    #[command(name = bench::holder::VERB, hide = true)]
    BenchHolder {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Scan, and check what is listed: the benchmark's own process
    #[command(name = bench::listing::VERB, hide = true)]
    BenchListing {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

/// Reads argv, runs the verb, and says on stderr why it failed if it did.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    // A holder ends with the benchmark, by its own means, and must not outlive a signal.
    if let Verb::BenchHolder { args } = &cli.verb {
        return ended(bench::holder::run(args));
    }
    let outcome = interrupt::install().and_then(|()| run(cli.verb));
    if interrupt::happened() {
        return ExitCode::from(interrupt::EXIT_CODE);
    }
    ended(outcome)
}

fn ended(outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(2)
    })
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Verb::Build => build::run().map(|_| ExitCode::SUCCESS),
        Verb::Scan { args } => scan::run(&args),
        Verb::Test { filter } => test::run(filter.as_deref()),
        Verb::Vm(args) => vm::run(&args),
        Verb::Check => check::run(),
        Verb::Dist => dist::run(),
        Verb::Deploy { filter } => deploy::run(filter.as_deref()),
        Verb::Ci => ci::run(),
        Verb::Demo => demo::run(),
        Verb::Bench { subject } => bench::run(&subject),
        Verb::Soak { subject } => soak::run(&subject),
        Verb::Unseen => unseen::run(),
        Verb::BenchHolder { args } => bench::holder::run(&args),
        Verb::BenchListing { args } => bench::listing::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn scan_hands_everything_after_the_dashes_on() {
        let cli = Cli::try_parse_from(["xtask", "scan", "--", "--json", "-t", "/srv"]).unwrap();
        let Verb::Scan { args } = cli.verb else { panic!("not scan") };
        assert_eq!(args, ["--json", "-t", "/srv"]);
    }
}
