//! Plays one test, in the process that the runner started for it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use super::scene::{Scene, Skip};
use super::table::Case;
use super::{descent, story};

/// How a test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
}

impl Verdict {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Skipped(_) => "skipped",
        }
    }

    pub(super) fn reason(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(reason) | Self::Skipped(reason) => Some(reason),
        }
    }

    /// What the test's process wrote, if it came to that.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let text = fs::read(file(folder)).ok()?;
        let value: Value = serde_json::from_slice(&text).ok()?;
        let reason = || value["reason"].as_str().map(ToOwned::to_owned);
        match value["result"].as_str()? {
            "passed" => Some(Self::Passed),
            "failed" => Some(Self::Failed(reason()?)),
            "skipped" => Some(Self::Skipped(reason()?)),
            _ => None,
        }
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let text = json!({"result": self.name(), "reason": self.reason()}).to_string();
        fs::write(file(folder), text).context("writing the verdict")
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("verdict")
}

/// Plays the test of that name and writes down how it went.
pub(super) fn play(cases: &[Case], names: &[String], folder: &Path) -> ExitCode {
    let verdict = verdict(cases, names, folder);
    match verdict.write(folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("live: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn verdict(cases: &[Case], names: &[String], folder: &Path) -> Verdict {
    let outcome = set_up(cases, names, folder).and_then(|(case, mut scene)| {
        let body = case.test.body;
        let outcome = catch_unwind(AssertUnwindSafe(|| body(&mut scene)));
        outcome.unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Err(anyhow!("panicked: {}", text.unwrap_or_default()))
        })
    });
    // Whatever happened, and although the runner looks again: nothing of the test stays.
    let cleaned = descent::end_all();
    match outcome.and(cleaned) {
        Ok(()) => Verdict::Passed,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(why) => Verdict::Skipped(why.to_string()),
            None => Verdict::Failed(format!("{error:#}")),
        },
    }
}

fn set_up<'a>(cases: &'a [Case], names: &[String], folder: &Path) -> Result<(&'a Case, Scene)> {
    // A terminal's Ctrl-C is for the runner, which then ends the tests in order.
    rustix::process::setsid().context("setsid")?;
    descent::adopt_and_die_with_parent()?;
    let case = cases.iter().find(|case| names.iter().any(|name| *name == case.name()));
    let case = case.with_context(|| format!("no test is called {names:?}"))?;
    story::begin(folder);
    let stage = folder.join("stage");
    fs::create_dir(&stage).context("making the test's folder")?;
    fs::set_permissions(&stage, fs::Permissions::from_mode(0o755)).context("its mode")?;
    Ok((case, Scene::new(stage, case.source)?))
}
