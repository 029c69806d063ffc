//! The daemon: what it tells of each thing that happens, and that it tells it once.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use serde_json::Value;

use crate::stories::{self, CRASHED, HELD, LEAKED, SHELL_IDIOM};

/// What every test of the daemon needs.
pub(crate) const NEEDS: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts"];
pub(crate) const AND_A_CHOSEN_PID: &[&str] =
    &["root", "iter/task_file", "tp_btf", "mounts", "choose-pid"];

const AND_MAPPINGS: &[&str] = &["root", "iter/task_file", "iter/task_vma", "tp_btf", "mounts"];

pub(crate) const TESTS: &[Test] = &[
    once!(an_orphan_is_told_once_with_its_whole_story).needs(NEEDS),
    once!(an_orphan_that_ends_is_recovered_and_then_all_is_clear).needs(NEEDS),
    once!(an_orphan_among_thousands_of_locks_that_come_and_go_is_told_as_one_alone).needs(NEEDS),
    once!(a_forked_child_of_a_process_that_crashed_is_no_heir).needs(NEEDS),
    once!(idioms_are_no_events).needs(NEEDS),
    once!(what_is_in_flight_beside_a_lock_with_a_leaked_descriptor_is_found_too).needs(NEEDS),
    once!(what_is_only_mapped_is_found_too).needs(AND_MAPPINGS),
    once!(who_maps_the_file_beside_a_leaked_descriptor_is_told_too).needs(AND_MAPPINGS),
    once!(who_has_nothing_but_a_mapping_by_right_makes_no_orphan).needs(AND_MAPPINGS),
    once!(a_lock_that_is_older_than_the_watch_is_no_certain_orphan).needs(NEEDS),
    once!(a_crash_and_the_next_owner_are_a_handoff).needs(NEEDS),
    once!(an_unlock_before_a_crash_is_no_handoff).needs(NEEDS),
    once!(an_attempt_on_a_dying_owners_lock_is_a_race).needs(NEEDS),
    once!(a_pid_that_is_given_again_is_told).needs(AND_A_CHOSEN_PID),
    once!(a_lock_file_that_was_made_anew_is_told).needs(NEEDS),
    once!(a_refusal_on_a_watched_file_is_told_with_who_was_refused).needs(NEEDS),
    once!(a_refusal_by_an_orphan_is_told).needs(NEEDS),
    once!(a_wait_past_its_threshold_is_told_once).needs(NEEDS),
    once!(a_deadlock_is_told_once_with_its_members).needs(NEEDS),
    once!(threads_that_could_release_a_lock_make_it_no_deadlock).needs(NEEDS),
    once!(verbose_events_tell_of_watched_files_what_happens).needs(NEEDS),
    once!(a_crash_with_more_locks_than_can_have_attention_is_survived).needs(NEEDS),
];

/// A grace and a reconciliation that a test need not wait long for.
const QUICK: &str = "gc_interval = \"200ms\"\ngrace = \"50ms\"";

/// A daemon in a house of its own.
fn begin(scene: &mut Scene, more: &str) -> Result<(House, Daemon)> {
    let house = House::build(scene)?;
    house.configure(more)?;
    let mut daemon = house.start(scene, &[])?;
    daemon.expect("started", |_| true)?;
    Ok((house, daemon))
}

/// True for an event about a lock on that file of the scene, also where no reading has shown its
/// path yet.
pub(crate) fn on(scene: &Scene, name: &str) -> Result<impl Fn(&Value) -> bool + use<>> {
    let file = scene.file(name)?;
    Ok(move |event: &Value| {
        let told = &event["lock"]["file"];
        told["ino"] == file.ino && told["dev"] == file.dev.as_str()
    })
}

/// Long enough for two reconciliations and as many graces.
fn a_while() {
    std::thread::sleep(patience::stretched(std::time::Duration::from_millis(600)));
}

fn an_orphan_is_told_once_with_its_whole_story(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(CRASHED)?;
    let event = daemon.expect("orphaned", on(scene, "lock")?)?;
    same!("reason", event["reason"], "inherited");
    same!("confidence", event["confidence"], "certain");
    let lock = &event["lock"];
    same!("type", lock["type"], "FLOCK");
    same!("access", lock["access"], "WRITE");
    same!("acquirer", lock["acquirer"]["pid"], scene.pid("owner")?);
    same!("its comm", lock["acquirer"]["comm"], "rig");
    same!("its signal", lock["acquirer"]["exit"]["signal"], 9);
    same!("its code", lock["acquirer"]["exit"]["code"], Value::Null);
    ensure!(lock["acquirer"]["start_time"].is_string(), "without a start: {event}");
    let moments = [
        &lock["acquirer"]["start_time"],
        &lock["acquired_at"],
        &lock["acquirer"]["exit"]["at"],
        &event["ts"],
    ];
    let moments: Option<Vec<&str>> = moments.into_iter().map(Value::as_str).collect();
    let moments = moments.context("a moment is missing")?;
    ensure!(moments.is_sorted(), "moments in the wrong order: {moments:?}");
    let holders = event["holders"].as_array().context("no holders")?;
    same!("holders", holders.len(), 1);
    same!("holder", holders[0]["pid"], scene.pid("heir")?);
    a_while();
    daemon.told_none_of(&["orphaned", "recovered", "all_clear"])?;
    // The id is the one that a scan shows.
    let report = scene.scan_by_bpf()?;
    same!("id", report.only_lock_on(&scene.file("lock")?)?.id, lock["id"]);
    daemon.stop()?;
    Ok(())
}

fn an_orphan_that_ends_is_recovered_and_then_all_is_clear(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(LEAKED)?;
    let orphan = daemon.expect("orphaned", on(scene, "lock")?)?;
    scene.play("heir: exit 0")?;
    let event = daemon.expect("recovered", on(scene, "lock")?)?;
    same!("lock", event["lock"]["id"], orphan["lock"]["id"]);
    same!("how", event["how"], "released");
    daemon.expect("all_clear", |_| true)?;
    daemon.stop()?;
    Ok(())
}

/// Readings of very many locks take another way through the tables, and share with the reading before
/// what is as it was: nothing of that is to be seen.
fn an_orphan_among_thousands_of_locks_that_come_and_go_is_told_as_one_alone(
    scene: &mut Scene,
) -> Result<()> {
    for folder in ["early", "amid", "late"] {
        scene.new_folder(folder)?;
    }
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(
        "start early
         early: mass files 500 early
         start amid
         amid: mass files 1000 amid
         start ranges
         ranges: open b ranges
         ranges: mass posix 2000 b",
    )?;
    scene.play(CRASHED)?;
    let event = daemon.expect("orphaned", on(scene, "lock")?)?;
    same!("confidence", event["confidence"], "certain");
    same!("its signal", event["lock"]["acquirer"]["exit"]["signal"], 9);
    ensure!(event["lock"]["acquired_at"].is_string(), "not seen being taken: {event}");
    a_while();
    scene.play("early: exit 0")?;
    a_while();
    scene.play(
        "start late
         late: mass files 700 late",
    )?;
    a_while();
    daemon.told_none_of(&["orphaned", "recovered", "all_clear"])?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    same!("id", lock.id, event["lock"]["id"]);
    scene.play("heir: exit 0")?;
    daemon.expect("recovered", on(scene, "lock")?)?;
    daemon.expect("all_clear", |_| true)?;
    daemon.stop()?;
    Ok(())
}

fn a_forked_child_of_a_process_that_crashed_is_no_heir(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(HELD)?;
    scene.play(
        "owner: fork child
         owner: die TERM",
    )?;
    let event = daemon.expect("orphaned", on(scene, "lock")?)?;
    same!("reason", event["reason"], "inherited");
    same!("confidence", event["confidence"], "certain");
    same!("signal", event["lock"]["acquirer"]["exit"]["signal"], 15);
    daemon.stop()?;
    Ok(())
}

fn idioms_are_no_events(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(SHELL_IDIOM)?;
    scene.play(
        "start parent
         parent: open b handed
         parent: flock b ex
         parent: fork service
         parent: exit 0",
    )?;
    a_while();
    daemon.told_none_of(&["orphaned", "crash_handoff", "exit_race", "pid_recycled"])?;
    let report = scene.scan_by_bpf()?;
    report.only_lock_on(&scene.file("lock")?)?.is("shared")?;
    report.only_lock_on(&scene.file("handed")?)?.is("handed_over")?;
    daemon.stop()?;
    Ok(())
}

/// Another orphan, which a descriptor keeps: what is searched must not depend on it.
const BESIDE: &str = "
    start other
    other: open b beside
    other: flock b ex
    other: fork idle
    idle: exec
    other: die KILL";

/// Plays what leaves an orphan on `lock` beside another orphan, and gives what is told of it.
fn told_beside(scene: &mut Scene, story: &str, reason: &str) -> Result<Value> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(BESIDE)?;
    daemon.expect("orphaned", on(scene, "beside")?)?;
    scene.play(story)?;
    let event = daemon.expect("orphaned", on(scene, "lock")?)?;
    same!("reason", event["reason"], reason);
    daemon.stop()?;
    Ok(event)
}

fn what_is_in_flight_beside_a_lock_with_a_leaked_descriptor_is_found_too(
    scene: &mut Scene,
) -> Result<()> {
    told_beside(
        scene,
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: die KILL",
        "scm_rights",
    )?;
    Ok(())
}

fn what_is_only_mapped_is_found_too(scene: &mut Scene) -> Result<()> {
    told_beside(
        scene,
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: map a
         owner: fork heir
         heir: close a
         owner: die KILL",
        "mmap",
    )?;
    Ok(())
}

fn who_maps_the_file_beside_a_leaked_descriptor_is_told_too(scene: &mut Scene) -> Result<()> {
    let event = told_beside(
        scene,
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: map a
         owner: fork mapper
         mapper: close a
         owner: fork heir
         heir: exec
         owner: die KILL",
        "inherited",
    )?;
    let holders = event["holders"].as_array().context("no holders")?;
    for (via, name) in [("fd", "heir"), ("mmap", "mapper")] {
        let pid = scene.pid(name)?;
        let is_it = |holder: &&Value| holder["via"] == via && holder["pid"] == pid;
        ensure!(holders.iter().any(|holder| is_it(&holder)), "no {via} of {pid} in {event}");
    }
    Ok(())
}

fn who_has_nothing_but_a_mapping_by_right_makes_no_orphan(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(
        "start keeper
         keeper: open a lock
         keeper: map a
         keeper: fork owner
         keeper: close a
         owner: flock a ex
         owner: die KILL",
    )?;
    a_while();
    let report = scene.scan_by_bpf()?;
    report.only_lock_on(&scene.file("lock")?)?.is("shared")?;
    daemon.told_none_of(&["orphaned"])?;
    daemon.stop()?;
    Ok(())
}

fn a_lock_that_is_older_than_the_watch_is_no_certain_orphan(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    house.configure(QUICK)?;
    scene.play(HELD)?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(
        "owner: fork child
         owner: die KILL",
    )?;
    a_while();
    // That the child came by it after the lock was taken nobody saw, but how its owner ended was.
    for event in daemon.events()? {
        ensure!(event["confidence"] != "certain", "told as certain: {event}");
    }
    daemon.stop()?;
    Ok(())
}

fn a_crash_and_the_next_owner_are_a_handoff(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    for (round, (end, code, signal)) in
        [("die KILL", Value::Null, Value::from(9)), ("exit 3", Value::from(3), Value::Null)]
            .into_iter()
            .enumerate()
    {
        scene.play(&format!(
            "start dies{round}
             dies{round}: open a lock
             dies{round}: flock a ex
             dies{round}: write a half
             start next{round}
             next{round}: open a lock
             next{round}: later flock a ex
             await next{round} blocked
             dies{round}: {end}
             await next{round} done"
        ))?;
        let event = daemon.expect("crash_handoff", on(scene, "lock")?)?;
        same!("from", event["lock"]["acquirer"]["pid"], scene.pid(&format!("dies{round}"))?);
        same!("code", event["lock"]["acquirer"]["exit"]["code"], code);
        same!("signal", event["lock"]["acquirer"]["exit"]["signal"], signal);
        same!("to", event["to"]["pid"], scene.pid(&format!("next{round}"))?);
        let moments: Option<Vec<&str>> = ["died_at", "released_at", "acquired_at"]
            .map(|key| event[key].as_str())
            .into_iter()
            .collect();
        ensure!(moments.context("a moment is missing")?.is_sorted(), "in the wrong order: {event}");
        scene.play(&format!("next{round}: exit 0"))?;
    }
    daemon.stop()?;
    Ok(())
}

fn an_unlock_before_a_crash_is_no_handoff(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(HELD)?;
    scene.play(
        "start next
         next: open a lock
         next: later flock a ex
         await next blocked
         owner: flock a un
         await next done
         owner: die KILL
         next: exit 0
         start third
         third: open a lock
         third: flock a ex",
    )?;
    a_while();
    daemon.told_none_of(&["crash_handoff", "exit_race", "orphaned"])?;
    daemon.stop()?;
    Ok(())
}

fn an_attempt_on_a_dying_owners_lock_is_a_race(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    // Many descriptors take long to close, and what is locked is given up after all of them.
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: mass shares 3000 other
         start rival
         rival: open a lock
         rival: insist flock a ex
         owner: die KILL
         await rival done",
    )?;
    let event = daemon.expect("exit_race", on(scene, "lock")?)?;
    same!("owner", event["lock"]["acquirer"]["pid"], scene.pid("owner")?);
    same!("signal", event["lock"]["acquirer"]["exit"]["signal"], 9);
    same!("rival", event["by"]["pid"], scene.pid("rival")?);
    same!("outcome", event["outcome"], "refused");
    let moments = [event["died_at"].as_str(), event["tried_at"].as_str()];
    ensure!(moments.is_sorted() && moments[0].is_some(), "in the wrong order: {event}");
    daemon.stop()?;
    Ok(())
}

fn a_pid_that_is_given_again_is_told(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(LEAKED)?;
    daemon.expect("orphaned", on(scene, "lock")?)?;
    let pid = scene.pid("owner")?;
    scene.play("start other")?;
    scene.direct(&format!("other: fork bystander as {pid}"))?;
    let event = daemon.expect("pid_recycled", on(scene, "lock")?)?;
    same!("the new one", event["to"]["pid"], pid);
    ensure!(
        event["to"]["start_time"] != event["lock"]["acquirer"]["start_time"],
        "the same process: {event}"
    );
    a_while();
    daemon.told_none_of(&["pid_recycled"])?;
    daemon.stop()?;
    Ok(())
}

fn a_lock_file_that_was_made_anew_is_told(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(HELD)?;
    let (old, on_old) = (scene.file("lock")?, on(scene, "lock")?);
    scene.play(
        "start other
         other: replace lock
         other: open b lock
         other: flock b ex",
    )?;
    let event = daemon.expect("lock_replaced", on_old)?;
    same!("old", event["lock"]["file"]["ino"], old.ino);
    same!("new", event["new_lock"]["file"]["ino"], scene.file("lock")?.ino);
    same!("new owner", event["new_lock"]["acquirer"]["pid"], scene.pid("other")?);
    a_while();
    daemon.told_none_of(&["lock_replaced"])?;
    daemon.stop()?;
    Ok(())
}

/// The configuration of a daemon that watches `lock`.
fn watching(scene: &Scene) -> Result<String> {
    let path = scene.path_text("lock")?;
    Ok(format!("{QUICK}\n[[watch]]\nname = \"the-lock\"\npath = \"{path}\"\n"))
}

fn a_refusal_on_a_watched_file_is_told_with_who_was_refused(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let more = watching(scene)?;
    let house = House::build(scene)?;
    house.configure(&more)?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(
        "start rival
         rival: open a lock",
    )?;
    let refused = scene.direct("rival: flock a ex");
    ensure!(refused.is_err(), "it was not refused");
    let event = daemon.expect("refused", on(scene, "lock")?)?;
    same!("watch", event["lock"]["watch"], "the-lock");
    same!("by", event["by"]["pid"], scene.pid("rival")?);
    same!("met", event["lock"]["access"], "WRITE");
    daemon.stop()?;
    Ok(())
}

fn a_refusal_by_an_orphan_is_told(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    scene.play(LEAKED)?;
    let orphan = daemon.expect("orphaned", on(scene, "lock")?)?;
    scene.play(
        "start rival
         rival: open a lock",
    )?;
    ensure!(scene.direct("rival: flock a ex").is_err(), "it was not refused");
    let event = daemon.expect("refused", on(scene, "lock")?)?;
    same!("met", event["lock"]["id"], orphan["lock"]["id"]);
    same!("by", event["by"]["pid"], scene.pid("rival")?);
    daemon.stop()?;
    Ok(())
}

fn a_wait_past_its_threshold_is_told_once(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, &format!("{QUICK}\nlong_wait = \"300ms\""))?;
    scene.play(HELD)?;
    scene.play(
        "start waits
         waits: open a lock
         waits: later flock a ex
         await waits blocked",
    )?;
    let event = daemon.expect("long_wait", on(scene, "lock")?)?;
    same!("by", event["by"]["pid"], scene.pid("waits")?);
    ensure!(event["since"].is_string(), "without a beginning: {event}");
    same!("blockers", event["blocked_by"].as_array().map(Vec::len), Some(1));
    a_while();
    daemon.told_none_of(&["long_wait"])?;
    daemon.stop()?;
    Ok(())
}

fn a_deadlock_is_told_once_with_its_members(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    stories::deadlock(scene)?;
    let event = daemon.expect("deadlock", |_| true)?;
    let members = event["members"].as_array().context("no members")?;
    let mut files: Vec<_> =
        members.iter().filter_map(|member| member["waits_for"]["file"]["ino"].as_u64()).collect();
    files.sort_unstable();
    let mut expected = vec![scene.file("left")?.ino, scene.file("right")?.ino];
    expected.sort_unstable();
    same!("files", files, expected);
    ensure!(members.iter().all(|member| member["comm"] == "flock"), "members: {members:?}");
    a_while();
    daemon.told_none_of(&["deadlock"])?;
    daemon.stop()?;
    Ok(())
}

fn threads_that_could_release_a_lock_make_it_no_deadlock(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    // In each of the two a thread waits, and another obeys.
    scene.play(
        "start one
         start two
         one: open a first
         one: open b second
         two: open a first
         two: open b second
         one: flock a ex
         two: flock b ex
         one: later flock b ex
         await one blocked
         two: later flock a ex
         await two blocked",
    )?;
    a_while();
    a_while();
    daemon.told_none_of(&["deadlock"])?;
    scene.play("one: flock a un")?;
    scene.direct("two: progress")?;
    daemon.stop()?;
    Ok(())
}

fn verbose_events_tell_of_watched_files_what_happens(scene: &mut Scene) -> Result<()> {
    scene.play("start owner\nowner: open a lock")?;
    let more = watching(scene)?;
    let house = House::build(scene)?;
    house.configure(&more)?;
    let mut daemon = house.start(scene, &["--verbose-events"])?;
    scene.play("owner: flock a ex")?;
    let event = daemon.expect("acquired", on(scene, "lock")?)?;
    same!("by", event["by"]["pid"], scene.pid("owner")?);
    scene.play(
        "start waits
         waits: open a lock
         waits: later flock a ex
         await waits blocked",
    )?;
    daemon.expect("blocked", on(scene, "lock")?)?;
    scene.play("owner: flock a un\nawait waits done")?;
    daemon.expect("released", on(scene, "lock")?)?;
    daemon.stop()?;
    Ok(())
}

fn a_crash_with_more_locks_than_can_have_attention_is_survived(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, QUICK)?;
    // 16,384 files can have it.
    for crowd in ["one", "two", "three", "four", "five"] {
        scene.new_folder(crowd)?;
        scene.play(&format!("start {crowd}\n{crowd}: mass files 3500 {crowd}"))?;
    }
    for crowd in ["one", "two", "three", "four", "five"] {
        scene.play(&format!("kill {crowd}"))?;
    }
    // Its file is to have attention, too.
    scene.play(LEAKED)?;
    daemon.expect("orphaned", on(scene, "lock")?)?;
    daemon.stop()?;
    Ok(())
}
