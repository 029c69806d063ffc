//! Tables of text, for a terminal or as Markdown, and figures as a human reads them.
//!
//! Knows nothing of what the figures are about.

use std::fmt::Write;

/// How tables are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Markdown,
}

/// A title, columns and rows. The first column is text, the others are figures.
pub(super) struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// Adds a row. Cells that it lacks are empty.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Adds a sentence below the rows.
    pub(super) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The whole table as text that ends with a blank line.
    pub(super) fn text(&self, style: Style) -> String {
        let mut text = String::new();
        let heading = if style == Style::Markdown { "### " } else { "" };
        let _ = write!(text, "{heading}{}\n\n", self.title);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                let cells = self.rows.iter().chain([&self.columns]).map(|row| &row[at]);
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        text += &line(&self.columns, &widths, style);
        if style == Style::Markdown {
            let rules = widths.iter().enumerate().map(|(at, width)| {
                let rule = "-".repeat(width.saturating_sub(usize::from(at > 0)).max(2));
                if at == 0 { rule } else { rule + ":" }
            });
            text += &line(&rules.collect::<Vec<_>>(), &widths, style);
        }
        for row in &self.rows {
            text += &line(row, &widths, style);
        }
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let bullet = if style == Style::Markdown { "- " } else { "  " };
            let _ = writeln!(text, "{bullet}{note}");
        }
        text.push('\n');
        text
    }
}

fn line(cells: &[String], widths: &[usize], style: Style) -> String {
    let padded = cells.iter().zip(widths).enumerate().map(|(at, (cell, &width))| {
        if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    let padded: Vec<String> = padded.collect();
    match style {
        Style::Plain => format!("{}\n", padded.join("  ").trim_end()),
        Style::Markdown => format!("| {} |\n", padded.join(" | ")),
    }
}

/// A time, with three figures that mean something.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2} s"),
        s => format!("{s:.1} s"),
    }
}

/// How many times as much.
pub(super) fn times(ratio: f64) -> String {
    match ratio {
        r if r < 10.0 => format!("{r:.2}×"),
        r if r < 100.0 => format!("{r:.1}×"),
        r => format!("{r:.0}×"),
    }
}

/// Bytes in MB.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.0} MB", bytes as f64 / 1e6)
}

/// A whole number with its thousands apart.
pub(super) fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("Times", &["locks", "bpf", "µs"]);
        table.row(["1,000".to_owned(), "5 ms".to_owned(), "1×".to_owned()]);
        table.row(["10".to_owned(), "123 ms".to_owned()]);
        table.note("a note");
        table
    }

    #[test]
    fn plain_columns_stand_below_each_other() {
        let wanted = "Times\n\nlocks     bpf  µs\n1,000    5 ms  1×\n10     123 ms\n\n  a note\n\n";
        assert_eq!(table().text(Style::Plain), wanted);
    }

    #[test]
    fn markdown_aligns_figures_right() {
        let text = table().text(Style::Markdown);
        assert!(text.starts_with("### Times\n\n| locks |    bpf | µs |\n"), "{text}");
        assert!(text.contains("\n| ----- | -----: | --: |\n"), "{text}");
        assert!(text.ends_with("|\n\n- a note\n\n"), "{text}");
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(time(0.000_012), "12 µs");
        assert_eq!(time(0.0567), "56.7 ms");
        assert_eq!(time(0.2345), "234 ms");
        assert_eq!(time(1.234), "1.23 s");
        assert_eq!(time(51.26), "51.3 s");
        assert_eq!(times(1.234), "1.23×");
        assert_eq!(times(311.7), "312×");
        assert_eq!(count(100_000), "100,000");
        assert_eq!(count(20), "20");
        assert_eq!(megabytes(34_200_000), "34 MB");
    }
}
