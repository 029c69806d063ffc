//! What a run of the live tests means, given what is left of it. Pure.
//!
//! In doubt a kernel is red: a run counts only if init said with this boot's nonce that it came
//! to its end, and its two accounts agree.

use serde::Serialize;
use serde_json::Value;

use super::boot::{Ended, How};

/// One test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    /// Why it was skipped or failed; empty if it passed.
    pub(crate) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Something that a kernel, or what it was booted with, cannot do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Lack {
    /// The name of the capability.
    pub(crate) capability: String,
    pub(crate) why: String,
}

/// What became of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The tests ran to their end.
    Ran {
        release: String,
        boot_seconds: f64,
        test_seconds: f64,
        tests: Vec<Test>,
        lacks: Vec<Lack>,
    },
    /// The run itself went wrong.
    Broken { reason: String, console_tail: String },
    /// There was no kernel to run.
    Skipped { reason: String },
}

impl Verdict {
    /// Whether something failed; a kernel that was not there has not.
    pub(crate) fn is_red(&self) -> bool {
        match self {
            Self::Ran { tests, .. } => tests.iter().any(|test| test.outcome == Outcome::Failed),
            Self::Broken { .. } => true,
            Self::Skipped { .. } => false,
        }
    }
}

/// The same form is printed by `tests/src/bin/vm-init.rs`.
const END_MARK: &str = "lockwatch-vm-end";
const INIT_FAILED: &str = "vm-init: failed: ";
const TAIL_LINES: usize = 40;
pub(crate) const NOT_IN_TIME: &str = "not finished in time";

/// The verdict on a VM.
pub(crate) fn of_vm(ended: &Ended) -> Verdict {
    judge(ended)
        .unwrap_or_else(|reason| Verdict::Broken { reason, console_tail: tail(&ended.console) })
}

fn judge(ended: &Ended) -> Result<Verdict, String> {
    match &ended.how {
        How::Exited => {}
        How::Failed(why) => return Err(why.clone()),
        How::NeverBegan => {
            return Err(format!("the kernel had not come to init after {:.0} s", ended.seconds));
        }
        How::TimedOut => return Err(format!("no end after {:.0} s", ended.seconds)),
        How::NotInTime => return Err(NOT_IN_TIME.to_owned()),
    }
    let Some((exit, count)) = end_line(&ended.console, &ended.nonce) else {
        let panicked = ended.console.contains("Kernel panic");
        let own_words = ended.console.lines().find_map(|line| line.strip_prefix(INIT_FAILED));
        return Err(match own_words {
            _ if panicked => "the kernel panicked".to_owned(),
            Some(words) => format!("init failed: {words}"),
            None => "init never said that it ended".to_owned(),
        });
    };
    let report: Value = serde_json::from_str(ended.report.trim())
        .map_err(|error| format!("the report of init is damaged: {error}"))?;
    if report["nonce"].as_str() != Some(&ended.nonce) {
        return Err("the report is not of this boot".to_owned());
    }
    let lines = report["tests"].as_array().map(Vec::as_slice).unwrap_or_default();
    if lines.len() != count || report["exit"].as_i64() != Some(exit) {
        return Err(format!(
            "the report ({} lines, exit {}) and the console ({count}, {exit}) disagree",
            lines.len(),
            report["exit"]
        ));
    }
    let (mut tests, lacks) = tests_and_lacks(lines)?;
    check_exit(exit, &tests)?;
    // A kernel that finds fault with itself while the tests run is a finding.
    let complaints: Vec<_> =
        report["complaints"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    tests.push(Test {
        name: "kernel_log".to_owned(),
        outcome: if complaints.is_empty() { Outcome::Passed } else { Outcome::Failed },
        reason: complaints.join("; "),
    });
    Ok(Verdict::Ran {
        release: report["kernel"].as_str().unwrap_or_default().to_owned(),
        boot_seconds: report["boot_seconds"].as_f64().unwrap_or_default(),
        test_seconds: report["test_seconds"].as_f64().unwrap_or_default(),
        tests,
        lacks,
    })
}

/// The exit status and the number of tests, if init came to its end in this boot.
fn end_line(console: &str, nonce: &str) -> Option<(i64, usize)> {
    let start = format!("{END_MARK} nonce={nonce} exit=");
    console.lines().find_map(|line| {
        let (exit, tests) = line.trim().strip_prefix(&start)?.split_once(" tests=")?;
        Some((exit.parse().ok()?, tests.parse().ok()?))
    })
}

/// What the live tests write with `--json`: one object a line.
pub(crate) fn account(text: &str) -> Result<(Vec<Test>, Vec<Lack>), String> {
    let read = |line| {
        let value = serde_json::from_str(line);
        value.map_err(|error| format!("not the result of a test: {error}: {line}"))
    };
    tests_and_lacks(&text.lines().map(read).collect::<Result<Vec<_>, _>>()?)
}

fn tests_and_lacks(lines: &[Value]) -> Result<(Vec<Test>, Vec<Lack>), String> {
    let (mut tests, mut lacks) = (Vec::new(), Vec::new());
    for line in lines {
        match lack(line) {
            Some(lack) => lacks.push(lack),
            None => tests.push(test(line)?),
        }
    }
    Ok((tests, lacks))
}

/// `{"capability": …, "lacks": …}`
fn lack(value: &Value) -> Option<Lack> {
    let capability = value["capability"].as_str()?.to_owned();
    Some(Lack { capability, why: value["lacks"].as_str()?.to_owned() })
}

/// `{"name": …, "result": "passed" | "failed" | "skipped", "reason": … or null}`
fn test(value: &Value) -> Result<Test, String> {
    let outcome = match value["result"].as_str() {
        Some("passed") => Outcome::Passed,
        Some("failed") => Outcome::Failed,
        Some("skipped") => Outcome::Skipped,
        _ => return Err(format!("not the result of a test: {value}")),
    };
    let name = value["name"].as_str().ok_or_else(|| format!("a test without a name: {value}"))?;
    let reason = value["reason"].as_str().unwrap_or_default().to_owned();
    Ok(Test { name: name.to_owned(), outcome, reason })
}

/// A status that the tests do not explain is itself a failure, and so is an empty run.
pub(crate) fn check_exit(exit: i64, tests: &[Test]) -> Result<(), String> {
    let failed = tests.iter().filter(|test| test.outcome == Outcome::Failed).count();
    match (exit, failed) {
        _ if tests.is_empty() => Err(format!("no test ran (exit status {exit})")),
        (0, 0) => Ok(()),
        (0, _) => Err(format!("exit status 0 with {failed} failed tests")),
        (_, 0) => Err(format!("exit status {exit} without a failed test")),
        _ => Ok(()),
    }
}

fn tail(console: &str) -> String {
    let lines: Vec<_> = console.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ended(console: &str, report: &Value) -> Ended {
        Ended {
            nonce: "abc".into(),
            console: console.into(),
            report: format!("{report}\n"),
            how: How::Exited,
            seconds: 9.0,
        }
    }

    fn report(outcome: &str, exit: i64, complaints: &[&str]) -> Value {
        json!({
            "nonce": "abc", "kernel": "6.1.0", "exit": exit, "boot_seconds": 5.5,
            "test_seconds": 1.0, "complaints": complaints,
            "tests": [{ "name": "a", "result": outcome, "reason": null }],
        })
    }

    fn broken(ended: &Ended) -> String {
        match of_vm(ended) {
            Verdict::Broken { reason, .. } => reason,
            other => panic!("not broken: {other:?}"),
        }
    }

    const END: &str = "boot\nlockwatch-vm-end nonce=abc exit=0 tests=1\n";

    #[test]
    fn a_whole_run_is_green() {
        let verdict = of_vm(&ended(END, &report("passed", 0, &[])));
        assert!(!verdict.is_red());
        let Verdict::Ran { tests, release, .. } = verdict else { panic!() };
        assert_eq!((tests.len(), release.as_str()), (2, "6.1.0"));
    }

    #[test]
    fn a_failed_test_is_red_and_so_is_a_kernel_that_complains() {
        let failed = END.replace("exit=0", "exit=1");
        assert!(of_vm(&ended(&failed, &report("failed", 1, &[]))).is_red());
        assert!(of_vm(&ended(END, &report("passed", 0, &["WARNING: at x"]))).is_red());
    }

    #[test]
    fn success_cannot_be_printed_by_accident() {
        let good = report("passed", 0, &[]);
        for console in [
            "",
            "lockwatch.nonce=abc exit=0 tests=1",
            "lockwatch-vm-end nonce=abd exit=0 tests=1",
            "Kernel command line: lockwatch-vm-end nonce=abc exit=0 tests=1",
        ] {
            assert!(broken(&ended(console, &good)).contains("never said"), "{console}");
        }
        assert!(broken(&ended("Kernel panic - not syncing", &good)).contains("panicked"));
        let said = broken(&ended("x\nvm-init: failed: no /dev\n", &good));
        assert_eq!(said, "init failed: no /dev");
    }

    #[test]
    fn accounts_that_disagree_are_red() {
        let good = report("passed", 0, &[]);
        let two = END.replace("tests=1", "tests=2");
        assert!(broken(&ended(&two, &good)).contains("disagree"));
        assert!(broken(&ended(END, &report("failed", 0, &[]))).contains("exit status 0"));
        let odd = END.replace("exit=0", "exit=139");
        assert!(broken(&ended(&odd, &report("passed", 139, &[]))).contains("139"));
        assert!(broken(&ended(END, &json!({"nonce": "x"}))).contains("not of this boot"));
        let mut cut = ended(END, &good);
        cut.report.truncate(20);
        assert!(broken(&cut).contains("damaged"));
    }

    #[test]
    fn a_hang_is_red() {
        let mut hung = ended("booting", &Value::Null);
        hung.how = How::TimedOut;
        assert_eq!(broken(&hung), "no end after 9 s");
        hung.how = How::NotInTime;
        assert_eq!(broken(&hung), "not finished in time");
    }

    #[test]
    fn results_are_read_line_by_line() {
        let text = r#"{"capability":"iter/unix","lacks":"not in this kernel"}
{"name":"a","result":"passed","reason":null,"seconds":0.1}
{"name":"b","result":"skipped","reason":"needs iter/unix"}"#;
        let (tests, lacks) = account(text).unwrap();
        assert_eq!((tests.len(), tests[1].reason.as_str()), (2, "needs iter/unix"));
        assert_eq!((lacks.len(), lacks[0].capability.as_str()), (1, "iter/unix"));
        assert!(account("{\"name\":\"a\",\"result\":\"odd\"}").is_err());
        assert!(account("cut sho").is_err());
    }

    #[test]
    fn a_run_without_tests_is_red() {
        assert!(check_exit(0, &[]).is_err());
    }
}
