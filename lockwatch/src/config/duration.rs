//! Spans of time as the configuration writes them: `250ms`, `2s`, `1h 30m`.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, de};

/// For `#[serde(with)]`.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text)
        .map_err(|error| de::Error::custom(format!("{text:?}: {error}; write it as `250ms`")))
}

/// Refuses a span out of its range.
pub(super) fn within(
    key: &str,
    value: Duration,
    (least, most): (Duration, Duration),
) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let [value, least, most] = [value, least, most].map(humantime::format_duration);
    Err(format!("{key}: {value}: between {least} and {most}"))
}
