//! Releases through the tree: what hooks have to say, who waits for the answer, and what each errno
//! means to a shell.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use rustix::process::Signal;

use crate::tree::{Garden, HELD_CONF, LEAKED_CONF, QUICK};
use crate::tree_shell::shell;

const NEEDS: &[&str] =
    &["root", "iter/task_file", "tp_btf", "mounts", "fuse", "pidfd_getfd", "kcmp", "program:sh"];

pub(crate) const TESTS: &[Test] = &[
    once!(a_zero_drains_releases_verifies_and_resumes).needs(NEEDS),
    once!(each_refusal_is_an_errno_that_a_shell_can_tell).needs(NEEDS),
    once!(force_unlock_takes_the_lock_from_who_lives).needs(NEEDS),
    once!(a_killed_writer_is_gone_at_once_and_the_release_goes_on).needs(NEEDS),
];

/// What each hook of the watch does.
struct Hooks {
    drain: &'static str,
    canary: &'static str,
}

const GOOD: Hooks = Hooks { drain: "exit 0", canary: "exit 0" };

/// The programs of hooks in the house: each says in `hooks.log` that it ran, and goes on as told.
fn programs(house: &House, hooks: &Hooks) -> Result<String> {
    let log = house.path("hooks.log");
    let mut lines = String::new();
    for (name, does) in [("drain", hooks.drain), ("canary", hooks.canary), ("resume", "exit 0")] {
        let program = house.path(name);
        fs::write(&program, format!("#!/bin/sh\necho {name} >> {}\n{does}\n", log.display()))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        lines.push_str(&format!("{name} = {{ run = [\"{}\"] }}\n", program.display()));
    }
    Ok(lines)
}

/// A watched file, with hooks, and the switch as it is at first: off.
fn begin(scene: &mut Scene, hooks: &Hooks) -> Result<Garden> {
    let path = scene.path("lock.conf");
    fs::write(&path, "x").context("the watched file")?;
    let house = House::build(scene)?;
    let hooks = programs(&house, hooks)?;
    house.configure(&format!(
        "{QUICK}\n[reclaim]\nmode = \"report\"\naudit = \"{}\"\n[[watch]]\nname = \"guarded\"\n\
         path = \"{}\"\nreclaim = true\n{hooks}",
        house.path("audit.jsonl").display(),
        path.display()
    ))?;
    let daemon = house.start(scene, &[])?;
    Ok(Garden { house, daemon })
}

fn orphaned(scene: &mut Scene, hooks: &Hooks) -> Result<Garden> {
    let garden = begin(scene, hooks)?;
    scene.play(LEAKED_CONF)?;
    garden.until("locks/guarded/state", "orphaned")?;
    Ok(garden)
}

fn log(garden: &Garden) -> Result<String> {
    match fs::read_to_string(garden.house.path("hooks.log")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.context("hooks.log"),
    }
}

fn a_zero_drains_releases_verifies_and_resumes(scene: &mut Scene) -> Result<()> {
    let garden = orphaned(scene, &GOOD)?;
    same!("the switch", garden.write("reclaim_enabled", "1\n")?, None);
    same!("release", garden.write("locks/guarded/conf_locked", "0\n")?, None);
    same!("locked", garden.value("locks/guarded/locked")?, "0\n");
    same!("hooks", log(&garden)?, "drain\ncanary\nresume\n");
    // The holder lives on.
    scene.direct("heir: comm alive")?;
    same!("again", garden.write("locks/guarded/conf_locked", "0\n")?, None);
    same!("no hooks for nothing", log(&garden)?, "drain\ncanary\nresume\n");
    garden.daemon.stop()?;
    Ok(())
}

/// `0` and `1` by the shell, and the words for the errno; the shell's own echo knows only one.
fn refused(scene: &Scene, garden: &Garden, line: &str, words: &str) -> Result<()> {
    let run = shell(scene, garden, line)?;
    ensure!(run.code() != Some(0), "{line}: was done");
    let complaints = run.complaints()?.join("\n");
    ensure!(complaints.contains(words), "{line}: complained {complaints:?} instead of {words:?}");
    Ok(())
}

fn each_refusal_is_an_errno_that_a_shell_can_tell(scene: &mut Scene) -> Result<()> {
    // The drain succeeds from the second time on, the canary never.
    let hooks = Hooks { drain: "test -e /srv/drained || exit 7", canary: "exit 9" };
    let garden = begin(scene, &hooks)?;
    let zero = "env echo 0 > locks/guarded/conf_locked";
    let force = "env echo 1 > locks/guarded/force_unlock";
    // Of what is free.
    shell(scene, &garden, zero)?.exits(0)?;
    shell(scene, &garden, force)?.exits(0)?;
    scene.play(HELD_CONF)?;
    garden.until("locks/guarded/state", "held")?;
    refused(scene, &garden, zero, "busy")?;
    refused(scene, &garden, force, "not permitted")?;
    scene.play(
        "owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    garden.until("locks/guarded/state", "orphaned")?;
    refused(scene, &garden, zero, "not permitted")?;
    refused(scene, &garden, "env echo 2 > reclaim_enabled", "nvalid argument")?;
    refused(scene, &garden, "env echo 1 > locks/guarded/conf_locked", "nvalid argument")?;
    refused(scene, &garden, "env echo 0 > locks/guarded/force_unlock", "nvalid argument")?;
    same!("nothing ran", log(&garden)?, "");
    shell(scene, &garden, "echo 1 > reclaim_enabled")?.exits(0)?;
    // ECANCELED has many names.
    refused(scene, &garden, zero, "ancel")?;
    same!("locked", garden.value("locks/guarded/locked")?, "1\n");
    same!("hooks", log(&garden)?, "drain\nresume\n");
    fs::write(garden.house.path("drained"), "")?;
    // It is gone, and yet something is wrong: whoever sees the errno is to look. (EIO has two names.)
    refused(scene, &garden, zero, "error: I")?;
    garden.until("locks/guarded/locked", "0")?;
    same!("hooks", log(&garden)?, "drain\nresume\ndrain\ncanary\nresume\n");
    garden.daemon.stop()?;
    Ok(())
}

fn force_unlock_takes_the_lock_from_who_lives(scene: &mut Scene) -> Result<()> {
    let garden = begin(scene, &GOOD)?;
    scene.play(HELD_CONF)?;
    scene.play(
        "start other
         other: open a lock.conf",
    )?;
    ensure!(scene.direct("other: flock a ex").is_err(), "two have it");
    garden.until("locks/guarded/state", "held")?;
    same!("switched off", garden.write("locks/guarded/force_unlock", "1")?, Some(libc::EPERM));
    same!("the switch", garden.write("reclaim_enabled", "1\n")?, None);
    same!("by right", garden.write("locks/guarded/locked", "0")?, Some(libc::EBUSY));
    same!("forced", garden.write("locks/guarded/force_unlock", "1\n")?, None);
    same!("state", garden.value("locks/guarded/state")?, "free\n");
    // Who had it lives on without it, and the next one has it.
    scene.direct("owner: comm alive")?;
    scene.direct("other: flock a ex")?;
    ensure!(scene.direct("owner: flock a ex").is_err(), "it still has it");
    let audit = fs::read_to_string(garden.house.path("audit.jsonl")).context("the record")?;
    ensure!(audit.contains("released"), "not on record: {audit}");
    garden.daemon.stop()?;
    Ok(())
}

fn a_killed_writer_is_gone_at_once_and_the_release_goes_on(scene: &mut Scene) -> Result<()> {
    let drain = "while ! test -e /srv/go-on; do sleep 0.05; done";
    let garden = orphaned(scene, &Hooks { drain, ..GOOD })?;
    same!("the switch", garden.write("reclaim_enabled", "1\n")?, None);
    let lock = garden.path("locks/guarded/conf_locked");
    // The shell's own echo: the one that waits is the shell itself.
    let line = format!("echo 0 > {}", lock.display());
    let writer = scene.program("sh", &["-c", &line])?.start()?;
    patience::until("the drain has begun", || Ok((log(&garden)? == "drain\n").then_some(())))?;
    // Meanwhile nobody else waits for it.
    let asked = Instant::now();
    same!("state", garden.value("locks/guarded/state")?, "orphaned\n");
    same!("gc", garden.write("gc", "1")?, None);
    ensure!(asked.elapsed() < patience::stretched(Duration::from_secs(2)), "others waited");
    let killed = Instant::now();
    writer.signal(Signal::KILL)?;
    let run = writer.finish()?;
    ensure!(run.code().is_none(), "it ended by itself");
    ensure!(killed.elapsed() < patience::stretched(Duration::from_secs(2)), "it lingered");
    same!("locked", garden.value("locks/guarded/locked")?, "1\n");
    fs::write(garden.house.path("go-on"), "")?;
    garden.until("locks/guarded/state", "free")?;
    patience::until("all hooks have run", || {
        Ok((log(&garden)? == "drain\ncanary\nresume\n").then_some(()))
    })?;
    garden.daemon.stop()?;
    Ok(())
}
