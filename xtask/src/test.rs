//! `cargo xtask test`: the tests that need no kernel, then the live ones, then what came of both.
//!
//! Holds no test itself, and runs the second part also where the first failed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::tally::{self, Part, Tally};
use crate::{build, command, interrupt, privilege, progress, workspace};

const LIVE_PACKAGE: &str = "lockwatch-tests";
const LIVE_TARGET: &str = "live";

/// Whether a host on which the BPF source should load may do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bpf {
    /// Tests that need it are skipped.
    Optional,
    /// The live tests fail: a broken loader must not pass for a machine without BPF.
    Required,
}

/// Runs both parts. The last line of stdout is `N passed, N failed, N skipped`, over both.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
    let on_trial = std::env::var("CI").is_ok_and(|value| value == "true");
    let parts = parts(filter, if on_trial { Bpf::Required } else { Bpf::Optional })?;
    if interrupt::happened() {
        bail!("interrupted");
    }
    let (text, total) = tally::summary(&parts);
    command::print(&text)?;
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs both parts.
pub(crate) fn parts(filter: Option<&str>, bpf: Bpf) -> Result<[Part; 2]> {
    let binary = build::run()?;
    Ok([
        ("unit, property and doc tests", without_kernel(filter)),
        ("live tests", live(&binary, filter, bpf)),
    ])
}

fn without_kernel(filter: Option<&str>) -> Result<Tally> {
    let mut rest = workspace::cargo();
    rest.args(["test", "--workspace", "--no-fail-fast"]);
    rest.args(["--exclude", "lockwatch-ebpf", "--exclude", LIVE_PACKAGE]);
    // The live target of this package is not for `cargo test`, which would start it without
    // the binary and without root.
    let mut own = workspace::cargo();
    own.args(["test", "--package", LIVE_PACKAGE, "--no-fail-fast", "--lib", "--bins"]);

    let mut tally = Tally::default();
    let mut broken = false;
    for cargo in [&mut rest, &mut own] {
        let failed_before = tally.failed;
        let status = command::tee(cargo.args(filter), |line| count_libtest(line, &mut tally))?;
        broken |= !status.success() && tally.failed == failed_before;
    }
    if broken {
        bail!("could not be run to the end (see above); until then {tally}");
    }
    Ok(tally)
}

fn live(binary: &Path, filter: Option<&str>, bpf: Bpf) -> Result<Tally> {
    let harness = live_harness()?;
    let mut run = privilege::command(&harness, &[("LOCKWATCH_BIN", binary.as_os_str())]);
    run.current_dir(workspace::root().join("tests")).args(filter);
    if bpf == Bpf::Required && privilege::bpf_is_due() {
        run.args(["--require", "iter/task_file"]);
    }
    let mut tally = Tally::default();
    let mut closed = false;
    let status = command::tee(&mut run, |line| {
        if let Some(closing) = closing_line(line) {
            let skips = std::mem::take(&mut tally.skips);
            tally = Tally { skips, ..closing };
            closed = true;
        } else if names_a_skip(line) {
            tally.skips.push(line.trim().to_owned());
        }
    })?;
    if !closed {
        bail!("ended early, without a closing line ({status})");
    }
    if !status.success() && tally.failed == 0 {
        bail!("{tally}, and yet the harness ended with {status}");
    }
    Ok(tally)
}

/// Compiles the live tests and answers their executable.
pub(crate) fn live_harness() -> Result<PathBuf> {
    let root = workspace::root();
    if !root.join("tests/tests/live.rs").exists() && !root.join("tests/tests/live").exists() {
        bail!("there are none: {LIVE_PACKAGE} has no test target `{LIVE_TARGET}`");
    }
    progress::say("compiling the live tests");
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--package", LIVE_PACKAGE, "--test", LIVE_TARGET, "--no-run"]);
    cargo.args(["--quiet", "--message-format", "json-render-diagnostics"]);
    let messages = messages(&mut cargo)?;
    executable(&messages).context("cargo named no executable for the live tests")
}

fn messages(cargo: &mut Command) -> Result<String> {
    let mut messages = String::new();
    let status = command::lines(cargo, |line| {
        messages.push_str(line);
        messages.push('\n');
    })?;
    if !status.success() {
        bail!("could not be compiled, see above ({status})");
    }
    Ok(messages)
}

fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == LIVE_TARGET)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

/// Adds what `test result: ok. 3 passed; 0 failed; 1 ignored; …` says.
fn count_libtest(line: &str, tally: &mut Tally) {
    if let Some(result) = line.strip_prefix("test result: ") {
        tally.passed += number_before(result, "passed").unwrap_or(0);
        tally.failed += number_before(result, "failed").unwrap_or(0);
        tally.skipped += number_before(result, "ignored").unwrap_or(0);
    } else if line.starts_with("test ") && line.contains(" ... ignored") {
        tally.skips.push(line.to_owned());
    }
}

fn closing_line(line: &str) -> Option<Tally> {
    let mut parts = line.trim().split(", ");
    let mut next = |word| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    let (passed, failed, skipped) = (next(" passed")?, next(" failed")?, next(" skipped")?);
    parts.next().is_none().then_some(Tally { passed, failed, skipped, skips: Vec::new() })
}

/// Whether this is the harness's `test NAME ... skipped: WHY`.
fn names_a_skip(line: &str) -> bool {
    line.starts_with("test ") && line.contains(" ... skipped")
}

fn number_before(text: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|found| found.trim_end_matches(';') == word)?;
    words.get(at.checked_sub(1)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Tally {
        Tally { passed, failed, skipped, skips: Vec::new() }
    }

    #[test]
    fn libtest_results_are_summed() {
        let mut sum = Tally::default();
        let result = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out";
        count_libtest(result, &mut sum);
        count_libtest("test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured", &mut sum);
        count_libtest("test a::passed ... ok", &mut sum);
        assert_eq!(sum, tally(7, 2, 1));
    }

    #[test]
    fn only_a_whole_closing_line_closes() {
        assert_eq!(closing_line("7 passed, 0 failed, 2 skipped"), Some(tally(7, 0, 2)));
        assert_eq!(closing_line("7 passed, 0 failed"), None);
        assert_eq!(closing_line("x passed, 0 failed, 2 skipped"), None);
    }

    #[test]
    fn a_skip_is_told_from_words_about_skipping() {
        assert!(names_a_skip("test lease_break ... skipped: needs root"));
        assert!(!names_a_skip("test skipping_rope ... ok"));
        assert!(!names_a_skip("  the reader skipped a line"));
    }

    #[test]
    fn the_live_executable_is_taken_from_cargos_messages() {
        let messages = r#"{"target":{"name":"rig"},"executable":"/t/rig"}
not json
{"target":{"name":"live"},"executable":null}
{"target":{"name":"live"},"executable":"/t/live-1"}"#;
        assert_eq!(executable(messages), Some(PathBuf::from("/t/live-1")));
    }
}
