//! The eight defects of lslocks and its kin, each of which must not happen here.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{each_source, once, same};

use crate::stories::{HELD, LEAKED};

pub(crate) const TESTS: &[Test] = &[
    each_source!(defect_1_a_lease_break_that_waits_hides_every_lock),
    each_source!(defect_2_a_dead_acquirer_is_hidden_or_replaced),
    each_source!(defect_3_a_recycled_pid_blames_the_innocent).needs(&["choose-pid"]),
    each_source!(defect_4_holders_are_matched_by_range),
    each_source!(defect_5_paths_are_matched_without_the_device).needs(&["mounts"]),
    each_source!(defect_5_descriptor_0_is_left_out),
    each_source!(defect_6_one_blocker_is_shown_of_many),
    each_source!(defect_7_the_time_grows_with_the_square).within(Duration::from_secs(120)),
    once!(defect_7_the_lock_table_is_read_and_stalls_every_locker).needs(&[
        "root",
        "mounts",
        "iter/task_file",
    ]),
    each_source!(defect_8_nothing_is_seen_in_a_pid_namespace).needs(&["pidns", "mounts"]),
];

/// lslocks 2.38 stops at `<none>:0` in /proc/locks: it ends with nothing printed.
fn defect_1_a_lease_break_that_waits_hides_every_lock(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start before
         before: open a before
         before: flock a ex
         start owner
         owner: open a leased
         owner: lease a wr
         start breaker
         breaker: later open b leased wo
         await breaker blocked
         start after
         after: open a after
         after: flock a ex
         after: open b ranges
         after: posix b wr 0 9",
    )?;
    let report = scene.scan_machine()?;
    for name in ["before", "leased", "after", "ranges"] {
        report.only_lock_on(&scene.file(name)?).with_context(|| name.to_owned())?;
    }
    report.only_lock_on(&scene.file("leased")?)?.waiter(scene.pid("breaker")?)?;
    Ok(())
}

/// lslocks prints a blank command and the dead pid, or whichever process has the descriptor.
fn defect_2_a_dead_acquirer_is_hidden_or_replaced(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    // Who took it, and beside that who has it: two processes, and never one for the other.
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("heir")?])
}

/// lslocks shows the command of whoever has the pid now.
fn defect_3_a_recycled_pid_blames_the_innocent(scene: &mut Scene) -> Result<()> {
    scene.play("start warden")?;
    scene.play(LEAKED)?;
    scene.play(
        "await tick
         warden: fork bystander as {owner}
         bystander: comm innocent",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.raises("pid_recycled")?;
    ensure!(!format!("{lock:?}").contains("innocent"), "the bystander is blamed: {lock:?}");
    let table = scene.run(&["scan", "."])?;
    ensure!(!table.text()?.contains("innocent"), "the bystander is blamed in the table");
    Ok(())
}

/// lslocks -o +HOLDERS lists all three under each of the three locks.
fn defect_4_holders_are_matched_by_range(scene: &mut Scene) -> Result<()> {
    for name in ["one", "two", "three"] {
        scene.play(&format!(
            "start {name}
             {name}: open a lock
             {name}: flock a sh"
        ))?;
    }
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    same!("locks", locks.len(), 3);
    for lock in locks {
        let acquirer = lock.acquirer()?.pid.context("no acquirer")?;
        lock.held_by(&[acquirer])?;
        same!("holders of one", lock.holders.len(), 1);
    }
    Ok(())
}

/// lslocks looks a path up by the inode number alone, and shows the wrong file.
fn defect_5_paths_are_matched_without_the_device(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.tmpfs("one")?;
    scene.tmpfs("two")?;
    // One process has both open, so that whoever looks at numbers only finds the wrong one.
    scene.play(
        "start owner
         owner: open a one/lock
         owner: open b two/lock
         owner: flock b ex",
    )?;
    let (one, two) = (scene.file("one/lock")?, scene.file("two/lock")?);
    ensure!(one.ino == two.ino && one.dev != two.dev, "the stage is not set: {one:?}, {two:?}");
    let report = scene.scan()?;
    same!("locks on the other", report.locks_on(&one).len(), 0);
    same!("path", report.only_lock_on(&two)?.path, Some(scene.path_text("two/lock")?));
    Ok(())
}

/// lslocks begins at descriptor 1: a lock on standard input has no path and no holder.
fn defect_5_descriptor_0_is_left_out(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play("owner: move a 0")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    same!("path", lock.path, Some(scene.path_text("lock")?));
    same!("descriptors", lock.holders.iter().map(|h| h.fd).collect::<Vec<_>>(), [Some(0)]);
    Ok(())
}

/// lslocks has one BLOCKER, the one that /proc/locks numbers.
fn defect_6_one_blocker_is_shown_of_many(scene: &mut Scene) -> Result<()> {
    for name in ["one", "two", "three", "four"] {
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
    same!("locks", locks.len(), 4);
    let pid = Some(scene.pid("waiter")?);
    let waiter = locks.iter().flat_map(|lock| &lock.waiters).find(|waiter| waiter.pid == pid);
    let waiter = waiter.context("the waiter is not shown")?;
    same!("blocked by", waiter.blocked_by, locks.iter().map(|lock| lock.id.clone()).collect());
    Ok(())
}

/// lslocks needs 16 times the time for 4 times the locks.
fn defect_7_the_time_grows_with_the_square(scene: &mut Scene) -> Result<()> {
    let mut fastest = Vec::new();
    for (name, count) in [("few", 4_000), ("many", 16_000)] {
        // Few locks are on one file, many are of one process.
        scene.play(&format!(
            "start {name}
             {name}: open a {name}
             {name}: mass posix {count} a"
        ))?;
        let mut best = f64::INFINITY;
        for _ in 0..patience::rounds(3) {
            let run = scene.run(&["scan", "-r", "-n", "-o", "START", &format!("./{name}")])?;
            run.exits(0)?;
            same!("rows", run.lines()?.len(), count);
            best = best.min(run.seconds);
        }
        fastest.push(best);
        scene.play(&format!("{name}: close a"))?;
    }
    let [few, many] = fastest.as_slice() else { anyhow::bail!("not two figures") };
    // Twice linear, and room for what does not depend on the locks.
    ensure!(*many < 8.0 * few + 0.2, "{few:.3} s for 4,000 locks, {many:.3} s for 16,000");
    Ok(())
}

/// Every reader of /proc/locks stops every locker of the machine for as long as it reads.
fn defect_7_the_lock_table_is_read_and_stalls_every_locker(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    // Whoever reads it here reads something else.
    fs::write(scene.path("bait"), "1: FLOCK  ADVISORY  WRITE bait\n")?;
    rustix::mount::mount_bind(scene.path("bait"), "/proc/locks").context("covering /proc/locks")?;
    scene.play(LEAKED)?;
    let run = scene.run(&["scan", "--json", "--source", "bpf"])?;
    let report = scene.report(&run)?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")?;
    same!("complaints", run.complaints()?.len(), 0);
    Ok(())
}

/// /proc/locks leaves out what was taken by the dead or from outside, so lslocks shows nothing.
fn defect_8_nothing_is_seen_in_a_pid_namespace(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start outside
         outside: fork init pidns mounts
         init: mount proc /proc
         init: open a lock rw cloexec
         init: fork owner
         owner: flock a ex
         owner: exit 0",
    )?;
    let file = scene.file("lock")?;
    let shown = scene.shown_to("init", "/proc/locks")?;
    let identity = format!("{}:{} ", file.dev, file.ino);
    ensure!(!shown.contains(&identity), "the stage is not set: {shown}");
    let source = scene.source()?.name();
    let run = scene.lockwatch_run_by("init", &["scan", "--json", "--source", source])?;
    let report = scene.report(&run)?;
    let lock = report.only_lock_on(&file)?;
    lock.raises("pid_zero")?;
    lock.held_by(&[1])
}
