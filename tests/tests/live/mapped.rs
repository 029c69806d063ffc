//! What keeps a lock of which only a mapping is left.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

const NEEDS: &[&str] = &["root", "iter/task_file", "iter/task_vma"];

pub(crate) const TESTS: &[Test] = &[
    once!(it_is_kept_by_the_process_that_maps_it).needs(NEEDS),
    once!(its_range_and_protection_are_told_in_sentences).needs(NEEDS),
    once!(several_mappings_are_all_told).needs(NEEDS),
    once!(a_living_acquirer_that_maps_it_holds_it).needs(NEEDS),
    once!(who_opened_and_mapped_it_before_has_it_by_right).needs(NEEDS),
    once!(who_mapped_it_before_the_acquirer_was_born_has_it_by_right).needs(NEEDS),
    once!(a_mapping_of_another_description_keeps_nothing).needs(NEEDS),
    once!(a_thread_whose_leader_is_gone_keeps_it).needs(NEEDS),
    once!(it_is_found_among_thousands_of_locks_and_mappings).needs(NEEDS),
    once!(where_mappings_cannot_be_iterated_the_evidence_says_so).needs(&[
        "root",
        "iter/task_file",
        "no-iter/task_vma",
    ]),
];

/// `owner` locked and mapped `lock` and died; `heir`, forked meanwhile, has the mapping alone.
const MAPPED: &str = "
    start owner
    owner: open a lock
    owner: flock a ex
    owner: map a
    owner: fork heir
    heir: close a
    owner: exit 0";

fn it_is_kept_by_the_process_that_maps_it(scene: &mut Scene) -> Result<()> {
    scene.play(MAPPED)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/mmap")?;
    same!("confidence", lock.confidence, "certain");
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_via("mmap", &[scene.pid("heir")?])?;
    same!("the holder's descriptor", lock.holders[0].fd, None);
    Ok(())
}

fn its_range_and_protection_are_told_in_sentences(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex",
    )?;
    let at = scene.direct("owner: map a")?;
    let start = at.rsplit('=').next().unwrap_or_default().to_owned();
    let end = format!("{:x}", u64::from_str_radix(&start, 16)? + 4096);
    scene.play(
        "owner: fork heir
         heir: close a
         owner: exit 0",
    )?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?.to_owned();
    let heir = scene.pid("heir")?;
    for sentence in [
        format!("It is mapped at {start}-{end} (r--s) by rig (pid {heir})."),
        format!("It ends when rig (pid {heir}) unmaps the file or ends; nothing else reaches it."),
    ] {
        ensure!(text.contains(&sentence), "no {sentence:?} in {text}");
    }
    Ok(())
}

fn several_mappings_are_all_told(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: map a
         owner: fork heir
         heir: mass maps 5 a
         heir: close a
         heir: fork other
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/mmap")?;
    lock.held_via("mmap", &[scene.pid("heir")?, scene.pid("other")?])
}

fn a_living_acquirer_that_maps_it_holds_it(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: map a
         owner: close a",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.does_not_raise("acquirer_detached")?;
    lock.held_via("mmap", &[scene.pid("owner")?])
}

fn who_opened_and_mapped_it_before_has_it_by_right(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: open a lock
         keeper: map a
         keeper: fork owner
         keeper: close a
         owner: flock a ex
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    same!("confidence", lock.confidence, "certain");
    lock.held_via("mmap", &[scene.pid("keeper")?])
}

fn who_mapped_it_before_the_acquirer_was_born_has_it_by_right(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start opener
         opener: open a lock
         opener: map a
         opener: fork keeper
         opener: exit 0
         keeper: fork owner
         keeper: close a
         owner: flock a ex
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    lock.held_via("mmap", &[scene.pid("keeper")?])
}

fn a_mapping_of_another_description_keeps_nothing(scene: &mut Scene) -> Result<()> {
    scene.play(MAPPED)?;
    scene.play(
        "start other
         other: open a lock
         other: map a",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/mmap")?;
    lock.held_via("mmap", &[scene.pid("heir")?])
}

fn a_thread_whose_leader_is_gone_keeps_it(scene: &mut Scene) -> Result<()> {
    scene.play(MAPPED)?;
    scene.play(
        "heir: thread worker
         heir: leave",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/mmap")?;
    lock.held_via("mmap", &[scene.pid("heir")?])
}

fn it_is_found_among_thousands_of_locks_and_mappings(scene: &mut Scene) -> Result<()> {
    scene.new_folder("crowd")?;
    scene.play(
        "start other
         other: mass files 3000 crowd
         other: open b other
         other: mass maps 3000 b",
    )?;
    scene.play(MAPPED)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/mmap")?;
    lock.held_via("mmap", &[scene.pid("heir")?])
}

fn where_mappings_cannot_be_iterated_the_evidence_says_so(scene: &mut Scene) -> Result<()> {
    scene.play(MAPPED)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.rests_on("not searched: ")?;
    lock.rests_on("mmap (this kernel's types have no iterator of mappings (5.12))")
}
