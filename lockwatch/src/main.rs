//! The binary: argv in, exit code out.

use std::process::ExitCode;

use lockwatch::act::warden;
use lockwatch::cli::{self, Command};
use lockwatch::failure::{self, EXIT_CLEAR};
use lockwatch::{check, daemon, doctor, events, explain, reclaim, replay, scan};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("off"))
        .format_timestamp_micros()
        .init();
    failure::exit(match cli::parse() {
        Command::Scan(scan) => scan::run(&scan),
        Command::Check(file, source) => check::run(&file, source),
        Command::Explain(file, source, json) => explain::run(&file, source, json),
        Command::Reclaim(asked) => reclaim::run(&asked),
        Command::HookWarden(ward) => warden::run(&ward).map(|()| EXIT_CLEAR),
        Command::Daemon(daemon) => daemon::run(&daemon),
        Command::Events(events) => events::run(&events),
        Command::Replay(trace) => replay::run(&trace),
        Command::Doctor(json) => doctor::run(json),
        Command::Completions(shell) => cli::completions(shell).map(|()| EXIT_CLEAR),
        Command::Man(verb) => cli::man(verb.as_deref()).map(|()| EXIT_CLEAR),
        Command::ManPages(folder) => cli::man_pages(&folder).map(|()| EXIT_CLEAR),
    })
}
