//! What is reclaimed without anybody's asking, and when no more.

use super::stage::{End, Stage, World, file, ms};
use super::stories::{self, ended, hook};
use crate::engine::classify::Confidence;
use crate::engine::identity::{Access, BootTime, StartTime};
use crate::engine::input::{Input, Permission, Policy, Settings, Watched, Wrote};
use crate::engine::reclaim::progress::{Asker, Done, Ending, Reclaimed};
use crate::engine::snapshot::Births;

const SECOND: u64 = 1_000;

fn allowing(paths: &[&str]) -> Policy {
    let watches = paths
        .iter()
        .map(|path| Permission { path: path.as_bytes().into(), allowed: true, likely: false })
        .collect();
    Policy { automatic: true, watches, ..Policy::default() }
}

fn stage(reclaim: Policy) -> Stage {
    Stage::with(Settings { reclaim, ..Settings::default() }, World::default())
}

/// An orphan on `/srv/INO`.
fn orphan(stage: &mut Stage, ino: u64) {
    let (owner, heir) = (ino as i32 * 10, ino as i32 * 10 + 1);
    let now = stage.now;
    let at = now.0 / 1_000_000;
    stage.world.file(ino, &format!("/srv/{ino}"));
    stage.world.born(owner, "owner", ms(at));
    stage.world.open(owner, ino, ino);
    stage.world.lock(owner, ino, ino, Access::Write, ms(at + 1));
    stage.world.fork(owner, heir, "heir", ms(at + 2));
    stage.world.exec(heir);
    stage.until(at + 10);
    stage.dies(owner, End::Signal(9));
    stage.until(at + SECOND);
}

fn ordered(stage: &Stage) -> Vec<u64> {
    stage.orders.iter().map(|order| order.file.ino).collect()
}

fn fails(stage: &mut Stage, ino: u64) {
    let lock = stage.world.name(ino);
    let ending = Ending::Failed { result: "not_tried".into(), why: "drain exited with 1".into() };
    stage.input(Input::Reclaimed(ended(&lock, ending, vec![hook("drain", 1)])));
}

fn succeeds(stage: &mut Stage, ino: u64) {
    let lock = stage.world.name(ino);
    stage.world.unlock(ino);
    let ending = Ending::Released { taken_by: Vec::new() };
    stage.input(Input::Reclaimed(ended(&lock, ending, Vec::new())));
}

fn last_why(stage: &Stage) -> String {
    format!("{:?}", stage.last("reclaim_failed").kind)
}

#[test]
fn nothing_is_reclaimed_where_the_configuration_only_reports() {
    let mut stage = stage(Policy { automatic: false, ..allowing(&["/srv/131"]) });
    assert!(stage.engine.is_swept());
    orphan(&mut stage, 131);
    stage.input(Input::ReclaimEnabled(true));
    stage.until(20_000);
    assert!(ordered(&stage).is_empty());
}

/// Everything may be reclaimed but what the watch of this path names.
fn forbidding(path: &str) -> Policy {
    let forbidden = Permission { path: path.as_bytes().into(), allowed: false, likely: true };
    Policy { only_watched: false, watches: vec![forbidden], automatic: true, ..Policy::default() }
}

/// An orphan on `/srv/131`, as a daemon finds it at its start.
fn left_behind() -> World {
    let mut world = World::default();
    world.file(131, "/srv/131");
    world.born(1310, "owner", ms(5_000));
    world.open(1310, 131, 131);
    world.lock(1310, 131, 131, Access::Write, ms(6_000));
    world.fork(1310, 1311, "heir", ms(7_000));
    world.exec(1311);
    world.die(1310, ms(8_000), End::Signal(9));
    // Nobody saw its death: two readings have to show it.
    world.facts.deaths.clear();
    world
}

#[test]
fn only_what_a_watch_allows_by_name_is_reclaimed() {
    let mut stage = stage(allowing(&["/srv/131"]));
    orphan(&mut stage, 131);
    orphan(&mut stage, 132);
    assert_eq!(ordered(&stage), [131]);
}

#[test]
fn what_no_watch_names_is_reclaimed_where_that_is_wanted_and_what_a_watch_forbids_is_not() {
    let mut stage = stage(forbidding("/srv/131"));
    orphan(&mut stage, 131);
    orphan(&mut stage, 132);
    assert_eq!(ordered(&stage), [132]);
}

#[test]
fn what_is_only_likely_an_orphan_is_told_once_and_left_alone() {
    let mut stage = old_orphan(allowing(&["/srv/131"]));
    stage.until(60_000);
    assert_eq!(stage.events.iter().filter(|event| event.kind.name() == "orphaned").count(), 1);
    assert!(ordered(&stage).is_empty());
    assert!(stage.engine.is_swept(), "the daemon does not wait for it");
    let told = stage.events.iter().filter(|event| event.kind.name() == "reclaim_failed");
    assert_eq!(told.count(), 1);
    assert!(last_why(&stage).contains("likely, not certain"), "{}", last_why(&stage));
}

#[test]
fn what_is_only_likely_an_orphan_is_reclaimed_where_its_watch_says_so() {
    let mut policy = allowing(&["/srv/131"]);
    policy.watches[0].likely = true;
    let mut stage = old_orphan(policy);
    stage.until(60_000);
    assert_eq!(ordered(&stage), [131]);
    assert_eq!(stage.orders[0].at_least, Confidence::Likely);
}

#[test]
fn what_no_watch_names_must_be_certain() {
    let mut stage = old_orphan(forbidding("/srv/other"));
    stage.until(60_000);
    assert!(ordered(&stage).is_empty());
    orphan(&mut stage, 132);
    assert_eq!(ordered(&stage), [132]);
    assert_eq!(stage.orders[0].at_least, Confidence::Certain);
}

#[test]
fn a_forbidden_watch_protects_what_its_path_named_before() {
    let mut stage = stage(forbidding("/srv/131"));
    stage.world.file(140, "/srv/elsewhere");
    let watched =
        Watched { name: "it".into(), path: b"/srv/131".as_slice().into(), file: Some(file(140)) };
    stage.input(Input::Watch(vec![watched]));
    orphan(&mut stage, 131);
    assert!(ordered(&stage).is_empty());
}

#[test]
fn one_reclaim_of_a_file_is_under_way_at_a_time() {
    let mut stage = stage(allowing(&["/srv/131"]));
    orphan(&mut stage, 131);
    stage.until(60_000);
    assert_eq!(ordered(&stage), [131]);
    succeeds(&mut stage, 131);
    stage.until(120_000);
    assert_eq!(ordered(&stage), [131], "there is nothing left to do");
}

#[test]
fn after_a_failure_it_is_left_alone_for_longer_and_longer() {
    let mut stage = stage(allowing(&["/srv/131"]));
    orphan(&mut stage, 131);
    for (times, pause) in [(1, 30), (2, 60), (3, 120)] {
        assert_eq!(ordered(&stage).len(), times);
        fails(&mut stage, 131);
        let now = stage.now.0 / 1_000_000;
        stage.until(now + pause * SECOND - 1);
        assert_eq!(ordered(&stage).len(), times, "too early");
        stage.until(now + pause * SECOND + 1);
    }
    assert_eq!(ordered(&stage).len(), 4);
}

#[test]
fn too_many_in_a_minute_turn_the_switch_off_and_say_so() {
    let paths: Vec<String> = (131..140).map(|ino| format!("/srv/{ino}")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let mut stage = stage(Policy { per_minute: 3, ..allowing(&paths) });
    for ino in 131..135 {
        orphan(&mut stage, ino);
        if ino < 134 {
            succeeds(&mut stage, ino);
        }
    }
    assert_eq!(ordered(&stage), [131, 132, 133]);
    assert_eq!(stage.stops, 1);
    assert!(last_why(&stage).contains("more than 3 reclaims in a minute"), "{}", last_why(&stage));
    stage.until(200_000);
    assert_eq!(ordered(&stage).len(), 3, "not even when the minute is over");
    stage.input(Input::ReclaimEnabled(true));
    stage.until(201_000);
    assert_eq!(ordered(&stage), [131, 132, 133, 134]);
}

#[test]
fn the_switch_stops_everything_at_once() {
    let mut stage = stage(allowing(&["/srv/131", "/srv/132"]));
    orphan(&mut stage, 131);
    stage.input(Input::ReclaimEnabled(false));
    assert_eq!(stage.stops, 1);
    orphan(&mut stage, 132);
    assert_eq!(ordered(&stage), [131]);
}

#[test]
fn for_what_there_is_no_way_it_is_said_once_and_nothing_is_begun() {
    let mut stage = stage(allowing(&["/srv/131"]));
    stage.world.file(131, "/srv/131");
    stage.world.born(1310, "owner", ms(9_000));
    stage.world.open(1310, 131, 131);
    stage.world.lock(1310, 131, 131, Access::Write, ms(9_100));
    stage.until(11_000);
    // Nothing that is left refers to it.
    stage.dies(1310, End::Signal(9));
    stage.until(60_000);
    assert!(ordered(&stage).is_empty());
    let told = stage.events.iter().filter(|event| event.kind.name() == "reclaim_failed");
    assert_eq!(told.count(), 1);
    assert!(last_why(&stage).contains("refused"), "{}", last_why(&stage));
}

/// A daemon that finds an orphan at its start of which it does not know when it was taken.
fn old_orphan(reclaim: Policy) -> Stage {
    let mut stage = Stage::with(Settings { reclaim, ..Settings::default() }, left_behind());
    stage.world.facts.locks[0].taken = None;
    stage.world.facts.births = Births {
        forks: Some(5_000),
        pid_max: Some(4_194_304),
        last_pid: Some(5_000),
        now: Some(StartTime(1_000_000_000_000)),
    };
    stage
}

#[test]
fn the_sweep_is_over_when_what_was_there_at_first_is_dealt_with() {
    let reclaim = allowing(&["/srv/131"]);
    let mut stage = Stage::with(Settings { reclaim, ..Settings::default() }, left_behind());
    assert!(!stage.engine.is_swept(), "not even looked at");
    stage.until(10_400);
    assert_eq!(ordered(&stage), [131]);
    assert!(!stage.engine.is_swept(), "it is under way");
    succeeds(&mut stage, 131);
    assert!(stage.engine.is_swept());
}

#[test]
fn a_sweep_that_fails_does_not_keep_the_daemon_from_being_ready() {
    let mut stage = stories::reclaim_failed();
    assert!(stage.engine.is_swept());
    assert_eq!(ordered(&stage).len(), 1);
    stage.until(60_000);
    assert_eq!(ordered(&stage).len(), 2);
}

#[test]
fn a_run_that_could_not_be_done_is_a_failure() {
    let mut stage = stage(allowing(&["/srv/131"]));
    orphan(&mut stage, 131);
    let lock = stage.world.name(131);
    stage.input(Input::Reclaimed(Reclaimed {
        by: Asker::Policy,
        file: Some(lock.file),
        locks: vec![lock.id],
        done: Done::default(),
        error: Some("lockwatch: reclaim: nothing was done: audit: /x: no space".into()),
    }));
    assert!(last_why(&stage).contains("no space"));
    stage.until(30_000);
    assert_eq!(ordered(&stage).len(), 1, "left alone for a while");
}

#[test]
fn a_failed_canary_is_a_failure_although_the_lock_is_gone() {
    let mut stage = stage(allowing(&["/srv/131"]));
    orphan(&mut stage, 131);
    let lock = stage.world.name(131);
    stage.world.unlock(131);
    let ending = Ending::Released { taken_by: Vec::new() };
    stage.input(Input::Reclaimed(ended(&lock, ending, vec![hook("canary", 3)])));
    assert!(last_why(&stage).contains("canary exited with 3"), "{}", last_why(&stage));
    assert!(stage.events.iter().all(|event| event.kind.name() != "reclaim_done"));
}

/// An orphan that was released, with its holder, which has the file open for writing.
fn evicted() -> (Stage, Wrote) {
    let stage = stories::reclaim();
    let process = stage.world.who(8130).id;
    assert_eq!(stage.guarded.len(), 1);
    assert_eq!(stage.guarded[0].1[0].process, process);
    let at = stage.now;
    (stage, Wrote { file: file(131), process, at })
}

fn races(stage: &Stage) -> usize {
    stage.events.iter().filter(|event| event.kind.name() == "reclaim_race").count()
}

#[test]
fn who_lost_the_lock_and_writes_is_told_once() {
    let (mut stage, wrote) = evicted();
    stage.input(Input::Wrote(wrote));
    stage.input(Input::Wrote(wrote));
    stage.until(15_000);
    assert_eq!(races(&stage), 1);
    let told = format!("{:?}", stage.last("reclaim_race").kind);
    assert!(told.contains("written") && told.contains("8130"), "{told}");
}

#[test]
fn who_took_the_lock_anew_may_write() {
    let (mut stage, wrote) = evicted();
    let acquired = stage.acquired(8130, 131, 1);
    // The record of the taking comes later than that of the writing, and tells of something earlier.
    let wrote = Wrote { at: BootTime(stage.now.0 + 10), ..wrote };
    stage.now = BootTime(stage.now.0 + 20);
    stage.input(Input::Wrote(wrote));
    stage.input(Input::Acquired(acquired));
    stage.until(15_000);
    assert_eq!(races(&stage), 0);
}

#[test]
fn nobody_is_blamed_once_records_were_lost_or_the_time_is_over() {
    let (mut stage, wrote) = evicted();
    stage.input(Input::Lost(1));
    stage.input(Input::Wrote(wrote));
    stage.until(15_000);
    assert_eq!(races(&stage), 0);
    let (mut stage, wrote) = evicted();
    stage.until(14_000 + 60_000);
    stage.input(Input::Wrote(Wrote { at: stage.now, ..wrote }));
    stage.until(80_000);
    assert_eq!(races(&stage), 0);
}
