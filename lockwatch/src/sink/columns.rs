//! The columns of a scan: one table for help, selection and output.
//!
//! Refuses to lay anything out: a cell is a string.

use std::fmt::Write as _;

use super::escape::Escaped;
use super::{Report, labels};
use crate::engine::identity::{LockKind, RecordedPid};
use crate::engine::view::LockView;

/// One row: a granted lock, or a request that waits for it.
#[derive(Clone, Copy)]
pub enum Row<'a> {
    /// A granted lock.
    Lock(&'a LockView),
    /// A queued request (its place in the snapshot), under the first lock that blocks it.
    Waiter(&'a LockView, u32),
}

/// A column.
#[derive(Debug)]
pub struct Column {
    /// Its heading and the name by which it is selected.
    pub name: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// True where numbers are aligned to the right.
    pub right: bool,
    cell: fn(&Report<'_>, Row<'_>, bool) -> Option<String>,
}

impl Column {
    /// The cell of a row; `None` where the value is not known or there is none. `raw` asks for
    /// bytes instead of rounded sizes.
    pub fn cell(&self, report: &Report<'_>, row: Row<'_>, raw: bool) -> Option<String> {
        (self.cell)(report, row, raw)
    }
}

macro_rules! columns {
    ($( $name:literal, $align:ident, $help:literal, $cell:expr; )*) => {
        /// Every column.
        pub static COLUMNS: &[Column] = &[
            $( Column { name: $name, help: $help, right: columns!(@ $align), cell: $cell }, )*
        ];
    };
    (@ left) => { false };
    (@ right) => { true };
}

columns! {
    "COMMAND", left, "command of the acquirer or waiter", command;
    "PID", right, "pid of the acquirer or waiter", pid;
    "TYPE", left, "FLOCK, POSIX, OFDLCK, LEASE, DELEG or LAYOUT",
        |report, row, _| Some(kind(report, row).name().into());
    "SIZE", right, "size of the file", size;
    "MODE", left, "READ or WRITE; a star marks a request that waits", mode;
    "M", right, "mandatory locking: always 0, Linux has none since 5.15", |_, _, _| Some("0".into());
    "START", right, "first byte", |report, row, _| Some(range(report, row).start.to_string());
    "END", right, "last byte, or EOF",
        |report, row, _| Some(range(report, row).end().map_or("EOF".into(), |end| end.to_string()));
    "STATE", left, "held, shared, handed_over, orphaned, remote, unknown; or waiting", state;
    "REASON", left, "why it is orphaned",
        |_, row, _| lock_of(row)?.verdict.reason.map(|reason| reason.name().into());
    "CONFIDENCE", left, "certain, or likely where it was inferred",
        |_, row, _| Some(lock_of(row)?.verdict.confidence.name().into());
    "AGE", right, "how long it has been held, or waited for; needs the daemon's history", age;
    "ACQUIRER", left, "who took it, and whether that process lives",
        |report, row, _| Some(labels::acquirer(report.view, lock_of(row)?));
    "HOLDERS", left, "what keeps it alive: PID,COMMAND,FD of each", holders;
    "WAITERS", right, "how many requests wait for it",
        |report, row, _| Some(report.view.waiters(lock_of(row)?).len().to_string());
    "BLOCKER", left, "pids of all that a request waits for", blocker;
    "INODE", right, "inode number", |report, row, _| Some(file(report, row).ino.to_string());
    "MAJ:MIN", left, "device of the file", |report, row, _| {
        let dev = file(report, row).dev;
        Some(format!("{}:{}", dev.major(), dev.minor()))
    };
    "CGROUP", left, "control group of the acquirer",
        |report, row, _| {
            let process = report.view.acquirer(lock_of(row)?)?;
            Some(Escaped(process.cgroup.as_deref()?).to_string())
        };
    "ID", left, "id of the lock", |_, row, _| Some(lock_of(row)?.id.to_string());
    "PATH", left, "path by which the file was opened",
        |report, row, _| Some(labels::path(report.view, parent(row)));
}

/// The columns of a scan that does not choose.
pub const DEFAULT: &[&str] =
    &["COMMAND", "PID", "TYPE", "MODE", "START", "END", "STATE", "REASON", "HOLDERS", "PATH"];

/// A choice that names no column.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChoiceError {
    /// Not a column.
    #[error("unknown column {name:?}; known are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Nothing at all.
    #[error("an empty list of columns")]
    Empty,
}

/// The columns of `-o LIST`; a list that begins with `+` adds to the default.
///
/// # Errors
/// Names what is no column.
pub fn choose(list: &str) -> Result<Vec<&'static Column>, ChoiceError> {
    let (mut chosen, list) = match list.strip_prefix('+') {
        Some(more) => (default_columns(), more),
        None => (Vec::new(), list),
    };
    for name in list.split(',') {
        let name = name.trim();
        if name.is_empty() {
            return Err(ChoiceError::Empty);
        }
        let column = COLUMNS.iter().find(|column| column.name.eq_ignore_ascii_case(name));
        chosen.push(column.ok_or_else(|| ChoiceError::Unknown {
            name: name.into(),
            known: COLUMNS.iter().map(|column| column.name).collect::<Vec<_>>().join(","),
        })?);
    }
    Ok(chosen)
}

/// The columns of a scan that does not choose.
pub fn default_columns() -> Vec<&'static Column> {
    DEFAULT.iter().filter_map(|name| COLUMNS.iter().find(|column| column.name == *name)).collect()
}

fn parent(row: Row<'_>) -> &LockView {
    match row {
        Row::Lock(lock) | Row::Waiter(lock, _) => lock,
    }
}

fn age(report: &Report<'_>, row: Row<'_>, _: bool) -> Option<String> {
    let view = report.view;
    let since = match row {
        Row::Lock(lock) => view.lock(lock).taken.as_ref()?.at,
        Row::Waiter(_, place) => view.snapshot.waiters[place as usize].since?,
    };
    Some(report.clock.since(since).to_string().replace(' ', ""))
}

fn lock_of(row: Row<'_>) -> Option<&LockView> {
    match row {
        Row::Lock(lock) => Some(lock),
        Row::Waiter(..) => None,
    }
}

fn kind(report: &Report<'_>, row: Row<'_>) -> LockKind {
    match row {
        Row::Lock(lock) => report.view.lock(lock).kind,
        Row::Waiter(_, place) => report.view.snapshot.waiters[place as usize].kind,
    }
}

fn range(report: &Report<'_>, row: Row<'_>) -> crate::engine::identity::Range {
    match row {
        Row::Lock(lock) => report.view.lock(lock).range,
        Row::Waiter(_, place) => report.view.snapshot.waiters[place as usize].range,
    }
}

fn file<'a>(report: &'a Report<'_>, row: Row<'_>) -> &'a crate::engine::snapshot::File {
    report.view.file(parent(row))
}

fn recorded(report: &Report<'_>, row: Row<'_>) -> RecordedPid {
    match row {
        Row::Lock(lock) => report.view.lock(lock).acquirer,
        Row::Waiter(_, place) => report.view.snapshot.waiters[place as usize].requester,
    }
}

fn command(report: &Report<'_>, row: Row<'_>, _raw: bool) -> Option<String> {
    let comm = match row {
        Row::Lock(lock) => match report.view.acquirer(lock) {
            Some(process) => &process.comm,
            None => &labels::remembered(report.view, lock)?.comm,
        },
        Row::Waiter(..) => match recorded(report, row) {
            RecordedPid::Local(pid) => &report.view.process(pid)?.comm,
            _ => return None,
        },
    };
    Some(Escaped(comm).to_string())
}

fn pid(report: &Report<'_>, row: Row<'_>, _raw: bool) -> Option<String> {
    labels::recorded_pid(report.view, recorded(report, row)).map(|pid| pid.to_string())
}

fn size(report: &Report<'_>, row: Row<'_>, raw: bool) -> Option<String> {
    let size = file(report, row).size?.bytes();
    Some(if raw { size.to_string() } else { human_size(size) })
}

fn human_size(bytes: u64) -> String {
    let mut scaled = bytes as f64;
    for unit in ["B", "K", "M", "G", "T", "P"] {
        if scaled < 1024.0 {
            let whole = unit == "B" || scaled >= 100.0 || scaled.fract() < 0.05;
            return if whole { format!("{scaled:.0}{unit}") } else { format!("{scaled:.1}{unit}") };
        }
        scaled /= 1024.0;
    }
    format!("{scaled:.0}E")
}

fn mode(report: &Report<'_>, row: Row<'_>, _raw: bool) -> Option<String> {
    Some(match row {
        Row::Lock(lock) => report.view.lock(lock).access.name().into(),
        Row::Waiter(_, place) => {
            format!("{}*", report.view.snapshot.waiters[place as usize].access.name())
        }
    })
}

fn state(_: &Report<'_>, row: Row<'_>, _raw: bool) -> Option<String> {
    Some(match row {
        Row::Lock(lock) => lock.verdict.state.name().into(),
        Row::Waiter(..) => "waiting".into(),
    })
}

fn holders(report: &Report<'_>, row: Row<'_>, _raw: bool) -> Option<String> {
    let view = report.view;
    let mut text = String::new();
    for holding in view.holdings(lock_of(row)?) {
        if !text.is_empty() {
            text.push(' ');
        }
        if let Some(pid) = holding.pid {
            let _ =
                write!(text, "{},{},", labels::reader_pid(view, pid), labels::command(view, pid));
        }
        // The descriptor of a place is another file's.
        let _ = match holding.fd.filter(|_| holding.place.is_none()) {
            Some(fd) => write!(text, "{fd}"),
            None => write!(text, "{}", holding.via.name()),
        };
    }
    (!text.is_empty()).then_some(text)
}

fn blocker(report: &Report<'_>, row: Row<'_>, _raw: bool) -> Option<String> {
    let Row::Waiter(_, place) = row else { return None };
    let view = report.view;
    let mut pids: Vec<String> = Vec::new();
    for &blocker in &view.blockers[place as usize] {
        let lock = &view.locks[blocker as usize];
        let pid = labels::recorded_pid(view, view.lock(lock).acquirer);
        let text = pid.map_or_else(|| lock.id.to_string(), |pid| pid.to_string());
        if !pids.contains(&text) {
            pids.push(text);
        }
    }
    (!pids.is_empty()).then(|| pids.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &str) -> Vec<&'static str> {
        choose(list).expect("a valid choice").iter().map(|column| column.name).collect()
    }

    #[test]
    fn a_choice_replaces_the_default_and_a_plus_adds_to_it() {
        assert_eq!(names("pid,PATH"), ["PID", "PATH"]);
        assert_eq!(names("+ID").last(), Some(&"ID"));
        assert_eq!(names("+ID").len(), DEFAULT.len() + 1);
        assert_eq!(default_columns().len(), DEFAULT.len(), "every default column exists");
    }

    #[test]
    fn what_is_no_column_is_named_beside_what_is() {
        let error = choose("PID,NOPE").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("\"NOPE\"") && error.contains("MAJ:MIN"), "{error}");
        assert_eq!(choose("").err(), Some(ChoiceError::Empty));
    }

    #[test]
    fn sizes_are_rounded_as_lslocks_rounds_them() {
        let sizes = [0, 412, 1024, 5018, 1 << 20, 1536 << 20].map(human_size);
        assert_eq!(sizes, ["0B", "412B", "1K", "4.9K", "1M", "1.5G"]);
    }
}
