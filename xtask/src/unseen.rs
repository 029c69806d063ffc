//! The page that shows what the tools of the machine say of locks that no fd table shows.
//!
//! Says nothing itself: the table is what a live test saw.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::{command, workspace};

const BEGIN: &str = "<!-- table: begin (written by `cargo xtask unseen`) -->";
const END: &str = "<!-- table: end -->";
/// Read by the live test.
const VARIABLE: &str = "LOCKWATCH_UNSEEN_TABLE";
const TEST: &str = "lockwatch_names_the_holder_whatever_the_others_say";

/// Runs the test in a process of its own, and puts its table into the page.
pub(crate) fn run() -> Result<ExitCode> {
    let page = page();
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let folder = tempfile::tempdir().context("making a folder")?;
    let table = folder.path().join("table.md");
    let own = std::env::current_exe().context("finding this program's file")?;
    let mut again = std::process::Command::new(own);
    again.args(["test", TEST]).env(VARIABLE, &table);
    let status = command::status(&mut again)?;
    ensure!(status.success(), "the test did not pass, so the page stays as it is");
    let table = fs::read_to_string(&table)
        .context("the test wrote no table: it was skipped, for the reason that is told above")?;
    fs::write(&page, between(&text, &table)?).with_context(|| page.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn page() -> PathBuf {
    workspace::root().join("docs/unseen-holders.md")
}

/// Replaces what stands between the marks.
fn between(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).with_context(|| format!("no line\n{BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no line\n{END}"))?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_goes_between_its_marks() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = between(&text, "| new |\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\n| new |\n{END}\nb\n"));
        between("no marks", "").unwrap_err();
    }
}
