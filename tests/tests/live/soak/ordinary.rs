//! Locks that are taken and end in every ordinary way, crashes included: not one false orphan, not
//! one false race.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test, note};
use lockwatch_tests::once;
use serde_json::Value;

use super::{LONG, NEEDS, Own, Workers, begin, rounds, tell};

pub(crate) const TESTS: &[Test] =
    &[once!(what_is_ordinary_is_told_of_as_nothing).needs(NEEDS).within(LONG)];

/// Sequences of the short form.
const USUAL: u32 = 3_000;
const WORKERS: u32 = 3;

/// Kinds that would be false here. A pid may be given to a new process at any time.
pub(super) const FALSE: &[&str] = &[
    "orphaned",
    "recovered",
    "crash_handoff",
    "exit_race",
    "lock_replaced",
    "deadlock",
    "long_wait",
    "refused",
    "reclaim_race",
];

/// What the daemon told of the crowd's files that is not so.
pub(super) fn falsehoods<'a>(own: &Own, events: &'a [Value]) -> Vec<&'a Value> {
    let is_false = |event: &&Value| {
        let kind = event["kind"].as_str().unwrap_or_default();
        // A file that was gone before anybody could see its path is on the crowd's device at least.
        let unseen = event["lock"]["file"]["path"].is_null()
            && event["lock"]["file"]["dev"] == own.dev.as_str()
            && event["lock"]["acquirer"]["comm"] == "rig";
        FALSE.contains(&kind) && (own.is_below(event) || unseen)
    };
    events.iter().filter(is_false).collect()
}

fn what_is_ordinary_is_told_of_as_nothing(scene: &mut Scene) -> Result<()> {
    let (_house, mut daemon) = begin(scene, "gc_interval = \"200ms\"")?;
    let own = Own::of(scene)?;
    let each = rounds(USUAL)?.div_ceil(WORKERS);
    scene.play("start crowd")?;
    let workers = Workers::start(scene, "ordinary", WORKERS, each, 1)?;
    let (mut told, mut lost) = (0, 0);
    let mut at_work = true;
    while at_work {
        at_work = workers.are_at_work();
        std::thread::sleep(std::time::Duration::from_millis(if at_work { 100 } else { 1000 }));
        let events = daemon.events()?;
        told += events.len();
        lost += events.iter().filter_map(|event| event["records"].as_u64()).sum::<u64>();
        let falsehoods = falsehoods(&own, &events);
        for event in falsehoods.iter().take(5) {
            note(&format!("false: {event}"));
        }
        ensure!(falsehoods.is_empty(), "{} false events", falsehoods.len());
    }
    let done = workers.done(scene)?;
    ensure!(done >= u64::from(each * WORKERS), "{done} sequences only");
    scene.play("crowd: dismiss")?;
    daemon.stop()?;
    tell(&format!("{done} sequences, no false event ({told} events of others, {lost} lost)"))
}
