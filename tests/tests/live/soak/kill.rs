//! The daemon killed and started anew, again and again, while locks come and go.

use anyhow::{Context, Result, ensure};
use lockwatch::source::history::History;
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, note};
use lockwatch_tests::{once, same};
use serde_json::Value;

use super::mixed::{Times, compare};
use super::ordinary::falsehoods;
use super::{LONG, NEEDS, Own, Workers, begin, crowd, rounds, tell};

pub(crate) const TESTS: &[Test] =
    &[once!(a_daemon_that_is_killed_loses_nobody_and_invents_nothing).needs(NEEDS).within(LONG)];

const USUAL: u32 = 4;
const ENDLESS: u32 = u32::MAX;
/// Orphans, and pairs of a deadlock, that are there all the time.
const STANDING: u32 = 5;

fn a_daemon_that_is_killed_loses_nobody_and_invents_nothing(scene: &mut Scene) -> Result<()> {
    let more = "gc_interval = \"200ms\"\ngrace = \"50ms\"\nlong_wait = \"300ms\"";
    let (house, mut daemon) = begin(scene, more)?;
    let own = Own::of(scene)?;
    scene.play("start crowd\nstart worker")?;
    let orphans = crowd(scene, "orphans", STANDING, 90)?;
    let replaced = crowd(scene, "replaced", STANDING, 91)?;
    let deadlocks = crowd(scene, "deadlocks", STANDING, 92)?;
    let inodes = |of: &[super::Provoked]| of.iter().map(|words| words[0]).collect();
    let (on_orphans, on_replaced) = (inodes(&orphans), inodes(&replaced));
    let members: std::collections::BTreeSet<u64> =
        deadlocks.iter().flat_map(|words| words[1..].to_vec()).collect();
    // What stands is told once, by whichever daemon.
    let is_standing = |event: &Value| match event["kind"].as_str() {
        Some("orphaned") => own.is_one_of(&on_orphans, event),
        Some("lock_replaced") => own.is_one_of(&on_replaced, event),
        Some("long_wait") => event["by"]["pid"].as_u64().is_some_and(|pid| members.contains(&pid)),
        Some("deadlock") => {
            event["members"][0]["pid"].as_u64().is_some_and(|pid| members.contains(&pid))
        }
        _ => false,
    };
    let expected = 5 * STANDING as usize;
    let mut events = Vec::new();
    lockwatch_tests::harness::patience::until("what stands to be told", || {
        events.extend(daemon.events()?);
        let told = events.iter().filter(|event| is_standing(event)).count();
        Ok((told >= expected).then_some(()))
    })?;

    let mixed = Workers::start_by(scene, "worker", "mixed", 2, ENDLESS, 1)?;
    let ordinary = Workers::start_by(scene, "worker", "ordinary", 2, ENDLESS, 11)?;
    let all = rounds(USUAL)?;
    let mut compared = 0;
    for round in 0..all {
        std::thread::sleep(std::time::Duration::from_millis(u64::from(round * 37 % 300)));
        daemon.kill()?;
        std::thread::sleep(std::time::Duration::from_millis(u64::from(round * 17 % 100)));
        daemon = house.start(scene, &[])?;
        mixed.stop()?;
        ordinary.stop()?;
        let found = compare(scene, &house, &own, Times::OfAll)
            .with_context(|| format!("round {round}, by which was lost: {}", losses(&house)));
        mixed.go_on();
        ordinary.go_on();
        compared += found?;
    }
    std::thread::sleep(std::time::Duration::from_millis(800));
    ensure!(mixed.are_at_work() && ordinary.are_at_work(), "a worker has ended");
    daemon.stop()?;
    scene.play("worker: dismiss\ncrowd: dismiss")?;

    let events = every_event(&house.path("events.jsonl"))?;
    let (starts, gaps) = numbered(&events)?;
    same!("starts", starts, all as usize + 1);
    let standing = events.iter().filter(|event| is_standing(event)).count();
    same!("events of what stands", standing, expected);
    // By inode: of a file without a lock no reading shows the path.
    let mut shared = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(scene.path("crowd")).context("the folder of crowds")? {
        let entry = entry.context("an entry")?;
        if entry.file_name().as_encoded_bytes().starts_with(b"mixed-") {
            shared.insert(std::os::unix::fs::DirEntryExt::ino(&entry));
        }
    }
    let mixed_files = |event: &Value| own.is_one_of(&shared, event);
    let falsehoods: Vec<_> = falsehoods(&own, &events)
        .into_iter()
        .filter(|event| !is_standing(event))
        // A worker that is stopped while another waits for it makes a long wait that is one.
        .filter(|event| event["kind"] != "long_wait")
        // Crashes of the mix are ones.
        .filter(|event| !(mixed_files(event) && event["kind"] != "orphaned"))
        .collect();
    for event in falsehoods.iter().take(5) {
        note(&format!("false: {event}"));
    }
    ensure!(falsehoods.is_empty(), "{} false events", falsehoods.len());
    tell(&format!(
        "{all} kills, {compared} locks compared, no acquirer lost, no false event, \
         {} events, {gaps} announced breaks in their numbers",
        events.len()
    ))
}

/// What the tables had no room for.
fn losses(house: &House) -> String {
    match History::read_only(&house.path("bpf/lockwatch")) {
        Ok(Some(tables)) => tables.totals().map_or_else(
            |error| error.to_string(),
            |totals| format!("{} records, {} elements", totals.lost_records, totals.lost_elements),
        ),
        Ok(None) => "no history".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn every_event(log: &std::path::Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(log).context("the log")?;
    // Half a line is all that a killed daemon may leave, and the next one goes on after it.
    let event = |line: &str| serde_json::from_str(line).with_context(|| format!("event {line}"));
    text.lines().map(event).collect()
}

/// The numbers are one more each time; where a daemon ended between numbering and writing, the
/// next one says at its start up to which number they were given. Answers starts and breaks.
fn numbered(events: &[Value]) -> Result<(usize, usize)> {
    let (mut last, mut starts, mut gaps) = (0, 0, 0);
    for event in events {
        let seq = event["seq"].as_u64().context("no number")?;
        if event["kind"] == "started" {
            starts += 1;
            if seq != last + 1 {
                same!("the break that is announced", event["last_seq"].as_u64(), Some(seq - 1));
                gaps += 1;
            }
        } else {
            same!("number", seq, last + 1);
        }
        ensure!(seq > last, "the number {seq} comes after {last}");
        last = seq;
    }
    Ok((starts, gaps))
}
