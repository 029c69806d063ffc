//! The daemon as a service: one at a time, its continuity, its files, and who follows it.

use std::fs;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{NEEDS, on};
use crate::stories::{CRASHED, LEAKED};

pub(crate) const TESTS: &[Test] = &[
    once!(a_second_daemon_is_told_who_runs).needs(NEEDS),
    once!(a_manager_that_does_not_listen_stops_nothing).needs(NEEDS),
    once!(the_kernel_goes_on_recording_while_no_daemon_runs).needs(NEEDS),
    once!(numbers_of_events_go_on_after_a_kill).needs(NEEDS),
    once!(detaching_takes_everything_away).needs(NEEDS),
    once!(a_scan_reads_the_pinned_history).needs(NEEDS),
    once!(a_log_that_was_renamed_is_opened_anew_at_a_hangup).needs(NEEDS),
    once!(an_interrupted_daemon_says_so).needs(NEEDS),
    once!(the_programs_speak_for_who_asks_for_them_by_name).needs(NEEDS),
    once!(followers_get_what_they_asked_for).needs(NEEDS),
    once!(who_follows_no_daemon_is_told_so).needs(&["root"]),
    once!(a_configuration_is_checked_without_a_daemon).needs(NEEDS),
    once!(a_configuration_that_others_can_write_is_refused).needs(NEEDS),
    once!(a_recording_replays_to_the_same_events).needs(NEEDS),
    once!(nobody_may_follow_or_run_it).needs(&[
        "root",
        "iter/task_file",
        "tp_btf",
        "mounts",
        "nobody",
    ]),
];

const QUICK: &str = "gc_interval = \"200ms\"\ngrace = \"50ms\"";

fn a_second_daemon_is_told_who_runs(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let first = house.start(scene, &[])?;
    let run = scene.lockwatch(&["daemon", "--config", &house.config()])?.run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains(&format!("(pid {})", first.pid())), "said {line:?}");
    first.stop()?;
    house.start(scene, &[])?.stop()?;
    Ok(())
}

fn a_manager_that_does_not_listen_stops_nothing(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    house.deafen_manager()?;
    let mut daemon = house.launch(scene, &[])?;
    daemon.expect("started", |_| true)?;
    scene.play(LEAKED)?;
    daemon.expect("orphaned", on(scene, "lock")?)?;
    scene.play("heir: exit 0")?;
    daemon.expect("recovered", on(scene, "lock")?)?;
    daemon.stop()?;
    Ok(())
}

fn the_kernel_goes_on_recording_while_no_daemon_runs(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    house.start(scene, &[])?.kill()?;
    scene.play(CRASHED)?;
    let mut daemon = house.start(scene, &[])?;
    let started = daemon.expect("started", |_| true)?;
    same!("continued", started["continued"], true);
    let event = daemon.expect("orphaned", on(scene, "lock")?)?;
    same!("confidence", event["confidence"], "certain");
    same!("acquirer", event["lock"]["acquirer"]["pid"], scene.pid("owner")?);
    same!("signal", event["lock"]["acquirer"]["exit"]["signal"], 9);
    ensure!(event["lock"]["acquired_at"].is_string(), "without its beginning: {event}");
    daemon.stop()?;
    Ok(())
}

fn numbers_of_events_go_on_after_a_kill(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    for _ in 0..3 {
        let mut daemon = house.start(scene, &[])?;
        daemon.expect("started", |_| true)?;
        daemon.kill()?;
    }
    house.start(scene, &[])?.stop()?;
    let log = fs::read_to_string(house.path("events.jsonl")).context("the log")?;
    let mut numbers = Vec::new();
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).context("an event")?;
        numbers.push(event["seq"].as_u64().context("an event without a number")?);
    }
    ensure!(numbers.len() >= 4, "only {} events", numbers.len());
    let expected: Vec<u64> = (1..).take(numbers.len()).collect();
    same!("numbers", numbers, expected);
    Ok(())
}

fn detaching_takes_everything_away(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let daemon = house.start(scene, &[])?;
    let config = house.config();
    // Not under the feet of a daemon.
    scene.lockwatch(&["daemon", "--config", &config, "--detach"])?.run()?.fails_in_one_line()?;
    daemon.stop()?;
    let pins = house.path("bpf/lockwatch");
    ensure!(fs::read_dir(&pins)?.count() > 0, "nothing was pinned");
    scene.lockwatch(&["daemon", "--config", &config, "--detach"])?.run()?.exits(0)?;
    ensure!(!pins.exists() || fs::read_dir(&pins)?.count() == 0, "something is pinned");
    let mut daemon = house.start(scene, &[])?;
    let started = daemon.expect("started", |_| true)?;
    same!("continued", started["continued"], false);
    daemon.stop()?;
    Ok(())
}

fn a_scan_reads_the_pinned_history(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    // With or without a daemon: what counts is what is pinned.
    house.start(scene, &[])?.stop()?;
    scene.play(LEAKED)?;
    let scan = scene.lockwatch(&["scan", "--json", "--source", "bpf"])?;
    let run = scan.env("LOCKWATCH_STATE_DIR", house.path("bpf/lockwatch")).run()?;
    let report = scene.report(&run)?;
    let text: Value = serde_json::from_slice(&run.stdout).context("the report")?;
    same!("history", text["history"], true);
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    same!("confidence", lock.confidence, "certain");
    ensure!(lock.acquired_at.is_some(), "its beginning is not told: {lock:?}");
    same!("acquirer", lock.acquirer()?.pid, Some(scene.pid("owner")?));
    Ok(())
}

fn a_log_that_was_renamed_is_opened_anew_at_a_hangup(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    let daemon = house.start(scene, &[])?;
    let (log, old) = (house.path("events.jsonl"), house.path("events.jsonl.1"));
    fs::rename(&log, &old).context("renaming the log")?;
    daemon.signal(Signal::HUP)?;
    patience::until("the new log", || Ok(log.exists().then_some(())))?;
    scene.play(LEAKED)?;
    let told = |path| fs::read_to_string(path).map(|text: String| text.contains("orphaned"));
    patience::until("an event in the new log", || Ok(told(&log)?.then_some(())))?;
    ensure!(!told(&old)?, "the event went to the old log");
    daemon.stop()?;
    Ok(())
}

fn an_interrupted_daemon_says_so(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let daemon = house.start(scene, &[])?;
    daemon.signal(Signal::INT)?;
    daemon.finish()?.exits(130)?;
    ensure!(!house.path("tree.sock").exists(), "its socket was left behind");
    Ok(())
}

fn the_programs_speak_for_who_asks_for_them_by_name(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let config = house.path("lockwatch.toml");
    for (asked, speak) in [("lockwatch_ebpf=debug", true), ("debug", false)] {
        let daemon = house.start_from(scene, &config, |daemon| daemon.env("RUST_LOG", asked))?;
        let owner = format!("owner_{speak}");
        scene.play(&format!(
            "start {owner}
             {owner}: open a lock
             {owner}: flock a ex
             {owner}: die KILL"
        ))?;
        std::thread::sleep(patience::stretched(std::time::Duration::from_millis(200)));
        let run = daemon.stop()?;
        let words = format!("process {} ends with 9 and has locks", scene.pid(&owner)?);
        let said = String::from_utf8_lossy(&run.stderr).contains(&words);
        ensure!(said == speak, "with {asked}: {}", String::from_utf8_lossy(&run.stderr));
        // The next one loads the programs anew.
        scene.lockwatch(&["daemon", "--detach", "--config", &house.config()])?.run()?.exits(0)?;
    }
    Ok(())
}

fn followers_get_what_they_asked_for(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    let mut daemon = house.start(scene, &[])?;
    let config = house.config();
    let follow = |more: &[&str]| {
        let args = [&["events", "--config", &config], more].concat();
        scene.lockwatch(&args)
    };
    let json = follow(&["--json", "--kind", "orphaned,recovered"])?.start()?;
    let text = follow(&["--last", "5"])?.start()?;
    patience::until("a follower's first line", || Ok((text.written_so_far() > 0).then_some(())))?;
    // The one that wants later kinds alone gives no sign of having come.
    std::thread::sleep(patience::stretched(std::time::Duration::from_millis(200)));
    scene.play(LEAKED)?;
    daemon.expect("orphaned", on(scene, "lock")?)?;
    scene.play("heir: exit 0")?;
    daemon.expect("recovered", on(scene, "lock")?)?;
    let path = scene.path_text("lock")?;
    let run = scene.lockwatch(&["events", "--config", &config, "--no-follow", "--last", "1"])?;
    let run = run.run()?;
    same!("lines", run.exits(0)?.lines()?.len(), 1);
    daemon.stop()?;

    let json = json.finish()?;
    let is_own = on(scene, "lock")?;
    let kinds: Result<Vec<String>> = json
        .exits(0)?
        .lines()?
        .iter()
        .map(|line| {
            let event: Value = serde_json::from_str(line).context("an event")?;
            Ok((event["kind"].as_str().context("no kind")?.to_owned(), event))
        })
        // Other work on the machine has no part in it.
        .filter(|event| event.as_ref().map_or(true, |(_, event)| is_own(event)))
        .map(|event| event.map(|(kind, _)| kind))
        .collect();
    same!("kinds", kinds?, ["orphaned", "recovered"]);
    let text = text.finish()?;
    let lines = text.exits(0)?.lines()?;
    ensure!(lines[0].contains("started"), "the first line is {:?}", lines[0]);
    ensure!(lines.iter().any(|line| line.contains(&path)), "without the path: {lines:?}");
    Ok(())
}

fn who_follows_no_daemon_is_told_so(scene: &mut Scene) -> Result<()> {
    let config = scene.path("lockwatch.toml");
    let mount = scene.path_text("tree")?;
    fs::write(&config, format!("mount = \"{mount}\"\n")).context("the configuration")?;
    let config = scene.path_text("lockwatch.toml")?;
    let run = scene.lockwatch(&["events", "--config", &config])?.run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("tree.sock") && line.contains("lockwatch daemon"), "said {line:?}");
    Ok(())
}

fn a_configuration_is_checked_without_a_daemon(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let config = house.config();
    let check = ["daemon", "--check-config", "--config", &config];
    scene.lockwatch(&check)?.run()?.exits(0)?;
    house.configure("grase = 1")?;
    let run = scene.lockwatch(&check)?.run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("line 4: unknown field `grase`"), "said {line:?}");
    let run = scene.lockwatch(&["daemon", "--config", "/srv/absent.toml"])?.run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("/srv/absent.toml: No such file"), "said {line:?}");
    Ok(())
}

fn a_configuration_that_others_can_write_is_refused(scene: &mut Scene) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let house = House::build(scene)?;
    let config = house.config();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o666)).context("its mode")?;
    let run = scene.lockwatch(&["daemon", "--config", &config])?.run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("can be written by others"), "said {line:?}");
    Ok(())
}

fn a_recording_replays_to_the_same_events(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    let trace = house.path("trace").display().to_string();
    let mut daemon = house.start(scene, &["--record", &trace])?;
    scene.play(LEAKED)?;
    daemon.expect("orphaned", on(scene, "lock")?)?;
    scene.play("heir: exit 0")?;
    daemon.expect("recovered", on(scene, "lock")?)?;
    daemon.stop()?;
    let log = fs::read(house.path("events.jsonl")).context("the log")?;
    let run = scene.lockwatch(&["replay", "--json", &trace])?.run()?;
    same!("events", String::from_utf8_lossy(&run.exits(0)?.stdout), String::from_utf8_lossy(&log));
    Ok(())
}

fn nobody_may_follow_or_run_it(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let config = house.config();
    let daemon = house.start(scene, &[])?;
    let run = scene.public_lockwatch(&["events", "--config", &config])?.as_nobody().run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("Permission denied"), "said {line:?}");
    daemon.stop()?;
    let run = scene.public_lockwatch(&["daemon", "--config", &config])?.as_nobody().run()?;
    run.fails_in_one_line()?;
    Ok(())
}
