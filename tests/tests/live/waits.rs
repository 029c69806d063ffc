//! Who waits, and for which locks: all of them.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Lock, Report, Scene, Test};
use lockwatch_tests::{each_source, same};

use crate::stories::HELD;

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_waiter_is_shown_with_what_it_asks_for),
    each_source!(an_exclusive_waiter_is_blocked_by_all_shared_holders),
    each_source!(a_range_waiter_is_blocked_by_the_ranges_it_overlaps),
    each_source!(waiters_behind_waiters_are_all_shown).procfs_needs(&["queues-in-proc"]),
    each_source!(two_flocks_in_opposite_order_block_each_other),
    each_source!(a_waiter_for_an_orphan_is_shown).procfs_needs(&["every-process"]),
    each_source!(a_lease_break_that_waits_is_a_waiter),
    each_source!(an_ofd_waiter_is_shown),
    each_source!(a_waiter_that_is_granted_waits_no_more),
];

/// The one waiter of that pid, wherever it is listed, and what it is blocked by.
fn blocked_by(report: &Report, locks: &[&Lock], pid: i32) -> Result<BTreeSet<String>> {
    let mut found = None;
    for waiter in locks.iter().flat_map(|lock| &lock.waiters).filter(|w| w.pid == Some(pid)) {
        let same = found.as_ref().is_none_or(|before| *before == waiter.blocked_by);
        ensure!(same, "{pid} is listed twice with different blockers: {report:?}");
        found = Some(waiter.blocked_by.clone());
    }
    found.with_context(|| format!("{pid} waits nowhere: {locks:?}"))
}

fn ids(locks: &[&Lock]) -> BTreeSet<String> {
    locks.iter().map(|lock| lock.id.clone()).collect()
}

fn a_waiter_is_shown_with_what_it_asks_for(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "start waiter
         waiter: open a lock
         waiter: comm patient
         waiter: later flock a sh
         await waiter blocked",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.raises("contended")?;
    lock.held_by(&[scene.pid("owner")?])?;
    same!("waiters", lock.waiters.len(), 1);
    let waiter = lock.waiter(scene.pid("waiter")?)?;
    same!("comm", waiter.comm.as_deref(), Some("patient"));
    same!("access", waiter.access, "READ");
    same!("blocked by", waiter.blocked_by, ids(&[lock]));
    same!("waiters counted", report.summary.waiters, 1);
    Ok(())
}

fn an_exclusive_waiter_is_blocked_by_all_shared_holders(scene: &mut Scene) -> Result<()> {
    for name in ["one", "two", "three"] {
        scene.play(&format!(
            "start {name}
             {name}: open a lock
             {name}: flock a sh"
        ))?;
    }
    scene.play(
        "start waiter
         waiter: open a lock
         waiter: later flock a ex
         await waiter blocked",
    )?;
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    same!("locks", locks.len(), 3);
    same!("blocked by", blocked_by(&report, &locks, scene.pid("waiter")?)?, ids(&locks));
    for lock in &locks {
        lock.raises("contended")?;
    }
    same!("waiters counted", report.summary.waiters, 1);
    Ok(())
}

fn a_range_waiter_is_blocked_by_the_ranges_it_overlaps(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start one
         one: open a lock
         one: posix a wr 0 9
         start two
         two: open a lock
         two: posix a rd 10 19
         start three
         three: open a lock
         three: posix a wr 30 39
         start waiter
         waiter: open a lock
         waiter: later posix a wr 5 29
         await waiter blocked",
    )?;
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    same!("locks", locks.len(), 3);
    let (blocking, free): (Vec<_>, Vec<_>) = locks.iter().partition(|lock| lock.start < 30);
    same!("blocked by", blocked_by(&report, &locks, scene.pid("waiter")?)?, ids(&blocking));
    for lock in free {
        lock.does_not_raise("contended")?;
    }
    Ok(())
}

fn waiters_behind_waiters_are_all_shown(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    for name in ["first", "second", "third"] {
        scene.play(&format!(
            "start {name}
             {name}: open a lock
             {name}: later flock a ex
             await {name} blocked"
        ))?;
    }
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    let waiting: BTreeSet<_> = lock.waiters.iter().map(|waiter| waiter.pid).collect();
    let expected: Result<BTreeSet<_>> =
        ["first", "second", "third"].iter().map(|name| scene.pid(name).map(Some)).collect();
    same!("waiters", waiting, expected?);
    for waiter in &lock.waiters {
        ensure!(waiter.blocked_by.contains(&lock.id), "not blocked by the lock: {lock:?}");
    }
    same!("waiters counted", report.summary.waiters, 3);
    Ok(())
}

fn two_flocks_in_opposite_order_block_each_other(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start one
         one: open a first
         one: flock a ex
         start two
         two: open b second
         two: flock b ex
         one: open b second
         two: open a first
         one: later flock b ex
         two: later flock a ex
         await one blocked
         await two blocked",
    )?;
    let report = scene.scan()?;
    let first = report.only_lock_on(&scene.file("first")?)?;
    let second = report.only_lock_on(&scene.file("second")?)?;
    first.acquired_by_living(scene.pid("one")?)?;
    second.acquired_by_living(scene.pid("two")?)?;
    // Both edges: each waits for what the other has.
    same!("two waits for", first.waiter(scene.pid("two")?)?.blocked_by, ids(&[first]));
    same!("one waits for", second.waiter(scene.pid("one")?)?.blocked_by, ids(&[second]));
    Ok(())
}

fn a_waiter_for_an_orphan_is_shown(scene: &mut Scene) -> Result<()> {
    scene.play(crate::stories::LEAKED)?;
    scene.play(
        "start waiter
         waiter: open a lock
         waiter: later flock a ex
         await waiter blocked",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.raises("contended")?;
    same!("blocked by", lock.waiter(scene.pid("waiter")?)?.blocked_by, ids(&[lock]));
    Ok(())
}

fn a_lease_break_that_waits_is_a_waiter(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a leased
         owner: lease a wr
         start breaker
         breaker: later open b leased wo
         await breaker blocked",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("leased")?)?;
    same!("type", lock.kind, "LEASE");
    lock.is("held")?;
    lock.acquired_by_living(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("owner")?])?;
    lock.raises("contended")?;
    let waiter = lock.waiter(scene.pid("breaker")?)?;
    same!("blocked by", waiter.blocked_by, ids(&[lock]));
    Ok(())
}

fn an_ofd_waiter_is_shown(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: ofd a wr 0 eof
         start waiter
         waiter: open a lock
         waiter: later ofd a rd 7 7
         await waiter blocked",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.raises("contended")?;
    same!("waiters", lock.waiters.len(), 1);
    for waiter in &lock.waiters {
        same!("access", waiter.access, "READ");
        same!("blocked by", waiter.blocked_by, ids(&[lock]));
        // /proc shows -1 for whoever asks for an OFD lock.
        if scene.is_bpf() {
            same!("pid", waiter.pid, Some(scene.pid("waiter")?));
        }
    }
    Ok(())
}

fn a_waiter_that_is_granted_waits_no_more(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "start waiter
         waiter: open a lock
         waiter: later flock a ex
         await waiter blocked
         owner: flock a un
         await waiter done",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.acquired_by_living(scene.pid("waiter")?)?;
    lock.does_not_raise("contended")
}
