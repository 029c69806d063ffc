//! What is one thing is shown as one, and what is two as two: locks, files, holders.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{each_source, once, same};

use crate::stories::{HELD, LEAKED};

pub(crate) const TESTS: &[Test] = &[
    each_source!(three_shared_holders_are_three_locks),
    each_source!(descriptor_0_is_a_holder),
    each_source!(files_of_one_number_on_two_devices_are_told_apart).needs(&["mounts"]),
    each_source!(a_deleted_file_is_flagged),
    each_source!(a_replaced_file_is_flagged),
    each_source!(a_lock_through_an_overlay_is_not_the_one_below).needs(&["mounts", "overlay"]),
    each_source!(an_id_stays_while_the_lock_lives),
    each_source!(an_id_is_the_files_identity_and_a_hash),
    each_source!(two_descriptors_of_one_description_are_one_lock),
    each_source!(a_forked_child_is_a_holder_too),
    each_source!(two_threads_with_one_fd_table_are_one_holder),
    each_source!(a_thread_with_an_fd_table_of_its_own_is_a_holder),
    each_source!(a_leader_that_left_its_threads_still_holds),
    once!(the_id_of_a_scan_is_a_target).needs(&["root"]),
];

fn three_shared_holders_are_three_locks(scene: &mut Scene) -> Result<()> {
    let names = ["one", "two", "three"];
    for name in names {
        scene.play(&format!(
            "start {name}
             {name}: open a lock
             {name}: flock a sh"
        ))?;
    }
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    same!("locks", locks.len(), 3);
    for name in names {
        let pid = scene.pid(name)?;
        let own = locks
            .iter()
            .find(|lock| lock.acquirer.as_ref().is_some_and(|acquirer| acquirer.pid == Some(pid)));
        let own = own.with_context(|| format!("no lock of {name}"))?;
        own.is("held")?;
        own.held_by(&[pid])?;
    }
    Ok(())
}

fn descriptor_0_is_a_holder(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play("owner: move a 0")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    same!("path", lock.path, Some(scene.path_text("lock")?));
    let holders: Vec<_> = lock.holders.iter().map(|holder| (holder.pid, holder.fd)).collect();
    same!("holders", holders, [(Some(scene.pid("owner")?), Some(0))]);
    Ok(())
}

fn files_of_one_number_on_two_devices_are_told_apart(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.tmpfs("one")?;
    scene.tmpfs("two")?;
    scene.play(
        "start first
         first: open a one/lock
         first: flock a ex
         start second
         second: open a two/lock
         second: flock a sh",
    )?;
    let (one, two) = (scene.file("one/lock")?, scene.file("two/lock")?);
    ensure!(one.ino == two.ino && one.dev != two.dev, "the stage is not set: {one:?}, {two:?}");
    let report = scene.scan()?;
    for (name, file, access, by) in
        [("one/lock", one, "WRITE", "first"), ("two/lock", two, "READ", "second")]
    {
        let lock = report.only_lock_on(&file)?;
        same!("access", lock.access, access);
        same!("path", lock.path, Some(scene.path_text(name)?));
        lock.held_by(&[scene.pid(by)?])?;
        let path = scene.path_text(name)?;
        let alone = scene.scan_for(&[&path])?;
        same!("locks on the path", alone.locks.len(), 1);
        alone.only_lock_on(&file)?;
    }
    Ok(())
}

fn a_deleted_file_is_flagged(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let file = scene.file("lock")?;
    scene.play("owner: unlink lock")?;
    let report = scene.scan_machine()?;
    let lock = report.only_lock_on(&file)?;
    lock.is("held")?;
    lock.raises("deleted")?;
    same!("deleted", lock.deleted, Some(true));
    // The name that it had, without what the kernel adds to it.
    same!("path", lock.path, Some(scene.path_text("lock")?));
    Ok(())
}

fn a_replaced_file_is_flagged(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let file = scene.file("lock")?;
    scene.play("owner: replace lock")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&file)?;
    lock.is("held")?;
    lock.raises("replaced")?;
    same!("replaced", lock.replaced, Some(true));
    same!("path", lock.path, Some(scene.path_text("lock")?));
    same!("locks on the new file", report.locks_on(&scene.file("lock")?).len(), 0);
    Ok(())
}

fn a_lock_through_an_overlay_is_not_the_one_below(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.overlay("layers")?;
    std::fs::write(scene.path("layers/lower/lock"), "")?;
    scene.play(
        "start above
         above: open a layers/merged/lock ro
         above: flock a ex
         start below
         below: open a layers/lower/lock ro
         below: flock a sh",
    )?;
    for (name, by, access) in
        [("layers/merged/lock", "above", "WRITE"), ("layers/lower/lock", "below", "READ")]
    {
        let path = scene.path_text(name)?;
        let report = scene.scan_for(&[&path])?;
        let [lock] = report.locks.as_slice() else {
            anyhow::bail!("{} locks on {name}", report.locks.len());
        };
        same!("access", lock.access, access);
        same!("path", lock.path, Some(path));
        lock.held_by(&[scene.pid(by)?])?;
    }
    Ok(())
}

fn an_id_stays_while_the_lock_lives(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let id = |scene: &Scene| -> Result<String> {
        Ok(scene.scan()?.only_lock_on(&scene.file("lock")?)?.id.clone())
    };
    let first = id(scene)?;
    same!("the next scan's id", id(scene)?, first);
    scene.play(
        "owner: fork heir
         heir: exec",
    )?;
    same!("the id with another holder", id(scene)?, first);
    scene.play("owner: exit 0")?;
    same!("the id without its acquirer", id(scene)?, first);
    Ok(())
}

fn an_id_is_the_files_identity_and_a_hash(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let file = scene.file("lock")?;
    let report = scene.scan()?;
    let id = &report.only_lock_on(&file)?.id;
    let rest = id.strip_prefix(&format!("{}:{}-", file.dev, file.ino));
    let hash = rest.with_context(|| format!("{id} does not name the file"))?;
    ensure!(!hash.is_empty() && hash.bytes().all(|b| b.is_ascii_hexdigit()), "no hash in {id}");
    // A kernel pointer begins so.
    ensure!(!hash.starts_with("ffff"), "{id} looks like a pointer");
    Ok(())
}

fn two_descriptors_of_one_description_are_one_lock(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play("owner: dup a b")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.held_by(&[scene.pid("owner")?])?;
    let descriptors: BTreeSet<_> = lock.holders.iter().map(|holder| holder.fd).collect();
    same!("descriptors", descriptors, BTreeSet::from([Some(3), Some(4)]));
    Ok(())
}

fn a_forked_child_is_a_holder_too(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork child
         child: fork grandchild",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.acquired_by_living(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("owner")?, scene.pid("child")?, scene.pid("grandchild")?])
}

fn two_threads_with_one_fd_table_are_one_holder(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: thread one
         owner: thread two",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    let pid = Some(scene.pid("owner")?);
    let holders: Vec<_> = lock.holders.iter().map(|holder| (holder.pid, holder.tid)).collect();
    same!("holders", holders, [(pid, pid)]);
    Ok(())
}

fn a_thread_with_an_fd_table_of_its_own_is_a_holder(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: thread worker own-files
         worker: open a lock
         worker: flock a ex",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    let (pid, (_, tid)) = (scene.pid("owner")?, scene.own_ids("worker")?);
    lock.is("held")?;
    lock.acquired_by_living(pid)?;
    let holders: Vec<_> = lock.holders.iter().map(|holder| (holder.pid, holder.tid)).collect();
    same!("holders", holders, [(Some(pid), Some(tid))]);
    Ok(())
}

fn a_leader_that_left_its_threads_still_holds(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: thread worker
         owner: leave
         await owner zombie",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.acquired_by_living(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("owner")?])
}

fn the_id_of_a_scan_is_a_target(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play(
        "start other
         other: open a other
         other: flock a ex",
    )?;
    let file = scene.file("lock")?;
    let id = scene.scan()?.only_lock_on(&file)?.id.clone();
    let report = scene.scan_for(&[&id])?;
    same!("locks", report.locks.len(), 1);
    same!("the id", report.only_lock_on(&file)?.id, id);
    Ok(())
}
