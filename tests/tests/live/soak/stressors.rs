//! The daemon's tables against the kernel's own list, beside the stressors of locks that everybody
//! knows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::invocation::Running;
use lockwatch_tests::harness::{Scene, Test, descent, patience};
use lockwatch_tests::once;

use super::mixed::{Times, compare};
use super::ordinary::falsehoods;
use super::{LONG, Own, begin, rounds, state, tell};

const NEEDS: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts", "program:stress-ng"];

pub(crate) const TESTS: &[Test] =
    &[once!(the_tables_are_the_kernels_own_list_beside_the_usual_stressors)
        .needs(NEEDS)
        .within(LONG)];

/// Seconds of the short form.
const USUAL: u32 = 3;

/// All that stress-ng(1) has for locks.
const STRESSORS: [&str; 5] = ["flock", "lockf", "lockofd", "lease", "locka"];

/// From one pause to the next.
const AT_WORK: Duration = Duration::from_millis(150);

fn the_tables_are_the_kernels_own_list_beside_the_usual_stressors(scene: &mut Scene) -> Result<()> {
    let (house, mut daemon) = begin(scene, "gc_interval = \"200ms\"")?;
    let own = Own::of(scene)?;
    let seconds = rounds(USUAL)?.to_string();
    let mut args = vec!["--temp-path", &own.folder, "--timeout", &seconds, "--metrics-brief"];
    let names: Vec<String> = STRESSORS.iter().map(|name| format!("--{name}")).collect();
    args.extend(names.iter().flat_map(|name| [name.as_str(), "1"]));
    let stressors = scene.program("stress-ng", &args)?.start()?;
    let (mut pauses, mut compared) = (0, 0);
    while !stressors.has_ended()? {
        std::thread::sleep(AT_WORK);
        let stopped = stop(&stressors)?;
        // The processes of `flock` share a description.
        let found = compare(scene, &house, &own, Times::OfUnshared);
        let found = found.with_context(|| format!("pause {pauses}"));
        signal(&stopped, libc::SIGCONT);
        compared += found?;
        pauses += 1;
        let events = daemon.events()?;
        let false_ones = falsehoods(&own, &events);
        ensure!(false_ones.is_empty(), "false events: {false_ones:?}");
    }
    let run = stressors.finish()?;
    let done = operations(&run.exits(0)?.complaints()?)?;
    ensure!(compared > 0, "there was no lock at any pause");
    daemon.stop()?;
    tell(&format!("{done} operations, {pauses} pauses, {compared} locks compared, all the same"))
}

/// Stops all of them, wherever they are, and answers who they are.
fn stop(stressors: &Running) -> Result<Vec<i32>> {
    patience::until("that the stressors have stopped", || {
        let mut all = vec![stressors.pid()];
        all.extend(descent::alive_below(stressors.pid())?.into_iter().map(|(pid, _)| pid));
        signal(&all, libc::SIGSTOP);
        // One that is being made while the others are stopped is found the next time.
        let stopped = all.iter().all(|&pid| state(pid).is_none_or(|state| state == 'T'));
        Ok(stopped.then_some(all))
    })
}

fn signal(pids: &[i32], signal: libc::c_int) {
    for &pid in pids {
        // SAFETY: takes numbers only.
        unsafe { libc::kill(pid, signal) };
    }
}

/// How much was done, as stress-ng counts it.
fn operations(words: &[&str]) -> Result<u64> {
    let done = |name: &str| -> Result<u64> {
        let line = words.iter().find_map(|line| {
            let mut columns = line.split_once("] ")?.1.split_whitespace();
            (columns.next() == Some(name)).then(|| columns.next())?
        });
        line.with_context(|| format!("no figure of {name} in {words:?}"))?.parse().context("it")
    };
    STRESSORS.iter().map(|name| done(name)).sum()
}
