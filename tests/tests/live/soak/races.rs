//! Each race, provoked on purpose again and again, is told each time, and once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::Daemon;
use lockwatch_tests::harness::{Scene, Test, note, patience};
use lockwatch_tests::once;
use serde_json::Value;

use super::{
    LONG, NEEDS, Own, Provoked, begin_recorded, crowd, ensure_nothing_was_lost, rounds, tell,
};

const AND_A_CHOSEN_PID: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts", "choose-pid"];

pub(crate) const TESTS: &[Test] = &[
    once!(every_crash_handoff_is_told).needs(NEEDS).within(LONG),
    once!(every_exit_race_is_told).needs(NEEDS).within(LONG),
    once!(every_deadlock_is_told).needs(NEEDS).within(LONG),
    once!(every_pid_that_is_given_again_is_told).needs(AND_A_CHOSEN_PID).within(LONG),
    once!(every_lock_file_that_was_made_anew_is_told).needs(NEEDS).within(LONG),
    once!(every_orphan_and_its_end_are_told).needs(NEEDS).within(LONG),
];

/// Races of a short form.
const USUAL: u32 = 60;
/// Races that are provoked before it is looked which were told.
const BATCH: u32 = 60;

const QUICK: &str = "gc_interval = \"200ms\"\ngrace = \"50ms\"";

/// What a batch is judged by.
struct Judged<'a> {
    kind: &'a str,
    /// Kinds of which there may be no event about a file of the batch.
    never: &'a [&'a str],
    /// How an event is told of in the crowd's words; `None` where it is about something else.
    words: &'a dyn Fn(&Value) -> Option<Provoked>,
}

/// Provokes one kind of race in batches, and compares what was done with what was told.
fn judge(scene: &mut Scene, part: &str, judged: &Judged<'_>) -> Result<()> {
    let (_house, mut daemon) = begin_recorded(scene, QUICK)?;
    let all = rounds(USUAL)?;
    scene.play("start crowd")?;
    let mut done = 0;
    while done < all {
        let provoked = crowd(scene, part, BATCH.min(all - done), done)?;
        let events = told(scene, &mut daemon, &provoked, judged)?;
        no_other(scene, &provoked, &events, judged)?;
        done += provoked.len() as u32;
        scene.play("crowd: dismiss")?;
    }
    daemon.stop()?;
    tell(&format!("{done} provoked and told: {}", judged.kind))
}

/// Waits until each was told, and a little longer for what is told twice.
fn told(
    scene: &Scene,
    daemon: &mut Daemon,
    provoked: &[Provoked],
    judged: &Judged<'_>,
) -> Result<Vec<Value>> {
    let own = Own::of(scene)?;
    let inodes: BTreeSet<u64> = provoked.iter().map(|words| words[0]).collect();
    let mut missing: BTreeMap<&Provoked, u32> = provoked.iter().map(|words| (words, 0)).collect();
    let mut events = Vec::new();
    let mut look = |events: &mut Vec<Value>| -> Result<usize> {
        for event in daemon.events()? {
            if event["kind"] == judged.kind
                && own.is_one_of(&inodes, &event)
                && let Some(words) = (judged.words)(&event)
            {
                let times = missing.get_mut(&words);
                let times = times.with_context(|| format!("told and not provoked: {event}"))?;
                *times += 1;
                ensure!(*times == 1, "told again: {event}");
            }
            events.push(event);
        }
        Ok(missing.values().filter(|times| **times == 0).count())
    };
    let outcome =
        patience::until("that every race is told", || Ok((look(&mut events)? == 0).then_some(())));
    ensure_nothing_was_lost(&events)?;
    if let Err(error) = outcome {
        let silent: Vec<_> = missing.iter().filter(|(_, times)| **times == 0).collect();
        let about: Vec<_> = events
            .iter()
            .filter(|event| {
                silent.iter().any(|(words, _)| event["lock"]["file"]["ino"] == words[0])
            })
            .collect();
        let first = &silent[..silent.len().min(5)];
        for (words, _) in first {
            for line in recorded_of(scene, words[0])? {
                note(&line);
            }
        }
        return Err(error.context(format!(
            "{} of {} were not told, first {first:?}; of these was told {about:?}",
            silent.len(),
            provoked.len()
        )));
    }
    std::thread::sleep(patience::stretched(std::time::Duration::from_millis(20)));
    let mut missing_again = 0;
    missing_again += look(&mut events)?;
    ensure!(missing_again == 0, "one that was told is told no more");
    Ok(events)
}

/// What the daemon recorded of a file, without its readings.
fn recorded_of(scene: &Scene, inode: u64) -> Result<Vec<String>> {
    let text = fs::read(scene.path("recorded")).context("what was recorded")?;
    let text = String::from_utf8_lossy(&text);
    let of_file = format!("\"ino\":{inode},");
    let of_end = format!("\"ino\":{inode}}}");
    let lines = text.lines().filter(|line| line.contains(&of_file) || line.contains(&of_end));
    Ok(lines.filter(|line| line.len() < 4000).map(str::to_owned).collect())
}

fn no_other(
    scene: &Scene,
    provoked: &[Provoked],
    events: &[Value],
    judged: &Judged<'_>,
) -> Result<()> {
    let own = Own::of(scene)?;
    let inodes = provoked.iter().map(|words| words[0]).collect();
    for event in events {
        let kind = event["kind"].as_str().unwrap_or_default();
        ensure!(
            !own.is_one_of(&inodes, event) || !judged.never.contains(&kind),
            "there was an event {event}"
        );
    }
    Ok(())
}

/// The numbers at these places of an event, where all of them are numbers.
fn numbers(event: &Value, places: &[&str]) -> Option<Provoked> {
    places.iter().map(|place| event.pointer(place)?.as_u64()).collect()
}

const INODE: &str = "/lock/file/ino";
const ACQUIRER: &str = "/lock/acquirer/pid";

fn every_crash_handoff_is_told(scene: &mut Scene) -> Result<()> {
    let words = |event: &Value| numbers(event, &[INODE, ACQUIRER, "/to/pid"]);
    let never = &["orphaned", "pid_recycled", "lock_replaced", "deadlock"];
    judge(scene, "handoffs", &Judged { kind: "crash_handoff", never, words: &words })
}

fn every_exit_race_is_told(scene: &mut Scene) -> Result<()> {
    let words = |event: &Value| numbers(event, &[INODE, ACQUIRER]);
    let never = &["orphaned", "crash_handoff", "pid_recycled", "lock_replaced", "deadlock"];
    judge(scene, "exits", &Judged { kind: "exit_race", never, words: &words })
}

fn every_deadlock_is_told(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin_recorded(scene, QUICK)?;
    let all = rounds(USUAL)?;
    scene.play("start crowd")?;
    let mut done = 0;
    while done < all {
        let provoked = crowd(scene, "deadlocks", BATCH.min(all - done), done)?;
        let expected: BTreeSet<BTreeSet<u64>> =
            provoked.iter().map(|words| words[1..].iter().copied().collect()).collect();
        let mut told = BTreeSet::new();
        patience::until("that every deadlock is told", || {
            let events = daemon.events()?;
            ensure_nothing_was_lost(&events)?;
            for event in events.iter().filter(|event| event["kind"] == "deadlock") {
                let members = event["members"].as_array().context("no members")?;
                let pids = members.iter().filter_map(|member| member["pid"].as_u64()).collect();
                // Those of others are none of this test's.
                if expected.contains(&pids) {
                    ensure!(told.insert(pids), "told again: {event}");
                }
            }
            Ok((told.len() == expected.len()).then_some(()))
        })?;
        done += provoked.len() as u32;
        scene.play("crowd: dismiss")?;
    }
    daemon.stop()?;
    tell(&format!("{done} provoked and told: deadlock"))
}

fn every_pid_that_is_given_again_is_told(scene: &mut Scene) -> Result<()> {
    let words = |event: &Value| numbers(event, &[INODE, "/to/pid"]);
    let never = &["orphaned", "crash_handoff", "exit_race", "lock_replaced", "deadlock"];
    judge(scene, "recycled", &Judged { kind: "pid_recycled", never, words: &words })
}

fn every_lock_file_that_was_made_anew_is_told(scene: &mut Scene) -> Result<()> {
    let words = |event: &Value| numbers(event, &[INODE, "/new_lock/file/ino"]);
    let never = &["orphaned", "crash_handoff", "exit_race", "pid_recycled", "deadlock"];
    judge(scene, "replaced", &Judged { kind: "lock_replaced", never, words: &words })
}

fn every_orphan_and_its_end_are_told(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin_recorded(scene, QUICK)?;
    let all = rounds(USUAL)?;
    scene.play("start crowd")?;
    let words = |event: &Value| numbers(event, &[INODE, ACQUIRER, "/holders/0/pid"]);
    let never = &["recovered", "crash_handoff", "exit_race", "lock_replaced", "deadlock"];
    let judged = Judged { kind: "orphaned", never, words: &words };
    let ended = |event: &Value| numbers(event, &[INODE]);
    let never = &["orphaned", "crash_handoff", "exit_race", "lock_replaced", "deadlock"];
    let recovered = Judged { kind: "recovered", never, words: &ended };
    let mut done = 0;
    while done < all {
        let provoked = crowd(scene, "orphans", BATCH.min(all - done), done)?;
        let events = told(scene, &mut daemon, &provoked, &judged)?;
        no_other(scene, &provoked, &events, &judged)?;
        scene.play("crowd: dismiss")?;
        let inodes: Vec<Provoked> = provoked.iter().map(|words| words[..1].to_vec()).collect();
        let events = told(scene, &mut daemon, &inodes, &recovered)?;
        no_other(scene, &provoked, &events, &recovered)?;
        done += provoked.len() as u32;
    }
    daemon.stop()?;
    tell(&format!("{done} provoked and told: orphaned, and recovered"))
}
