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
    Test {
        name: "dashboard::a_query_that_is_broken_does_not_pass",
        needs: &["promtool"],
        root: false,
        body: broken,
    },
];

/// Titles with their queries.
type Queries = Vec<(String, String)>;

/// Every query of the dashboard, with the title of its panel.
fn queries() -> Result<Queries> {
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

/// What the code and the rules have, and the dashboard asks for.
struct Asked {
    /// Names of metrics in the code.
    families: BTreeSet<String>,
    /// Queries of rules.
    rules: Queries,
}

impl Asked {
    fn read() -> Result<Self> {
        let read = |name: &str| {
            fs::read_to_string(workspace::root().join(name)).with_context(|| name.to_owned())
        };
        let code = read("lockwatch/src/sink/metrics/families.rs")?;
        let families = code.split('"').filter(|word| word.starts_with("lockwatch_"));
        let rules = read("deploy/prometheus/lockwatch.rules.yml")?;
        let queries = rules.lines().filter_map(|line| {
            let query = line.trim().strip_prefix("expr: ")?;
            // What other rules record is written with colons, and is no metric of the code.
            (!query.contains(":lockwatch_")).then(|| ("rules".to_owned(), query.to_owned()))
        });
        Ok(Self { families: families.map(str::to_owned).collect(), rules: queries.collect() })
    }

    /// Fails where a query asks for what there is not, and where something is asked for by nobody.
    fn compare(&self, queries: &Queries) -> Result<()> {
        let mut used = BTreeSet::new();
        for (title, query) in queries.iter().chain(&self.rules) {
            for name in names(query) {
                let family = ["_total", "_info", "_bucket", "_sum", "_count"]
                    .into_iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .filter(|family| self.families.contains(*family))
                    .unwrap_or(name);
                ensure!(self.families.contains(family), "{title}: the code has no metric {name}");
                used.insert(family);
            }
        }
        let is_unused = |family: &&String| !used.contains(family.as_str());
        let unused: Vec<_> = self.families.iter().filter(is_unused).collect();
        ensure!(unused.is_empty(), "neither the dashboard nor the rules show {unused:?}");
        Ok(())
    }
}

fn known(_: &dist::Made) -> Result<()> {
    Asked::read()?.compare(&queries()?)
}

fn parsed(_: &dist::Made) -> Result<()> {
    parse(&queries()?)
}

/// promtool parses rules; so each query becomes one.
fn parse(queries: &Queries) -> Result<()> {
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (at, (_, query)) in queries.iter().enumerate() {
        let query = query.replace("$__rate_interval", "5m").replace('\'', "''");
        rules.push_str(&format!("      - record: query:{at}\n        expr: '{query}'\n"));
    }
    let folder = tempfile::tempdir().context("a folder for rules")?;
    let file = folder.path().join("rules.yml");
    fs::write(&file, rules).context("rules")?;
    command::capture(Command::new("promtool").args(["check", "rules"]).arg(&file), "").map(drop)
}

/// Each query in turn, with a metric that is misspelt, and without its end.
fn broken(_: &dist::Made) -> Result<()> {
    let (asked, whole) = (Asked::read()?, queries()?);
    for (place, (title, query)) in whole.iter().enumerate() {
        let misspelt = query.replacen("lockwatch_", "lockwatch_no_", 1);
        ensure!(misspelt != *query, "{title}: asks for no metric: {query}");
        let mut queries = whole.clone();
        queries[place].1.clone_from(&misspelt);
        ensure!(asked.compare(&queries).is_err(), "{title}: this passed: {misspelt}");
    }
    let mut cut = whole;
    cut.first_mut().context("no query")?.1.push('(');
    ensure!(parse(&cut).is_err(), "a query that does not end passed");
    Ok(())
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
