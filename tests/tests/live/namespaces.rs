//! Locks across pid namespaces: seen from outside, and from inside.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Report, Scene, Test};
use lockwatch_tests::{each_source, same};

pub(crate) const TESTS: &[Test] = &[
    each_source!(an_acquirer_in_another_namespace_has_both_its_pids).needs(&["pidns"]),
    each_source!(a_leak_in_another_namespace_is_orphaned)
        .needs(&["pidns"])
        .procfs_needs(&["every-process"]),
    each_source!(inside_a_living_acquirer_has_its_inner_pid).needs(&["pidns", "mounts"]),
    each_source!(inside_a_dead_acquirers_lock_is_shown).needs(&["pidns", "mounts"]),
    each_source!(inside_a_lock_from_outside_is_shown_and_no_orphan).needs(&["pidns", "mounts"]),
];

/// `init` is the first process of a pid namespace, with a /proc of its own.
const NAMESPACE: &str = "
    start outside
    outside: fork init pidns mounts
    init: mount proc /proc
    init: open a lock";

fn scan_inside(scene: &mut Scene) -> Result<Report> {
    let source = scene.source()?.name();
    let run = scene.lockwatch_run_by("init", &["scan", "--json", "--source", source])?;
    scene.report(&run)
}

fn an_acquirer_in_another_namespace_has_both_its_pids(scene: &mut Scene) -> Result<()> {
    scene.play(NAMESPACE)?;
    scene.play(
        "init: fork owner
         owner: open b other
         owner: flock b ex",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("other")?)?;
    lock.is("held")?;
    lock.acquired_by_living(scene.pid("owner")?)?;
    same!("its own pid", lock.acquirer()?.ns_pid, Some(scene.own_ids("owner")?.0));
    lock.held_by(&[scene.pid("owner")?])
}

fn a_leak_in_another_namespace_is_orphaned(scene: &mut Scene) -> Result<()> {
    scene.play(NAMESPACE)?;
    scene.play(
        "init: fork owner
         owner: open b other
         owner: flock b ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("other")?)?;
    lock.is("orphaned/inherited")?;
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("heir")?])
}

fn inside_a_living_acquirer_has_its_inner_pid(scene: &mut Scene) -> Result<()> {
    scene.play(NAMESPACE)?;
    scene.play(
        "init: fork owner
         owner: open b other
         owner: flock b ex",
    )?;
    let report = scan_inside(scene)?;
    let (inner, _) = scene.own_ids("owner")?;
    let lock = report.only_lock_on(&scene.file("other")?)?;
    lock.is("held")?;
    lock.acquired_by_living(inner)?;
    lock.held_by(&[inner])?;
    lock.does_not_raise("pid_zero")
}

fn inside_a_dead_acquirers_lock_is_shown(scene: &mut Scene) -> Result<()> {
    scene.play(NAMESPACE)?;
    scene.play(
        "init: fork owner
         owner: open b other
         owner: flock b ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let report = scan_inside(scene)?;
    let lock = report.only_lock_on(&scene.file("other")?)?;
    lock.looks_like("FLOCK WRITE 0-eof")?;
    lock.raises("pid_zero")?;
    // To the kernel, in here, a dead acquirer looks like one of another namespace.
    lock.is_one_of(&["orphaned/inherited", "unknown"])?;
    lock.held_by(&[scene.own_ids("heir")?.0])?;
    same!("path", lock.path, Some(scene.path_text("other")?));
    if let Some(acquirer) = &lock.acquirer {
        ensure!(acquirer.alive != Some(true), "the dead acquirer lives: {lock:?}");
    }
    Ok(())
}

fn inside_a_lock_from_outside_is_shown_and_no_orphan(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start outside
         outside: open a lock
         outside: flock a ex
         outside: fork init pidns mounts
         init: mount proc /proc
         init: exec",
    )?;
    let report = scan_inside(scene)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.raises("pid_zero")?;
    ensure!(lock.state != "orphaned", "its acquirer lives, outside: {lock:?}");
    let init = lock.holders.iter().find(|holder| holder.pid == Some(1));
    init.with_context(|| format!("the namespace's init is no holder: {lock:?}"))?;
    Ok(())
}
