//! What keeps a lock whose description is registered with an io_uring.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

const NEEDS: &[&str] = &["root", "iter/task_file", "io_uring"];

pub(crate) const TESTS: &[Test] = &[
    once!(it_is_kept_by_whoever_has_the_ring).needs(NEEDS),
    once!(the_ring_is_told_in_sentences).needs(NEEDS),
    once!(a_ring_that_is_only_mapped_is_looked_into).needs(&[
        "root",
        "iter/task_file",
        "iter/task_vma",
        "io_uring",
    ]),
    once!(a_ring_with_a_polling_thread_is_looked_into).needs(NEEDS),
    once!(a_living_acquirer_that_has_the_ring_holds_it).needs(NEEDS),
    once!(who_opened_and_registered_it_before_has_it_by_right).needs(NEEDS),
    once!(a_ring_that_is_older_than_the_acquirer_leaves_it_open).needs(NEEDS),
    once!(it_is_found_among_thousands_of_locks_and_sockets).needs(NEEDS),
];

/// `owner` locked `lock`, registered it and died; `heir`, forked meanwhile, has the ring alone.
const REGISTERED: &str = "
    start owner
    owner: open a lock
    owner: flock a ex
    owner: uring ring a
    owner: close a
    owner: fork heir
    owner: exit 0";

fn it_is_kept_by_whoever_has_the_ring(scene: &mut Scene) -> Result<()> {
    scene.play(REGISTERED)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/io_uring")?;
    same!("confidence", lock.confidence, "certain");
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_via("io_uring", &[scene.pid("heir")?])
}

fn the_ring_is_told_in_sentences(scene: &mut Scene) -> Result<()> {
    scene.play(REGISTERED)?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?.to_owned();
    let heir = scene.pid("heir")?;
    for sentence in [
        format!("It is registered with an io_uring as file 0, of rig (pid {heir}), descriptor "),
        format!("It ends when rig (pid {heir}) unregisters the file"),
    ] {
        ensure!(text.contains(&sentence), "no {sentence:?} in {text}");
    }
    Ok(())
}

fn a_ring_that_is_only_mapped_is_looked_into(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: uring ring a
         owner: close a
         owner: map ring
         owner: fork heir
         heir: close ring
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/io_uring")?;
    lock.held_via("io_uring", &[scene.pid("heir")?])?;
    same!("the holder's descriptor", lock.holders[0].fd, None);
    Ok(())
}

fn a_ring_with_a_polling_thread_is_looked_into(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: uring ring a polled
         owner: close a
         owner: fork heir
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/io_uring")?;
    lock.held_via("io_uring", &[scene.pid("heir")?])
}

fn a_living_acquirer_that_has_the_ring_holds_it(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: uring ring a
         owner: close a",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.does_not_raise("acquirer_detached")?;
    lock.held_via("io_uring", &[scene.pid("owner")?])
}

fn who_opened_and_registered_it_before_has_it_by_right(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: open a lock
         keeper: uring ring a
         keeper: fork owner
         keeper: close a
         owner: flock a ex
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    same!("confidence", lock.confidence, "certain");
    lock.held_via("io_uring", &[scene.pid("keeper")?])
}

fn a_ring_that_is_older_than_the_acquirer_leaves_it_open(scene: &mut Scene) -> Result<()> {
    // Who has the ring may have registered the file, or the acquirer, who had the ring too.
    scene.play(
        "start opener
         opener: open a lock
         opener: uring ring a
         opener: fork keeper
         opener: exit 0
         keeper: fork owner
         keeper: close a
         owner: flock a ex
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("unknown")?;
    lock.held_via("io_uring", &[scene.pid("keeper")?])?;
    lock.rests_on("had the description before it was locked cannot be told")
}

fn it_is_found_among_thousands_of_locks_and_sockets(scene: &mut Scene) -> Result<()> {
    scene.new_folder("crowd")?;
    scene.play(
        "start other
         other: mass files 3000 crowd
         other: mass sockets 3000",
    )?;
    scene.play(REGISTERED)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/io_uring")?;
    lock.held_via("io_uring", &[scene.pid("heir")?])
}
