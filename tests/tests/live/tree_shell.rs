//! What shells and their tools make of the tree.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Run, Scene, Test, note, patience};
use lockwatch_tests::{once, same};
use rustix::process::Signal;

use crate::stories::LEAKED;
use crate::tree::{Garden, HELD_CONF, LEAKED_CONF, QUICK};

const AND_SHELL: &[&str] =
    &["root", "iter/task_file", "tp_btf", "mounts", "fuse", "program:sh", "program:grep"];

const AND_TOOLS: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "fuse",
    "program:sh",
    "program:cat",
    "program:cp",
    "program:dd",
    "program:find",
    "program:grep",
    "program:head",
    "program:ls",
    "program:stat",
    "program:tail",
    "program:timeout",
    "program:wc",
];

pub(crate) const TESTS: &[Test] = &[
    once!(a_shell_reads_and_writes_it_like_sysfs).needs(AND_SHELL),
    once!(usual_tools_take_its_files_for_files).needs(AND_TOOLS),
    once!(a_follower_is_ended_by_any_signal).needs(AND_SHELL),
    once!(a_walk_shows_every_value_of_a_thousand_locks).needs(AND_SHELL).within(MINUTE),
];

const MINUTE: Duration = Duration::from_secs(60);

/// Runs a line of shell in the tree.
pub(crate) fn shell(scene: &Scene, garden: &Garden, line: &str) -> Result<Run> {
    let line = format!("cd {} && {line}", garden.path("").display());
    scene.program("sh", &["-c", &line])?.run()
}

fn a_shell_reads_and_writes_it_like_sysfs(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "[reclaim]\nmode = \"reclaim\"")?;
    for line in [
        "grep -Eqx 'ALL CLEAR|HOT [0-9]+' status",
        "test $(cat locks/guarded/locked) = 0",
        "echo 0 > locks/guarded/conf_locked",
        "echo 0 >> locks/guarded/conf_locked",
        "printf 0 > locks/guarded/conf_locked",
        ": > locks/guarded/conf_locked",
        "exec 3> locks/guarded/locked && echo 0 >&3 && echo 0 >&3",
        "echo 500 > gc_interval_ms && test $(cat gc_interval_ms) = 500",
        "echo 200 > gc_interval_ms",
        "echo 1 > gc",
        "read state < locks/guarded/state && test $state = free",
    ] {
        shell(scene, &garden, line)?.exits(0)?;
    }
    scene.play(HELD_CONF)?;
    garden.until("locks/guarded/locked", "1")?;
    for (line, words) in [
        ("env echo 0 > locks/guarded/conf_locked", "usy"),
        ("env echo 1 > locks/guarded/conf_locked", "nvalid argument"),
        ("head -c 100000 /dev/zero > locks/guarded/locked", "nvalid argument"),
        ("echo x > status", "ermission denied"),
        ("echo x > locks/new", "not permitted"),
        ("rm locks/guarded/locked", "not permitted"),
    ] {
        let run = shell(scene, &garden, line)?;
        ensure!(run.code() != Some(0), "{line}: was done");
        let complaints = run.complaints()?.join("\n");
        ensure!(complaints.contains(words), "{line}: complained {complaints:?}");
    }
    garden.daemon.stop()?;
    Ok(())
}

fn usual_tools_take_its_files_for_files(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    scene.play(LEAKED_CONF)?;
    garden.until("locks/guarded/state", "orphaned")?;
    let copy = scene.path_text("copy")?;
    for (line, expected) in [
        ("cat locks/guarded/state", "orphaned\n"),
        ("dd if=locks/guarded/state bs=1 2>/dev/null", "orphaned\n"),
        ("head -c 3 locks/guarded/state", "orp"),
        ("tail -c 4 locks/guarded/state", "ned\n"),
        ("tail -n 1 locks/guarded/reason", "inherited\n"),
        ("wc -c < locks/guarded/state", "9\n"),
        ("stat -c %s locks/guarded/state", "9\n"),
        (&format!("cp locks/guarded/state {copy} && cat {copy}"), "orphaned\n"),
        ("grep -rl orphaned locks/guarded", "locks/guarded/state\n"),
        ("grep -r . locks/guarded | wc -l", "12\n"),
        ("find locks/guarded -name conf_locked", "locks/guarded/conf_locked\n"),
        ("find locks/guarded -type f | wc -l", "14\n"),
        ("find locks/guarded -empty | wc -l", "2\n"),
        ("timeout 0.3 tail -f -n +1 locks/guarded/state", "orphaned\n"),
        ("ls locks/guarded | wc -l", "14\n"),
    ] {
        let run = shell(scene, &garden, line)?;
        same!(line, run.text()?, expected);
        ensure!(run.complaints()?.is_empty(), "{line}: complained {:?}", run.complaints());
    }
    garden.daemon.stop()?;
    Ok(())
}

fn a_follower_is_ended_by_any_signal(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    let events = garden.path("events").display().to_string();
    for signal in [Signal::TERM, Signal::INT, Signal::KILL, Signal::KILL] {
        let cat = scene.program("cat", &[&events])?.start()?;
        std::thread::sleep(patience::stretched(Duration::from_millis(100)));
        let sent = Instant::now();
        cat.signal(signal)?;
        let run = cat.finish()?;
        ensure!(run.code().is_none(), "cat ended by itself");
        ensure!(sent.elapsed() < patience::stretched(Duration::from_secs(1)), "it lingered");
    }
    // Those who were interrupted took nobody else's place.
    let cat = scene.program("timeout", &["5", "cat", &events])?.start()?;
    std::thread::sleep(patience::stretched(Duration::from_millis(100)));
    scene.play(LEAKED)?;
    patience::until("the reader gets the event", || Ok((cat.written_so_far() > 0).then_some(())))?;
    cat.signal(Signal::TERM)?;
    cat.finish()?;
    garden.daemon.stop()?;
    Ok(())
}

fn a_walk_shows_every_value_of_a_thousand_locks(scene: &mut Scene) -> Result<()> {
    let count = patience::rounds(1000).max(20);
    let garden = Garden::begin(scene, QUICK)?;
    scene.play("start owner")?;
    for number in 0..count {
        scene.direct(&format!("owner: open f{number} file{number}"))?;
        scene.direct(&format!("owner: flock f{number} ex"))?;
    }
    scene.play(
        "owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let below = scene.path_text("")?;
    let own = |garden: &Garden| -> Result<usize> {
        let run = shell(scene, garden, "grep -rh . locks --include=path | sort -u")?;
        Ok(run.text()?.lines().filter(|path| path.starts_with(&below)).count())
    };
    patience::until("every orphan has a folder", || {
        Ok((own(&garden)? == count as usize).then_some(()))
    })?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let run = shell(scene, &garden, "grep -r . locks | wc -l")?;
        // Every value but `force_unlock`, the empty list of waiters and the alias that is not there.
        let lines: u32 = run.text()?.trim().parse()?;
        ensure!(lines >= count * 11, "{lines} lines of {count} locks");
        best = best.min(run.seconds);
    }
    note(&format!("a walk of {count} locks: {best:.3} s"));
    garden.daemon.stop()?;
    Ok(())
}
