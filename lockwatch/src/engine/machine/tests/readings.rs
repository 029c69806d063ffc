//! When readings are asked for, and what the watch tells of itself.

use super::stage::{Stage, ms};
use super::stories;
use crate::engine::event::Kind;
use crate::engine::input::{Input, Moment, Output, Reading, Settings, Started};
use crate::engine::machine::Engine;

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
        continued: true,
        version: "0.1.0".into(),
        kernel: "6.18.0".into(),
    }));
    assert_eq!(stage.last("started").seq, 42);
    assert!(matches!(stage.last_kind("started"), Kind::Started { continued: true, .. }));
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
