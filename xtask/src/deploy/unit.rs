//! The systemd unit: sound, and as exposed as the documentation says.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::{command, dist, workspace};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "unit::systemd_finds_the_unit_sound",
        needs: &["systemd-analyze"],
        root: true,
        body: sound,
    },
    Test {
        name: "unit::its_exposure_is_the_one_that_the_documentation_states",
        needs: &["systemd-analyze"],
        root: false,
        body: exposure,
    },
];

/// In the documentation, before the score.
const STATED: &str = "Overall exposure level: ";

/// The unit in a folder of its own, its program being one that is here.
fn with_program(program: &str) -> Result<(tempfile::TempDir, std::path::PathBuf)> {
    let path = workspace::root().join("deploy/systemd/lockwatch.service");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let folder = tempfile::tempdir().context("a folder for the unit")?;
    let unit = folder.path().join("lockwatch.service");
    fs::write(&unit, text.replace("/usr/bin/lockwatch", program)).context("the unit")?;
    Ok((folder, unit))
}

fn sound(_: &dist::Made) -> Result<()> {
    let binary = workspace::binary();
    let (_folder, unit) = with_program(&binary.display().to_string())?;
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&unit);
    // It says of settings that it does not know that it ignores them, and succeeds.
    let output = verify.output().context("systemd-analyze verify")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{}: {said}", output.status);
    Ok(())
}

fn exposure(_: &dist::Made) -> Result<()> {
    let (_folder, unit) = with_program("/usr/bin/lockwatch")?;
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=yes", "--no-pager"]).arg(&unit);
    let text = command::capture(&mut security, "")?;
    let score = text
        .split("Overall exposure level for lockwatch.service: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .with_context(|| format!("no score in {text}"))?;
    let docs =
        fs::read_to_string(workspace::root().join("docs/service.md")).context("docs/service.md")?;
    let stated = docs.split(STATED).nth(1).and_then(|rest| rest.split_whitespace().next());
    let stated = stated.map(|stated| stated.trim_end_matches(['.', ',']));
    ensure!(stated == Some(score), "it is {score}, docs/service.md states {stated:?}");
    Ok(())
}
