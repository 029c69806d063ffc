//! `cargo xtask bench`: what lockwatch costs, beside what its peers cost, on this machine.
//!
//! A goal that is missed is a result, not a failure. Fails only where it could not measure.

mod contender;
mod daemon;
mod folder;
mod goals;
pub(crate) mod holder;
mod holders;
pub(crate) mod listing;
mod machine;
mod measure;
mod overhead;
mod reclaim;
mod report;
mod scenario;
mod serve;
mod table;
mod unseen;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::{command, privilege, progress};
use contender::Lockwatch;
use folder::Folder;
use goals::Measured;
use machine::Machine;
use report::Results;
use scenario::{Bench, Extent};
use table::Style;

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Subject {
    /// `lockwatch scan` of 1,000 to 100,000 locks, beside lslocks and a read of /proc/locks
    Scan(ScanArgs),
    /// What the history adds to taking and giving up locks, beside empty programs, a bare table,
    /// bpftrace and strace
    Overhead(overhead::OverheadArgs),
    /// `lockwatch reclaim --execute` of an orphan that one process keeps
    Reclaim(reclaim::ReclaimArgs),
    /// How soon the daemon tells of an orphan, and its memory and processor time
    Daemon(daemon::DaemonArgs),
    /// A walk through the tree with 1,000 locks, beside the same files on a tmpfs, and a scrape with
    /// 100,000
    Serve(serve::ServeArgs),
}

/// How `bench scan` is to be run.
#[derive(Args)]
pub(crate) struct ScanArgs {
    /// Leave out the 100,000 locks, and repeat less
    #[arg(long)]
    quick: bool,
    /// Write the tables as Markdown
    #[arg(long)]
    markdown: bool,
    /// Write every figure to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure this lockwatch instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs the benchmark.
pub(crate) fn run(subject: &Subject) -> Result<ExitCode> {
    let args = match subject {
        Subject::Scan(args) => args,
        Subject::Overhead(args) => return overhead::run(args),
        Subject::Reclaim(args) => return reclaim::run(args),
        Subject::Daemon(args) => return daemon::run(args),
        Subject::Serve(args) => return serve::run(args),
    };
    let binary = contender::binary(args.binary.as_deref())?;
    let json = args.json.as_deref().map(std::path::absolute).transpose();
    let json = json.context("finding the working folder")?;
    // Made by the caller, so that it is the caller's also when root writes it.
    let mut json_file = json
        .as_ref()
        .map(|path| {
            let open = File::options().write(true).create(!path.exists()).truncate(true).open(path);
            open.with_context(|| format!("opening {}", path.display()))
        })
        .transpose()?;
    if !privilege::is_root() {
        return as_root(args, binary, json);
    }

    let results = measure_all(args, &binary)?;
    let style = if args.markdown { Style::Markdown } else { Style::Plain };
    command::print(&results.text(style))?;
    if let (Some(file), Some(path)) = (&mut json_file, &json) {
        serde_json::to_writer_pretty(&mut *file, &results.json())
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(file))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The same again, with root's rights: sudo around each single scan would be measured with it.
fn as_root(args: &ScanArgs, binary: PathBuf, json: Option<PathBuf>) -> Result<ExitCode> {
    let own = std::env::current_exe().context("finding this program's file")?;
    let mut again = privilege::command(&own, &[]);
    if again.get_program() == own.as_os_str() {
        bail!("a scan with BPF needs root's rights: run this as root, or where sudo works");
    }
    again.args(["bench", "scan", "--binary"]).arg(binary);
    again.args(args.quick.then_some("--quick")).args(args.markdown.then_some("--markdown"));
    if let Some(json) = json {
        again.arg("--json").arg(json);
    }
    Ok(command::exit_code(command::status(&mut again)?))
}

fn measure_all(args: &ScanArgs, binary: &std::path::Path) -> Result<Results> {
    let machine = Machine::look()?;
    let others = machine::others()?;
    if others > machine::QUIET {
        progress::say(&format!(
            "other work takes {:.0} % of the processors: the figures will be worse for it",
            others * 100.0
        ));
    }
    let size = fs::metadata(binary).with_context(|| format!("finding {}", binary.display()))?.len();
    progress::say(&format!("measuring {} ({})", binary.display(), progress::size(size)));

    let folder = Folder::new()?;
    let lockwatch = Lockwatch::new(binary);
    let bench = Bench {
        lockwatch: &lockwatch,
        extent: if args.quick { &Extent::QUICK } else { &Extent::FULL },
        folder: &folder,
        lslocks_is_there: machine.lslocks.is_some(),
    };
    let idle = bench.idle()?;
    let unseen = bench.unseen()?;
    let one_file = bench.one_file()?;
    let pairs = bench.disturbance()?;
    let cells = bench.cells()?;
    let goals = goals::all(&Measured {
        cells: &cells,
        one_file: &one_file,
        idle: &idle,
        unseen: &unseen,
        pairs: &pairs,
    });
    let load_after = machine::load()?;
    Ok(Results { machine, load_after, cells, one_file, idle, unseen, pairs, goals })
}
