//! Waits that last, and waits that never end.

use super::stage::{Stage, ms};
use super::stories;
use crate::engine::event::Kind;
use crate::engine::identity::{Access, Pid};
use crate::engine::snapshot::{Hides, Limit};

#[test]
fn a_wait_is_told_once_when_it_passes_its_threshold() {
    let mut stage = stories::long_wait();
    assert_eq!(stage.kinds(), ["started", "long_wait"]);
    let event = stage.last("long_wait");
    assert_eq!(event.at.boot, ms(42_000));
    let Kind::LongWait { by, since, blocked_by } = &event.kind else { unreachable!() };
    assert_eq!(by.as_ref().unwrap().pid, 8200);
    assert_eq!(*since, Some(ms(12_000)));
    assert_eq!(blocked_by.as_slice(), [event.lock.as_ref().unwrap().lock.id]);
}

#[test]
fn the_next_wait_of_the_same_process_is_another_one() {
    let mut stage = stories::long_wait();
    stage.kinds();
    stage.world.facts.waiters[0].since = Some(ms(60_000));
    stage.until(89_000);
    assert_eq!(stage.kinds(), [""; 0]);
    stage.until(91_000);
    assert_eq!(stage.kinds(), ["long_wait"]);
}

#[test]
fn a_wait_whose_beginning_nobody_saw_is_as_old_as_the_first_reading_that_shows_it() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.born(8200, "patient", ms(5_500));
    stage.world.wait(8200, 131, 2, None);
    // Seen first at 12 s.
    stage.until(41_999);
    assert_eq!(stage.kinds(), ["started"]);
    stage.until(42_000);
    assert_eq!(stage.kinds(), ["long_wait"]);
    assert!(matches!(stage.last_kind("long_wait"), Kind::LongWait { since: None, .. }));
}

fn members(stage: &Stage) -> Vec<Pid> {
    let Kind::Deadlock { members } = stage.last_kind("deadlock") else { unreachable!() };
    members.iter().map(|member| member.process.pid).collect()
}

#[test]
fn two_locks_taken_in_opposite_order_are_a_deadlock_told_once() {
    let mut stage = stories::deadlock();
    assert_eq!(stage.kinds(), ["started", "deadlock"]);
    assert_eq!(stage.last("deadlock").at.boot, ms(12_250), "seen at 12 s, and a grace later");
    let Kind::Deadlock { members } = stage.last_kind("deadlock") else { unreachable!() };
    let told: Vec<_> =
        members.iter().map(|member| (member.process.pid, member.waits_for.lock.file.ino)).collect();
    assert_eq!(told, [(81, 132), (82, 131)]);
    stage.until(30_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn a_deadlock_that_comes_again_after_it_was_gone_is_told_again() {
    let mut stage = stories::deadlock();
    let waiters = std::mem::take(&mut stage.world.facts.waiters);
    stage.until(15_000);
    stage.world.facts.waiters = waiters;
    stage.until(19_000);
    assert_eq!(stage.kinds(), ["started", "deadlock", "deadlock"]);
}

#[test]
fn a_deadlock_of_one_reading_alone_is_none() {
    let mut stage = Stage::new();
    let deadlocked = stories::deadlock().world;
    stage.world = deadlocked.clone();
    stage.world.facts.waiters.clear();
    stage.until(11_000);
    for waits in 0..8 {
        // Each reading meets other waits of the same two.
        stage.world.facts.waiters = deadlocked.facts.waiters.clone();
        for waiter in &mut stage.world.facts.waiters {
            waiter.since = Some(ms(stage.now.0 / 1_000_000));
        }
        stage.until(12_000 + waits * 200);
    }
    assert_eq!(stage.kinds(), ["started"]);
}

/// A ring of processes, each of which has its own file's lock and waits for the next one's.
fn ring(size: i32) -> Stage {
    let mut stage = Stage::new();
    let world = &mut stage.world;
    for pid in 0..size {
        world.file(100 + pid as u64, &format!("/srv/{pid}"));
    }
    for pid in 0..size {
        let (own, next) = (100 + pid as u64, 100 + ((pid + 1) % size) as u64);
        world.born(50 + pid, "philosopher", ms(5_000));
        world.open(50 + pid, own, own);
        world.lock(50 + pid, own, own, Access::Write, ms(6_000));
        world.open(50 + pid, next, 1_000 + own);
        world.wait(50 + pid, next, 1_000 + own, Some(ms(7_000)));
    }
    stage
}

#[test]
fn a_deadlock_of_many_names_them_all_in_the_order_in_which_they_wait() {
    let mut stage = ring(5);
    stage.until(13_000);
    assert_eq!(stage.kinds(), ["started", "deadlock"]);
    assert_eq!(members(&stage), [50, 51, 52, 53, 54]);
}

#[test]
fn whoever_only_waits_for_a_deadlocked_one_is_no_member() {
    let mut stage = ring(2);
    stage.world.born(90, "bystander", ms(5_000));
    stage.world.open(90, 100, 90);
    stage.world.wait(90, 100, 90, Some(ms(7_000)));
    stage.until(13_000);
    assert_eq!(members(&stage), [50, 51]);
}

#[test]
fn somebody_else_who_could_release_a_lock_makes_it_no_deadlock() {
    let mut stage = ring(2);
    // Shares the description of 50's lock, and waits for nothing.
    stage.world.born(90, "sibling", ms(5_000));
    stage.world.open(90, 100, 100);
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
}

#[test]
fn a_thread_that_does_not_wait_may_release_what_the_others_wait_for() {
    let mut stage = ring(2);
    let process = stage.world.facts.processes.get_mut(&50).unwrap();
    process.threads = Some(2);
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
    // Neither is told apart who cannot be counted.
    stage.world.facts.processes.get_mut(&50).unwrap().threads = None;
    stage.until(25_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn a_process_all_of_whose_threads_wait_for_the_stuck_is_stuck() {
    let mut stage = ring(2);
    let world = &mut stage.world;
    world.facts.processes.get_mut(&50).unwrap().threads = Some(3);
    // Another thread of 50 waits for 51, too, by a description of its own.
    world.open(50, 101, 2_000);
    world.wait(50, 101, 2_000, Some(ms(7_000)));
    // The third waits for what somebody has who waits for nothing.
    world.file(140, "/srv/free");
    world.born(70, "free", ms(5_000));
    world.open(70, 140, 70);
    world.lock(70, 140, 70, Access::Write, ms(6_000));
    world.open(50, 140, 2_001);
    world.wait(50, 140, 2_001, Some(ms(7_000)));
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
    // It has released that, and the third thread has ended.
    stage.world.unlock(70);
    stage.world.facts.waiters.pop();
    stage.world.facts.processes.get_mut(&50).unwrap().threads = Some(2);
    stage.until(25_000);
    assert_eq!(stage.kinds(), ["deadlock"]);
    assert_eq!(members(&stage), [50, 51]);
}

#[test]
fn a_shell_that_waits_for_its_flock_is_part_of_the_deadlock_and_not_its_way_out() {
    let mut stage = ring(2);
    // The shells have the descriptors that their flock(1) inherited.
    for (shell, flock, lock) in [(40, 50, 100), (41, 51, 101)] {
        stage.world.born(shell, "sh", ms(4_000));
        stage.world.open(shell, lock, lock);
        stage.world.facts.processes.get_mut(&flock).unwrap().parent = Some(shell);
    }
    stage.until(13_000);
    assert_eq!(stage.kinds(), ["started", "deadlock"]);
    assert_eq!(members(&stage), [50, 51]);
}

#[test]
fn every_blocker_counts_and_not_only_the_first() {
    // 60 waits for two shared locks: one of a process that is free, one of a process that waits
    // for 60.
    let mut stage = Stage::new();
    let world = &mut stage.world;
    world.file(131, "/srv/a");
    world.file(132, "/srv/b");
    for pid in [60, 61, 62] {
        world.born(pid, "reader", ms(5_000));
    }
    for pid in [61, 62] {
        world.open(pid, 131, pid as u64);
        world.lock(pid, 131, pid as u64, Access::Read, ms(6_000));
    }
    world.open(60, 132, 60);
    world.lock(60, 132, 60, Access::Write, ms(6_000));
    world.wait(60, 131, 160, Some(ms(7_000)));
    world.wait(62, 132, 162, Some(ms(7_000)));
    stage.until(13_000);
    assert_eq!(stage.kinds(), ["started", "deadlock"]);
    assert_eq!(members(&stage), [60, 62]);
}

#[test]
fn where_a_holder_may_have_been_overlooked_no_deadlock_is_told() {
    let mut stage = ring(2);
    stage.world.facts.limits = vec![Limit { what: "pid 7".into(), hides: Hides::Holders }];
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
    stage.world.facts.limits.clear();
    stage.until(25_000);
    assert_eq!(stage.kinds(), ["deadlock"]);
}

#[test]
fn a_process_that_waits_for_its_own_other_description_is_left_to_the_long_waits() {
    let mut stage = Stage::new();
    let world = &mut stage.world;
    world.file(131, "/srv/a");
    world.born(60, "threads", ms(5_000));
    world.open(60, 131, 1);
    world.lock(60, 131, 1, Access::Write, ms(6_000));
    world.open(60, 131, 2);
    world.wait(60, 131, 2, Some(ms(12_000)));
    stage.until(41_000);
    assert_eq!(stage.kinds(), ["started"]);
    stage.until(43_000);
    assert_eq!(stage.kinds(), ["long_wait"]);
}
