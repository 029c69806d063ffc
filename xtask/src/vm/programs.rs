//! Builds, through cargo, what a VM runs, and learns from cargo where it put it.
//!
//! Guesses no path below `target`.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::tools;
use crate::workspace;

const TESTS_PACKAGE: &str = "lockwatch-tests";

/// The programs that go into a VM.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) init: PathBuf,
    /// The live tests, or the VM's self-check in their place.
    pub(crate) tests: PathBuf,
    pub(crate) lockwatch: Option<PathBuf>,
    pub(crate) rig: Option<PathBuf>,
}

/// The VM's own check of itself: needs neither lockwatch nor the rig.
pub(crate) fn self_check() -> Result<Programs> {
    let built = build(&["build", "--release", "--package", TESTS_PACKAGE, "--bins"])?;
    Ok(Programs {
        init: pick(&built, "vm-init")?,
        tests: pick(&built, "vm-selfcheck")?,
        lockwatch: None,
        rig: None,
    })
}

/// The live tests, the release binary and the rig.
pub(crate) fn live(lockwatch: PathBuf) -> Result<Programs> {
    if !lockwatch.is_file() {
        bail!("there is no {}", lockwatch.display());
    }
    let built = build(&["build", "--release", "--package", TESTS_PACKAGE, "--bins"])?;
    let tests =
        build(&["test", "--no-run", "--release", "--package", TESTS_PACKAGE, "--test", "live"])?;
    Ok(Programs {
        init: pick(&built, "vm-init")?,
        tests: pick(&tests, "live")?,
        lockwatch: Some(lockwatch),
        rig: Some(pick(&built, "rig")?),
    })
}

fn build(arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut command = workspace::cargo();
    command.args(arguments).arg("--message-format=json-render-diagnostics");
    command.stderr(Stdio::inherit());
    let line = tools::line(&command);
    let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed with {}", output.status);
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// (target, executable) of each artifact in cargo's messages.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let artifact = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    };
    messages.lines().filter_map(artifact).collect()
}

fn pick(built: &[(String, PathBuf)], name: &str) -> Result<PathBuf> {
    let found = built.iter().find(|(target, _)| target == name);
    Ok(found.with_context(|| format!("cargo built no {name} in {TESTS_PACKAGE}"))?.1.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_says_where_the_programs_are() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"anyhow"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"rig"},"executable":"/t/release/rig"}
{"reason":"build-finished","success":true}"#;
        let built = executables(messages);
        assert_eq!(pick(&built, "rig").unwrap(), PathBuf::from("/t/release/rig"));
        assert!(pick(&built, "live").is_err());
    }
}
