//! `lockwatch replay`: a recorded trace once more through the same engine.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::engine::input::Output;
use crate::engine::machine::Engine;
use crate::failure::{self, EXIT_CLEAR};
use crate::sink::events;
use crate::source::trace::{Reader, TraceError};

/// What to replay.
#[derive(Debug)]
pub struct Replay {
    /// The trace; `-` is stdin.
    pub trace: PathBuf,
    /// Whether events are written as JSON.
    pub json: bool,
}

/// Runs the verb: writes the trace's events.
///
/// # Errors
/// Where the trace cannot be read or understood, or the output cannot be written. The events before
/// the line in question are written all the same.
pub fn run(replay: &Replay) -> anyhow::Result<u8> {
    let out = BufWriter::new(io::stdout().lock());
    let shown = replay.trace.display();
    if replay.trace == Path::new("-") {
        tell(io::stdin().lock(), out, replay.json).context("replay: stdin")
    } else {
        let file = File::open(&replay.trace).with_context(|| format!("replay: {shown}"))?;
        tell(BufReader::new(file), out, replay.json).with_context(|| format!("replay: {shown}"))
    }
}

fn tell(from: impl BufRead, mut out: impl Write, json: bool) -> anyhow::Result<u8> {
    let trace = Reader::new(from)?;
    let mut engine = Engine::new(trace.settings().clone());
    for read in trace {
        let (at, input) = match read {
            Ok(read) => read,
            Err(error) => {
                out.flush()?;
                // A recorder that was killed leaves half a line: what it wrote before is whole.
                if matches!(error, TraceError::Cut { .. }) {
                    failure::tell(format_args!("replay: {error}; it was left out"));
                    return Ok(EXIT_CLEAR);
                }
                return Err(error.into());
            }
        };
        for output in engine.step(at, input) {
            if let Output::Event(event) = output {
                if json {
                    events::write_json(&mut out, &event)?;
                } else {
                    events::write_sentence(&mut out, &event)?;
                }
            }
        }
    }
    out.flush()?;
    Ok(EXIT_CLEAR)
}

#[cfg(test)]
mod tests;
