//! `lockwatch explain FILE`: who holds it, how it came to that, what would release it.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write as _};

use crate::failure::{EXIT_CLEAR, EXIT_FINDINGS};
use crate::look::{Choice, look};
use crate::machine;
use crate::sink::escape::Escaped;
use crate::sink::{Report, explain, json};
use crate::target::Targets;

/// Runs the verb.
///
/// # Errors
/// Where the file is not there, or the source cannot be read.
pub fn run(file: &OsString, source: Choice, as_json: bool) -> anyhow::Result<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    let targets = Targets::file(file)?;
    let seen = look(source, &targets.handles)?;
    let asked = targets.select(&seen.view, &seen.files)?;
    let (host, kernel) = machine::names();
    let report = Report {
        view: &seen.view,
        asked: &asked,
        listed: &asked,
        host: &host,
        kernel: &kernel,
        source: seen.source,
        clock: seen.clock,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if as_json {
        json::write(&mut out, &report)?;
    } else {
        if asked.is_empty() {
            let sight = if seen.view.has_every_lock() { "" } else { ", as far as could be seen" };
            writeln!(out, "{}: no lock{sight}", Escaped(file.as_bytes()))?;
        }
        for (index, &place) in asked.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            explain::write(&mut out, &report, &seen.view.locks[place as usize])?;
        }
        for limit in &seen.view.snapshot.limits {
            writeln!(out, "Limit: {limit}.")?;
        }
    }
    out.flush()?;
    Ok(if report.orphaned() > 0 { EXIT_FINDINGS } else { EXIT_CLEAR })
}
