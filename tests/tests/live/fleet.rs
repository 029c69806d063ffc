//! A fleet: a real Prometheus that scrapes three daemons, with the rules and the dashboard that are
//! shipped.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::prometheus::{Machine, Network, Prometheus};
use lockwatch_tests::harness::{Scene, Test, note, patience};
use lockwatch_tests::{once, same};
use rustix::process::Signal;
use serde_json::Value;

use crate::stories::{self, LEAKED};

/// What a fleet in a network of its own needs.
pub(crate) const NEEDS: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "netns",
    "fuse",
    "pidfd_getfd",
    "kcmp",
    "program:ip",
    "program:nsenter",
    "program:unshare",
    "program:prometheus",
    "program:promtool",
];

pub(crate) const TESTS: &[Test] =
    &[once!(queries_give_the_numbers_of_what_happened_on_three_machines)
        .needs(NEEDS)
        .within(Duration::from_secs(180))];

pub(crate) const RULES: &str = include_str!("../../../deploy/prometheus/lockwatch.rules.yml");
const DASHBOARD: &str = include_str!("../../../deploy/grafana/lockwatch.json");

/// A daemon on a machine of its own, with a configuration of its own. They share the kernel, and so
/// what there is to see.
pub(crate) fn daemon(
    scene: &Scene,
    house: &House,
    machine: &Machine,
    name: &str,
    more: &str,
) -> Result<Daemon> {
    let folder = house.path("");
    let folder = folder.display();
    let config = house.path(&format!("{name}.toml"));
    let text = format!(
        "mount = \"{folder}{name}.tree\"\nstate_dir = \"{folder}bpf/{name}\"\n\
         metrics_listen = \"{}:9965\"\n{more}\n",
        machine.address
    );
    fs::write(&config, text).context("a configuration")?;
    house.start_from(scene, &config, |daemon| machine.host(daemon))
}

fn queries_give_the_numbers_of_what_happened_on_three_machines(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let network = Network::new(scene)?;
    let machines: Vec<Machine> =
        (1..=3).map(|number| network.machine(scene, number)).collect::<Result<_>>()?;
    let path = scene.path_text("lock")?;
    let watch = format!("[[watch]]\nname = \"aim\"\npath = \"{path}\"");
    let audit = house.path("audit.jsonl");
    let reclaim = format!("[reclaim]\nmode = \"reclaim\"\naudit = \"{}\"", audit.display());
    let configurations = [
        ("a", format!("gc_interval = \"200ms\"\ngrace = \"50ms\"\n{reclaim}\n{watch}")),
        ("b", "gc_interval = \"1s\"\ngrace = \"100ms\"".to_owned()),
        ("c", "gc_interval = \"500ms\"\ngrace = \"50ms\"\nlong_wait = \"300ms\"".to_owned()),
    ];
    let mut daemons = Vec::new();
    for (machine, (name, more)) in machines.iter().zip(&configurations) {
        daemons.push(daemon(scene, &house, machine, name, more)?);
    }
    let targets: Vec<String> =
        machines.iter().map(|machine| format!("{}:9965", machine.address)).collect();
    let prometheus =
        Prometheus::start(scene, &network, &house.path("prometheus"), &targets, RULES)?;
    prometheus.wait_for("sum(up{job=\"lockwatch\"})", |values| values == [3.0])?;
    prometheus.wait_for("count(lockwatch_watched_lock_held == 0)", |values| values == [1.0])?;

    let told = numbers(scene, &house, &network, &prometheus, &targets, &daemons);
    if told.is_err() {
        // What the daemons themselves say, which their end shows.
        for (target, daemon) in targets.iter().zip(&daemons) {
            note(&format!("{target} says: {:?}", network.get(target, "/metrics")));
            let log = fs::read_to_string(daemon.log()).unwrap_or_default();
            log.lines().for_each(note);
        }
        let _ = scene.scan_by_bpf();
    }
    prometheus.stop()?;
    for daemon in daemons {
        daemon.stop()?;
    }
    told
}

/// What is asked of the fleet while things happen.
fn numbers(
    scene: &mut Scene,
    house: &House,
    network: &Network,
    prometheus: &Prometheus<'_>,
    targets: &[String],
    daemons: &[Daemon],
) -> Result<()> {
    for target in targets {
        let (status, text) = network.get(target, "/metrics")?;
        same!("status", status, 200);
        fs::write(house.path("scraped"), text).context("what was scraped")?;
        let scraped = house.path("scraped").display().to_string();
        let script = "promtool check metrics < \"$1\"";
        let check = scene.program("sh", &["-c", script, "sh", &scraped])?.run()?;
        check.exits(0)?;
        same!("what promtool says", check.complaints()?, Vec::<&str>::new());
    }

    // One orphan.
    scene.play(LEAKED)?;
    prometheus.wait_for("lockwatch_watched_lock_hot{name=\"aim\"}", |values| values == [1.0])?;
    let orphans = "count(sum by (instance) (lockwatch_orphaned_locks{reason=\"inherited\"}) >= 1)";
    prometheus.wait_for(orphans, |values| values == [3.0])?;
    prometheus
        .wait_for("count(instance:lockwatch_orphaned_locks:sum >= 1)", |values| values == [3.0])?;

    // One deadlock, and two long waits for who is told early of them.
    stories::deadlock(scene)?;
    let deadlocks = "count(lockwatch_races_total{kind=\"deadlock\"} >= 1)";
    prometheus.wait_for(deadlocks, |values| values == [3.0])?;
    let long = format!("lockwatch_races_total{{kind=\"long_wait\",instance=\"{}\"}}", targets[2]);
    prometheus.wait_for(&long, |values| matches!(values, [waits] if *waits >= 2.0))?;
    let alert = "count(ALERTS{alertname=\"LockwatchDeadlock\",alertstate=\"firing\"})";
    prometheus.wait_for(alert, |values| values == [3.0])?;

    every_panel_has_data(prometheus)?;

    // The orphan is reclaimed, by who wrote a 0 into the tree of one machine.
    let reclaims = |machine: usize| {
        format!(
            "sum(lockwatch_reclaims_total{{result=\"released\",instance=\"{}\"}})",
            targets[machine]
        )
    };
    prometheus.wait_for(&reclaims(0), |values| values == [0.0])?;
    fs::write(house.path("a.tree/locks/aim/locked"), "0\n").context("the release")?;
    prometheus.wait_for(&reclaims(0), |values| values == [1.0])?;
    prometheus.wait_for(&reclaims(1), |values| values == [0.0])?;
    prometheus.wait_for("lockwatch_watched_lock_hot{name=\"aim\"}", |values| values == [0.0])?;

    // A daemon that stands still: it cannot be scraped, and its heart stopped when it did.
    daemons[1].freeze()?;
    let up = format!("up{{instance=\"{}\"}}", targets[1]);
    prometheus.wait_for(&up, |values| values == [0.0])?;
    let age = |instance: &str| {
        format!(
            "time() - last_over_time(lockwatch_heartbeat_timestamp_seconds{{instance=\"{instance}\"}}[6h])"
        )
    };
    prometheus.wait_for(&age(&targets[1]), |values| matches!(values, [age] if *age > 5.0))?;
    prometheus.wait_for(&age(&targets[0]), |values| matches!(values, [age] if *age < 5.0))?;
    daemons[1].signal(Signal::CONT)?;
    prometheus.wait_for(&up, |values| values == [1.0])?;
    prometheus.wait_for(&age(&targets[1]), |values| matches!(values, [age] if *age < 5.0))?;
    Ok(())
}

/// Every query of the dashboard, panel by panel; and a panel whose query is broken is seen to be.
fn every_panel_has_data(prometheus: &Prometheus<'_>) -> Result<()> {
    let mut dashboard: Value = serde_json::from_str(DASHBOARD).context("the dashboard")?;
    let panels = dashboard["panels"].as_array().context("no panels")?.len();
    ensure!(panels > 10, "only {panels} panels");
    let mut silent = Vec::new();
    patience::until("that every panel has data", || {
        silent = panels_without_data(prometheus, &dashboard)?;
        Ok(silent.is_empty().then_some(()))
    })
    .with_context(|| format!("these have none: {silent:?}"))?;

    let panel = &mut dashboard["panels"][panels / 2];
    let title = panel["title"].as_str().context("no title")?.to_owned();
    let query = &mut panel["targets"][0]["expr"];
    let misspelt = query.as_str().context("no query")?.replace("lockwatch_", "lockwatch_no_");
    *query = misspelt.into();
    same!("silent", panels_without_data(prometheus, &dashboard)?, [title]);
    Ok(())
}

/// The titles of panels that have a query without a result.
fn panels_without_data(prometheus: &Prometheus<'_>, dashboard: &Value) -> Result<Vec<String>> {
    let mut titles = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        let title = panel["title"].as_str().context("no title")?;
        for target in panel["targets"].as_array().context("no queries")? {
            let query = target["expr"].as_str().context("no query")?;
            let query = query
                .replace("$job", "lockwatch")
                .replace("$instance", ".*")
                .replace("$__rate_interval", "10s");
            let values = prometheus.query(&query).with_context(|| title.to_owned())?;
            if values.is_empty() && titles.last().is_none_or(|last| last != title) {
                titles.push(title.to_owned());
            }
        }
    }
    Ok(titles)
}
