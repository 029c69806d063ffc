//! Ranges that the kernel merges, cuts and splits: each has the taking of its oldest byte.

use anyhow::{Context, Result, ensure};
use lockwatch::engine::identity::BootTime;
use lockwatch::source::history::Sizes;
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};

use super::NEEDS;
use super::witness::Witness;

pub(crate) const TESTS: &[Test] = &[
    once!(a_range_that_grows_is_as_old_as_its_oldest_byte).needs(NEEDS),
    once!(the_halves_of_a_split_range_keep_its_time).needs(NEEDS),
    once!(what_is_left_of_a_merged_range_is_as_old_as_what_is_left).needs(NEEDS),
    once!(an_upgrade_in_place_is_a_new_taking).needs(NEEDS),
    once!(what_a_child_adds_to_an_ofd_range_is_the_childs).needs(NEEDS),
    once!(a_close_that_ends_many_ranges_ends_them_all).needs(NEEDS),
    once!(after_a_close_the_same_owner_is_known_anew).needs(NEEDS),
    once!(many_ranges_stay_known_however_often_they_change).needs(NEEDS),
    once!(who_gives_up_all_time_and_again_needs_no_more_room).needs(NEEDS),
];

/// `start-end access taken-by`, of each lock on a file; and when each was taken.
fn seen(witness: &mut Witness, scene: &Scene, file: &str) -> Result<(Vec<String>, Vec<BootTime>)> {
    let mut told = Vec::new();
    let mut times = Vec::new();
    for lock in witness.locks(scene, &[file])? {
        let end = lock.range.end().map_or("eof".to_owned(), |end| end.to_string());
        let range = format!("{}-{end} {}", lock.range.start, lock.access.name());
        let taken = lock.taken.with_context(|| format!("{range} has no taking"))?;
        told.push(range);
        times.push(taken.at);
    }
    Ok((told, times))
}

fn a_range_that_grows_is_as_old_as_its_oldest_byte(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play("start owner\nowner: open a a\nowner: posix a wr 10 19")?;
    let first = witness.now();
    scene.play("owner: posix a wr 30 39\nowner: posix a wr 20 29\nowner: posix a wr 0 9")?;
    let (ranges, times) = seen(&mut witness, scene, "a")?;
    same!("ranges", ranges, ["0-39 WRITE"]);
    ensure!(times[0] < first, "it is younger than its oldest byte");
    scene.play("owner: posix a un 0 eof")?;
    same!("ranges", seen(&mut witness, scene, "a")?.0, [""; 0]);
    Ok(())
}

fn the_halves_of_a_split_range_keep_its_time(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play("start owner\nowner: open a a\nowner: posix a rd 0 99")?;
    let first = witness.now();
    scene.play("owner: posix a wr 40 49")?;
    let (ranges, times) = seen(&mut witness, scene, "a")?;
    same!("ranges", ranges, ["0-39 READ", "40-49 WRITE", "50-99 READ"]);
    ensure!(times[0] < first && times[2] < first, "the halves are younger than the whole");
    ensure!(times[1] > first, "the middle is older than its taking");
    scene.play("owner: posix a un 40 49")?;
    let (ranges, times) = seen(&mut witness, scene, "a")?;
    same!("ranges", ranges, ["0-39 READ", "50-99 READ"]);
    ensure!(times.iter().all(|&time| time < first), "the halves are younger than the whole");
    Ok(())
}

fn what_is_left_of_a_merged_range_is_as_old_as_what_is_left(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play("start owner\nowner: open a a\nowner: ofd a wr 0 9")?;
    let first = witness.now();
    scene.play("owner: ofd a wr 10 19\nowner: ofd a un 0 9")?;
    let (ranges, times) = seen(&mut witness, scene, "a")?;
    same!("ranges", ranges, ["10-19 WRITE"]);
    ensure!(times[0] > first, "it has the time of what was given up");
    Ok(())
}

fn an_upgrade_in_place_is_a_new_taking(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: posix a rd 5 9
         owner: open b b
         owner: flock b sh",
    )?;
    let first = witness.now();
    scene.play("owner: posix a wr 5 9\nowner: flock b ex")?;
    for file in ["a", "b"] {
        let (_, times) = seen(&mut witness, scene, file)?;
        ensure!(times[0] > first, "{file} has the time of what it replaced");
    }
    scene.play("owner: posix a rd 5 9\nowner: flock b sh")?;
    same!("downgraded", seen(&mut witness, scene, "a")?.0, ["5-9 READ"]);
    same!("downgraded", seen(&mut witness, scene, "b")?.0, ["0-eof READ"]);
    Ok(())
}

fn what_a_child_adds_to_an_ofd_range_is_the_childs(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: ofd a wr 0 9
         owner: fork child
         child: ofd a wr 10 19",
    )?;
    let taker = |witness: &mut Witness, scene: &Scene| {
        let locks = witness.locks(scene, &["a"])?;
        same!("locks", locks.len(), 1);
        locks[0].taken.as_ref().map(|taken| taken.by.id.pid).context("no taking")
    };
    same!("taker of the oldest byte", taker(&mut witness, scene)?, scene.pid("owner")?);
    scene.play("owner: ofd a un 0 9")?;
    same!("taker of what is left", taker(&mut witness, scene)?, scene.pid("child")?);
    Ok(())
}

fn a_close_that_ends_many_ranges_ends_them_all(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: mass posix 200 a",
    )?;
    let pid = scene.pid("owner")?;
    same!("locks", seen(&mut witness, scene, "a")?.0.len(), 200);
    witness.has_nothing_of(pid, 200)?;
    scene.play("owner: close a")?;
    // One reading alone removes nothing, and the tables are not gone through at each.
    patience::until("the table to be rid of them", || {
        same!("locks", witness.locks(scene, &["a"])?.len(), 0);
        Ok(witness.has_nothing_of(pid, 0).is_ok().then_some(()))
    })
}

fn after_a_close_the_same_owner_is_known_anew(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: open other a
         owner: posix a rd 0 9
         owner: posix a wr 20 29
         owner: close other",
    )?;
    let first = witness.now();
    // What was there is no more: nothing of these is older than now.
    scene.play("owner: posix a wr 0 9\nowner: posix a wr 25 40")?;
    let (ranges, times) = seen(&mut witness, scene, "a")?;
    same!("ranges", ranges, ["0-9 WRITE", "25-40 WRITE"]);
    ensure!(times.iter().all(|&time| time > first), "it has the time of what was closed");
    Ok(())
}

fn many_ranges_stay_known_however_often_they_change(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play("start owner\nowner: open a a\nowner: posix a wr 1000 1009")?;
    let first = witness.now();
    let mut story = String::new();
    for round in 0..60 {
        for at in 0..10 {
            let (start, access) = (at * 10, ["rd", "wr"][(round + at) % 2]);
            let end = start + 9 + round % 7;
            story.push_str(&format!("owner: posix a {access} {start} {end}\n"));
            story.push_str(&format!("owner: posix a un {} {}\n", start + 3, start + 4));
        }
        if round % 20 == 19 {
            scene.play(&std::mem::take(&mut story))?;
            let (ranges, times) = seen(&mut witness, scene, "a")?;
            same!("last range", ranges.last().map(String::as_str), Some("1000-1009 WRITE"));
            ensure!(times.last().is_some_and(|&time| time < first), "the old range is young");
            ensure!(times[0] > first, "a young range is old");
        }
    }
    Ok(())
}

fn who_gives_up_all_time_and_again_needs_no_more_room(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::with(scene, Sizes { operations: 64, ..Sizes::default() })?;
    scene.play("start owner")?;
    for kind in ["posix", "ofd"] {
        scene.play(&format!("owner: open {kind} {kind}"))?;
        // As a connection to a database does with its journal.
        let steps =
            ["rd 100 100", "rd 200 299", "un 100 100", "wr 101 101", "wr 100 100", "wr 200 299"];
        let work = steps.map(|step| format!("owner: {kind} {kind} {step}\n")).concat();
        let end = format!("owner: {kind} {kind} un 0 eof\n");
        scene.play(&format!("{work}{end}").repeat(100))?;
        let last = witness.now();
        scene.play(&work)?;
        same!("lost", witness.history.tables.totals()?.lost_elements, 0);
        let (ranges, times) = seen(&mut witness, scene, kind)?;
        same!("ranges", ranges, ["100-101 WRITE", "200-299 WRITE"]);
        ensure!(times.iter().all(|&time| time > last), "{kind}: what was taken last is old");
    }
    Ok(())
}
