//! Traces: every input of an engine with its moment, one JSON object a line.
//!
//! Refuses to write a kernel pointer, and to read a line that it does not understand to the last
//! field: a replay that left something out would tell something else.
//!
//! The first line states the version of the format and the settings of the engine.

mod mask;

use std::io::{self, BufRead, Write};

use mask::Mask;
use serde::{Deserialize, Serialize};

use crate::engine::input::{Input, Misfit, Moment, Settings};

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// No line is longer: a reading of a million locks is not.
const LONGEST: u64 = 1 << 30;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    lockwatch_trace: u32,
    /// The lockwatch that wrote it.
    version: String,
    settings: Settings,
}

#[derive(Serialize)]
struct Written<'a> {
    at: Moment,
    input: &'a Input,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    at: Moment,
    input: Input,
}

/// Writes a trace.
pub struct Writer<W> {
    out: W,
    mask: Mask,
}

impl<W: Write> Writer<W> {
    /// Begins a trace. `secret` hides the kernel's pointers: it must not be known to whoever reads
    /// the trace, and nobody needs it later.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(out: W, secret: &[u8; 16], version: &str, settings: &Settings) -> io::Result<Self> {
        let mut writer = Self { out, mask: Mask::new(secret) };
        writer.line(&Header {
            lockwatch_trace: VERSION,
            version: version.to_owned(),
            settings: settings.clone(),
        })?;
        Ok(writer)
    }

    /// Writes an input, before the engine is given it.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write(&mut self, at: Moment, input: &Input) -> io::Result<()> {
        let masked = self.mask.masked(input);
        self.line(&Written { at, input: masked.as_ref().unwrap_or(input) })
    }

    /// Hands on what is buffered.
    ///
    /// # Errors
    /// Those of the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

/// Why a trace cannot be read. Lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The bytes could not be had.
    #[error("line {line}: {source}")]
    Io {
        /// Where.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// The first line is none of a trace's.
    #[error("line 1: not the beginning of a lockwatch trace: {why}")]
    NoTrace {
        /// What is wrong with it.
        why: String,
    },
    /// Written in another format.
    #[error("line 1: a trace of version {found}; this lockwatch reads version {VERSION}")]
    Version {
        /// The version that it states.
        found: u64,
    },
    /// A line that is no input.
    #[error("line {line}: {why}")]
    Line {
        /// Where.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A reading whose parts do not fit together.
    #[error("line {line}: a reading that does not fit together: {why}")]
    Misfit {
        /// Where.
        line: u64,
        /// What is wrong with it.
        why: Misfit,
    },
    /// The last line was not written to its end.
    #[error("line {line}: cut off before its end")]
    Cut {
        /// Where.
        line: u64,
    },
}

/// Reads a trace: an iterator over its inputs, which ends with the first error.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    settings: Settings,
    line: u64,
    ended: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// Where it cannot be read, or is none of a trace of this version.
    pub fn new(mut from: R) -> Result<Self, TraceError> {
        let mut line = Vec::new();
        next_line(&mut from, 1, &mut line)?;
        let no_trace = |why: String| TraceError::NoTrace { why };
        if line.is_empty() {
            return Err(no_trace("it is empty".into()));
        }
        // The version first: another one may have other fields.
        let whole: serde_json::Value =
            serde_json::from_slice(&line).map_err(|error| no_trace(reason(&error)))?;
        let found = whole.get("lockwatch_trace").and_then(serde_json::Value::as_u64);
        let found = found.ok_or_else(|| no_trace("it has no number `lockwatch_trace`".into()))?;
        if found != u64::from(VERSION) {
            return Err(TraceError::Version { found });
        }
        let header: Header =
            serde_json::from_slice(&line).map_err(|error| no_trace(reason(&error)))?;
        Ok(Self { from, settings: header.settings, line: 1, ended: false })
    }

    /// The settings of the engine that was recorded.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn read(&mut self) -> Result<Option<(Moment, Input)>, TraceError> {
        let mut text = Vec::new();
        let line = self.line + 1;
        next_line(&mut self.from, line, &mut text)?;
        if text.is_empty() {
            return Ok(None);
        }
        self.line = line;
        let whole = text.ends_with(b"\n");
        let Read { at, input } = match serde_json::from_slice(&text) {
            Ok(read) => read,
            Err(_) if !whole => return Err(TraceError::Cut { line }),
            Err(error) => return Err(TraceError::Line { line, why: reason(&error) }),
        };
        if let Input::Reading(reading) = &input {
            reading.check().map_err(|why| TraceError::Misfit { line, why })?;
        }
        Ok(Some((at, input)))
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<(Moment, Input), TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

fn next_line(from: &mut impl BufRead, line: u64, text: &mut Vec<u8>) -> Result<(), TraceError> {
    let read = io::Read::take(from, LONGEST).read_until(b'\n', text);
    match read {
        Ok(length) if length as u64 == LONGEST && !text.ends_with(b"\n") => {
            Err(TraceError::Line { line, why: format!("longer than {LONGEST} bytes") })
        }
        Ok(_) => Ok(()),
        Err(source) => Err(TraceError::Io { line, source }),
    }
}

/// What serde says, with the column in place of its own count of lines.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(text) => format!("column {}: {text}", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests;
