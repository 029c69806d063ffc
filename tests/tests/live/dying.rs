//! Locks of processes that are on their way out and do not get there.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{each_source, once, same};

pub(crate) const TESTS: &[Test] = &[
    once!(a_process_that_is_stuck_in_exit_keeps_its_lock_as_an_orphan).needs(&[
        "root",
        "iter/task_file",
        "fuse-mounts",
        "mounts",
    ]),
    once!(explain_tells_of_a_process_that_is_stuck).needs(&[
        "root",
        "iter/task_file",
        "fuse-mounts",
        "mounts",
    ]),
    each_source!(what_a_stuck_process_shares_is_the_others).needs(&["fuse-mounts", "mounts"]),
];

/// `owner` cannot get out: it has a file open that cannot be closed, and opened it first.
const STUCK: &str = "
    start server
    server: stick stuck
    start owner
    owner: open s stuck/file ro
    owner: open a lock
    owner: flock a ex";

fn a_process_that_is_stuck_in_exit_keeps_its_lock_as_an_orphan(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.new_folder("stuck")?;
    scene.play(STUCK)?;
    scene.sticks_in_its_end("owner", "exit 0")?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/exiting")?;
    same!("confidence", lock.confidence, "certain");
    lock.rests_on("is on its way out for longer than the grace period")?;
    same!("acquirer", lock.acquirer()?.pid, Some(scene.pid("owner")?));
    Ok(())
}

fn explain_tells_of_a_process_that_is_stuck(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.new_folder("stuck")?;
    scene.play(STUCK)?;
    scene.sticks_in_its_end("owner", "exit 0")?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?.to_owned();
    let owner = scene.pid("owner")?;
    for sentence in [
        "It is orphaned/exiting: its acquirer is on its way out and is stuck there.".to_owned(),
        format!("It ends when rig (pid {owner}) gets out: look at what it waits for"),
        format!("/proc/{owner}/stack"),
    ] {
        ensure!(text.contains(&sentence), "no {sentence:?} in {text}");
    }
    Ok(())
}

fn what_a_stuck_process_shares_is_the_others(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.new_folder("stuck")?;
    scene.play(
        "start server
         server: stick stuck
         start keeper
         keeper: open s stuck/file ro
         keeper: open a lock
         keeper: fork owner
         owner: flock a ex",
    )?;
    scene.sticks_in_its_end("owner", "exit 0")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    ensure!(lock.state != "orphaned", "the opener still has it: {lock:?}");
    lock.held_by(&[scene.pid("keeper")?])
}
