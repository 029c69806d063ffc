//! The arguments of `reclaim`, and of the hidden verb that a hook runs under.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::FileArgs;
use crate::act::warden::Ward;
use crate::engine::classify::Confidence;
use crate::engine::reclaim::Wanted;
use crate::engine::reclaim::progress::Asker;
use crate::reclaim::Reclaim;

#[derive(Args)]
#[command(after_help = "\
Examples:
  lockwatch reclaim /srv/aim/config             what would be done, and why that is safe
  lockwatch reclaim /srv/aim/config --execute   does it, and reads the lock again
  lockwatch reclaim fe:00:131-a1b2c3d4 --execute --force
                                                takes one lock from whoever holds it
  lockwatch reclaim /srv/db --method inject     a POSIX lock: its process is made to unlock it

Exit codes: 0 released and seen to be gone, nothing to do, or (dry run) there is a plan; 1 refused \
or not released; 2 could not be done.")]
pub(super) struct ReclaimArgs {
    #[command(flatten)]
    file: FileArgs,
    /// Carry the plan out
    #[arg(long)]
    execute: bool,
    /// Also a lock that is no orphan; for one lock alone
    #[arg(long)]
    force: bool,
    /// How: auto leaves every process alone; signal ends the holders; inject has one unlock it
    #[arg(long, value_name = "METHOD", value_enum, default_value_t = Way::Auto)]
    method: Way,
    /// The configuration, whose hooks are run for a watched file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run no hooks
    #[arg(long)]
    no_hooks: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
    /// For the daemon: tell it line by line what is done, and release nothing more once standard
    /// input has ended
    #[arg(
        long,
        hide = true,
        value_name = "ASKER",
        value_enum,
        requires = "execute",
        conflicts_with = "json"
    )]
    attended: Option<Attended>,
    /// For the daemon: release also what is only likely an orphan, as whoever types it may
    #[arg(long, hide = true, requires = "attended")]
    likely: bool,
}

/// Who has the daemon do it.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Attended {
    Policy,
    Tree,
}

impl From<Attended> for Asker {
    fn from(by: Attended) -> Self {
        match by {
            Attended::Policy => Self::Policy,
            Attended::Tree => Self::Tree,
        }
    }
}

#[derive(Args)]
pub(super) struct WardenArgs {
    #[arg(long)]
    program: std::os::fd::RawFd,
    #[arg(long)]
    line: std::os::fd::RawFd,
    #[arg(long)]
    limit_ms: u64,
    #[arg(last = true)]
    argv: Vec<OsString>,
}

/// A method as the command line names it.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Way {
    Auto,
    Fd,
    Signal,
    Inject,
}

impl From<Way> for Wanted {
    fn from(way: Way) -> Self {
        match way {
            Way::Auto => Self::Auto,
            Way::Fd => Self::Fd,
            Way::Signal => Self::Signal,
            Way::Inject => Self::Inject,
        }
    }
}

/// Who reads the plan may judge for themselves what was inferred; a daemon must say that it may act
/// on that.
fn at_least(attended: Option<Attended>, likely: bool) -> Confidence {
    if attended.is_some() && !likely { Confidence::Certain } else { Confidence::Likely }
}

impl From<ReclaimArgs> for Reclaim {
    fn from(args: ReclaimArgs) -> Self {
        Self {
            file: args.file.file,
            source: args.file.source.source,
            execute: args.execute,
            force: args.force,
            method: args.method.into(),
            config: args.config,
            no_hooks: args.no_hooks,
            json: args.json,
            at_least: at_least(args.attended, args.likely),
            attended: args.attended.map(Asker::from),
        }
    }
}

impl From<WardenArgs> for Ward {
    fn from(args: WardenArgs) -> Self {
        Self {
            program: args.program,
            line: args.line,
            limit: Duration::from_millis(args.limit_ms),
            argv: args.argv,
        }
    }
}
