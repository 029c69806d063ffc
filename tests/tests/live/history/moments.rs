//! The records of the moment: deaths, locks that end with them, attempts that meet a lock.

use anyhow::{Context, Result, ensure};
use lockwatch::engine::input::{Input, Outcome};
use lockwatch::source::history::Sizes;
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

use super::NEEDS;
use super::witness::Witness;

pub(crate) const TESTS: &[Test] = &[
    once!(an_ordinary_lock_wakes_nobody).needs(NEEDS),
    once!(a_crash_that_holds_is_told_with_what_it_held).needs(NEEDS),
    once!(whoever_takes_the_lock_after_a_crash_is_told).needs(NEEDS),
    once!(a_crash_of_the_owner_of_a_range_is_told_for_posix_and_ofd).needs(NEEDS),
    once!(a_clean_exit_pays_no_attention).needs(NEEDS),
    once!(an_attempt_on_an_attended_file_is_told).needs(NEEDS),
    once!(an_attempt_that_meets_a_dead_takers_lock_is_told).needs(NEEDS),
    once!(a_recorded_pid_that_is_given_away_is_told).needs(NEEDS),
    once!(a_full_ring_is_counted_and_the_tables_stay_true).needs(NEEDS),
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
         owner: exit 3",
    )?;
    scene.play("next: flock a un")?;
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
        same!("range", (ended.lock.range.start, ended.lock.range.end), (7, Some(19)));
    }
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
