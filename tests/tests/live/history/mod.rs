//! The history in the kernel: who took each lock and when, joined with what the kernel's lists show.
//!
//! Each test opens a history of its own, on a BPF file system of its own, in this process.

pub(crate) mod moments;
pub(crate) mod ranges;
mod witness;

use anyhow::{Context, Result, ensure};
use lockwatch::engine::identity::{Access, Dev, LockKind, RecordedPid};
use lockwatch::engine::input::FileId;
use lockwatch::source::bpf;
use lockwatch::source::history::{Continuity, History, Sizes};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};

use witness::Witness;

pub(crate) const TESTS: &[Test] = &[
    once!(each_kind_of_lock_has_its_taker_and_its_time).needs(NEEDS),
    once!(a_lock_from_before_the_history_has_none).needs(NEEDS),
    once!(a_scan_reads_the_pinned_history).needs(NEEDS),
    once!(a_wait_is_known_from_its_beginning_to_its_end).needs(NEEDS),
    once!(a_wait_that_is_interrupted_is_forgotten).needs(NEEDS),
    once!(a_lease_that_is_closed_and_taken_anew_is_young).needs(NEEDS),
    once!(a_killed_watcher_leaves_a_history_that_goes_on).needs(NEEDS),
    once!(a_history_that_is_ended_leaves_nothing).needs(NEEDS),
    once!(a_full_table_costs_knowledge_and_no_truth).needs(NEEDS),
    once!(attention_has_room_for_so_many_files_and_says_of_how_many_more).needs(NEEDS),
    once!(what_is_counted_adds_up).needs(NEEDS),
    once!(one_reading_after_the_other_shows_what_is_there_then).needs(NEEDS),
];

const NEEDS: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts"];

fn each_kind_of_lock_has_its_taker_and_its_time(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    let before = witness.now();
    scene.play(
        "start owner
         owner: comm keeper
         owner: open a a
         owner: flock a ex
         owner: open b b
         owner: posix b wr 10 19
         owner: open c c
         owner: ofd c rd 5 eof
         owner: open made d
         owner: close made
         owner: open d d ro
         owner: lease d rd",
    )?;
    let after = witness.now();
    let pid = scene.pid("owner")?;
    let seen = witness.locks(scene, &["a", "b", "c", "d"])?;
    let kinds: Vec<_> = seen.iter().map(|lock| lock.kind).collect();
    same!("kinds", kinds, [LockKind::Flock, LockKind::Posix, LockKind::Ofd, LockKind::Lease]);
    for lock in &seen {
        let taken = lock.taken.as_ref().with_context(|| format!("{:?}: no taking", lock.kind))?;
        ensure!(taken.at >= before && taken.at <= after, "{:?} at {:?}", lock.kind, taken.at);
        same!("taker", taken.by.id.pid, pid);
        same!("comm", &*taken.by.comm, b"keeper");
        ensure!(taken.by.exe.is_some(), "{:?}: no executable", lock.kind);
    }
    scene.play("owner: flock a un\nowner: posix b un 10 19\nowner: ofd c un 5 eof")?;
    same!("locks left", witness.locks(scene, &["a", "b", "c"])?.len(), 0);
    witness.has_nothing_of(pid, 1)
}

fn a_lock_from_before_the_history_has_none(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         owner: open b b
         owner: posix b rd 0 9",
    )?;
    let mut witness = Witness::appear(scene)?;
    // Neither taking what one has anew, nor more of it, makes it known.
    scene.play("owner: flock a ex\nowner: posix b rd 0 9\nowner: posix b rd 5 19")?;
    for lock in witness.locks(scene, &["a", "b"])? {
        ensure!(lock.taken.is_none(), "{:?} has a taking: {:?}", lock.kind, lock.taken);
    }
    scene.play("owner: flock a sh")?;
    let changed = witness.locks(scene, &["a"])?;
    same!("access", changed[0].access, Access::Read);
    ensure!(changed[0].taken.is_some(), "the kernel made a new lock of it");
    Ok(())
}

fn a_scan_reads_the_pinned_history(scene: &mut Scene) -> Result<()> {
    let witness = Witness::appear(scene)?;
    scene.play(crate::stories::LEAKED)?;
    let run = scene
        .lockwatch(&["scan", "--json", "--source", "bpf"])?
        .env("LOCKWATCH_STATE_DIR", witness.folder())
        .run()?;
    let report = scene.report(&run)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.acquired_by_dead(scene.pid("owner")?)?;
    same!("confidence", lock.confidence.as_str(), "certain");
    Ok(())
}

fn a_wait_is_known_from_its_beginning_to_its_end(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         owner: open b b
         owner: posix b wr 0 9
         start other
         other: open a a
         start third
         third: open b b",
    )?;
    let before = witness.now();
    scene.play(
        "other: later flock a ex
         third: later posix b rd 5 9
         await other blocked
         await third blocked",
    )?;
    let after = witness.now();
    let snapshot = witness.look()?;
    let ours = [scene.pid("other")?, scene.pid("third")?].map(RecordedPid::Local);
    let waits: Vec<_> = (snapshot.waiters.iter())
        .filter(|waiter| ours.contains(&waiter.requester))
        .filter_map(|waiter| waiter.since)
        .collect();
    same!("waits with a beginning", waits.len(), 2);
    ensure!(waits.iter().all(|&at| at >= before && at <= after), "they began at {waits:?}");
    scene.play("owner: flock a un\nowner: posix b un 0 9")?;
    witness.waits_for_locks(scene, &["a", "b"])?;
    for lock in witness.locks(scene, &["a", "b"])? {
        let taken = lock.taken.context("no taking of what was waited for")?;
        ensure!(taken.at >= after, "taken at the beginning of the wait");
    }
    let totals = witness.history.tables.totals()?;
    let granted = |kind: usize| totals.wait[kind].0.iter().sum::<u64>();
    for kind in 0..2 {
        ensure!(totals.waits[kind] >= 1 && granted(kind) >= 1, "kind {kind}: {totals:?}");
    }
    same!("waiting now", witness.waiting(scene)?, 0);
    Ok(())
}

fn a_wait_that_is_interrupted_is_forgotten(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         start other
         other: spawn waiter flock a true",
    )?;
    let waiting = |witness: &mut Witness, scene: &Scene, count: usize| {
        patience::until(&format!("{count} that wait"), || {
            witness.look()?;
            Ok((witness.waiting(scene)? == count).then_some(()))
        })
    };
    waiting(&mut witness, scene, 1)?;
    scene.play("start third\nthird: spawn patient flock -w 5 a true")?;
    waiting(&mut witness, scene, 2)?;
    waiting(&mut witness, scene, 1)?;
    let snapshot = witness.look()?;
    let ours = scene.file("a")?;
    let known = |waiter: &&lockwatch::engine::snapshot::Waiter| {
        snapshot.files[waiter.file.0 as usize].ino == ours.ino && waiter.since.is_some()
    };
    same!("waiters", snapshot.waiters.iter().filter(known).count(), 1);
    Ok(())
}

fn a_lease_that_is_closed_and_taken_anew_is_young(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open made a
         owner: close made
         owner: open a a ro
         owner: lease a rd
         owner: close a",
    )?;
    let first = witness.now();
    scene.play("owner: open a a ro\nowner: lease a rd")?;
    let seen = witness.locks(scene, &["a"])?;
    same!("locks", seen.len(), 1);
    let taken = seen[0].taken.as_ref().context("no taking")?;
    ensure!(taken.at > first, "it has the time of the one before");
    // A lease that is asked for again is the same.
    let second = witness.now();
    scene.play("owner: lease a rd")?;
    let again = witness.locks(scene, &["a"])?;
    let taken = again[0].taken.as_ref().context("no taking any more")?;
    ensure!(taken.at < second, "it is taken for a new one");
    Ok(())
}

fn a_killed_watcher_leaves_a_history_that_goes_on(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play("start owner\nowner: open a a\nowner: flock a ex")?;
    witness.is_killed()?;
    scene.play("owner: open b b\nowner: flock b ex\nowner: flock a un")?;
    same!("continuity", witness.again()?, Continuity::Continued);
    let seen = witness.locks(scene, &["a", "b"])?;
    same!("locks", seen.len(), 1);
    let taken = seen[0].taken.as_ref().context("what happened meanwhile is not known")?;
    same!("taker", taken.by.id.pid, scene.pid("owner")?);
    Ok(())
}

fn a_history_that_is_ended_leaves_nothing(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    same!("ended", History::detach(witness.folder())?, true);
    same!("ended again", History::detach(witness.folder())?, false);
    ensure!(History::read_only(witness.folder())?.is_none(), "there is one still");
    same!("continuity", witness.again()?, Continuity::New);
    Ok(())
}

fn attention_has_room_for_so_many_files_and_says_of_how_many_more(scene: &mut Scene) -> Result<()> {
    let witness = Witness::with(scene, Sizes { attended: 64, ..Sizes::default() })?;
    let file = |ino| FileId { dev: Dev::new(0, 1), ino };
    let files = |of: std::ops::Range<u64>| of.map(file).collect::<Vec<_>>();
    let tables = &witness.history.tables;
    // Crashes of others on this machine take places, too, for a while.
    for (wanted, without) in [(0..100, 36), (0..100, 36), (90..110, 0)] {
        patience::until("room for as many as there are places", || {
            Ok((tables.attend(&files(wanted.clone()))? == without).then_some(()))
        })?;
    }
    Ok(())
}

fn a_full_table_costs_knowledge_and_no_truth(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::with(scene, Sizes { locks: 256, ..Sizes::default() })?;
    scene.new_folder("crowd")?;
    scene.play("start owner\nowner: mass files 400 crowd")?;
    let lost = witness.history.tables.totals()?.lost_elements;
    ensure!(lost >= 144, "only {lost} of 400 locks did not fit 256 places");
    let snapshot = witness.look()?;
    let owner = scene.pid("owner")?;
    let own =
        |lock: &&lockwatch::engine::snapshot::Lock| lock.acquirer == RecordedPid::Local(owner);
    let known = snapshot.locks.iter().filter(own).filter(|lock| lock.taken.is_some()).count();
    same!("locks", snapshot.locks.iter().filter(own).count(), 400);
    // Others on this machine lose theirs, too.
    ensure!(known as u64 + lost >= 400, "{known} of 400 are known, and only {lost} were lost");
    scene.play("owner: exit 0\nstart other\nother: open a a\nother: flock a ex")?;
    let seen = witness.locks(scene, &["a"])?;
    ensure!(seen[0].taken.is_some(), "there is room again, and it is not used");
    Ok(())
}

fn what_is_counted_adds_up(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    let before = witness.history.tables.totals()?;
    let mut story = String::from("start owner\nowner: open a a\n");
    for _ in 0..10 {
        story.push_str(
            "owner: flock a ex
             owner: flock a un
             owner: posix a wr 0 9
             owner: posix a un 0 9
             owner: ofd a wr 0 9
             owner: ofd a un 0 9
",
        );
    }
    scene.play(&story)?;
    let after = witness.history.tables.totals()?;
    for kind in 0..3 {
        let taken = after.acquisitions[kind] - before.acquisitions[kind];
        let given_up = after.releases[kind] - before.releases[kind];
        let held: u64 =
            after.hold[kind].0.iter().sum::<u64>() - before.hold[kind].0.iter().sum::<u64>();
        ensure!(
            taken >= 10 && given_up >= 10 && held >= 10,
            "kind {kind}: {taken} taken, {given_up} given up, {held} held"
        );
    }
    witness.look()?;
    Ok(())
}

fn one_reading_after_the_other_shows_what_is_there_then(scene: &mut Scene) -> Result<()> {
    let mut snapshots = bpf::Snapshots::load().context("loading")?;
    scene.play("start owner\nowner: open a a\nowner: open b b\nowner: open c c")?;
    let files = ["a", "b", "c"].map(|file| scene.file(file));
    let mut seen = |scene: &mut Scene, story: &str| {
        scene.play(story)?;
        let snapshot = snapshots.read().context("a reading")?.snapshot;
        ensure!(snapshot.limits.is_empty(), "it says {:?}", snapshot.limits);
        let there = |file: &Result<lockwatch_tests::harness::FileId>| {
            let Ok(file) = file else { return false };
            snapshot.locks.iter().any(|lock| {
                let at = &snapshot.files[lock.file.0 as usize];
                at.ino == file.ino && at.dev.to_string() == file.dev
            })
        };
        Ok(files.iter().map(there).collect::<Vec<_>>())
    };
    same!("nothing", seen(scene, "")?, [false, false, false]);
    same!("a, c", seen(scene, "owner: flock a ex\nowner: posix c rd 0 9")?, [true, false, true]);
    same!("c", seen(scene, "owner: flock a un")?, [false, false, true]);
    same!("b", seen(scene, "owner: ofd b wr 0 9\nowner: posix c un 0 9")?, [false, true, false]);
    for _ in 0..50 {
        same!("b still", seen(scene, "")?, [false, true, false]);
    }
    Ok(())
}
