//! When a lock is called orphaned, and when no more.

use super::stage::{End, Stage, file, ms};
use super::stories;
use crate::engine::classify::{Confidence, Reason, State};
use crate::engine::event::{Kind, Recovery};
use crate::engine::evidence::Evidence;
use crate::engine::identity::Access;
use crate::engine::input::{Input, Reading};
use crate::engine::snapshot::{Hides, Limit};

/// A locksmith with a lock and a child that exec'd, both of which live.
fn leaked() -> Stage {
    let mut stage = Stage::new();
    let world = &mut stage.world;
    world.file(131, stories::PATH);
    world.born(8123, "locksmith", ms(5_000));
    world.open(8123, 131, 1);
    world.lock(8123, 131, 1, Access::Write, ms(6_000));
    world.fork(8123, 8130, "sleep", ms(7_000));
    world.exec(8130);
    stage.until(12_100);
    assert_eq!(stage.kinds(), ["started"]);
    stage
}

#[test]
fn an_orphan_is_announced_once_a_grace_after_its_owners_death_and_ends_once() {
    let mut stage = stories::orphan();
    let kinds = stage.kinds();
    assert_eq!(kinds, ["started", "orphaned", "recovered", "all_clear"]);
    let event = stage.last("orphaned");
    assert_eq!(event.at.boot, ms(12_250), "death at 12 s, grace 250 ms");
    let Kind::Orphaned { verdict, holders, more } = &event.kind else { unreachable!() };
    assert_eq!(verdict.reason, Some(Reason::Inherited));
    assert_eq!(verdict.confidence, Confidence::Certain);
    assert_eq!((holders[0].by.as_ref().unwrap().pid, *more), (8130, 0));
    let told = event.lock.as_ref().unwrap();
    assert_eq!(told.acquirer.as_ref().unwrap().pid, 8123);
    assert_eq!(told.death.unwrap().signal, Some(9));
    assert_eq!(told.taken_at, Some(ms(6_000)));
    assert_eq!(told.path.as_deref(), Some(stories::PATH.as_bytes()));
    assert_eq!(
        stage.last_kind("recovered"),
        &Kind::Recovered { how: Recovery::Released },
        "told by the record of its end, not two seconds later by a reading"
    );
    let seqs: Vec<u64> = stage.events.iter().map(|event| event.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 4]);
}

#[test]
fn no_reading_before_the_grace_has_passed_makes_an_orphan() {
    let mut stage = leaked();
    stage.dies(8123, End::Signal(9));
    for at in [12_110, 12_200, 12_349] {
        stage.until(at);
        stage.input(Input::Reconcile);
    }
    assert_eq!(stage.kinds(), [""; 0]);
    let view = stage.engine.view();
    assert_eq!(view.locks[0].verdict.state, State::Unknown);
    assert!(view.locks[0].verdict.evidence.contains(&Evidence::Unconfirmed));
    stage.until(12_350);
    assert_eq!(stage.kinds(), ["orphaned"]);
    assert_eq!(stage.engine.view().locks[0].verdict.state, State::Orphaned);
}

#[test]
fn a_reading_that_was_begun_too_early_does_not_count_when_it_comes_late() {
    let mut stage = leaked();
    stage.dies(8123, End::Signal(9));
    let (snapshot, ids) = (stage.world.snapshot(), stage.world.ids());
    let early = Reading { begun: ms(12_101), snapshot, ids };
    stage.now = ms(12_349);
    stage.input(Input::Reading(Box::new(early.clone())));
    assert_eq!(stage.kinds(), [""; 0]);
    stage.now = ms(12_351);
    stage.input(Input::Reading(Box::new(early)));
    assert_eq!(stage.kinds(), ["orphaned"], "from the reading that is due, taken at once");
    assert_eq!(stage.asked.last(), Some(&ms(12_351)));
}

#[test]
fn a_lock_that_goes_with_its_owner_is_never_an_orphan() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.until(11_000);
    stage.dies(8123, End::Signal(9));
    // The reading falls into the middle of the teardown.
    stage.input(Input::Reconcile);
    assert_eq!(stage.engine.view().locks[0].verdict.state, State::Unknown);
    stage.until(11_001);
    stage.world.unlock(1);
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
}

#[test]
fn an_orphan_without_any_holder_must_be_seen_twice_a_grace_apart() {
    let mut stage = leaked();
    stage.world.die(8130, ms(12_000), End::Exit(0));
    stage.dies(8123, End::Signal(9));
    stage.until(12_599);
    assert_eq!(stage.kinds(), [""; 0], "first seen a grace after the death, at 12,350");
    stage.until(12_600);
    assert_eq!(stage.kinds(), ["orphaned"]);
    let Kind::Orphaned { verdict, .. } = stage.last_kind("orphaned") else { unreachable!() };
    assert_eq!(verdict.reason, Some(Reason::Unaccounted));
}

#[test]
fn an_orphan_whose_owners_death_nobody_saw_must_be_seen_twice_a_grace_apart() {
    let mut stage = leaked();
    stage.world.die(8123, ms(12_100), End::Signal(9));
    stage.world.facts.deaths.clear();
    // Found by the reconciliation at 14 s.
    stage.until(14_249);
    assert_eq!(stage.kinds(), [""; 0]);
    stage.until(14_250);
    assert_eq!(stage.kinds(), ["orphaned"]);
    assert_eq!(stage.last("orphaned").lock.as_ref().unwrap().death, None);
}

#[test]
fn an_orphan_from_before_the_daemon_is_announced_at_its_first_reading_where_history_saw_the_death()
{
    let world = {
        let mut stage = leaked();
        stage.world.die(8123, ms(9_000), End::Signal(9));
        stage.world
    };
    let mut stage = Stage::with(Default::default(), world);
    assert_eq!(stage.kinds(), ["started", "orphaned"]);
}

#[test]
fn a_hand_over_is_no_orphan_and_its_heirs_crash_makes_none() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "daemon", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.fork(8123, 8130, "daemon", ms(7_000));
    stage.until(11_000);
    let death = stage.dies(8123, End::Exit(0));
    stage.until(15_000);
    assert_eq!(stage.engine.view().locks[0].verdict.state, State::HandedOver);
    let ended = stage.ended(1, death, None);
    stage.world.die(8130, stage.now, End::Signal(9));
    stage.input(Input::Ended(ended));
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
}

#[test]
fn attention_is_paid_to_the_files_of_orphans_while_they_are_ones() {
    let mut stage = leaked();
    assert_eq!(stage.attended, []);
    stage.dies(8123, End::Signal(9));
    stage.until(12_400);
    assert_eq!(stage.attended, [file(131)]);
    stage.world.unlock(1);
    stage.until(15_000);
    assert_eq!(stage.kinds(), ["orphaned", "recovered", "all_clear"]);
    assert_eq!(stage.attended, []);
}

#[test]
fn an_orphan_that_turns_out_to_be_somebodys_by_right_is_reclassified() {
    let mut stage = leaked();
    stage.dies(8123, End::Signal(9));
    stage.until(12_400);
    stage.world.born(50, "sh", ms(1_000));
    stage.world.open(50, 131, 1);
    stage.until(15_000);
    assert_eq!(stage.kinds(), ["orphaned", "recovered", "all_clear"]);
    let how = Recovery::Reclassified;
    assert_eq!(stage.last_kind("recovered"), &Kind::Recovered { how });
}

#[test]
fn what_a_reading_could_not_see_ends_no_orphan_and_announces_none_twice() {
    let mut stage = leaked();
    stage.dies(8123, End::Signal(9));
    stage.until(12_400);
    assert_eq!(stage.kinds(), ["orphaned"]);
    let limit = |hides| Limit { what: "something".into(), hides };
    stage.world.facts.limits = vec![limit(Hides::Holders)];
    stage.until(15_000);
    assert_eq!(stage.engine.view().locks[0].verdict.state, State::Unknown);
    stage.world.facts.limits = vec![limit(Hides::Locks)];
    let locks = std::mem::take(&mut stage.world.facts.locks);
    stage.until(17_000);
    stage.world.facts.locks = locks;
    stage.world.facts.limits.clear();
    stage.until(20_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn a_reading_that_still_shows_an_orphan_that_ended_does_not_bring_it_back() {
    let mut stage = leaked();
    let death = stage.dies(8123, End::Signal(9));
    stage.until(12_400);
    let (snapshot, ids) = (stage.world.snapshot(), stage.world.ids());
    let under_way = Reading { begun: ms(12_400), snapshot, ids };
    stage.until(12_410);
    let ended = stage.ended(1, death, None);
    stage.input(Input::Ended(ended));
    stage.until(12_450);
    assert_eq!(stage.kinds(), ["orphaned", "recovered", "all_clear"]);
    stage.input(Input::Reading(Box::new(under_way)));
    assert_eq!(stage.engine.view().locks[0].verdict.state, State::Unknown);
    stage.until(20_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn all_is_clear_only_when_the_last_orphan_is_gone() {
    let mut stage = leaked();
    stage.world.file(132, "/srv/other");
    stage.world.open(8123, 132, 2);
    stage.world.lock(8123, 132, 2, Access::Write, ms(12_000));
    stage.world.fork(8123, 8131, "sleep", ms(12_050));
    stage.world.exec(8131);
    stage.dies(8123, End::Signal(9));
    stage.until(12_400);
    assert_eq!(stage.kinds(), ["orphaned", "orphaned"]);
    stage.world.unlock(1);
    stage.until(14_500);
    assert_eq!(stage.kinds(), ["recovered"]);
    stage.world.unlock(2);
    stage.until(16_500);
    assert_eq!(stage.kinds(), ["recovered", "all_clear"]);
}
