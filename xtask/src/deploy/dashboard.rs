//! The dashboard: every panel asks for metrics that the code has, in a language that Prometheus
//! understands.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Test;
use crate::{command, dist, workspace};

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "dashboard::every_panel_asks_for_metrics_that_there_are",
        needs: &[],
        root: false,
        body: known,
    },
    Test {
        name: "dashboard::every_query_is_one_that_prometheus_parses",
        needs: &["promtool"],
        root: false,
        body: parsed,
    },
];

/// Every query of the dashboard, with the title of its panel.
pub(super) fn queries() -> Result<Vec<(String, String)>> {
    let path = workspace::root().join("deploy/grafana/lockwatch.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let dashboard: Value = serde_json::from_str(&text).context("the dashboard")?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        let targets = panel["targets"].as_array().with_context(|| title.to_owned())?;
        ensure!(!targets.is_empty(), "{title}: no query");
        for target in targets {
            let query = target["expr"].as_str().with_context(|| title.to_owned())?;
            queries.push((title.to_owned(), query.to_owned()));
        }
    }
    Ok(queries)
}

/// The names of metrics in a query.
fn names(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("lockwatch_"))
}

fn known(_: &dist::Made) -> Result<()> {
    let path = workspace::root().join("lockwatch/src/sink/metrics/families.rs");
    let code = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let families: BTreeSet<&str> =
        code.split('"').filter(|word| word.starts_with("lockwatch_")).collect();
    let rules = fs::read_to_string(workspace::root().join("deploy/prometheus/lockwatch.rules.yml"))
        .context("the rules")?;
    let mut asked: Vec<(String, String)> = queries()?;
    asked.extend(rules.lines().filter_map(|line| {
        let query = line.trim().strip_prefix("expr: ")?;
        // What other rules record is written with colons, and is no metric of the code.
        (!query.contains(":lockwatch_")).then(|| ("rules".to_owned(), query.to_owned()))
    }));
    let mut used = BTreeSet::new();
    for (title, query) in &asked {
        for name in names(query) {
            let family = ["_total", "_info", "_bucket", "_sum", "_count"]
                .into_iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|family| families.contains(family))
                .unwrap_or(name);
            ensure!(families.contains(family), "{title}: the code has no metric {name}");
            used.insert(family);
        }
    }
    let unused: Vec<_> = families.difference(&used).collect();
    ensure!(unused.is_empty(), "neither the dashboard nor the rules show {unused:?}");
    Ok(())
}

/// promtool parses rules; so each query becomes one.
fn parsed(_: &dist::Made) -> Result<()> {
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (at, (_, query)) in queries()?.into_iter().enumerate() {
        let query = query.replace("$__rate_interval", "5m").replace('\'', "''");
        rules.push_str(&format!("      - record: query:{at}\n        expr: '{query}'\n"));
    }
    let folder = tempfile::tempdir().context("a folder for rules")?;
    let file = folder.path().join("rules.yml");
    fs::write(&file, rules).context("rules")?;
    command::capture(Command::new("promtool").args(["check", "rules"]).arg(&file), "").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_queries() {
        let query = "sum(rate(lockwatch_a_total{x=\"y\"}[5m])) / job:lockwatch_b:sum";
        assert_eq!(names(query).collect::<Vec<_>>(), ["lockwatch_a_total", "lockwatch_b"]);
    }
}
