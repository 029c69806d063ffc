//! When readings are asked for, and what the watch tells of itself.

use super::stage::{Stage, ms};
use super::stories;
use crate::engine::event::Kind;
use crate::engine::input::{Input, Settings, Started};
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
