//! What the daemon reclaims by itself: what the configuration allows, around its hooks, and no more
//! of it once something is wrong or the switch is off.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::scrape::{samples, wait_for};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use serde_json::Value;

use crate::reclaim_hooks::program;
use crate::stories::{LEAKED, SHELL_IDIOM};

const NEEDS: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts", "pidfd_getfd", "kcmp"];
const HOOKS: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "pidfd_getfd",
    "kcmp",
    "program:sh",
    "program:sleep",
];
const WRITES: &[&str] =
    &["root", "iter/task_file", "tp_btf", "mounts", "pidfd_getfd", "kcmp", "file-events"];
const SWITCH: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "pidfd_getfd",
    "kcmp",
    "fuse",
    "program:sh",
    "program:sleep",
];

pub(crate) const TESTS: &[Test] = &[
    once!(an_orphan_on_a_watched_file_is_released_without_anybodys_asking).needs(NEEDS),
    once!(what_is_there_at_the_start_is_swept_before_ready).needs(NEEDS),
    once!(what_is_only_likely_an_orphan_is_left_alone_unless_its_watch_says_so).needs(NEEDS),
    once!(nothing_is_released_that_the_configuration_does_not_allow).needs(NEEDS),
    once!(what_is_held_by_right_is_left_alone).needs(NEEDS),
    once!(a_failed_drain_is_tried_again_later).needs(HOOKS),
    once!(too_many_in_a_minute_end_it_until_it_is_switched_on_again).needs(SWITCH),
    once!(the_switch_stops_what_is_under_way).needs(SWITCH),
    once!(a_holder_that_lets_go_in_between_is_a_race).needs(HOOKS),
    once!(who_lost_the_lock_and_writes_is_a_race).needs(WRITES),
    once!(who_took_the_lock_anew_may_write).needs(WRITES),
    once!(with_the_daemon_its_reclaims_end_and_the_next_one_takes_over).needs(HOOKS),
    once!(who_writes_into_the_tree_meanwhile_waits_and_is_told_that_it_is_done).needs(SWITCH),
];

const QUICK: &str = "gc_interval = \"200ms\"\ngrace = \"50ms\"";

/// A house whose daemon may reclaim `lock`; `reclaim` goes into `[reclaim]`, `watch` to the watch.
fn house(scene: &mut Scene, reclaim: &str, watch: &str) -> Result<House> {
    let house = House::build(scene)?;
    configure(scene, &house, reclaim, watch)?;
    Ok(house)
}

pub(crate) fn configure(scene: &Scene, house: &House, reclaim: &str, watch: &str) -> Result<()> {
    let (path, audit) = (scene.path_text("lock")?, house.path("audit.jsonl"));
    house.configure(&format!(
        "{QUICK}\n[reclaim]\nmode = \"reclaim\"\naudit = \"{}\"\n{reclaim}\n\
         [[watch]]\nname = \"it\"\npath = \"{path}\"\nreclaim = true\n{watch}",
        audit.display()
    ))
}

/// A hook of the house; gives the line that names it in the configuration.
pub(crate) fn hook(house: &House, name: &str, script: &str) -> Result<String> {
    let path = house.path(name).display().to_string();
    program(&path, script)?;
    Ok(format!("{name} = {{ run = [\"{path}\"], timeout = \"30s\" }}\n"))
}

pub(crate) fn records(house: &House) -> Result<Vec<Value>> {
    let text = fs::read_to_string(house.path("audit.jsonl")).context("the record")?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn of(scene: &Scene, event: &Value) -> bool {
    let path = event["lock"]["file"]["path"].as_str().map(Path::new);
    path.is_some_and(|path| path.starts_with(scene.folder()))
}

pub(crate) fn is_free(scene: &Scene) -> Result<bool> {
    Ok(scene.scan_by_bpf()?.locks_on(&scene.file("lock")?).is_empty())
}

fn appears(path: &Path) -> Result<()> {
    let what = path.display().to_string();
    patience::until(&what, || Ok(path.exists().then_some(())))
}

fn an_orphan_on_a_watched_file_is_released_without_anybodys_asking(
    scene: &mut Scene,
) -> Result<()> {
    let house = house(scene, "", "")?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(LEAKED)?;
    let planned = daemon.expect("reclaim_planned", |event| of(scene, event))?;
    same!("by", planned["by"], "policy");
    same!("method", planned["method"], "fd");
    same!("through", planned["through"]["pid"], scene.pid("heir")?);
    // Whether the reading that shows it gone comes before the run's end is chance.
    let mut events = Vec::new();
    patience::until("recovered and reclaim_done", || {
        events.extend(daemon.events()?.into_iter().filter(|event| of(scene, event)));
        let is_there = |kind: &str| events.iter().any(|event| event["kind"] == kind);
        Ok((is_there("recovered") && is_there("reclaim_done")).then_some(()))
    })?;
    let done = events.iter().find(|event| event["kind"] == "reclaim_done").context("done")?;
    same!("the lock", done["lock"], planned["lock"]);
    ensure!(done["took_ns"].as_u64().is_some_and(|took| took > 0), "{done}");
    ensure!(is_free(scene)?, "it is still there");
    scene.play("heir: write a alive")?;
    let metrics = house.path("metrics.sock");
    wait_for(&metrics, "lockwatch_reclaims_total{method=\"fd\",result=\"released\"}", |count| {
        count >= 1.0
    })?;
    let records = records(&house)?;
    let [begun, .., ended] = &records[..] else { bail!("the record: {records:?}") };
    same!("for whom", begun["daemon"], "policy");
    same!("its parent", begun["who"]["parent_pid"], daemon.pid());
    same!("how sure it was", begun["plans"][0]["confidence"], "certain");
    same!("success", ended["success"], true);
    daemon.stop()?;
    Ok(())
}

/// A daemon has released the orphan by the time that it says it is ready.
fn is_swept_before_ready(scene: &mut Scene, house: &House) -> Result<()> {
    let daemon = house.start(scene, &[])?;
    ensure!(is_free(scene)?, "it is ready, and the lock is still there");
    daemon.stop()?;
    Ok(())
}

fn what_is_there_at_the_start_is_swept_before_ready(scene: &mut Scene) -> Result<()> {
    let house = house(scene, "", "")?;
    // What the kernel remembers while no daemon runs is as certain as if one had.
    house.start(scene, &[])?.stop()?;
    scene.play(LEAKED)?;
    is_swept_before_ready(scene, &house)
}

fn what_is_only_likely_an_orphan_is_left_alone_unless_its_watch_says_so(
    scene: &mut Scene,
) -> Result<()> {
    let house = house(scene, "", "")?;
    // Taken before anybody watched.
    scene.play(LEAKED)?;
    let mut daemon = house.start(scene, &[])?;
    let told = daemon.expect("orphaned", |event| of(scene, event))?;
    same!("how sure it is", told["confidence"], "likely");
    let told = daemon.expect("reclaim_failed", |event| of(scene, event))?;
    same!("result", told["result"], "refused");
    let why = told["why"].as_str().unwrap_or_default();
    ensure!(why.contains("likely, not certain") && why.contains("reclaim_likely"), "{told}");
    std::thread::sleep(patience::stretched(Duration::from_millis(600)));
    daemon.told_none_of(&["reclaim_planned", "reclaim_failed", "recovered"])?;
    ensure!(!is_free(scene)?, "it was released");
    daemon.stop()?;
    configure(scene, &house, "", "reclaim_likely = true")?;
    is_swept_before_ready(scene, &house)
}

fn nothing_is_released_that_the_configuration_does_not_allow(scene: &mut Scene) -> Result<()> {
    let house = house(scene, "", "")?;
    let path = scene.path_text("lock")?;
    let watch = format!("[[watch]]\nname = \"it\"\npath = \"{path}\"");
    for (round, more) in [
        format!("[reclaim]\nmode = \"reclaim\"\n{watch}"),
        format!("[reclaim]\nmode = \"report\"\n{watch}\nreclaim = true"),
        "[reclaim]\nmode = \"reclaim\"".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        house.configure(&format!("{QUICK}\n{more}"))?;
        let mut daemon = house.start(scene, &[])?;
        let heir = format!("heir{round}");
        scene.play(&LEAKED.replace("owner", &format!("owner{round}")).replace("heir", &heir))?;
        let told = daemon.expect("orphaned", |event| of(scene, event))?;
        same!("how sure it is", told["confidence"], "certain");
        std::thread::sleep(patience::stretched(Duration::from_millis(600)));
        daemon.told_none_of(&["reclaim_planned", "reclaim_failed", "recovered"])?;
        ensure!(!is_free(scene)?, "it was released: {more}");
        daemon.stop()?;
        scene.play(&format!("kill {heir}"))?;
    }
    Ok(())
}

fn what_is_held_by_right_is_left_alone(scene: &mut Scene) -> Result<()> {
    let house = house(scene, "", "")?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(SHELL_IDIOM)?;
    std::thread::sleep(patience::stretched(Duration::from_millis(600)));
    daemon.told_none_of(&["orphaned", "reclaim_planned"])?;
    ensure!(!is_free(scene)?, "the shell lost its lock");
    daemon.stop()?;
    Ok(())
}

fn a_failed_drain_is_tried_again_later(scene: &mut Scene) -> Result<()> {
    let house = house(scene, "", "")?;
    let (count, good) = (house.path("count"), house.path("good"));
    let (shown, wanted) = (count.display(), good.display());
    let mut hooks =
        hook(&house, "drain", &format!("echo x >> {shown}; echo no >&2; [ -e {wanted} ]"))?;
    hooks.push_str(&hook(&house, "resume", "exit 0")?);
    configure(scene, &house, "retry = \"300ms\"", &hooks)?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(LEAKED)?;
    for _ in 0..2 {
        let failed = daemon.expect("reclaim_failed", |event| of(scene, event))?;
        same!("result", failed["result"], "not_tried");
        same!("why", failed["why"], "drain exited with 1");
        same!("what it said", failed["hooks"][0]["said"], "no\n");
        same!("last", failed["hooks"][1]["hook"], "resume");
    }
    ensure!(!is_free(scene)?, "it was released after a failed drain");
    fs::write(good, "").context("the drain's cause")?;
    daemon.expect("reclaim_done", |event| of(scene, event))?;
    let tries = fs::read_to_string(count)?.lines().count();
    ensure!((3..20).contains(&tries), "{tries} tries");
    let found = samples(&house.path("metrics.sock"))?;
    let refused = found.get("lockwatch_reclaims_total{method=\"fd\",result=\"refused\"}");
    ensure!(refused.is_some_and(|&count| count >= 2.0), "refused: {refused:?}");
    daemon.stop()?;
    Ok(())
}

fn too_many_in_a_minute_end_it_until_it_is_switched_on_again(scene: &mut Scene) -> Result<()> {
    let house = house(scene, "per_minute = 1", "")?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(LEAKED)?;
    daemon.expect("reclaim_done", |event| of(scene, event))?;
    scene.play(&LEAKED.replace("owner", "second").replace("heir", "child"))?;
    let told = daemon.expect("reclaim_failed", |event| of(scene, event))?;
    let why = told["why"].as_str().unwrap_or_default();
    ensure!(why.contains("more than 1 reclaims in a minute"), "{told}");
    let switch = house.path("tree/reclaim_enabled");
    patience::until("the switch is off", || {
        Ok((fs::read_to_string(&switch)? == "0\n").then_some(()))
    })?;
    ensure!(!is_free(scene)?, "it was released all the same");
    fs::write(&switch, "1").context("the switch")?;
    daemon.expect("reclaim_done", |event| of(scene, event))?;
    ensure!(is_free(scene)?, "it is still there");
    daemon.stop()?;
    Ok(())
}

/// A daemon whose drain has begun and does not end by itself; it says so in `paused`, and `resume`
/// in `resumed`.
fn paused(scene: &mut Scene) -> Result<(House, Daemon)> {
    let house = house(scene, "", "")?;
    let script = format!(
        ": > {}; while ! [ -e {} ]; do sleep 0.02; done",
        house.path("paused").display(),
        house.path("go").display()
    );
    let mut hooks = hook(&house, "drain", &script)?;
    hooks.push_str(&hook(&house, "resume", &format!(": > {}", house.path("resumed").display()))?);
    configure(scene, &house, "retry = \"1h\"", &hooks)?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(LEAKED)?;
    daemon.expect("reclaim_planned", |event| of(scene, event))?;
    appears(&house.path("paused"))?;
    Ok((house, daemon))
}

fn the_switch_stops_what_is_under_way(scene: &mut Scene) -> Result<()> {
    let (house, mut daemon) = paused(scene)?;
    fs::write(house.path("tree/reclaim_enabled"), "0").context("the switch")?;
    let told = daemon.expect("reclaim_failed", |event| of(scene, event))?;
    same!("result", told["result"], "not_tried");
    same!("why", told["why"], "drain was interrupted");
    appears(&house.path("resumed"))?;
    std::thread::sleep(patience::stretched(Duration::from_millis(500)));
    daemon.told_none_of(&["reclaim_planned", "reclaim_done"])?;
    ensure!(!is_free(scene)?, "it was released all the same");
    daemon.stop()?;
    Ok(())
}

fn a_holder_that_lets_go_in_between_is_a_race(scene: &mut Scene) -> Result<()> {
    let (house, mut daemon) = paused(scene)?;
    scene.play(
        "heir: flock a un
         heir: flock a ex",
    )?;
    fs::write(house.path("go"), "").context("the end of the pause")?;
    let told = daemon.expect("reclaim_race", |event| of(scene, event))?;
    same!("race", told["race"], "another_lock");
    ensure!(told["why"].as_str().is_some_and(|why| !why.is_empty()), "{told}");
    let metrics = house.path("metrics.sock");
    wait_for(&metrics, "lockwatch_races_total{kind=\"reclaim_race\"}", |count| count >= 1.0)?;
    ensure!(!is_free(scene)?, "what the holder took anew was released");
    daemon.stop()?;
    Ok(())
}

fn with_the_daemon_its_reclaims_end_and_the_next_one_takes_over(scene: &mut Scene) -> Result<()> {
    let (house, daemon) = paused(scene)?;
    daemon.kill()?;
    appears(&house.path("resumed"))?;
    let ended = patience::until("the record's end", || {
        Ok(records(&house)?.into_iter().find(|record| record["record"] == "ended"))
    })?;
    same!("result", ended["outcomes"][0]["result"], "not_tried");
    ensure!(!is_free(scene)?, "it was released without a daemon");
    fs::write(house.path("go"), "").context("the end of the pause")?;
    is_swept_before_ready(scene, &house)
}

fn who_writes_into_the_tree_meanwhile_waits_and_is_told_that_it_is_done(
    scene: &mut Scene,
) -> Result<()> {
    let (house, mut daemon) = paused(scene)?;
    let locked = house.path("tree/locks/it/locked");
    patience::until("the tree shows it", || {
        let state = fs::read_to_string(house.path("tree/locks/it/state"))?;
        Ok((state == "orphaned\n").then_some(()))
    })?;
    let writer = std::thread::spawn(move || fs::write(locked, "0"));
    std::thread::sleep(patience::stretched(Duration::from_millis(200)));
    ensure!(!writer.is_finished(), "it was answered while the reclaim was under way");
    fs::write(house.path("go"), "").context("the end of the pause")?;
    daemon.expect("reclaim_done", |event| of(scene, event))?;
    let answer = writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
    answer.context("the answer to who wrote into the tree")?;
    ensure!(is_free(scene)?, "it is still there");
    daemon.stop()?;
    Ok(())
}

fn who_lost_the_lock_and_writes_is_a_race(scene: &mut Scene) -> Result<()> {
    let house = house(scene, "", "")?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(LEAKED)?;
    scene.play(
        "start bystander
         bystander: open b lock",
    )?;
    daemon.expect("reclaim_done", |event| of(scene, event))?;
    // From a moment after the release on: the daemon must have heard of it.
    std::thread::sleep(patience::stretched(Duration::from_millis(300)));
    scene.play("bystander: write b mine")?;
    std::thread::sleep(patience::stretched(Duration::from_millis(300)));
    daemon.told_none_of(&["reclaim_race"])?;
    scene.play("heir: write a torn")?;
    let told = daemon.expect("reclaim_race", |event| of(scene, event))?;
    same!("race", told["race"], "written");
    same!("writer", told["writer"]["pid"], scene.pid("heir")?);
    same!("lock", told["lock"]["type"], "FLOCK");
    let metrics = house.path("metrics.sock");
    wait_for(&metrics, "lockwatch_races_total{kind=\"reclaim_race\"}", |count| count >= 1.0)?;
    daemon.stop()?;
    Ok(())
}

fn who_took_the_lock_anew_may_write(scene: &mut Scene) -> Result<()> {
    let house = house(scene, "", "")?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(LEAKED)?;
    daemon.expect("reclaim_done", |event| of(scene, event))?;
    std::thread::sleep(patience::stretched(Duration::from_millis(300)));
    scene.play(
        "heir: flock a ex
         heir: write a rightly",
    )?;
    std::thread::sleep(patience::stretched(Duration::from_millis(500)));
    daemon.told_none_of(&["reclaim_race"])?;
    daemon.stop()?;
    Ok(())
}
