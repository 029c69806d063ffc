//! Exit codes mean something, and what could not be done is said in one line.

use std::fs;

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{each_source, once, same};
use rustix::process::Signal;

use crate::kernel;
use crate::stories::{FREE, HELD, LEAKED, SHELL_IDIOM};

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_scan_without_findings_ends_with_0),
    each_source!(a_scan_with_findings_ends_with_1).procfs_needs(&["every-process"]),
    once!(check_of_a_free_file_ends_with_0).needs(&["root"]),
    once!(check_of_an_orphaned_lock_ends_with_1).needs(&["root"]),
    once!(check_of_a_held_file_ends_with_3).needs(&["root"]),
    once!(check_of_a_shared_lock_ends_with_3).needs(&["root"]),
    once!(check_of_what_is_not_there_ends_with_2).needs(&["root", "iter/task_file"]),
    once!(explain_of_what_is_not_there_ends_with_2).needs(&["root", "iter/task_file"]),
    once!(arguments_that_make_no_sense_end_with_2),
    once!(a_target_that_makes_no_sense_is_refused_in_one_line).needs(&["root", "iter/task_file"]),
    once!(a_column_that_is_none_is_named),
    once!(a_broken_pipe_is_success).needs(&["root", "iter/task_file"]),
    once!(an_interrupted_watch_ends_with_130).needs(&["root", "iter/task_file"]),
    once!(help_and_version_end_with_0),
];

fn a_scan_without_findings_ends_with_0(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.run(&["scan", "."])?.exits(0)?;
    scene.run(&["scan", "--json", "."])?.exits(0)?;
    Ok(())
}

fn a_scan_with_findings_ends_with_1(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.run(&["scan", "."])?.exits(1)?;
    scene.run(&["scan", "--json", "."])?.exits(1)?;
    // Of another file there is nothing to find.
    fs::write(scene.path("other"), "")?;
    scene.run(&["scan", "./other"])?.exits(0)?;
    Ok(())
}

fn check_of_a_free_file_ends_with_0(scene: &mut Scene) -> Result<()> {
    scene.play(FREE)?;
    let run = scene.run(&["check", "lock"])?;
    run.exits(0)?;
    same!("lines", run.lines()?, ["lock: free"]);
    Ok(())
}

fn check_of_an_orphaned_lock_ends_with_1(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let run = scene.run(&["check", "lock"])?;
    run.exits(1)?;
    let lines = run.lines()?;
    same!("lines", lines.len(), 1);
    let line = lines[0];
    let fits = line.starts_with("ERROR: lock: HOT (inherited; acquirer ") && line.ends_with(')');
    ensure!(fits, "{line:?}");
    let pid = scene.pid("owner")?.to_string();
    ensure!(line.contains(&pid), "the acquirer {pid} is not named: {line:?}");
    Ok(())
}

fn check_of_a_held_file_ends_with_3(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play("owner: comm a-name")?;
    let run = scene.run(&["check", "lock"])?;
    run.exits(3)?;
    let lines = run.lines()?;
    same!("lines", lines.len(), 1);
    let start = format!("lock: held by a-name (pid {}) since ", scene.pid("owner")?);
    ensure!(lines[0].starts_with(&start), "{lines:?}");
    Ok(())
}

fn check_of_a_shared_lock_ends_with_3(scene: &mut Scene) -> Result<()> {
    scene.play(SHELL_IDIOM)?;
    let run = scene.run(&["check", "lock"])?;
    run.exits(3)?;
    // The dead acquirer is not who holds it.
    let holder = format!("(pid {})", scene.pid("shell")?);
    ensure!(run.text()?.contains(&holder), "not held by {holder}: {:?}", run.text()?);
    Ok(())
}

fn check_of_what_is_not_there_ends_with_2(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["check", "./no-such-file"])?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("no-such-file"), "the file is not named: {line:?}");
    Ok(())
}

fn explain_of_what_is_not_there_ends_with_2(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["explain", "./no-such-file"])?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("no-such-file"), "the file is not named: {line:?}");
    Ok(())
}

fn arguments_that_make_no_sense_end_with_2(scene: &mut Scene) -> Result<()> {
    for args in [
        &["scan", "--no-such-option"] as &[&str],
        &["scan", "--only", "nonsense"],
        &["scan", "--source", "nonsense"],
        &["scan", "--watch", "nonsense"],
        &["scan", "-o", ""],
        &["scan", "pid:nonsense"],
        &["check"],
        &["no-such-verb"],
        &[],
    ] {
        let run = scene.run(args)?;
        run.exits(2)?;
        ensure!(run.stdout.is_empty(), "{args:?}: the complaint is on standard output");
        ensure!(!run.stderr.is_empty(), "{args:?}: no complaint");
    }
    Ok(())
}

fn a_target_that_makes_no_sense_is_refused_in_one_line(scene: &mut Scene) -> Result<()> {
    for target in ["pid:nonsense", "pid:0", "pid:-1", "./no-such-folder/file", ""] {
        let run = scene.run(&["scan", target])?;
        let line = run.fails_in_one_line()?;
        let named = line.contains(target.trim_start_matches("./"));
        ensure!(named, "{target:?} is not named: {line:?}");
    }
    Ok(())
}

fn a_column_that_is_none_is_named(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["scan", "-o", "PID,NOCOLUMN"])?;
    run.exits(2)?;
    let complaints = run.complaints()?.join("\n");
    ensure!(complaints.contains("NOCOLUMN"), "{complaints:?}");
    Ok(())
}

fn a_broken_pipe_is_success(scene: &mut Scene) -> Result<()> {
    // More than a pipe or a buffer holds.
    scene.play(
        "start owner
         owner: open a lock
         owner: mass posix 5000 a",
    )?;
    for args in [&["scan", "."] as &[&str], &["scan", "--json", "."], &["scan", "-r", "."]] {
        let run = scene.lockwatch(args)?.with_nobody_reading().run()?;
        run.exits(0)?;
        same!("complaints", run.complaints()?.len(), 0);
    }
    Ok(())
}

fn an_interrupted_watch_ends_with_130(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let watch = scene.lockwatch(&["scan", "--watch", "1", "-o", "PID", "."])?.start()?;
    // It handles the signal from its first report on: wait for the second.
    let reports = |count: usize| {
        patience::until("reports of the watch", || {
            Ok((watch.written_so_far() >= count).then_some(()))
        })
    };
    reports(1)?;
    let first = watch.written_so_far();
    reports(first + 1)?;
    watch.signal(Signal::INT)?;
    let run = watch.finish()?;
    run.exits(130)?;
    same!("complaints", run.complaints()?.len(), 0);
    let judgements = run.lines()?.iter().filter(|line| **line == "ALL CLEAR (1 locks)").count();
    ensure!(judgements >= 2, "{judgements} reports");
    // And it left nothing locked.
    same!("locks", kernel::proc_locks_on(&scene.file("lock")?)?.len(), 1);
    Ok(())
}

fn help_and_version_end_with_0(scene: &mut Scene) -> Result<()> {
    let help = scene.run(&["--help"])?;
    help.exits(0)?;
    for verb in ["scan", "check", "explain", "doctor", "completions", "man"] {
        ensure!(help.text()?.contains(verb), "no {verb} in the help");
    }
    let version = scene.run(&["--version"])?;
    version.exits(0)?;
    ensure!(version.text()?.starts_with("lockwatch "), "{:?}", version.text()?);
    Ok(())
}
