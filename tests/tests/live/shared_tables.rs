//! POSIX locks belong to an fd table, and a table can be more than one process's.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{each_source, once};

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_posix_lock_that_a_sharer_of_the_table_keeps_is_orphaned)
        .procfs_needs(&["every-process"]),
    once!(the_sharer_is_told_in_sentences).needs(&["root", "iter/task_file"]),
    each_source!(a_sharer_that_is_older_than_the_acquirer_has_it_by_right),
    each_source!(a_sharer_that_opened_the_file_has_it_by_right),
    each_source!(an_acquirer_that_shares_its_table_holds),
];

/// `heir` shares the table of `owner`, who locked and is dead.
const SHARED_TABLE: &str = "
    start owner
    owner: open a lock
    owner: posix a wr 0 9
    owner: fork heir files
    owner: exit 0";

fn a_posix_lock_that_a_sharer_of_the_table_keeps_is_orphaned(scene: &mut Scene) -> Result<()> {
    scene.play(SHARED_TABLE)?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/shared_files")?;
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_via("files", &[scene.pid("heir")?])?;
    lock.rests_on("shares the acquirer's fd table")
}

fn the_sharer_is_told_in_sentences(scene: &mut Scene) -> Result<()> {
    scene.play(SHARED_TABLE)?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?.to_owned();
    let heir = scene.pid("heir")?;
    for sentence in [
        format!("rig (pid {heir}) holds it through its fd table"),
        format!(
            "It ends when rig (pid {heir}) unlocks it, closes any descriptor of the file, or ends."
        ),
    ] {
        ensure!(text.contains(&sentence), "no {sentence:?} in {text}");
    }
    Ok(())
}

fn a_sharer_that_is_older_than_the_acquirer_has_it_by_right(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start opener
         opener: open a lock
         opener: fork keeper files
         opener: exit 0
         keeper: fork owner files
         owner: posix a wr 0 9
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    lock.held_via("files", &[scene.pid("keeper")?])
}

fn a_sharer_that_opened_the_file_has_it_by_right(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: open a lock
         keeper: fork owner files
         owner: posix a wr 0 9
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is_one_of(if scene.is_bpf() { &["shared"] } else { &["shared", "unknown"] })?;
    lock.held_via("files", &[scene.pid("keeper")?])
}

fn an_acquirer_that_shares_its_table_holds(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: posix a wr 0 9
         owner: fork heir files",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.held_via("files", &[scene.pid("owner")?, scene.pid("heir")?])
}
