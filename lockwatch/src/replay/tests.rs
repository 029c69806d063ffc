//! Golden traces: what was recorded once is told the same for ever.
//!
//! `tests/fixtures/traces` has for each `NAME.trace` the `NAME.events` that it gave. Those of the
//! engine's stories are renewed by `LOCKWATCH_RENEW=1 cargo test -p lockwatch golden`; others are
//! recordings of real runs. A trace is not renewed because the format has grown: what was recorded
//! must still be read.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::engine::input::Settings;
use crate::engine::machine::tests::stories;
use crate::source::trace::Writer;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/traces")
}

fn told(trace: &[u8], json: bool) -> anyhow::Result<String> {
    let mut out = Vec::new();
    tell(trace, &mut out, json)?;
    Ok(String::from_utf8(out)?)
}

/// The trace of a story, as a daemon records it.
fn recorded(name: &str) -> Vec<u8> {
    let mut stories = stories::all().into_iter();
    let (_, stage) = stories.find(|(story, _)| *story == name).expect("a story");
    let settings = Settings { verbose: name == "verbose", ..Settings::default() };
    let mut trace = Vec::new();
    let mut writer = Writer::new(&mut trace, b"golden traces...", "0.1.0", &settings).unwrap();
    for (at, input) in &stage.inputs {
        writer.write(*at, input).unwrap();
    }
    trace
}

#[test]
fn there_is_a_golden_trace_of_every_story() {
    for (name, stage) in stories::all() {
        let [trace, told] =
            ["trace", "events"].map(|kind| folder().join(name).with_extension(kind));
        let live = stage.events.iter().fold(Vec::new(), |mut out, event| {
            events::write_json(&mut out, event).unwrap();
            out
        });
        if std::env::var_os("LOCKWATCH_RENEW").is_some() {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&trace, recorded(name)).unwrap();
            fs::write(&told, &live).unwrap();
        }
        let golden = fs::read(&told).unwrap_or_default();
        assert!(golden == live, "{}: see how to renew it", told.display());
    }
}

#[test]
fn every_golden_trace_gives_its_events_byte_for_byte() {
    let mut traces = 0;
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "trace") {
            let events = told(&fs::read(&path).unwrap(), true).unwrap();
            let golden = fs::read_to_string(path.with_extension("events")).unwrap();
            assert_eq!(events, golden, "{}", path.display());
            traces += 1;
        }
    }
    assert!(traces >= stories::all().len());
}

#[test]
fn without_json_each_event_is_a_sentence() {
    let text = told(&recorded("orphan"), false).unwrap();
    let kinds: Vec<&str> = text.lines().filter_map(|line| line.split([' ', ':']).nth(4)).collect();
    assert_eq!(kinds, ["started", "orphaned", "recovered", "all_clear"]);
}

#[test]
fn what_comes_before_a_bad_line_is_told() {
    let mut trace = recorded("orphan");
    trace.extend(b"nonsense\n");
    let mut out = Vec::new();
    let error = tell(&trace[..], &mut out, true).unwrap_err();
    let lines = trace.iter().filter(|&&byte| byte == b'\n').count();
    assert!(error.to_string().starts_with(&format!("line {lines}: ")), "{error}");
    assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 4);
}

#[test]
fn half_a_last_line_is_left_out() {
    let whole = recorded("orphan");
    let mut cut = whole.clone();
    cut.extend(b"{\"at\":{\"bo");
    assert_eq!(told(&cut, true).unwrap(), told(&whole, true).unwrap());
}
