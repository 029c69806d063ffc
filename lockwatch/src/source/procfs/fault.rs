//! What was wrong with a text of `/proc`: the file, the line and the part that offends.
//!
//! Refuses to decide what a fault means for the snapshot: that is its caller's business.

use std::fmt;

/// A part of a line that is not what the kernel prints there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} expected, found {found}")]
pub struct BadPart {
    /// What belongs there.
    pub wanted: &'static str,
    /// What is there, escaped and cut to a length that fits into a message.
    pub found: String,
}

impl BadPart {
    /// Longest piece of an offending part that is quoted, in bytes.
    const QUOTED: usize = 48;

    pub(super) fn new(wanted: &'static str, found: &[u8]) -> Self {
        let quoted = &found[..found.len().min(Self::QUOTED)];
        let more = if quoted.len() < found.len() { "…" } else { "" };
        let found = if found.is_empty() {
            "nothing".to_owned()
        } else {
            format!("\"{}{more}\"", quoted.escape_ascii())
        };
        Self { wanted, found }
    }
}

/// A [`BadPart`] with the place where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct BadLine {
    /// The file, relative to the root of `/proc`.
    pub file: String,
    /// Number of the line, from 1.
    pub line: usize,
    /// The part that offends.
    #[source]
    pub part: BadPart,
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} line {}: {}", self.file, self.line, self.part)
    }
}

/// Digits of the given radix, and nothing else: no sign, no blank, no overflow.
pub(super) fn number(text: &[u8], radix: u32, wanted: &'static str) -> Result<u64, BadPart> {
    let bad = || BadPart::new(wanted, text);
    if text.is_empty() {
        return Err(bad());
    }
    let mut value: u64 = 0;
    for &byte in text {
        let digit = char::from(byte).to_digit(radix).ok_or_else(bad)?;
        value = value
            .checked_mul(u64::from(radix))
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or_else(bad)?;
    }
    Ok(value)
}

/// A decimal number with an optional minus, as `%d` prints it.
pub(super) fn signed(text: &[u8], wanted: &'static str) -> Result<i32, BadPart> {
    let bad = || BadPart::new(wanted, text);
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let magnitude = i64::try_from(number(digits, 10, wanted).map_err(|_| bad())?);
    let value = magnitude.map_err(|_| bad())?;
    i32::try_from(if negative { -value } else { value }).map_err(|_| bad())
}
