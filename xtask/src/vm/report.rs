//! The matrix as text, as JSON and as the README's support table. Pure but for the README.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::verdict::{Outcome, Test, Verdict};
use crate::tally::Tally;

/// One column of the matrix.
#[derive(Debug, Serialize)]
pub(crate) struct Column {
    /// The base version, or `host`.
    pub(crate) kernel: String,
    /// Where the kernel comes from; empty if it could not be had.
    pub(crate) origin: String,
    pub(crate) seconds: f64,
    /// Why it was booted again, each time.
    pub(crate) booted_again: Vec<String>,
    pub(crate) verdict: Verdict,
}

impl Column {
    fn test(&self, name: &str) -> Option<&Test> {
        match &self.verdict {
            Verdict::Ran { tests, .. } => tests.iter().find(|test| test.name == name),
            _ => None,
        }
    }

    fn count(&self, outcome: Outcome) -> usize {
        match &self.verdict {
            Verdict::Ran { tests, .. } => tests.iter().filter(|t| t.outcome == outcome).count(),
            _ => 0,
        }
    }
}

/// Tests as rows and kernels as columns; below, the reasons, by the numbers in the cells.
pub(crate) fn table(columns: &[Column]) -> String {
    let mut reasons: Vec<String> = Vec::new();
    let mut rows = vec![vec!["test".to_owned()]];
    rows[0].extend(columns.iter().map(|column| column.kernel.clone()));
    for name in names(columns) {
        let mut row = vec![name.to_owned()];
        for column in columns {
            let Some(test) = column.test(name) else {
                row.push("-".to_owned());
                continue;
            };
            let word = match test.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            if test.reason.is_empty() {
                row.push(word.to_owned());
            } else {
                row.push(format!("{word} [{}]", number(&mut reasons, &test.reason)));
            }
        }
        rows.push(row);
    }
    let mut total = vec!["total".to_owned()];
    total.extend(columns.iter().map(|column| match &column.verdict {
        Verdict::Ran { .. } if column.verdict.is_red() => "RED".to_owned(),
        Verdict::Ran { .. } => "green".to_owned(),
        Verdict::Broken { .. } => "BROKEN".to_owned(),
        Verdict::Skipped { .. } => "SKIPPED".to_owned(),
    }));
    rows.push(total);
    let mut text = aligned(&rows);
    text.push('\n');
    for (index, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "[{}] {}", index + 1, reason.replace('\n', "\n    "));
    }
    for column in columns {
        for why in &column.booted_again {
            let _ = writeln!(text, "{}: BOOTED AGAIN: {why}", column.kernel);
        }
        let _ = write!(text, "{}: ", column.kernel);
        let _ = match &column.verdict {
            Verdict::Ran { release, boot_seconds, test_seconds, .. } => writeln!(
                text,
                "{release}, {}: {} passed, {} failed, {} skipped; boot {boot_seconds:.1} s, tests \
                 {test_seconds:.1} s, in all {:.1} s",
                column.origin,
                column.count(Outcome::Passed),
                column.count(Outcome::Failed),
                column.count(Outcome::Skipped),
                column.seconds,
            ),
            Verdict::Broken { reason, console_tail } => writeln!(
                text,
                "BROKEN: {reason}\n  the end of its console:\n  | {}",
                console_tail.replace('\n', "\n  | ")
            ),
            Verdict::Skipped { reason } => writeln!(text, "SKIPPED, NOT TESTED: {reason}"),
        };
    }
    text
}

/// Each test once, in the order in which the kernels name them.
fn names(columns: &[Column]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for column in columns {
        if let Verdict::Ran { tests, .. } = &column.verdict {
            for test in tests {
                if !names.contains(&test.name.as_str()) {
                    names.push(&test.name);
                }
            }
        }
    }
    names
}

fn number(reasons: &mut Vec<String>, reason: &str) -> usize {
    if let Some(at) = reasons.iter().position(|known| known == reason) {
        return at + 1;
    }
    reasons.push(reason.to_owned());
    reasons.len()
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The counts over all columns. A kernel that broke counts as a failed test, one that was not to
/// be had as a skipped one.
pub(crate) fn tally(columns: &[Column]) -> Tally {
    let mut tally = Tally::default();
    for column in columns {
        tally.passed += column.count(Outcome::Passed) as u64;
        tally.failed += column.count(Outcome::Failed) as u64;
        tally.skipped += column.count(Outcome::Skipped) as u64;
        match &column.verdict {
            Verdict::Broken { .. } => tally.failed += 1,
            Verdict::Skipped { reason } => {
                tally.skipped += 1;
                tally.skips.push(format!("{}: SKIPPED, NOT TESTED: {reason}", column.kernel));
            }
            Verdict::Ran { tests, .. } => {
                for (reason, count) in skips(tests) {
                    tally.skips.push(format!("{}: {count} skipped: {reason}", column.kernel));
                }
            }
        }
    }
    tally
}

/// Each reason for a skip with the number of its tests.
fn skips(tests: &[Test]) -> BTreeMap<&str, usize> {
    let mut reasons = BTreeMap::new();
    for test in tests.iter().filter(|test| test.outcome == Outcome::Skipped) {
        *reasons.entry(test.reason.as_str()).or_default() += 1;
    }
    reasons
}

const BEGIN: &str =
    "<!-- support table: begin (written by `cargo xtask vm --write-support-table`) -->";
const END: &str = "<!-- support table: end -->";

/// Replaces what stands between the two marks in `file`.
pub(crate) fn write_support_table(file: &Path, columns: &[Column]) -> Result<()> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let new = with_support_table(&text, columns)
        .with_context(|| format!("cannot put the support table into {}", file.display()))?;
    fs::write(file, new).with_context(|| format!("cannot write {}", file.display()))
}

fn with_support_table(text: &str, columns: &[Column]) -> Result<String> {
    let Some((before, rest)) = text.split_once(BEGIN) else { bail!("it has no line\n{BEGIN}") };
    let Some((_, after)) = rest.split_once(END) else { bail!("it has no line\n{END}") };
    Ok(format!("{before}{BEGIN}\n{}{END}{after}", support_table(columns)))
}

fn support_table(columns: &[Column]) -> String {
    let mut text = "| kernel | tested as | passed | failed | skipped | absent capabilities |\n\
                    |---|---|--:|--:|--:|---|\n"
        .to_owned();
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for column in columns {
        let Verdict::Ran { tests, release, lacks, .. } = &column.verdict else {
            let _ = writeln!(text, "| {} | not tested | | | | |", column.kernel);
            continue;
        };
        let (name, origin) = if column.kernel == "host" {
            // The machine's own kernel has a name that says nothing elsewhere.
            let base: Vec<_> = release.split(['.', '-']).take(2).collect();
            (base.join("."), "the build machine's own")
        } else {
            (column.kernel.clone(), column.origin.as_str())
        };
        for (reason, count) in skips(tests) {
            let reason = reason.replace('|', "\\|").replace('\n', " ");
            reasons.entry(reason).or_default().push(format!("{count} on {name}"));
        }
        let lacks: Vec<_> = lacks.iter().map(|lack| lack.capability.as_str()).collect();
        let _ = writeln!(
            text,
            "| {name} | {origin} | {} | {} | {} | {} |",
            column.count(Outcome::Passed),
            column.count(Outcome::Failed),
            column.count(Outcome::Skipped),
            lacks.join(", ")
        );
    }
    if !reasons.is_empty() {
        text.push_str("\nSkipped, because the test\n\n");
    }
    for (reason, counts) in reasons {
        let _ = writeln!(text, "- {reason}: {}", counts.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Lack;
    use super::*;

    fn test(name: &str, outcome: Outcome, reason: &str) -> Test {
        Test { name: name.into(), outcome, reason: reason.into() }
    }

    fn columns() -> Vec<Column> {
        let ran = |tests| Verdict::Ran {
            release: "5.10.0-46-cloud-amd64".into(),
            boot_seconds: 5.0,
            test_seconds: 1.0,
            tests,
            lacks: vec![Lack { capability: "iter/unix".into(), why: "not in this kernel".into() }],
        };
        vec![
            Column {
                kernel: "5.10".into(),
                origin: "linux 5.10.262-1".into(),
                seconds: 7.0,
                booted_again: Vec::new(),
                verdict: ran(vec![
                    test("scan", Outcome::Passed, ""),
                    test("sockets", Outcome::Skipped, "needs iter/unix"),
                ]),
            },
            Column {
                kernel: "7.2".into(),
                origin: "linux 7.2.13-1".into(),
                seconds: 7.0,
                booted_again: Vec::new(),
                verdict: ran(vec![test("sockets", Outcome::Failed, "offset of sk")]),
            },
            Column {
                kernel: "6.1".into(),
                origin: String::new(),
                seconds: 0.0,
                booted_again: Vec::new(),
                verdict: Verdict::Skipped { reason: "no mirror".into() },
            },
        ]
    }

    #[test]
    fn the_table_has_tests_as_rows_and_reasons_below() {
        let text = table(&columns());
        let expected = "\
test     5.10         7.2         6.1
scan     passed       -           -
sockets  skipped [1]  FAILED [2]  -
total    green        RED         SKIPPED

[1] needs iter/unix
[2] offset of sk
";
        assert!(text.starts_with(expected), "{text}");
        assert!(text.contains("6.1: SKIPPED, NOT TESTED: no mirror"), "{text}");
        let tally = tally(&columns());
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 2 skipped");
        let skips = ["5.10: 1 skipped: needs iter/unix", "6.1: SKIPPED, NOT TESTED: no mirror"];
        assert_eq!(tally.skips, skips);
    }

    #[test]
    fn a_broken_kernel_counts_as_failed_and_shows_its_console() {
        let broken = Verdict::Broken { reason: "no end".into(), console_tail: "a\nb".into() };
        let column = [Column {
            kernel: "6.1".into(),
            origin: String::new(),
            seconds: 1.0,
            booted_again: vec!["the kernel panicked".into()],
            verdict: broken,
        }];
        assert!(table(&column).contains("  | a\n  | b\n"));
        assert!(table(&column).contains("6.1: BOOTED AGAIN: the kernel panicked\n"));
        assert_eq!(tally(&column).to_string(), "0 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn the_support_table_goes_between_its_marks() {
        let text = format!("# x\n{BEGIN}\nold\n{END}\nrest\n");
        let new = with_support_table(&text, &columns()).unwrap();
        assert!(new.starts_with("# x\n") && new.ends_with("\nrest\n") && !new.contains("old"));
        assert!(new.contains("| 5.10 | linux 5.10.262-1 | 1 | 0 | 1 | iter/unix |"), "{new}");
        assert!(new.contains("\n- needs iter/unix: 1 on 5.10\n"), "{new}");
        assert_eq!(with_support_table(&new, &columns()).unwrap(), new);
        assert!(with_support_table("no marks", &columns()).is_err());
    }
}
