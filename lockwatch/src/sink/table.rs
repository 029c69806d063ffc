//! Rows of columns, for people and, with `--raw`, for scripts.
//!
//! Refuses to cut anything off: a line is as long as it needs to be.

use std::io;

use super::Report;
use super::columns::{Column, Row};

/// How a table is laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Leave out the headings.
    pub no_headings: bool,
    /// One blank between cells, none within; blanks are written `\x20`.
    pub raw: bool,
    /// Colour, for a terminal.
    pub colour: bool,
}

const RED: &str = "\x1b[1;31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Writes the table.
///
/// # Errors
/// Those of `out`.
pub fn write(
    out: &mut impl io::Write,
    report: &Report<'_>,
    columns: &[&Column],
    layout: Layout,
) -> io::Result<()> {
    let mut rows: Vec<(bool, Vec<String>)> = Vec::new();
    for row in rows_of(report) {
        let hot = matches!(row, Row::Lock(lock) if super::labels::is_finding(lock));
        let cells = columns.iter().map(|column| {
            let cell = column.cell(report, row, layout.raw);
            let cell = cell.filter(|cell| !cell.is_empty()).unwrap_or_else(|| "-".into());
            if layout.raw { cell.replace(' ', "\\x20") } else { cell }
        });
        rows.push((hot, cells.collect()));
    }
    let headings = (!layout.no_headings)
        .then(|| columns.iter().map(|column| column.name.to_owned()).collect::<Vec<_>>());
    if headings.is_some() && rows.is_empty() && !layout.raw {
        return Ok(());
    }
    let mut widths = vec![0; columns.len()];
    if !layout.raw {
        for cells in headings.iter().chain(rows.iter().map(|(_, cells)| cells)) {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }
    if let Some(headings) = headings {
        line(out, &headings, columns, &widths, "")?;
    }
    for (hot, cells) in rows {
        line(out, &cells, columns, &widths, if hot && layout.colour { RED } else { "" })?;
    }
    Ok(())
}

/// Writes the one line that ends a scan for people.
///
/// # Errors
/// Those of `out`.
pub fn summary(out: &mut impl io::Write, report: &Report<'_>, colour: bool) -> io::Result<()> {
    let (locks, orphaned) = (report.asked.len(), report.orphaned());
    let (before, after) = match (colour, orphaned) {
        (false, _) => ("", ""),
        (true, 0) => (GREEN, PLAIN),
        (true, _) => (RED, PLAIN),
    };
    match orphaned {
        0 => writeln!(out, "{before}ALL CLEAR ({locks} locks){after}"),
        _ => writeln!(out, "{before}HOT: {orphaned} orphaned of {locks} locks{after}"),
    }
}

/// The listed locks, each followed by the requests that wait for it first of all.
fn rows_of<'a>(report: &'a Report<'a>) -> impl Iterator<Item = Row<'a>> {
    report.listed.iter().flat_map(move |&place| {
        let lock = &report.view.locks[place as usize];
        let first = move |waiter: &&u32| {
            let blockers = &report.view.blockers[**waiter as usize];
            blockers.iter().find(|blocker| report.listed.binary_search(blocker).is_ok())
                == Some(&place)
        };
        let waiters = report
            .view
            .waiters(lock)
            .iter()
            .filter(first)
            .map(move |&waiter| Row::Waiter(lock, waiter));
        std::iter::once(Row::Lock(lock)).chain(waiters)
    })
}

fn line(
    out: &mut impl io::Write,
    cells: &[String],
    columns: &[&Column],
    widths: &[usize],
    colour: &str,
) -> io::Result<()> {
    out.write_all(colour.as_bytes())?;
    for (index, ((cell, column), width)) in cells.iter().zip(columns).zip(widths).enumerate() {
        if index > 0 {
            out.write_all(b" ")?;
        }
        let fill = width.saturating_sub(cell.chars().count());
        let last = index + 1 == cells.len();
        let (before, after) =
            if column.right { (fill, 0) } else { (0, if last { 0 } else { fill }) };
        write!(out, "{:before$}{cell}{:after$}", "", "")?;
    }
    if !colour.is_empty() {
        out.write_all(PLAIN.as_bytes())?;
    }
    out.write_all(b"\n")
}
