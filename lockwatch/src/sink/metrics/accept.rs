//! Content negotiation: which format a scraper wants.
//!
//! Total: any header gives a format, never an error, because a scraper that asks for nothing we
//! have is served better with text than with a refusal.

use super::text::Format;

/// The format for the value of an `Accept` header (RFC 9110, 12.5.1). OpenMetrics only where it is
/// named and not wanted less than plain text; 1.0.0 only.
pub fn negotiate(accept: Option<&str>) -> Format {
    let mut open = 0.0;
    let mut plain = 0.0f32;
    for range in accept.unwrap_or_default().split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (1.0f32, None);
        for part in parts {
            match part.split_once('=') {
                Some(("q" | "Q", value)) => quality = value.trim().parse().unwrap_or(0.0),
                Some(("version", value)) => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        if !(0.0..=1.0).contains(&quality) {
            quality = 0.0;
        }
        match media.as_str() {
            "application/openmetrics-text" if version.is_none_or(|version| version == "1.0.0") => {
                open = quality.max(open);
            }
            "text/plain" => plain = quality.max(plain),
            _ => {}
        }
    }
    if open > 0.0 && open >= plain { Format::OpenMetrics } else { Format::Prometheus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn gives(accept: &str, format: Format) {
        assert_eq!(negotiate(Some(accept)), format, "{accept}");
    }

    #[test]
    fn what_prometheus_sends_gives_openmetrics() {
        gives(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
             version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Format::OpenMetrics,
        );
        gives(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            Format::OpenMetrics,
        );
    }

    #[test]
    fn who_asks_for_text_or_for_nothing_known_gets_text() {
        assert_eq!(negotiate(None), Format::Prometheus);
        gives("", Format::Prometheus);
        gives("*/*", Format::Prometheus);
        gives("text/plain", Format::Prometheus);
        gives("application/vnd.google.protobuf;q=0.7", Format::Prometheus);
        gives("application/openmetrics-text;version=2.0.0", Format::Prometheus);
    }

    #[test]
    fn qualities_decide_and_zero_refuses() {
        gives("application/openmetrics-text;q=0.4, text/plain;q=0.9", Format::Prometheus);
        gives("application/openmetrics-text;q=0, text/plain", Format::Prometheus);
        gives("application/openmetrics-text;q=x", Format::Prometheus);
        gives("Application/OpenMetrics-Text; version=\"1.0.0\"", Format::OpenMetrics);
    }
}
