//! Scrapes of a running daemon: that the numbers are those of what happened.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::invocation::Capability;
use lockwatch_tests::harness::scrape::{get, samples, wait_for};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};
use rustix::process::Signal;

use crate::daemon::NEEDS;
use crate::stories::{self, HELD, LEAKED};

pub(crate) const TESTS: &[Test] = &[
    once!(a_watched_lock_is_free_held_hot_and_free_again).needs(NEEDS),
    once!(acquisitions_releases_refusals_waits_and_holds_are_counted).needs(NEEDS),
    once!(an_orphan_and_a_deadlock_are_counted_once).needs(NEEDS),
    once!(probes_follow_the_daemon).needs(NEEDS),
    once!(both_formats_are_served_and_other_requests_refused).needs(NEEDS),
    once!(who_hangs_at_the_listener_keeps_the_watch_from_nothing).needs(NEEDS),
    once!(the_daemon_works_with_the_units_capabilities_and_no_others).needs(&[
        "root",
        "iter/task_file",
        "tp_btf",
        "mounts",
        "fuse",
        "pidfd_getfd",
        "kcmp",
    ]),
    once!(the_kernels_counters_outlive_a_daemon).needs(NEEDS),
];

const QUICK: &str = "gc_interval = \"200ms\"\ngrace = \"50ms\"";
/// What the package installs.
const UNIT: &str = include_str!("../../../deploy/systemd/lockwatch.service");

/// A daemon that watches `lock` of the scene, and the socket at which it is scraped.
fn begin(scene: &mut Scene) -> Result<(House, Daemon, PathBuf)> {
    let house = House::build(scene)?;
    configure(scene, &house)?;
    let daemon = house.start(scene, &[])?;
    let socket = house.path("metrics.sock");
    Ok((house, daemon, socket))
}

fn configure(scene: &Scene, house: &House) -> Result<()> {
    let path = scene.path_text("lock")?;
    house.configure(&format!("{QUICK}\n[[watch]]\nname = \"aim\"\npath = \"{path}\""))
}

const HOT: &str = "lockwatch_watched_lock_hot{name=\"aim\"}";
const IS_HELD: &str = "lockwatch_watched_lock_held{name=\"aim\"}";
const SINCE: &str = "lockwatch_watched_lock_held_since_seconds{name=\"aim\"}";

fn a_watched_lock_is_free_held_hot_and_free_again(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon, socket) = begin(scene)?;
    let before = samples(&socket)?;
    same!("held", before.get(IS_HELD), Some(&0.0));
    same!("hot", before.get(HOT), Some(&0.0));
    same!("since", before.get(SINCE), None);
    let began = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock")?.as_secs_f64();
    scene.play(HELD)?;
    wait_for(&socket, IS_HELD, |value| value == 1.0)?;
    let held = samples(&socket)?;
    same!("hot", held.get(HOT), Some(&0.0));
    let since = held.get(SINCE).context("since when is not told")?;
    ensure!((began - 1.0..began + 60.0).contains(since), "since {since}, begun {began}");
    scene.play(
        "owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    wait_for(&socket, HOT, |value| value == 1.0)?;
    let hot = samples(&socket)?;
    let orphaned = hot.get("lockwatch_orphaned_locks{reason=\"inherited\"}");
    ensure!(orphaned.is_some_and(|&count| count >= 1.0), "orphaned: {orphaned:?}");
    // The clock of the wall is read anew each time.
    let still = hot.get(SINCE).context("since when is not told any more")?;
    ensure!((still - since).abs() < 0.01, "since {still} instead of {since}");
    scene.play("heir: exit 0")?;
    wait_for(&socket, IS_HELD, |value| value == 0.0)?;
    same!("hot", samples(&socket)?.get(HOT).copied(), Some(0.0));
    daemon.expect("recovered", |_| true)?;
    daemon.stop()?;
    Ok(())
}

fn acquisitions_releases_refusals_waits_and_holds_are_counted(scene: &mut Scene) -> Result<()> {
    let (_house, daemon, socket) = begin(scene)?;
    let before = samples(&socket)?;
    scene.play(HELD)?;
    scene.play(
        "start other
         other: open a lock",
    )?;
    ensure!(scene.direct("other: flock a ex").is_err(), "it was not refused");
    scene.play(
        "other: later flock a ex
         await other blocked",
    )?;
    std::thread::sleep(std::time::Duration::from_millis(60));
    scene.play(
        "owner: flock a un
         await other done
         other: flock a un",
    )?;
    // Others use this machine, too: at least what happened here must be in the numbers.
    for (name, least) in [
        ("lockwatch_acquisitions_total{type=\"FLOCK\"}", 2.0),
        ("lockwatch_releases_total{type=\"FLOCK\"}", 2.0),
        ("lockwatch_refusals_total{type=\"FLOCK\"}", 1.0),
        ("lockwatch_wait_seconds_count{type=\"FLOCK\"}", 1.0),
        ("lockwatch_wait_seconds_sum{type=\"FLOCK\"}", 0.04),
        ("lockwatch_hold_seconds_count{type=\"FLOCK\"}", 2.0),
        ("lockwatch_hold_seconds_sum{type=\"FLOCK\"}", 0.05),
    ] {
        let was = *before.get(name).with_context(|| format!("{name} is not told"))?;
        wait_for(&socket, name, |value| value - was >= least)?;
    }
    daemon.stop()?;
    Ok(())
}

fn an_orphan_and_a_deadlock_are_counted_once(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon, socket) = begin(scene)?;
    stories::deadlock(scene)?;
    let deadlocks = "lockwatch_races_total{kind=\"deadlock\"}";
    daemon.expect("deadlock", |_| true)?;
    wait_for(&socket, deadlocks, |value| value >= 1.0)?;
    scene.play(LEAKED)?;
    daemon.expect("orphaned", |event| event["lock"]["watch"] == "aim")?;
    let detected = "lockwatch_orphan_detection_seconds_count";
    wait_for(&socket, detected, |value| value >= 1.0)?;
    let sum = *samples(&socket)?.get("lockwatch_orphan_detection_seconds_sum").context("no sum")?;
    // The grace at least.
    ensure!(sum >= 0.05, "detected within {sum} s");
    std::thread::sleep(std::time::Duration::from_millis(600));
    daemon.told_none_of(&["deadlock"])?;
    same!("deadlocks", samples(&socket)?.get(deadlocks).copied(), Some(1.0));
    daemon.stop()?;
    Ok(())
}

fn probes_follow_the_daemon(scene: &mut Scene) -> Result<()> {
    let (_house, daemon, socket) = begin(scene)?;
    same!("health", get(&socket, "/healthz", "")?.status, 200);
    same!("readiness", get(&socket, "/readyz", "")?.status, 200);
    let beat = "lockwatch_heartbeat_timestamp_seconds";
    let first = wait_for(&socket, beat, |value| value > 0.0)?;
    wait_for(&socket, beat, |value| value > first)?;
    wait_for(&socket, "lockwatch_gc_runs_total", |value| value >= 3.0)?;
    daemon.freeze()?;
    let asked = get(&socket, "/healthz", "");
    daemon.signal(Signal::CONT)?;
    ensure!(asked.is_err(), "a stopped process answered {asked:?}");
    wait_for(&socket, beat, |value| value > first)?;
    daemon.stop()?;
    ensure!(!socket.exists(), "the socket is still there");
    Ok(())
}

fn both_formats_are_served_and_other_requests_refused(scene: &mut Scene) -> Result<()> {
    let (_house, daemon, socket) = begin(scene)?;
    let open = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let answer = get(&socket, "/metrics", open)?;
    ensure!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"));
    ensure!(answer.body.ends_with("# EOF\n"), "it has no end: {}", answer.body);
    let pid = daemon.pid().to_string();
    let path = scene.path_text("lock")?;
    for secret in [format!("\"{pid}\""), path] {
        ensure!(!answer.body.contains(&secret), "{secret} is in {}", answer.body);
    }
    same!("another path", get(&socket, "/", "")?.status, 404);
    daemon.stop()?;
    Ok(())
}

fn who_hangs_at_the_listener_keeps_the_watch_from_nothing(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon, socket) = begin(scene)?;
    let beat = "lockwatch_heartbeat_timestamp_seconds";
    let before = wait_for(&socket, beat, |value| value > 0.0)?;
    // More than are served at a time: some ask for half, some for all and read nothing of it.
    let mut hanging = Vec::new();
    for number in 0..64 {
        let mut stream = UnixStream::connect(&socket).context("connecting")?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let part = if number % 2 == 0 { request.len() / 2 } else { request.len() };
        stream.write_all(&request.as_bytes()[..part]).context("asking")?;
        hanging.push(stream);
    }
    scene.play(LEAKED)?;
    daemon.expect("orphaned", |event| event["lock"]["watch"] == "aim")?;
    scene.play("heir: exit 0")?;
    daemon.expect("recovered", |event| event["lock"]["watch"] == "aim")?;
    drop(hanging);
    wait_for(&socket, beat, |value| value > before)?;
    daemon.stop()?;
    Ok(())
}

fn the_daemon_works_with_the_units_capabilities_and_no_others(scene: &mut Scene) -> Result<()> {
    let set = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .context("the unit bounds nothing")?;
    let set = set
        .split(' ')
        .map(|name| Capability::named(name).with_context(|| format!("{name} is not known here")));
    let set: Vec<Capability> = set.collect::<Result<_>>()?;
    let house = House::build(scene)?;
    let (path, audit) = (scene.path_text("lock")?, house.path("audit.jsonl"));
    house.configure(&format!(
        "{QUICK}\ntree = \"required\"\n[reclaim]\nmode = \"reclaim\"\naudit = \"{}\"\n\
         [[watch]]\nname = \"aim\"\npath = \"{path}\"",
        audit.display()
    ))?;
    let mut daemon = house.launch_with(scene, &[], |daemon| daemon.with_only(&set))?;
    house.wait_for_manager("READY=1")?;
    scene.play(LEAKED)?;
    daemon.expect("orphaned", |event| event["lock"]["watch"] == "aim")?;
    let socket = house.path("metrics.sock");
    wait_for(&socket, HOT, |value| value == 1.0)?;
    same!("readiness", get(&socket, "/readyz", "")?.status, 200);
    // Also what it does: a release through the tree.
    fs::write(house.path("tree/locks/aim/locked"), "0\n").context("the release")?;
    daemon.expect("reclaim_done", |event| event["lock"]["watch"] == "aim")?;
    scene.play("heir: exit 0")?;
    daemon.stop()?;
    Ok(())
}

fn the_kernels_counters_outlive_a_daemon(scene: &mut Scene) -> Result<()> {
    let (house, daemon, socket) = begin(scene)?;
    let taken = "lockwatch_acquisitions_total{type=\"OFDLCK\"}";
    let before = *samples(&socket)?.get(taken).context("not told")?;
    daemon.kill()?;
    scene.play(
        "start owner
         owner: open a lock
         owner: ofd a wr 0 eof",
    )?;
    // The socket that the killed one left is no obstacle.
    let daemon = house.start(scene, &[])?;
    wait_for(&socket, taken, |value| value >= before + 1.0)?;
    daemon.stop()?;
    Ok(())
}
