//! `lockwatch scan`: every lock on this machine, or those on the targets.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::engine::classify::State;
use crate::failure::{EXIT_CLEAR, EXIT_FINDINGS, EXIT_INTERRUPTED};
use crate::look::{Choice, Look, look};
use crate::machine;
use crate::sink::columns::Column;
use crate::sink::table::Layout;
use crate::sink::{Report, json, table};
use crate::target::Targets;

/// What to scan, and how to show it.
#[derive(Debug)]
pub struct Scan {
    /// What was asked about; everything where it is empty.
    pub targets: Vec<OsString>,
    /// The source.
    pub source: Choice,
    /// List locks in these states alone; in every state where it is empty.
    pub only: Vec<State>,
    /// How to show it.
    pub output: Output,
    /// Scan again after so long, until interrupted.
    pub watch: Option<Duration>,
}

/// The form of the report.
#[derive(Debug)]
pub enum Output {
    /// One JSON document a scan.
    Json,
    /// A table.
    Table(Vec<&'static Column>, Layout),
}

/// Room for what is written between two system calls, bytes.
const BUFFER: usize = 256 * 1024;
const CLEAR_SCREEN: &[u8] = b"\x1b[H\x1b[2J";

/// Runs the verb.
///
/// # Errors
/// Where the source cannot be read, a target names nothing, or the output cannot be written.
pub fn run(scan: &Scan) -> anyhow::Result<u8> {
    let Some(pause) = scan.watch else { return once(scan, false) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .enable_io()
        .build()
        .context("scan: starting the timer")?;
    runtime.block_on(async {
        let clear = matches!(scan.output, Output::Table(..)) && io::stdout().is_terminal();
        let mut interrupted = signal(SignalKind::interrupt()).context("scan: catching SIGINT")?;
        loop {
            once(scan, clear)?;
            if timeout(pause, interrupted.recv()).await.is_ok() {
                return Ok(EXIT_INTERRUPTED);
            }
        }
    })
}

fn once(scan: &Scan, clear: bool) -> anyhow::Result<u8> {
    let targets = Targets::parse(scan.targets.iter().map(OsString::as_os_str))?;
    let Look { view, source, clock, files } = look(scan.source, &targets.handles)?;
    let asked = targets.select(&view, &files)?;
    let listed: Vec<u32> = asked
        .iter()
        .copied()
        .filter(|&place| {
            scan.only.is_empty() || scan.only.contains(&view.locks[place as usize].verdict.state)
        })
        .collect();
    let (host, kernel) = machine::names();
    let report = Report {
        view: &view,
        asked: &asked,
        listed: &listed,
        host: &host,
        kernel: &kernel,
        source,
        clock,
    };
    // Standard output proper would look for the end of a line in every byte of it.
    let stdout = io::stdout().as_fd().try_clone_to_owned().context("scan: standard output")?;
    let mut out = BufWriter::with_capacity(BUFFER, File::from(stdout));
    if clear {
        out.write_all(CLEAR_SCREEN)?;
    }
    match &scan.output {
        Output::Json => json::write(&mut out, &report)?,
        Output::Table(columns, layout) => {
            table::write(&mut out, &report, columns, *layout)?;
            if !layout.raw && !layout.no_headings {
                table::summary(&mut out, &report, layout.colour)?;
            }
        }
    }
    out.flush()?;
    if matches!(scan.output, Output::Table(..)) {
        for limit in report.view.gaps() {
            crate::failure::tell(format_args!("not complete: {limit}"));
        }
    }
    let code = if report.orphaned() > 0 { EXIT_FINDINGS } else { EXIT_CLEAR };
    if scan.watch.is_none() {
        // The process ends: the kernel takes a hundred thousand small pieces back at once.
        std::mem::forget(view);
    }
    Ok(code)
}
