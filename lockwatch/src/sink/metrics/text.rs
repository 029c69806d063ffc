//! The two text formats: families, samples, numbers, escapes.
//!
//! Knows no metric.

use std::fmt::Write as _;

use super::buckets::{BOUNDS, Buckets};

const NANOS: f64 = 1e9;

/// A format of exposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Prometheus,
}

impl Format {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The type of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge that is 1, for its labels.
    Info,
}

/// Text that grows.
pub(super) struct Text {
    out: String,
    format: Format,
}

/// A family that is being written.
pub(super) struct Family<'a> {
    text: &'a mut Text,
    name: &'static str,
    kind: Kind,
}

/// A label.
pub(super) type Label<'a> = (&'a str, &'a str);

impl Text {
    pub(super) fn new(format: Format) -> Self {
        Self { out: String::with_capacity(32 << 10), format }
    }

    /// Begins a family; `name` is without `_total` and `_info`. A name that ends in `_seconds` has
    /// that as its unit.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let open = self.format == Format::OpenMetrics;
        let (kind_name, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
            Kind::Histogram => ("histogram", ""),
            Kind::Info if open => ("info", "_info"),
            Kind::Info => ("gauge", "_info"),
        };
        // In OpenMetrics the family is named without the suffix of its samples.
        let suffix = if open { "" } else { suffix };
        let _ = writeln!(self.out, "# HELP {name}{suffix} {help}");
        let _ = writeln!(self.out, "# TYPE {name}{suffix} {kind_name}");
        if open && name.ends_with("_seconds") {
            let _ = writeln!(self.out, "# UNIT {name} seconds");
        }
        Family { text: self, name, kind }
    }

    /// The whole text.
    pub(super) fn end(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[Label<'_>],
        value: &dyn std::fmt::Display,
    ) {
        self.out.push_str(name);
        self.out.push_str(suffix);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.out.push(if at == 0 { '{' } else { ',' });
            let _ = write!(self.out, "{label}=\"");
            escape(&mut self.out, text);
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

impl Family<'_> {
    /// A whole number.
    pub(super) fn number(&mut self, labels: &[Label<'_>], value: u64) -> &mut Self {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.text.line(self.name, suffix, labels, &value);
        self
    }

    /// Nanoseconds, written as seconds.
    pub(super) fn seconds(&mut self, labels: &[Label<'_>], nanos: u64) -> &mut Self {
        self.text.line(self.name, "", labels, &Seconds(nanos));
        self
    }

    /// A histogram.
    pub(super) fn histogram(&mut self, labels: &[Label<'_>], buckets: &Buckets) -> &mut Self {
        let count = buckets.count();
        let mut bucket = |bound: &str, count: u64| {
            let mut labels = labels.to_vec();
            labels.push(("le", bound));
            self.text.line(self.name, "_bucket", &labels, &count);
        };
        for power in BOUNDS {
            bucket(&bound(1 << power), buckets.below(power));
        }
        bucket("+Inf", count);
        self.text.line(self.name, "_sum", labels, &Seconds(buckets.sum));
        self.text.line(self.name, "_count", labels, &count);
        self
    }
}

/// A bound in seconds, as Go writes a float: Prometheus compares the labels of some versions as
/// text, and others bring them into this form.
fn bound(nanos: u64) -> String {
    let seconds = nanos as f64 / NANOS;
    if seconds >= 1e-4 {
        return format!("{seconds:?}");
    }
    let text = format!("{seconds:e}");
    match text.split_once("e-") {
        Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
        None => text,
    }
}

/// Nanoseconds as decimal seconds, exactly.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NANOS: u64 = 1_000_000_000;
        write!(f, "{}.{:09}", self.0 / NANOS, self.0 % NANOS)
    }
}

fn escape(out: &mut String, text: &str) {
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            char => out.push(char),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_written_as_go_writes_floats() {
        assert_eq!(bound(1 << 10), "1.024e-06");
        assert_eq!(bound(1 << 16), "6.5536e-05");
        assert_eq!(bound(1 << 18), "0.000262144");
        assert_eq!(bound(1 << 30), "1.073741824");
        assert_eq!(bound(64_000_000_000), "64.0");
    }

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut text = Text::new(Format::Prometheus);
        text.family("a", Kind::Gauge, "h").number(&[("x", "1\"}\n\\")], 1);
        assert_eq!(text.end(), "# HELP a h\n# TYPE a gauge\na{x=\"1\\\"}\\n\\\\\"} 1\n");
    }

    #[test]
    fn counters_and_infos_are_named_as_each_format_wants() {
        let of = |format| {
            let mut text = Text::new(format);
            text.family("c", Kind::Counter, "h").number(&[], 2);
            text.family("b", Kind::Info, "h").number(&[("v", "1")], 1);
            text.family("t_seconds", Kind::Gauge, "h").seconds(&[], 1_500_000_000);
            text.end()
        };
        assert_eq!(
            of(Format::OpenMetrics),
            "# HELP c h\n# TYPE c counter\nc_total 2\n# HELP b h\n# TYPE b info\n\
             b_info{v=\"1\"} 1\n# HELP t_seconds h\n# TYPE t_seconds gauge\n\
             # UNIT t_seconds seconds\nt_seconds 1.500000000\n# EOF\n"
        );
        assert_eq!(
            of(Format::Prometheus),
            "# HELP c_total h\n# TYPE c_total counter\nc_total 2\n# HELP b_info h\n\
             # TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP t_seconds h\n\
             # TYPE t_seconds gauge\nt_seconds 1.500000000\n"
        );
    }
}
