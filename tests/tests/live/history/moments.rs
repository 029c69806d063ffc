//! The records of the moment: deaths, locks that end with them, attempts that meet a lock.

use anyhow::{Context, Result, ensure};
use lockwatch::engine::input::{Input, Outcome};
use lockwatch::source::history::Sizes;
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};

use super::NEEDS;
use super::witness::Witness;

pub(crate) const TESTS: &[Test] = &[
    once!(an_ordinary_lock_wakes_nobody).needs(NEEDS),
    once!(a_crash_that_holds_is_told_with_what_it_held).needs(NEEDS),
    once!(whoever_takes_the_lock_after_a_crash_is_told).needs(NEEDS),
    once!(a_crash_of_the_owner_of_a_range_is_told_for_posix_and_ofd).needs(NEEDS),
    once!(several_ranges_that_end_with_their_owner_are_each_told).needs(NEEDS),
    once!(shared_locks_that_end_with_their_owner_are_told).needs(NEEDS),
    once!(an_attempt_on_one_of_several_ranges_of_a_dead_taker_is_told).needs(NEEDS),
    once!(a_close_of_several_ranges_wakes_nobody).needs(NEEDS),
    once!(a_clean_exit_pays_no_attention).needs(NEEDS),
    once!(an_attempt_on_an_attended_file_is_told).needs(NEEDS),
    once!(an_attempt_that_meets_a_dead_takers_lock_is_told).needs(NEEDS),
    once!(a_recorded_pid_that_is_given_away_is_told).needs(NEEDS),
    once!(a_full_ring_is_counted_and_the_tables_stay_true).needs(NEEDS),
    once!(a_flood_of_records_hides_no_death).needs(NEEDS),
    once!(one_refusal_of_many_is_told).needs(NEEDS),
];

fn an_ordinary_lock_wakes_nobody(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         owner: flock a un
         owner: posix a wr 0 9
         owner: posix a un 0 9
         owner: flock a ex
         start other
         other: open a a
         other: later flock a ex
         owner: flock a un
         other: flock a un
         owner: exit 0",
    )?;
    let told = witness.moments(scene)?;
    ensure!(told.is_empty(), "there were {told:?}");
    Ok(())
}

fn a_crash_that_holds_is_told_with_what_it_held(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         await tick
         await tick
         owner: write a text
         owner: die KILL",
    )?;
    let told = witness.moments(scene)?;
    let [Input::Died(death), Input::Ended(ended)] = &told[..] else {
        anyhow::bail!("there were {told:?}");
    };
    same!("pid", death.process.pid, scene.pid("owner")?);
    same!("signal", death.signal, Some(9));
    same!("code", death.code, None);
    same!("death", ended.death, *death);
    same!("taker", ended.by.id, death.process);
    same!("written", ended.written, Some(true));
    ensure!(ended.taken_at < death.at && death.at <= ended.at, "the order of {ended:?}");
    Ok(())
}

fn whoever_takes_the_lock_after_a_crash_is_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         start next
         next: open a a
         next: later flock a ex
         await next blocked
         owner: exit 3
         await next done
         next: flock a un",
    )?;
    let told = witness.moments(scene)?;
    let place = |fits: &dyn Fn(&Input) -> bool| told.iter().position(fits);
    let ended = place(&|input| matches!(input, Input::Ended(_))).context("no end")?;
    let next = scene.pid("next")?;
    let acquired = place(&|input| matches!(input, Input::Acquired(of) if of.by.id.pid == next))
        .with_context(|| format!("no taking in {told:?}"))?;
    let (Input::Ended(ended), Input::Acquired(acquired)) = (&told[ended], &told[acquired]) else {
        anyhow::bail!("there were {told:?}");
    };
    same!("code", ended.death.code, Some(3));
    ensure!(ended.at <= acquired.at, "it ended after it was taken: {told:?}");
    same!("file", acquired.lock.file, ended.lock.file);
    Ok(())
}

fn a_crash_of_the_owner_of_a_range_is_told_for_posix_and_ofd(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    for kind in ["posix", "ofd"] {
        scene.play(&format!(
            "start {kind}
             {kind}: open a {kind}-lock
             {kind}: {kind} a wr 7 19
             {kind}: abort"
        ))?;
        let told = witness.moments(scene)?;
        let [Input::Died(_), Input::Ended(ended)] = &told[..] else {
            anyhow::bail!("{kind}: there were {told:?}");
        };
        same!("signal", ended.death.signal, Some(6));
        same!("range", (ended.lock.range.start, ended.lock.range.end()), (7, Some(19)));
    }
    Ok(())
}

fn several_ranges_that_end_with_their_owner_are_each_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    // Never merged; merged and cut; of a description.
    for (name, story) in [
        ("apart", "posix a wr 0 9\nNAME: posix a rd 20 29\nNAME: posix a wr 40 49"),
        (
            "cut",
            "posix a wr 0 19\nNAME: posix a wr 20 49\nNAME: posix a un 10 39\nNAME: posix a rd 20 29",
        ),
        ("ofd", "ofd a wr 0 9\nNAME: ofd a rd 20 29\nNAME: ofd a wr 40 49"),
    ] {
        let story = story.replace("NAME", name);
        scene.play(&format!("start {name}\n{name}: open a lock-{name}\n{name}: {story}"))?;
        let before = witness.ids_of(scene, &format!("lock-{name}"))?;
        same!("locks", before.len(), 3);
        scene.play(&format!("{name}: die KILL"))?;
        let told = witness.moments(scene)?;
        ensure!(matches!(told[0], Input::Died(_)), "{name}: there were {told:?}");
        let mut ended = Vec::new();
        for input in &told[1..] {
            let Input::Ended(end) = input else { anyhow::bail!("{name}: there were {told:?}") };
            same!("taker", end.by.id.pid, scene.pid(name)?);
            same!("signal", end.death.signal, Some(9));
            ensure!(end.is_by_death(), "{name}: not by the death: {end:?}");
            ensure!(end.taken_at < end.death.at && end.death.at <= end.at, "order of {end:?}");
            ended.push((end.lock.range.start, end.lock.range.end(), end.lock.access.name()));
            ensure!(before.contains(&end.lock.id), "{name}: no reading had this id: {end:?}");
        }
        ended.sort_unstable();
        let expected = [(0, Some(9), "WRITE"), (20, Some(29), "READ"), (40, Some(49), "WRITE")];
        same!("ranges", ended, expected);
        // The tables forget them once they are told.
        patience::until("the tables to forget", || {
            witness.look()?;
            let left = witness.history.tables.taken_by(scene.pid(name)?)?;
            Ok((left == 0).then_some(()))
        })?;
    }
    Ok(())
}

fn shared_locks_that_end_with_their_owner_are_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    for (kind, lock) in
        [("flock", "flock a sh"), ("posix", "posix a rd 0 9"), ("ofd", "ofd a rd 0 9")]
    {
        scene.play(&format!(
            "start {kind}
             {kind}: open a {kind}-lock
             {kind}: {lock}
             {kind}: die TERM"
        ))?;
        let told = witness.moments(scene)?;
        let [Input::Died(_), Input::Ended(ended)] = &told[..] else {
            anyhow::bail!("{kind}: there were {told:?}");
        };
        same!("access", ended.lock.access.name(), "READ");
        same!("signal", ended.death.signal, Some(15));
    }
    Ok(())
}

fn an_attempt_on_one_of_several_ranges_of_a_dead_taker_is_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    // Merged, so that no entry of the table is the lock that is met.
    scene.play(
        "start owner
         owner: open a lock
         owner: ofd a wr 0 9
         owner: ofd a wr 10 19
         owner: fork heir
         owner: exit 3",
    )?;
    witness.moments(scene)?;
    scene
        .play("start other\nother: open a lock\nother: later ofd a wr 5 5\nawait other blocked")?;
    let told = witness.moments(scene)?;
    let [Input::Attempt(attempt)] = &told[..] else { anyhow::bail!("there were {told:?}") };
    let death = attempt.exiting.context("nobody's death")?;
    same!("whose", death.process.pid, scene.pid("owner")?);
    same!("code", death.code, Some(3));
    same!("id of what it met", witness.ids_of(scene, "lock")?, [attempt.met.id]);
    Ok(())
}

fn a_close_of_several_ranges_wakes_nobody(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: open b b
         owner: posix a wr 0 9
         owner: posix a wr 20 29
         owner: close a
         owner: ofd b wr 0 9
         owner: ofd b wr 20 29
         owner: close b",
    )?;
    let told = witness.moments(scene)?;
    ensure!(told.is_empty(), "there were {told:?}");
    Ok(())
}

fn a_clean_exit_pays_no_attention(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         owner: exit 0
         start next
         next: open a a
         next: flock a ex",
    )?;
    let told = witness.moments(scene)?;
    let [Input::Died(death), Input::Ended(ended)] = &told[..] else {
        anyhow::bail!("there were {told:?}");
    };
    ensure!(death.is_clean() && ended.death.is_clean(), "the death was not clean: {told:?}");
    Ok(())
}

fn an_attempt_on_an_attended_file_is_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play("start owner\nowner: open a a\nowner: flock a ex")?;
    witness.attend(scene, &["a"])?;
    scene.play("start other\nother: open a a\nother: later flock a sh\nawait other blocked")?;
    let told = witness.moments(scene)?;
    let [Input::Attempt(attempt)] = &told[..] else { anyhow::bail!("there were {told:?}") };
    same!("outcome", attempt.outcome, Outcome::Blocked);
    same!("who tried", attempt.by.id.pid, scene.pid("other")?);
    same!("exiting", attempt.exiting, None);
    let met = witness.id_of(scene, "a")?;
    same!("id of what it met", attempt.met.id, met);
    scene.play("owner: flock a un")?;
    scene.direct("other: progress")?;
    let told = witness.moments(scene)?;
    ensure!(
        matches!(
            &told[..],
            [Input::Released(_), Input::Acquired(_)] | [Input::Acquired(_), Input::Released(_)]
        ),
        "there were {told:?}"
    );
    witness.attend(scene, &[])?;
    scene.play("other: flock a un")?;
    same!("told without attention", witness.moments(scene)?.len(), 0);
    Ok(())
}

fn an_attempt_that_meets_a_dead_takers_lock_is_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(crate::stories::LEAKED)?;
    witness.moments(scene)?;
    scene.play("start other\nother: open a lock\nother: later flock a ex\nawait other blocked")?;
    let told = witness.moments(scene)?;
    let [Input::Attempt(attempt)] = &told[..] else { anyhow::bail!("there were {told:?}") };
    let death = attempt.exiting.context("nobody's death")?;
    same!("whose", death.process.pid, scene.pid("owner")?);
    Ok(())
}

fn a_recorded_pid_that_is_given_away_is_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play(crate::stories::LEAKED)?;
    witness.moments(scene)?;
    let pid = scene.pid("owner")?;
    scene.play(&format!("start other\nother: fork again as {pid}"))?;
    let told = witness.moments(scene)?;
    let [Input::PidReused(reused)] = &told[..] else { anyhow::bail!("there were {told:?}") };
    same!("pid", reused.process.pid, pid);
    Ok(())
}

fn a_full_ring_is_counted_and_the_tables_stay_true(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::with(scene, Sizes { moments: 4096, ..Sizes::default() })?;
    scene.play("start owner\nowner: open a a\nowner: flock a sh")?;
    witness.attend(scene, &["a"])?;
    let mut story = String::from("start other\nother: open a a\n");
    for _ in 0..40 {
        story.push_str("other: flock a sh\nother: flock a un\n");
    }
    story.push_str("other: flock a sh");
    scene.play(&story)?;
    let lost = witness.history.tables.totals()?.lost_records;
    ensure!(lost > 0, "80 records went into 4096 bytes");
    let told = witness.moments(scene)?.len() as u64;
    same!("told and lost", told + lost, 81);
    let locks = witness.locks(scene, &["a"])?;
    same!("locks", locks.len(), 2);
    ensure!(locks.iter().all(|lock| lock.taken.is_some()), "a taking is not known");
    Ok(())
}

fn a_flood_of_records_hides_no_death(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::with(scene, Sizes { moments: 8192, ..Sizes::default() })?;
    scene.play(
        "start owner
         owner: open a a
         owner: flock a sh
         start victim
         victim: open b b
         victim: flock b ex",
    )?;
    witness.attend(scene, &["a"])?;
    scene.play(&format!(
        "start other\nother: open a a\n{}",
        "other: flock a sh\nother: flock a un\n".repeat(40)
    ))?;
    let lost = witness.history.tables.totals()?.lost_records;
    ensure!(lost > 0, "80 records went into 8192 bytes");
    scene.play("victim: die KILL")?;
    let told = witness.moments(scene)?;
    let deaths = told.iter().filter(|input| matches!(input, Input::Died(_))).count();
    let ends = told.iter().filter(|input| matches!(input, Input::Ended(_))).count();
    same!("deaths and ends", (deaths, ends), (1, 1));
    Ok(())
}

fn one_refusal_of_many_is_told(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    scene.play("start owner\nowner: open a a\nowner: flock a ex")?;
    witness.attend(scene, &["a"])?;
    let before = witness.history.tables.totals()?.refusals[0];
    scene.play("start other\nother: open a a\nother: insist flock a ex")?;
    std::thread::sleep(std::time::Duration::from_millis(50));
    scene.play("owner: flock a un")?;
    let refused = witness.history.tables.totals()?.refusals[0] - before;
    let told = witness.moments(scene)?;
    let attempts = told.iter().filter(|input| matches!(input, Input::Attempt(_))).count() as u64;
    ensure!(attempts >= 1 && attempts * 10 < refused.max(20), "{attempts} of {refused} are told");
    Ok(())
}
