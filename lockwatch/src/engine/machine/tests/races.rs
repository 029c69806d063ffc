//! The races of the contract, and what is none.

use super::stage::{End, MS, Stage, file, ms};
use super::stories;
use crate::engine::event::Kind;
use crate::engine::identity::{Access, ProcessId, StartTime};
use crate::engine::input::{Acquired, Ended, Input, Outcome, PidReused, Settings};
use crate::engine::snapshot::Process;

#[test]
fn a_crash_hand_off_tells_death_release_acquisition_and_whether_the_file_was_written() {
    let mut stage = stories::crash_handoff();
    assert_eq!(stage.kinds(), ["started", "crash_handoff"]);
    let event = stage.last("crash_handoff");
    let Kind::CrashHandoff { death, released_at, to, acquired_at, written } = &event.kind else {
        unreachable!()
    };
    assert_eq!((death.at, death.signal), (ms(12_000), Some(11)));
    assert_eq!((*released_at, *acquired_at), (ms(12_001), ms(12_010)));
    assert_eq!((to.pid, *written), (8200, Some(true)));
    let told = event.lock.as_ref().unwrap();
    assert_eq!(told.acquirer.as_ref().unwrap().pid, 8123, "the lock is the one that ended");
    assert_eq!(told.taken_at, Some(ms(6_000)));
}

/// A locksmith that has the lock, and another process that may want it.
fn locksmith_and_successor() -> Stage {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.born(8200, "successor", ms(5_500));
    stage
}

/// A locksmith that ends so, and another that takes its lock so many milliseconds later.
fn handed(end: End, later: u64, access: Access) -> Vec<&'static str> {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, access, ms(6_000));
    stage.world.born(8200, "successor", ms(5_500));
    stage.world.open(8200, 131, 2);
    stage.until(12_000);
    let death = stage.dies(8123, end);
    let ended = stage.ended(1, death, None);
    stage.input(Input::Ended(ended));
    stage.until(12_000 + later);
    let acquired = stage.acquired(8200, 131, 2);
    stage.input(Input::Acquired(acquired));
    stage.until(20_000);
    stage.kinds().split_off(1)
}

#[test]
fn only_a_crash_of_an_exclusive_owner_within_the_window_is_a_hand_off() {
    assert_eq!(handed(End::Signal(9), 1, Access::Write), ["crash_handoff"]);
    assert_eq!(handed(End::Exit(1), 5_000, Access::Write), ["crash_handoff"]);
    assert_eq!(handed(End::Signal(9), 5_001, Access::Write), [""; 0], "after the window");
    assert_eq!(handed(End::Exit(0), 1, Access::Write), [""; 0], "a clean exit");
    assert_eq!(handed(End::Signal(9), 1, Access::Read), [""; 0], "a shared lock");
}

#[test]
fn a_file_that_was_removed_leaves_its_inode_number_and_no_hand_off() {
    for (before, after, expected) in [
        (Some(1), Some(2), &[][..]),
        (Some(1), Some(1), &["crash_handoff"][..]),
        (None, Some(2), &["crash_handoff"][..]),
    ] {
        let mut stage = Stage::new();
        stage.world.file(131, stories::PATH);
        for (pid, comm) in [(8123, "locksmith"), (8200, "successor")] {
            stage.world.born(pid, comm, ms(5_000));
            stage.world.open(pid, 131, pid as u64);
        }
        stage.until(12_100);
        stage.acquired(8123, 131, 8123);
        let death = stage.dies(8123, End::Signal(9));
        let ended = Ended { generation: before, ..stage.ended(8123, death, None) };
        stage.input(Input::Ended(ended));
        let taken = Acquired { generation: after, ..stage.acquired(8200, 131, 8200) };
        stage.input(Input::Acquired(taken));
        stage.until(13_000);
        assert_eq!(stage.kinds().split_off(1), expected, "{before:?} {after:?}");
    }
}

#[test]
fn a_race_on_a_file_that_no_reading_has_shown_is_told_with_the_next_ones_path() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    for (pid, comm) in [(8123, "locksmith"), (8200, "successor")] {
        stage.world.born(pid, comm, ms(5_000));
        stage.world.open(pid, 131, pid as u64);
    }
    stage.until(12_100);
    stage.acquired(8123, 131, 8123);
    stage.until(12_110);
    let death = stage.dies(8123, End::Signal(9));
    let ended = stage.ended(8123, death, None);
    stage.input(Input::Ended(ended));
    let acquired = stage.acquired(8200, 131, 8200);
    stage.input(Input::Acquired(acquired));
    stage.until(12_114);
    assert_eq!(stage.kinds(), ["started"]);
    stage.until(12_116);
    assert_eq!(stage.kinds(), ["crash_handoff"]);
    let told = stage.last("crash_handoff").lock.as_ref().unwrap();
    assert_eq!(told.path.as_deref(), Some(stories::PATH.as_bytes()));
}

#[test]
fn only_the_first_to_get_the_lock_after_a_crash_is_told() {
    let mut stage = stories::crash_handoff();
    stage.kinds();
    let released = stage.released(8200, 2);
    stage.input(Input::Released(released));
    stage.world.born(8201, "third", ms(12_400));
    stage.world.open(8201, 131, 3);
    let acquired = stage.acquired(8201, 131, 3);
    stage.input(Input::Acquired(acquired));
    stage.until(13_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn a_lock_that_outlived_its_owner_is_not_handed_off_by_the_crash() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.fork(8123, 8130, "sleep", ms(7_000));
    stage.world.born(8200, "successor", ms(5_500));
    stage.until(12_000);
    let death = stage.dies(8123, End::Signal(9));
    stage.until(13_000);
    let ended = stage.ended(1, death, None);
    stage.input(Input::Ended(ended));
    stage.until(13_001);
    let acquired = stage.acquired(8200, 131, 2);
    stage.input(Input::Acquired(acquired));
    stage.until(14_000);
    assert_eq!(stage.kinds(), ["started", "orphaned", "recovered", "all_clear"]);
}

#[test]
fn an_attempt_on_a_lock_whose_owner_is_exiting_is_an_exit_race_once_the_lock_ends() {
    let mut stage = stories::exit_race();
    assert_eq!(stage.kinds(), ["started", "exit_race"]);
    let Kind::ExitRace { death, by, at, outcome } = stage.last_kind("exit_race") else {
        unreachable!()
    };
    assert_eq!((death.at, *at), (ms(12_000), ms(12_001)));
    assert_eq!((by.pid, *outcome), (8200, Outcome::Refused));
}

#[test]
fn an_exit_race_is_told_once_for_each_process_that_tried() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.lock(8123, 131, 1, Access::Read, ms(6_000));
    stage.world.open(8123, 131, 1);
    stage.world.born(8200, "successor", ms(5_500));
    stage.until(11_000);
    let death = stage.dies(8123, End::Exit(0));
    let attempt = stage.attempt(8200, 1, Outcome::Blocked, Some(death));
    for _ in 0..3 {
        stage.input(Input::Attempt(attempt.clone()));
        stage.until(stage.now.0 / MS + 1);
    }
    assert_eq!(stage.kinds(), ["started"], "not before the lock has ended");
    let ended = stage.ended(1, death, None);
    stage.input(Input::Ended(ended));
    stage.input(Input::Attempt(attempt));
    stage.until(12_000);
    assert_eq!(stage.kinds(), ["exit_race"]);
}

#[test]
fn an_exit_race_whose_lock_ends_just_before_the_reading_that_looks_for_it_is_told() {
    let mut stage = locksmith_and_successor();
    stage.until(11_000);
    let death = stage.dies(8123, End::Signal(9));
    let attempt = stage.attempt(8200, 1, Outcome::Refused, Some(death));
    stage.input(Input::Attempt(attempt));
    stage.until(11_498);
    let ended = stage.ended(1, death, None);
    stage.input(Input::Ended(ended));
    stage.until(12_000);
    assert_eq!(stage.kinds(), ["started", "exit_race"]);
}

#[test]
fn whoever_takes_a_lock_after_a_crash_and_is_first_heard_of_at_its_own_end_had_it_next() {
    for (status, later) in [(End::Exit(0), 2), (End::Exit(0), 800), (End::Signal(9), 2)] {
        let mut stage = Stage::new();
        stage.world.file(131, stories::PATH);
        for (pid, comm) in [(8123, "locksmith"), (8200, "successor")] {
            stage.world.born(pid, comm, ms(5_000));
            stage.world.open(pid, 131, pid as u64);
        }
        stage.world.lock(8123, 131, 8123, Access::Write, ms(6_000));
        stage.until(12_000);
        let first = stage.dies(8123, End::Signal(9));
        let given_back = stage.ended(8123, first, None);
        // The kernel gave the lock back, and whoever did so is interrupted before it can be seen.
        stage.until(12_001);
        stage.acquired(8200, 131, 8200);
        stage.until(12_002);
        let second = stage.dies(8200, status);
        let ended = stage.ended(8200, second, None);
        stage.input(Input::Ended(ended));
        stage.until(12_002 + later);
        stage.input(Input::Ended(Ended { at: stage.now, ..given_back }));
        stage.until(14_000);
        assert_eq!(stage.kinds(), ["started", "crash_handoff"], "{later} ms");
        let Kind::CrashHandoff { released_at, to, acquired_at, .. } =
            stage.last_kind("crash_handoff")
        else {
            unreachable!()
        };
        assert_eq!((to.pid, *acquired_at), (8200, ms(12_001)));
        assert!(*released_at <= ms(12_001), "nobody has a lock that another has");
    }
}

#[test]
fn an_attempt_on_a_lock_whose_owner_is_stuck_in_its_exit_is_an_exit_race() {
    let mut stage = locksmith_and_successor();
    stage.until(11_000);
    let process = stage.world.facts.processes[&8123].clone();
    let death = stage.dies(8123, End::Signal(9));
    let exiting = Process { exiting: true, ..process };
    stage.world.facts.processes.insert(8123, exiting);
    let attempt = stage.attempt(8200, 1, Outcome::Blocked, Some(death));
    stage.input(Input::Attempt(attempt));
    stage.until(11_499);
    assert_eq!(stage.kinds(), ["started"]);
    stage.until(11_500);
    assert_eq!(stage.kinds(), ["orphaned", "exit_race"], "seen twice, a grace apart");
}

#[test]
fn what_an_heir_lets_go_is_neither_a_hand_off_nor_an_exit_race() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.fork(8123, 8130, "sleep", ms(7_000));
    stage.world.born(8200, "successor", ms(5_500));
    stage.until(12_000);
    let death = stage.dies(8123, End::Signal(9));
    let attempt = stage.attempt(8200, 1, Outcome::Blocked, Some(death));
    stage.input(Input::Attempt(attempt));
    stage.until(12_020);
    let heir = stage.world.who(8130);
    let ended = Ended { ended_by: heir, ..stage.ended(1, death, None) };
    stage.input(Input::Ended(ended));
    let acquired = stage.acquired(8200, 131, 2);
    stage.input(Input::Acquired(acquired));
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
}

/// The locksmith was killed, and a worker of the kernel closes what it had locked.
fn closed_by_a_worker() -> (Stage, Ended) {
    let mut stage = locksmith_and_successor();
    stage.world.born(33, "kworker/1:2", ms(1));
    stage.until(12_000);
    let death = stage.dies(8123, End::Signal(9));
    let ended = Ended { ended_by: stage.world.who(33), ..stage.ended(1, death, None) };
    (stage, ended)
}

#[test]
fn what_a_worker_of_the_kernel_closes_after_a_death_ends_by_it() {
    let (mut stage, ended) = closed_by_a_worker();
    stage.input(Input::Ended(ended));
    let acquired = stage.acquired(8200, 131, 2);
    stage.input(Input::Acquired(acquired));
    stage.until(13_000);
    assert_eq!(stage.kinds(), ["started", "crash_handoff"]);
}

#[test]
fn what_a_worker_of_the_kernel_closes_long_after_a_death_an_heir_had() {
    let (_stage, ended) = closed_by_a_worker();
    assert!(ended.is_by_death());
    let late = Ended { at: ended.death.at.after(2_000_000_000), ..ended };
    assert!(!late.is_by_death());
}

#[test]
fn an_attempt_on_a_lock_that_was_handed_over_is_no_exit_race() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "daemon", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.fork(8123, 8130, "daemon", ms(7_000));
    stage.world.born(8200, "successor", ms(5_500));
    stage.until(11_000);
    let death = stage.dies(8123, End::Exit(0));
    let attempt = stage.attempt(8200, 1, Outcome::Refused, Some(death));
    stage.input(Input::Attempt(attempt));
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
}

#[test]
fn a_recycled_pid_is_told_once_with_its_new_owner() {
    let mut stage = stories::pid_recycled();
    assert_eq!(stage.kinds(), ["started", "pid_recycled"]);
    let event = stage.last("pid_recycled");
    let Kind::PidRecycled { to } = &event.kind else { unreachable!() };
    assert_eq!(to.start, Some(StartTime(13_000 * MS + 1)));
    let acquirer = event.lock.as_ref().unwrap().acquirer.as_ref().unwrap();
    assert_eq!((to.pid, acquirer.pid), (8123, 8123));
    assert_ne!(acquirer.start, to.start);
    stage.until(20_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn a_recycled_pid_whose_owners_start_one_knows_in_clock_ticks_alone_is_told_once() {
    let mut stage = stories::pid_recycled();
    stage.kinds();
    let process = stage.world.facts.processes.get_mut(&8123).unwrap();
    process.start = process.start.map(|start| StartTime::from_ticks(start.ticks()));
    stage.until(20_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn a_recycled_pid_is_found_by_a_reading_where_its_record_was_lost() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "daemon", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.fork(8123, 8130, "daemon", ms(7_000));
    stage.world.die(8123, ms(9_000), End::Exit(0));
    stage.until(11_000);
    stage.world.born(8123, "bystander", ms(11_000));
    stage.until(12_000);
    assert_eq!(stage.kinds(), ["started", "pid_recycled"]);
    let Kind::PidRecycled { to } = stage.last_kind("pid_recycled") else { unreachable!() };
    assert_eq!(to.comm.as_deref(), Some(&b"bystander"[..]));
}

#[test]
fn of_a_lock_from_before_the_history_only_one_that_was_there_before_the_reuse_counts() {
    for was_there in [true, false] {
        let mut stage = Stage::new();
        let world = &mut stage.world;
        world.file(131, stories::PATH);
        world.born(8123, "daemon", ms(5_000));
        world.open(8123, 131, 1);
        world.lock(8123, 131, 1, Access::Write, ms(6_000));
        world.facts.locks[0].taken = None;
        world.fork(8123, 8130, "daemon", ms(7_000));
        world.die(8123, ms(9_000), End::Exit(0));
        let locks = world.facts.locks.clone();
        if !was_there {
            world.facts.locks.clear();
        }
        stage.until(12_100);
        stage.world.facts.locks = locks;
        stage.world.born(8123, "bystander", stage.now);
        let process = stage.world.who(8123).id;
        stage.input(Input::PidReused(PidReused { process, at: stage.now }));
        stage.until(15_000);
        let expected: &[_] = if was_there { &["started", "pid_recycled"] } else { &["started"] };
        assert_eq!(stage.kinds(), expected);
    }
}

#[test]
fn a_pid_that_is_reused_after_its_lock_ended_is_none() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.until(11_000);
    stage.dies(8123, End::Exit(0));
    stage.world.unlock(1);
    stage.until(12_500);
    // And it takes a lock itself at once.
    stage.world.born(8123, "another", ms(12_500));
    stage.world.open(8123, 131, 2);
    stage.world.lock(8123, 131, 2, Access::Write, ms(12_501));
    let process = ProcessId { pid: 8123, start: StartTime(12_500 * MS + 1) };
    stage.input(Input::PidReused(PidReused { process, at: stage.now }));
    stage.until(20_000);
    assert_eq!(stage.kinds(), ["started"]);
}

#[test]
fn a_replaced_lock_file_is_told_once_while_both_files_are_exclusively_locked() {
    let mut stage = stories::lock_replaced();
    assert_eq!(stage.kinds(), ["started", "lock_replaced"]);
    let event = stage.last("lock_replaced");
    let Kind::LockReplaced { new } = &event.kind else { unreachable!() };
    assert_eq!(event.lock.as_ref().unwrap().lock.file, file(131));
    assert_eq!(new.lock.file, file(132));
    stage.until(20_000);
    assert_eq!(stage.kinds(), [""; 0]);
}

#[test]
fn a_replaced_file_that_is_shared_or_alone_is_no_race() {
    for (old, new) in [
        (Some(Access::Read), Some(Access::Write)),
        (Some(Access::Write), Some(Access::Read)),
        (Some(Access::Write), None),
        (None, Some(Access::Write)),
    ] {
        let mut stage = Stage::new();
        stage.world.file(131, stories::PATH);
        stage.world.replace(131, 132);
        for (pid, ino, access) in [(8123, 131, old), (8200, 132, new)] {
            stage.world.born(pid, "locksmith", ms(5_000));
            stage.world.open(pid, ino, ino);
            if let Some(access) = access {
                stage.world.lock(pid, ino, ino, access, ms(6_000));
            }
        }
        stage.until(15_000);
        assert_eq!(stage.kinds(), ["started"], "{old:?} {new:?}");
    }
}

#[test]
fn two_files_that_had_one_path_and_lost_it_both_are_a_race_too() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.replace(131, 132);
    stage.world.replace(132, 133);
    for (pid, ino) in [(8123, 131), (8200, 132)] {
        stage.world.born(pid, "locksmith", ms(5_000));
        stage.world.open(pid, ino, ino);
        stage.world.lock(pid, ino, ino, Access::Write, ms(6_000));
    }
    stage.until(15_000);
    assert_eq!(stage.kinds(), ["started", "lock_replaced"]);
}

#[test]
fn the_next_look_at_a_watched_path_that_names_another_file_is_at_once() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.watch("aim", stories::PATH, 131);
    stage.until(12_100);
    stage.world.replace(131, 132);
    stage.watch("aim", stories::PATH, 132);
    assert_eq!(stage.asked.last(), Some(&ms(12_100)));
}

#[test]
fn a_refusal_is_told_where_it_met_a_watched_or_an_orphaned_lock() {
    let mut stage = stories::refused();
    assert_eq!(stage.kinds(), ["started", "refused"]);
    let event = stage.last("refused");
    assert_eq!(event.lock.as_ref().unwrap().watch.as_deref(), Some("aim_lock_config"));
    let Kind::Refused { by, at } = &event.kind else { unreachable!() };
    assert_eq!((by.pid, *at), (8200, ms(12_500)));
    assert_eq!(stage.attended, [file(131)]);
}

#[test]
fn a_refusal_by_a_lock_that_is_neither_is_not() {
    let mut stage = Stage::new();
    stage.world.file(131, stories::PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.lock(8123, 131, 1, Access::Write, ms(6_000));
    stage.world.fork(8123, 8130, "sleep", ms(7_000));
    stage.world.born(8200, "successor", ms(5_500));
    stage.until(11_000);
    let attempt = stage.attempt(8200, 1, Outcome::Refused, None);
    stage.input(Input::Attempt(attempt));
    stage.until(11_100);
    assert_eq!(stage.kinds(), ["started"]);
    stage.dies(8123, End::Signal(9));
    stage.until(12_000);
    let attempt = stage.attempt(8200, 1, Outcome::Refused, None);
    stage.input(Input::Attempt(attempt));
    stage.until(12_100);
    assert_eq!(stage.kinds(), ["orphaned", "refused"]);
}

#[test]
fn acquisitions_releases_and_blocked_attempts_are_told_to_those_who_ask_alone() {
    let mut stage = stories::verbose();
    assert_eq!(stage.kinds(), ["started", "acquired", "blocked", "released"]);
    let mut quiet = Stage::with(Settings::default(), Default::default());
    for (at, input) in stage.inputs.split_off(1) {
        quiet.now = quiet.now.max(at.boot);
        quiet.input(input);
    }
    quiet.until(12_000);
    assert_eq!(quiet.kinds(), ["started"]);
}
