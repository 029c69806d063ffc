//! `lockwatch replay`: a recorded trace tells its events again, anywhere, for anybody.

use std::fs;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

pub(crate) const TESTS: &[Test] = &[
    once!(a_trace_tells_its_events_as_json_byte_for_byte),
    once!(a_trace_tells_its_events_in_sentences),
    once!(a_trace_comes_from_stdin_too),
    once!(what_is_no_trace_ends_with_2_in_one_line),
    once!(a_line_that_is_not_understood_ends_with_2_and_is_named),
    once!(half_a_last_line_is_left_out_and_said),
    once!(a_trace_that_is_not_there_ends_with_2),
];

const TRACE: &str = include_str!("../../fixtures/traces/orphan.trace");
const EVENTS: &str = include_str!("../../fixtures/traces/orphan.events");

fn a_trace_tells_its_events_as_json_byte_for_byte(scene: &mut Scene) -> Result<()> {
    fs::write(scene.path("run.trace"), TRACE)?;
    let run = scene.run(&["replay", "--json", "run.trace"])?;
    run.exits(0)?;
    same!("events", run.text()?, EVENTS);
    same!("complaints", run.complaints()?.len(), 0);
    Ok(())
}

fn a_trace_tells_its_events_in_sentences(scene: &mut Scene) -> Result<()> {
    fs::write(scene.path("run.trace"), TRACE)?;
    let run = scene.run(&["replay", "run.trace"])?;
    run.exits(0)?;
    let lines = run.lines()?;
    same!("sentences", lines.len(), EVENTS.lines().count());
    ensure!(lines[1].contains(" orphaned "), "{:?}", lines[1]);
    ensure!(lines[1].contains("locksmith (pid 8123, ended by signal 9)"), "{:?}", lines[1]);
    Ok(())
}

fn a_trace_comes_from_stdin_too(scene: &mut Scene) -> Result<()> {
    fs::write(scene.path("run.trace"), TRACE)?;
    let lockwatch = std::env::var("LOCKWATCH_BIN").context("LOCKWATCH_BIN")?;
    let script = format!("'{lockwatch}' replay --json - < run.trace");
    let run = scene.program("sh", &["-c", &script])?.run()?;
    run.exits(0)?;
    same!("events", run.text()?, EVENTS);
    Ok(())
}

fn what_is_no_trace_ends_with_2_in_one_line(scene: &mut Scene) -> Result<()> {
    for (text, says) in [
        ("", "it is empty"),
        ("PID COMMAND\n", "line 1: not the beginning of a lockwatch trace"),
        ("{\"lockwatch_trace\": 99}\n", "a trace of version 99"),
    ] {
        fs::write(scene.path("run.trace"), text)?;
        let run = scene.run(&["replay", "run.trace"])?;
        run.exits(2)?;
        let line = run.fails_in_one_line()?;
        ensure!(line.contains("replay: run.trace: ") && line.contains(says), "{line:?}");
    }
    Ok(())
}

fn a_line_that_is_not_understood_ends_with_2_and_is_named(scene: &mut Scene) -> Result<()> {
    let at = TRACE.lines().count() + 1;
    fs::write(scene.path("run.trace"), format!("{TRACE}{{\"at\": 7}}\n"))?;
    let run = scene.run(&["replay", "--json", "run.trace"])?;
    run.exits(2)?;
    same!("events before it", run.text()?, EVENTS);
    let complaints = run.complaints()?;
    ensure!(
        complaints.len() == 1 && complaints[0].contains(&format!("line {at}: ")),
        "{complaints:?}"
    );
    Ok(())
}

fn half_a_last_line_is_left_out_and_said(scene: &mut Scene) -> Result<()> {
    fs::write(scene.path("run.trace"), &TRACE[..TRACE.len() - 10])?;
    let run = scene.run(&["replay", "--json", "run.trace"])?;
    run.exits(0)?;
    let complaints = run.complaints()?;
    ensure!(complaints.len() == 1 && complaints[0].contains("left out"), "{complaints:?}");
    Ok(())
}

fn a_trace_that_is_not_there_ends_with_2(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["replay", "no.trace"])?;
    run.exits(2)?;
    ensure!(run.fails_in_one_line()?.contains("no.trace"), "the file is not named");
    Ok(())
}
