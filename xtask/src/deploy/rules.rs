//! The Prometheus rules: sound, and each alert tested to fire and to be quiet.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Test;
use crate::{command, dist, workspace};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "rules::promtool_finds_the_rules_and_the_fleet_example_sound",
        needs: &["promtool"],
        root: false,
        body: sound,
    },
    Test {
        name: "rules::every_alert_fires_when_it_should_and_is_quiet_otherwise",
        needs: &["promtool"],
        root: false,
        body: tested,
    },
    Test {
        name: "rules::every_alert_has_tests_of_both_kinds_and_a_runbook",
        needs: &[],
        root: false,
        body: covered,
    },
];

fn folder() -> PathBuf {
    workspace::root().join("deploy/prometheus")
}

fn sound(_: &dist::Made) -> Result<()> {
    let mut check = Command::new("promtool");
    check.current_dir(folder()).args(["check", "rules", "lockwatch.rules.yml"]);
    command::capture(&mut check, "")?;
    let mut check = Command::new("promtool");
    check.current_dir(folder()).args(["check", "config", "fleet.yml"]);
    command::capture(&mut check, "").map(drop)
}

fn tested(_: &dist::Made) -> Result<()> {
    let mut test = Command::new("promtool");
    test.current_dir(folder()).args(["test", "rules", "lockwatch.test.yml"]);
    command::capture(&mut test, "").map(drop)
}

fn covered(_: &dist::Made) -> Result<()> {
    let read = |name: &str| {
        fs::read_to_string(folder().join(name)).with_context(|| format!("deploy/prometheus/{name}"))
    };
    let (rules, tests) = (read("lockwatch.rules.yml")?, read("lockwatch.test.yml")?);
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(!alerts.is_empty(), "there are no alerts");
    let lines: Vec<&str> = tests.lines().map(str::trim).collect();
    let after = |expected: &str| -> BTreeSet<&str> {
        lines
            .windows(2)
            .filter(|pair| pair[1] == expected)
            .filter_map(|pair| pair[0].strip_prefix("alertname: "))
            .collect()
    };
    let (fires, quiet) = (after("exp_alerts:"), after("exp_alerts: []"));
    ensure!(fires == alerts, "alerts {alerts:?}, tested to fire {fires:?}");
    ensure!(quiet == alerts, "alerts {alerts:?}, tested to be quiet {quiet:?}");
    let runbooks: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("runbook: ")).collect();
    ensure!(runbooks.len() == alerts.len(), "{} alerts, {} runbooks", alerts.len(), runbooks.len());
    for runbook in runbooks {
        let name = runbook.strip_prefix("/usr/share/doc/lockwatch/").context(runbook.to_owned())?;
        ensure!(workspace::root().join("docs").join(name).is_file(), "there is no docs/{name}");
    }
    Ok(())
}
