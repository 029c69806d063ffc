//! What the engine remembers is bounded, whatever comes.

use super::stage::MS;
use super::stories;
use crate::engine::identity::{BootTime, ProcessId, StartTime};
use crate::engine::input::{Acquired, Ended, Input, Outcome, PidReused};

/// Many times what any table has room for.
const FLOOD: u64 = 30_000;

#[test]
fn a_flood_of_records_fills_no_memory_and_what_was_forgotten_is_told_as_lost() {
    let mut stage = stories::crash_handoff();
    stage.kinds();
    let death = stage.world.facts.deaths[0];
    let attempt = stage.attempt(8123, 2, Outcome::Blocked, Some(death));
    let (by, lock) = (stage.world.who(8200), stage.world.name(2));
    let now = stage.now;
    let mut most = 0;
    for number in 0..FLOOD {
        let at = BootTime(now.0 + number % 1_000);
        let mut death = death;
        death.process = ProcessId { pid: number as i32, start: StartTime(number) };
        death.at = at;
        let mut lock = lock.clone();
        lock.id.hash = number;
        let mut attempt = attempt.clone();
        attempt.met = lock.clone();
        (attempt.at, attempt.exiting) = (at, Some(death));
        let mut by = by.clone();
        by.id = death.process;
        let ended_by = by.clone();
        let ended = Ended {
            lock: lock.clone(),
            by: by.clone(),
            taken_at: now,
            at,
            ended_by,
            death,
            written: None,
        };
        lock.file.ino = number;
        lock.id.ino = number;
        for input in [
            Input::Died(death),
            Input::Attempt(attempt),
            Input::PidReused(PidReused { process: death.process, at }),
            Input::Ended(ended),
            Input::Acquired(Acquired { lock, by, at }),
        ] {
            stage.now = BootTime(now.0 + number * 10);
            stage.input(input);
        }
        if number % 1_000 == 999 {
            most = most.max(stage.engine.remembered());
        }
    }
    assert!(most < 200_000, "{most} entries");
    assert!(most > 10_000, "it was no flood: {most} entries");
    stage.until(stage.now.0 / MS + 10_000);
    assert!(stage.kinds().contains(&"lost"));
    assert!(stage.engine.remembered() < 10, "{} entries stay", stage.engine.remembered());
}

#[test]
fn what_passed_is_forgotten() {
    for (name, mut stage) in stories::all() {
        stage.world.facts = Default::default();
        stage.input(Input::Watch(Vec::new()));
        // Past every threshold that was waited for.
        stage.until(stage.now.0 / MS + 60_000);
        assert_eq!(stage.engine.remembered(), 0, "{name}");
    }
}
