//! What changes between the plan and the act: nothing is done, and the reason is told. The drain is
//! the pause in which it changes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use serde_json::Value;

use crate::reclaim::{CONFIG, account, execute, text};
use crate::reclaim_hooks::{NEEDS, hook};
use crate::stories::LEAKED;

pub(crate) const TESTS: &[Test] = &[
    once!(a_holder_that_unlocked_is_a_race).needs(NEEDS),
    once!(a_holder_that_locked_anew_is_a_race_and_keeps_its_lock).needs(NEEDS),
    once!(a_holder_that_died_is_a_race).needs(NEEDS),
    once!(a_holder_that_execed_and_closed_it_is_a_race).needs(NEEDS),
    once!(a_holder_that_execed_with_it_is_still_the_holder).needs(NEEDS),
    once!(another_process_with_the_same_pid_is_a_race).needs(&[
        "root",
        "mounts",
        "iter/task_file",
        "pidfd_getfd",
        "kcmp",
        "program:sh",
        "program:sleep",
        "choose-pid",
    ]),
    once!(another_who_has_the_lock_by_now_keeps_it).needs(NEEDS),
    once!(a_descriptor_that_is_another_files_by_now_is_a_race).needs(NEEDS),
    once!(a_file_that_was_unlinked_is_a_race).needs(NEEDS),
    once!(a_file_that_was_made_anew_is_a_race).needs(NEEDS),
    once!(a_second_reclaim_is_refused_while_the_first_is_at_work).needs(NEEDS),
    once!(a_survivor_that_may_have_it_by_right_is_a_race).needs(NEEDS),
    once!(who_waits_by_then_gets_it).needs(NEEDS),
];

/// Reclaims `lock`, and does something between the plan and the act.
fn meanwhile(
    scene: &mut Scene,
    act: impl FnOnce(&mut Scene) -> Result<()>,
) -> Result<(Option<i32>, Value)> {
    hook(scene, "drain", "20s", ": > /run/paused; while ! [ -e /run/go ]; do sleep 0.01; done")?;
    let run = scene
        .lockwatch(&["reclaim", "./lock", "--execute", "--json", "--config", CONFIG])?
        .start()?;
    patience::until("the pause", || Ok(Path::new("/run/paused").exists().then_some(())))?;
    act(scene)?;
    fs::write("/run/go", "")?;
    let run = run.finish()?;
    Ok((run.code(), account(&run)?))
}

fn is_race(answer: &(Option<i32>, Value), race: &str) -> Result<()> {
    let (code, account) = answer;
    same!("exit code", *code, Some(1));
    same!("result", text(account, "/outcomes/0/result")?, "race");
    same!("race", text(account, "/outcomes/0/race")?, race);
    ensure!(!account["outcomes"][0]["steps"].to_string().contains("unlocked"), "{account}");
    Ok(())
}

fn holders(scene: &Scene) -> Result<Vec<Option<i32>>> {
    let report = scene.scan()?;
    let lock = report.locks.first().context("no lock")?;
    Ok(lock.holders.iter().map(|holder| holder.pid).collect())
}

fn a_holder_that_unlocked_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| scene.play("heir: flock a un"))?;
    is_race(&answer, "gone")
}

fn a_holder_that_locked_anew_is_a_race_and_keeps_its_lock(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| {
        scene.play(
            "heir: flock a un
             heir: flock a ex",
        )
    })?;
    is_race(&answer, "another_lock")?;
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("held")
}

fn a_holder_that_died_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| scene.play("kill heir"))?;
    is_race(&answer, "process")
}

fn a_holder_that_execed_and_closed_it_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| {
        scene.play(
            "heir: fork other
             heir: close a
             heir: exec",
        )
    })?;
    is_race(&answer, "process")?;
    same!("holders", holders(scene)?, [Some(scene.pid("other")?)]);
    Ok(())
}

fn a_holder_that_execed_with_it_is_still_the_holder(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let (code, account) = meanwhile(scene, |scene| scene.play("heir: exec"))?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    Ok(())
}

fn another_process_with_the_same_pid_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play("start warden")?;
    scene.play(LEAKED)?;
    // It even has the same lock, by the same description, as the same descriptor.
    let answer = meanwhile(scene, |scene| {
        scene.play(
            "await tick
             heir: fork between
             kill heir
             between: fork bystander as {heir}",
        )
    })?;
    is_race(&answer, "process")?;
    ensure!(answer.1.to_string().contains("is another process"), "{}", answer.1);
    Ok(())
}

fn another_who_has_the_lock_by_now_keeps_it(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| {
        scene.play(
            "start other
             other: open b lock
             other: later flock b ex
             await other blocked
             heir: flock a un
             await other done",
        )
    })?;
    is_race(&answer, "gone")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.held_by(&[scene.pid("other")?])
}

fn a_descriptor_that_is_another_files_by_now_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| {
        // Another description of the same file gets the number, and a lock of its own on another.
        scene.play(
            "heir: fork keeper
             keeper: exec
             heir: close a
             heir: open b other
             heir: flock b ex",
        )
    })?;
    is_race(&answer, "process")?;
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("other")?)?.held_by(&[scene.pid("heir")?])?;
    report.only_lock_on(&scene.file("lock")?)?.held_by(&[scene.pid("keeper")?])
}

fn a_file_that_was_unlinked_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| scene.play("heir: unlink lock"))?;
    is_race(&answer, "file")
}

fn a_file_that_was_made_anew_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let answer = meanwhile(scene, |scene| scene.play("heir: replace lock"))?;
    is_race(&answer, "file")
}

fn a_second_reclaim_is_refused_while_the_first_is_at_work(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let mut second = (None, Value::Null);
    let (code, first) = meanwhile(scene, |scene| {
        second = execute(scene, &["--no-hooks"])?;
        Ok(())
    })?;
    is_race(&second, "busy")?;
    same!("the first's exit code", code, Some(0));
    same!("the first's result", text(&first, "/outcomes/0/result")?, "released");
    Ok(())
}

fn a_survivor_that_may_have_it_by_right_is_a_race(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    // As daemon(3) does it: nobody knows any more that it was not the owner who forked.
    let answer = meanwhile(scene, |scene| scene.play("heir: fork child"))?;
    is_race(&answer, "verdict")
}

fn who_waits_by_then_gets_it(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let (code, account) = meanwhile(scene, |scene| {
        scene.play(
            "start other
             other: open b lock
             other: later flock b ex
             await other blocked",
        )
    })?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "taken_by");
    scene.play("await other done")
}
