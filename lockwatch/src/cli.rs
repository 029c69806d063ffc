//! argv → a validated command. One definition serves parsing, help, man pages and completions.
//!
//! Refuses to do anything: what comes out is run elsewhere.

mod reclaim;

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::act::warden::Ward;
use crate::config::reference;
use crate::daemon::follow::Request;
use crate::daemon::{Daemon, Task, Watch};
use crate::engine::classify::State;
use crate::engine::event;
use crate::events::Events;
use crate::look::Choice;
use crate::reclaim::Reclaim;
use crate::replay::Replay;
use crate::scan::{Output, Scan};
use crate::sink::columns::{self, COLUMNS, Column};
use crate::sink::table::Layout;

/// The page of the manual that is about no verb.
const CONFIGURATION: &str = "lockwatch.toml";

/// Says who really holds each file lock of this machine, and which locks outlived their owner.
#[derive(Parser)]
#[command(name = "lockwatch", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Examples:
  lockwatch scan                            every lock of this machine
  lockwatch scan -t aim_lock_config.conf    the locks on files of that name
  lockwatch check /srv/aim/config           free (0), HOT (1), held (3)?
  lockwatch explain /srv/aim/config         the whole story of its locks
  lockwatch reclaim /srv/aim/config         what would release it, and what that costs
  lockwatch daemon                          watch every lock as it is taken and given up
  lockwatch events                          what the daemon sees, as it happens
  lockwatch doctor                          what works on this kernel, for this user

Exit codes: 0 nothing found, 1 findings, 2 could not be done, 3 held by right (check).")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show every lock on this machine, or those on the targets
    Scan(ScanArgs),
    /// Say in one line whether a file is free, held or HOT
    #[command(after_help = "Exit codes: 0 free, 1 HOT, 2 error, 3 held.")]
    Check(FileArgs),
    /// Tell who holds a file, how it came to that, and what would release it
    Explain(ExplainArgs),
    /// Release an orphaned lock, and harm nobody: a dry run unless told to execute
    Reclaim(reclaim::ReclaimArgs),
    /// What lockwatch runs a hook under
    #[command(hide = true)]
    HookWarden(reclaim::WardenArgs),
    /// Watch in real time: who takes each lock, how each owner ends, every race
    Daemon(DaemonArgs),
    /// Follow the running daemon's events
    Events(EventsArgs),
    /// Run a recorded trace through the same engine, and write its events
    #[command(after_help = "\
Examples:
  lockwatch replay run.trace
  lockwatch replay --json run.trace | jq 'select(.kind == \"orphaned\")'

Exit codes: 0 the trace was understood, 2 it was not.")]
    Replay {
        /// What `lockwatch daemon --record` wrote; - is stdin
        trace: PathBuf,
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what this kernel and this user can and cannot do, probe by probe
    Doctor {
        /// Write JSON
        #[arg(long)]
        json: bool,
    },
    /// Write completions for a shell
    #[command(
        after_help = "Example:\n  lockwatch completions bash > /etc/bash_completion.d/lockwatch"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual, or the page of one verb or of the configuration
    #[command(
        after_help = "Examples:\n  lockwatch man | man -l -\n  lockwatch man scan | man -l -\n  \
                      lockwatch man lockwatch.toml | man -l -"
    )]
    Man {
        /// The verb, or lockwatch.toml
        #[arg(conflicts_with = "folder")]
        verb: Option<String>,
        /// Write all pages into this folder
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  lockwatch scan /srv/aim pid:8130          below a folder, and of a process
  lockwatch scan --only orphaned            what needs a hand
  lockwatch scan -o +ID,CONFIDENCE          more columns
  lockwatch scan -nr -o PID,PATH            for a script
  lockwatch scan --json | jq .findings      for a program
  lockwatch scan --watch 2                  again and again

Exit codes: 0 no finding, 1 findings, 2 could not be done, 130 interrupted.")]
struct ScanArgs {
    /// A path, a folder (everything below), a file name, pid:N, or a lock id
    #[arg(value_name = "TARGET")]
    targets: Vec<OsString>,
    /// The same as TARGET
    #[arg(short = 't', long = "target", value_name = "TARGET")]
    more: Vec<OsString>,
    /// Write JSON
    #[arg(long, conflicts_with_all = ["output", "noheadings", "raw"])]
    json: bool,
    #[arg(short, long, value_name = "LIST", value_parser = parse_columns, help = output_help())]
    output: Option<ColumnList>,
    /// Leave out the headings, and the line at the end
    #[arg(short, long)]
    noheadings: bool,
    /// Cells without blanks, one blank between; no line at the end
    #[arg(short, long)]
    raw: bool,
    /// List only locks in these states. Exit code and counts are about all
    #[arg(long, value_name = "STATE,…", value_delimiter = ',', value_parser = parse_state)]
    only: Vec<State>,
    /// Scan again after so many seconds, until interrupted
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    watch: Option<Duration>,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Args)]
struct SourceArgs {
    /// Where the facts come from: BPF where it loads, else /proc
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    source: Choice,
}

#[derive(Args)]
struct FileArgs {
    /// A path, or a lock id
    file: OsString,
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Args)]
struct ExplainArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Write the JSON of `scan --json` for this file
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  lockwatch daemon                          in the foreground; SIGTERM ends it
  lockwatch daemon --log /var/log/lockwatch.jsonl
                                            every event a line; SIGHUP opens the file anew
  lockwatch daemon --check-config           is the configuration sound?
  lockwatch daemon --detach                 take the kernel side away, too

The kernel goes on recording while no daemon runs: the next one takes over without a gap.
Exit codes: 0 ended by SIGTERM, 2 could not be done (another daemon runs, say), 130 interrupted.")]
struct DaemonArgs {
    /// The configuration [default: /etc/lockwatch/lockwatch.toml, where it is]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only find out whether the configuration is sound
    #[arg(long, conflicts_with_all = ["detach", "log", "record", "verbose_events"])]
    check_config: bool,
    /// Take what is pinned in the kernel away, and end
    #[arg(long, conflicts_with_all = ["log", "record", "verbose_events"])]
    detach: bool,
    /// Append every event to this file as a JSON line
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Record whatever influences the daemon, for `lockwatch replay`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// On files that are watched, make events of every acquisition, release and blocked attempt
    #[arg(long)]
    verbose_events: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  lockwatch events                          sentences, as it happens
  lockwatch events --json | jq .            for a program
  lockwatch events --kind orphaned,deadlock
  lockwatch events --last 20 --no-follow    what has been, and no more

Exit codes: 0 the daemon has ended, 2 could not be done, 130 interrupted.")]
struct EventsArgs {
    /// The daemon's configuration, which says where it listens
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write JSON lines
    #[arg(long)]
    json: bool,
    /// Only events of these kinds
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = parse_kind)]
    kind: Vec<String>,
    /// Begin with so many events that have been
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    last: usize,
    /// End after the events that have been
    #[arg(long)]
    no_follow: bool,
}

fn parse_kind(text: &str) -> Result<String, String> {
    if event::NAMES.contains(&text) {
        Ok(text.to_owned())
    } else {
        Err(format!("known kinds are {}", event::NAMES.join(", ")))
    }
}

type ColumnList = std::sync::Arc<Vec<&'static Column>>;

fn parse_columns(text: &str) -> Result<ColumnList, columns::ChoiceError> {
    columns::choose(text).map(ColumnList::new)
}

fn output_help() -> String {
    let names: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
    format!("Columns; a list that begins with + adds to the default. Known: {}", names.join(", "))
}

fn parse_state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| {
        let known: Vec<&str> = State::ALL.iter().map(|state| state.name()).collect();
        format!("known states are {}", known.join(", "))
    })
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=86_400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("between 0.1 and 86400 seconds".into())
    }
}

/// A validated command.
#[derive(Debug)]
pub enum Command {
    /// `scan`
    Scan(Scan),
    /// `check`
    Check(OsString, Choice),
    /// `explain`; the last is whether JSON is wanted.
    Explain(OsString, Choice, bool),
    /// `reclaim`
    Reclaim(Reclaim),
    /// What a hook runs under
    HookWarden(Ward),
    /// `daemon`
    Daemon(Daemon),
    /// `events`
    Events(Events),
    /// `replay`
    Replay(Replay),
    /// `doctor`, with or without JSON
    Doctor(bool),
    /// `completions`
    Completions(Shell),
    /// `man` for one page
    Man(Option<String>),
    /// `man` for all pages
    ManPages(PathBuf),
}

/// Understands the arguments of this process; ends it where they ask for help or are wrong.
pub fn parse() -> Command {
    match Cli::parse().verb {
        Verb::Scan(scan) => Command::Scan(resolve(scan)),
        Verb::Check(args) => Command::Check(args.file, args.source.source),
        Verb::Explain(args) => Command::Explain(args.file.file, args.file.source.source, args.json),
        Verb::Reclaim(args) => Command::Reclaim(args.into()),
        Verb::HookWarden(args) => Command::HookWarden(args.into()),
        Verb::Daemon(args) => Command::Daemon(daemon(args)),
        Verb::Events(args) => Command::Events(Events {
            config: args.config,
            request: Request {
                text: !args.json,
                last: args.last,
                kinds: args.kind,
                end: args.no_follow,
            },
        }),
        Verb::Replay { trace, json } => Command::Replay(Replay { trace, json }),
        Verb::Doctor { json } => Command::Doctor(json),
        Verb::Completions { shell } => Command::Completions(shell),
        Verb::Man { folder: Some(folder), .. } => Command::ManPages(folder),
        Verb::Man { verb, .. } => Command::Man(verb),
    }
}

fn resolve(args: ScanArgs) -> Scan {
    let colour =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let output = if args.json {
        Output::Json
    } else {
        let layout = Layout { no_headings: args.noheadings, raw: args.raw, colour };
        let columns = args.output.map_or_else(columns::default_columns, |list| list.to_vec());
        Output::Table(columns, layout)
    };
    Scan {
        targets: args.targets.into_iter().chain(args.more).collect(),
        source: args.source.source,
        only: args.only,
        output,
        watch: args.watch,
    }
}

fn daemon(args: DaemonArgs) -> Daemon {
    let task = if args.check_config {
        Task::CheckConfig
    } else if args.detach {
        Task::Detach
    } else {
        Task::Watch(Watch { log: args.log, record: args.record, verbose: args.verbose_events })
    };
    Daemon { config: args.config, task }
}

/// Writes completions.
///
/// # Errors
/// Those of stdout.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lockwatch", &mut script);
    Ok(io::stdout().write_all(&script)?)
}

/// Writes a page of the manual.
///
/// # Errors
/// Where there is no such verb, or stdout cannot be written.
pub fn man(verb: Option<&str>) -> anyhow::Result<()> {
    if verb == Some(CONFIGURATION) {
        return Ok(io::stdout().write_all(reference::man_page().as_bytes())?);
    }
    let mut command = Cli::command();
    // Gives the verbs their full names.
    command.build();
    let page = match verb {
        None => &command,
        Some(verb) => command
            .find_subcommand(verb)
            .ok_or_else(|| anyhow::anyhow!("man: {verb}: no such verb; see `lockwatch --help`"))?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page.clone()).render(&mut text)?;
    Ok(io::stdout().write_all(&text)?)
}

/// Writes every page of the manual into a folder.
///
/// # Errors
/// Where the folder cannot be written.
pub fn man_pages(folder: &std::path::Path) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let what = || format!("man: write pages into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(what)?;
    let configuration = folder.join(format!("{CONFIGURATION}.5"));
    std::fs::write(configuration, reference::man_page()).with_context(what)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_and_states_out_of_range_are_refused() {
        assert!(parse_seconds("0").is_err() && parse_seconds("x").is_err());
        assert!(parse_seconds("-1").is_err() && parse_seconds("inf").is_err());
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_state("orphaned"), Ok(State::Orphaned));
        assert!(parse_state("hot").is_err_and(|error| error.contains("handed_over")));
    }
}
