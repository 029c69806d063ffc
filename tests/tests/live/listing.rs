//! Every lock is listed, with what it covers and who has it.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test, patience, place};
use lockwatch_tests::{each_source, once, same};

use crate::kernel;
use crate::stories::{FREE, HELD};

pub(crate) const TESTS: &[Test] = &[
    each_source!(flock_is_listed_with_path_access_and_range),
    each_source!(posix_ranges_are_listed_with_path_access_and_range),
    each_source!(ofd_ranges_are_listed_with_path_access_and_range),
    each_source!(leases_are_listed_with_path_and_access),
    each_source!(a_held_lock_names_its_acquirer_and_holder),
    each_source!(the_holder_of_a_posix_lock_is_its_fd_table),
    each_source!(what_is_not_known_is_null),
    each_source!(a_lock_that_was_given_up_is_gone),
    each_source!(the_lock_of_a_dead_process_is_gone),
    each_source!(five_hundred_files_are_all_listed),
    each_source!(ten_thousand_ranges_of_one_file_are_all_listed).within(Duration::from_secs(60)),
    each_source!(two_thousand_shared_holders_are_listed_with_one_holder_each)
        .within(Duration::from_secs(60)),
    each_source!(locks_that_come_and_go_do_not_disturb_the_rest).within(Duration::from_secs(60)),
    each_source!(looking_does_not_break_a_lease),
    once!(looking_does_not_lock),
];

fn flock_is_listed_with_path_access_and_range(scene: &mut Scene) -> Result<()> {
    fs::write(scene.path("shared"), "")?;
    scene.play(
        "start owner
         owner: open a exclusive
         owner: flock a ex
         owner: open b shared ro
         owner: flock b sh",
    )?;
    let report = scene.scan_machine()?;
    for (name, looks) in [("exclusive", "FLOCK WRITE 0-eof"), ("shared", "FLOCK READ 0-eof")] {
        let lock = report.only_lock_on(&scene.file(name)?)?;
        lock.looks_like(looks)?;
        lock.is("held")?;
        same!("path", lock.path, Some(scene.path_text(name)?));
        lock.acquired_by_living(scene.pid("owner")?)?;
    }
    Ok(())
}

fn posix_ranges_are_listed_with_path_access_and_range(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: posix a wr 0 99
         owner: posix a rd 200 299
         owner: posix a wr 1000 eof
         start other
         other: open a lock
         other: posix a rd 250 260",
    )?;
    let report = scene.scan_machine()?;
    let (owner, other) = (scene.pid("owner")?, scene.pid("other")?);
    let expected = [
        (0, Some(99), "WRITE", owner),
        (200, Some(299), "READ", owner),
        (250, Some(260), "READ", other),
        (1000, None, "WRITE", owner),
    ];
    let mut locks = report.locks_on(&scene.file("lock")?);
    locks.sort_by_key(|lock| lock.start);
    same!("locks", locks.len(), expected.len());
    for (lock, (start, end, access, pid)) in locks.into_iter().zip(expected) {
        let end = end.map_or("eof".to_owned(), |end: u64| end.to_string());
        lock.looks_like(&format!("POSIX {access} {start}-{end}"))?;
        lock.is("held")?;
        lock.acquired_by_living(pid)?;
        lock.held_by(&[pid])?;
        same!("path", lock.path, Some(scene.path_text("lock")?));
    }
    Ok(())
}

fn ofd_ranges_are_listed_with_path_access_and_range(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: ofd a wr 0 99
         owner: ofd a rd 100 eof",
    )?;
    let report = scene.scan()?;
    let pid = scene.pid("owner")?;
    let mut locks = report.locks_on(&scene.file("lock")?);
    locks.sort_by_key(|lock| lock.start);
    same!("locks", locks.len(), 2);
    for (lock, looks) in locks.into_iter().zip(["OFDLCK WRITE 0-99", "OFDLCK READ 100-eof"]) {
        lock.looks_like(looks)?;
        lock.held_by(&[pid])?;
        same!("path", lock.path, Some(scene.path_text("lock")?));
        // /proc shows -1 for whoever takes an OFD lock.
        if scene.is_bpf() {
            lock.is("held")?;
            lock.acquired_by_living(pid)?;
        } else {
            lock.is_one_of(&["unknown", "held"])?;
        }
    }
    Ok(())
}

fn leases_are_listed_with_path_and_access(scene: &mut Scene) -> Result<()> {
    fs::write(scene.path("reading"), "")?;
    scene.play(
        "start owner
         owner: open a writing
         owner: lease a wr
         owner: open b reading ro
         owner: lease b rd",
    )?;
    let report = scene.scan()?;
    for (name, looks) in [("writing", "LEASE WRITE 0-eof"), ("reading", "LEASE READ 0-eof")] {
        let lock = report.only_lock_on(&scene.file(name)?)?;
        lock.looks_like(looks)?;
        lock.is("held")?;
        lock.acquired_by_living(scene.pid("owner")?)?;
        same!("path", lock.path, Some(scene.path_text(name)?));
    }
    Ok(())
}

fn a_held_lock_names_its_acquirer_and_holder(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: write a thirteen\\slong
         owner: comm owner-of-it",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    let pid = scene.pid("owner")?;
    same!("size", lock.size, Some(13));
    same!("deleted", lock.deleted, Some(false));
    same!("replaced", lock.replaced, Some(false));
    same!("flags", lock.flags.len(), 0);
    let acquirer = lock.acquirer()?;
    same!("comm", acquirer.comm.as_deref(), Some("owner-of-it"));
    let exe = place::rig()?;
    same!("exe", acquirer.exe.as_deref(), exe.to_str());
    ensure!(acquirer.start_time.is_some(), "no start time: {lock:?}");
    same!("its pid in its own namespace", acquirer.ns_pid, Some(pid));
    let holders: Vec<_> =
        lock.holders.iter().map(|h| (h.pid, h.tid, h.via.as_str(), h.fd)).collect();
    same!("holders", holders, [(Some(pid), Some(pid), "fd", Some(3))]);
    let holder = lock.holders.first().context("no holder")?;
    same!("the holder's comm", holder.comm.as_deref(), Some("owner-of-it"));
    same!("the holder's start", holder.start_time, acquirer.start_time);
    Ok(())
}

fn the_holder_of_a_posix_lock_is_its_fd_table(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: posix a wr 0 eof
         owner: fork child
         owner: open b lock",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    // The child has the same description, and no part in the lock.
    lock.held_by(&[scene.pid("owner")?])?;
    let via: BTreeSet<_> = lock.holders.iter().map(|holder| holder.via.as_str()).collect();
    same!("via", via, BTreeSet::from(["files"]));
    Ok(())
}

fn what_is_not_known_is_null(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let report = scene.scan()?;
    // Nobody recorded it: that takes a running daemon.
    same!("history", report.history, false);
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    same!("acquired at", lock.acquired_at, None);
    same!("reason", lock.reason, None);
    scene.play(
        "owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    let acquirer = lock.acquirer()?;
    same!("the dead one's comm", acquirer.comm, None);
    same!("the dead one's executable", acquirer.exe, None);
    same!("the dead one's start", acquirer.start_time, None);
    Ok(())
}

fn a_lock_that_was_given_up_is_gone(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    same!("locks", scene.scan()?.locks_on(&scene.file("lock")?).len(), 1);
    scene.play("owner: flock a un")?;
    same!("locks", scene.scan()?.locks_on(&scene.file("lock")?).len(), 0);
    Ok(())
}

fn the_lock_of_a_dead_process_is_gone(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: posix a wr 0 eof
         owner: fork child
         owner: die KILL",
    )?;
    // The child has the description, but a POSIX lock is its process's.
    same!("locks", scene.scan()?.locks_on(&scene.file("lock")?).len(), 0);
    Ok(())
}

fn five_hundred_files_are_all_listed(scene: &mut Scene) -> Result<()> {
    scene.new_folder("many")?;
    scene.play(
        "start owner
         owner: mass files 500 many",
    )?;
    let report = scene.scan()?;
    let paths: BTreeSet<_> = report.locks.iter().map(|lock| lock.path.clone()).collect();
    let expected: Result<BTreeSet<_>> =
        (0..500).map(|n| scene.path_text(&format!("many/{n}")).map(Some)).collect();
    same!("paths", paths, expected?);
    same!("locks", report.locks.len(), 500);
    same!("counted", report.summary.locks, 500);
    Ok(())
}

fn ten_thousand_ranges_of_one_file_are_all_listed(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: mass posix 10000 a",
    )?;
    let report = scene.scan_machine()?;
    let pid = scene.pid("owner")?;
    let locks = report.locks_on(&scene.file("lock")?);
    let starts: BTreeSet<_> = locks.iter().map(|lock| lock.start).collect();
    ensure!(starts == (0..10_000).map(|n| 2 * n).collect(), "{} other ranges", starts.len());
    same!("locks", locks.len(), 10_000);
    for lock in locks {
        lock.looks_like(&format!("POSIX WRITE {}-{}", lock.start, lock.start))?;
        lock.held_by(&[pid])?;
    }
    Ok(())
}

fn two_thousand_shared_holders_are_listed_with_one_holder_each(scene: &mut Scene) -> Result<()> {
    let mut expected = BTreeSet::new();
    for name in ["one", "two", "three", "four"] {
        scene.play(&format!(
            "start {name}
             {name}: mass shares 500 lock"
        ))?;
        let pid = scene.pid(name)?;
        let lock = scene.path_text("lock")?;
        let descriptors = kernel::descriptors(pid)?.into_iter().filter(|(_, link)| *link == lock);
        expected.extend(descriptors.map(|(fd, _)| (pid, u64::try_from(fd).unwrap_or(u64::MAX))));
    }
    same!("what the rigs hold", expected.len(), 2000);
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    same!("locks", locks.len(), 2000);
    let mut found = BTreeSet::new();
    for lock in locks {
        lock.looks_like("FLOCK READ 0-eof")?;
        same!("holders of one", lock.holders.len(), 1);
        let holder = lock.holders.first().context("no holder")?;
        let (pid, fd) = (holder.pid.context("no pid")?, holder.fd.context("no descriptor")?);
        lock.acquired_by_living(pid)?;
        found.insert((pid, fd));
    }
    ensure!(found == expected, "other holders than there are");
    Ok(())
}

/// /proc/locks is read a page at a time, by position: a lock that is taken or given up in between
/// makes readers see others twice, or not at all.
fn locks_that_come_and_go_do_not_disturb_the_rest(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start busy
         busy: open a one
         busy: churn a
         busy: open b two
         busy: churn b
         start steady
         steady: open a lock
         steady: mass posix 3000 a",
    )?;
    for _ in 0..patience::rounds(3) {
        let report = scene.scan()?;
        let locks = report.locks_on(&scene.file("lock")?);
        let starts: BTreeSet<_> = locks.iter().map(|lock| lock.start).collect();
        same!("locks that are listed twice", locks.len() - starts.len(), 0);
        ensure!(
            starts.len() == 3000 || !report.complete,
            "{} locks of 3000 are listed, and the report claims to be complete",
            starts.len()
        );
        if scene.is_bpf() {
            same!("locks", locks.len(), 3000);
        }
    }
    Ok(())
}

fn looking_does_not_break_a_lease(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: lease a wr",
    )?;
    let path = scene.path_text("lock")?;
    scene.scan_for(&[&path])?;
    scene.lockwatch(&["check", &path])?.run()?.exits(3)?;
    scene.lockwatch(&["explain", &path])?.run()?;
    let pid = scene.pid("owner")?;
    let shown = kernel::proc_locks_on(&scene.file("lock")?)?;
    same!("the lease", shown, [format!("LEASE ACTIVE WRITE {pid} 0 EOF")]);
    Ok(())
}

fn looking_does_not_lock(scene: &mut Scene) -> Result<()> {
    scene.play(FREE)?;
    let report = scene.scan()?;
    same!("locks", report.locks.len(), 0);
    same!("counted", report.summary.locks, 0);
    same!("waiters counted", report.summary.waiters, 0);
    scene.play("owner: flock a ex")
}
