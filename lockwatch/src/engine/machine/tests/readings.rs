//! When readings are asked for, and what the watch tells of itself.

use super::stage::{MS, Stage, moment, ms};
use super::stories;
use crate::engine::event::Kind;
use crate::engine::input::{Input, Moment, Output, Reading, Settings, Started};
use crate::engine::machine::Engine;
use crate::engine::memory::Memory;

#[test]
fn the_watch_begins_with_an_event_and_a_reading() {
    let mut stage = Stage::new();
    assert_eq!(stage.kinds(), ["started"]);
    assert_eq!(stage.asked, [ms(10_000)]);
    stage.until(14_000);
    assert_eq!(stage.asked, [ms(10_000), ms(12_000), ms(14_000)]);
    stage.input(Input::GcInterval(500_000_000));
    stage.until(15_000);
    assert_eq!(stage.asked[3..], [ms(14_500), ms(15_000)]);
    stage.until(15_100);
    stage.input(Input::Reconcile);
    assert_eq!(stage.asked.last(), Some(&ms(15_100)));
}

#[test]
fn the_count_of_events_goes_on_where_the_daemon_before_ended() {
    let mut stage = Stage::new();
    stage.engine = Engine::new(Settings::default());
    stage.input(Input::Started(Started {
        last_seq: Some(41),
        told: Vec::new(),
        continued: true,
        version: "0.1.0".into(),
        kernel: "6.18.0".into(),
    }));
    assert_eq!(stage.last("started").seq, 42);
    assert!(matches!(stage.last_kind("started"), Kind::Started { continued: true, .. }));
}

#[test]
fn what_the_daemon_before_told_and_still_lasts_is_not_told_again_and_its_end_is() {
    for (story, kind) in [
        ("orphan", "orphaned"),
        ("pid_recycled", "pid_recycled"),
        ("lock_replaced", "lock_replaced"),
        ("deadlock", "deadlock"),
        ("long_wait", "long_wait"),
    ] {
        let (_, mut before) = stories::all().into_iter().find(|(name, _)| *name == story).unwrap();
        // The story up to the event.
        let told = before.last(kind).clone();
        let inputs: Vec<_> =
            before.inputs.drain(..).take_while(|(at, _)| at.boot <= told.at.boot).collect();
        let (_, last) =
            inputs.iter().rev().find(|(_, input)| matches!(input, Input::Reading(_))).unwrap();
        let Input::Reading(reading) = last else { unreachable!() };
        // The next daemon, whose every reading shows what was there at the event.
        let next = |told_before: Vec<Memory>| {
            let mut engine = Engine::new(Settings::default());
            let mut kinds = Vec::new();
            let mut step = |engine: &mut Engine, later: u64, input: Input| {
                let outputs = engine.step(moment(told.at.boot.after(later * MS)), input);
                kinds.extend(outputs.into_iter().filter_map(|output| match output {
                    Output::Event(event) => Some(event.kind.name()),
                    _ => None,
                }));
            };
            let started = Started {
                last_seq: Some(41),
                told: told_before,
                continued: true,
                version: "0.1.0".into(),
                kernel: "6.18.0".into(),
            };
            step(&mut engine, 1, Input::Started(started));
            for later in [2, 5_000, 60_000] {
                let begun = told.at.boot.after(later * MS);
                let shows = Reading { begun, ..(**reading).clone() };
                step(&mut engine, later, Input::Reading(Box::new(shows)));
            }
            let mut snapshot = reading.snapshot.clone();
            (snapshot.locks, snapshot.waiters) = (Vec::new().into(), Vec::new());
            let begun = told.at.boot.after(70_000 * MS);
            let gone = Reading { begun, snapshot, ids: Vec::new() };
            step(&mut engine, 70_000, Input::Reading(Box::new(gone)));
            kinds
        };
        assert!(next(Vec::new()).contains(&kind), "{story}: without it is told again");
        let kinds = next(vec![Memory::of(&told).unwrap()]);
        assert!(!kinds.contains(&kind), "{story}: told again");
        if kind == "orphaned" {
            assert_eq!(kinds, ["started", "recovered", "all_clear"]);
        }
    }
}

#[test]
fn lost_records_cost_a_reading_at_once_and_are_told_after_it() {
    let mut stage = stories::lost();
    assert_eq!(stage.kinds(), ["started", "lost"]);
    assert_eq!(stage.last_kind("lost"), &Kind::Lost { records: 17 });
    assert_eq!(stage.asked, [ms(10_000), ms(11_000)]);
    assert_eq!(stage.last("lost").at.boot, ms(11_000));
}

#[test]
fn a_moment_is_the_same_in_every_event_though_the_clocks_are_not_read_at_once() {
    let mut stage = stories::orphan();
    let mut engine = Engine::new(Settings::default());
    let mut events = Vec::new();
    for (number, (at, input)) in stage.inputs.drain(..).enumerate() {
        let unix = at.unix + number as u64 % 7 * 1_000;
        for output in engine.step(Moment { unix, ..at }, input) {
            if let Output::Event(event) = output {
                events.push(event.at);
            }
        }
    }
    assert!(
        events
            .windows(2)
            .all(|pair| { pair[1].unix - pair[0].unix == pair[1].boot.0 - pair[0].boot.0 })
    );
    // A clock that was set is believed.
    let at = Moment { boot: ms(60_000), unix: 1 };
    let mut reading = engine.step(at, Input::Lost(1));
    reading.retain(|output| matches!(output, Output::Read));
    assert_eq!(reading.len(), 1);
    let (snapshot, ids) = (stage.world.snapshot(), stage.world.ids());
    let reading = Reading { begun: at.boot, snapshot, ids };
    let told = engine.step(at, Input::Reading(Box::new(reading)));
    let lost = told.iter().find_map(|output| match output {
        Output::Event(event) => Some(event.at),
        _ => None,
    });
    assert_eq!(lost, Some(at));
}
