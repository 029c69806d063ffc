//! A holder that is made to unlock by itself goes on exactly where it was.

use std::fs;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};

use crate::reclaim::{BPF, execute, prepare, text};
use crate::reclaim_ways::SHARED_TABLE;
use crate::stories::LEAKED;

const SHELL: &[&str] =
    &["root", "mounts", "iter/task_file", "pidfd_getfd", "kcmp", "program:sh", "program:sleep"];

pub(crate) const TESTS: &[Test] = &[
    once!(the_owner_of_a_posix_lock_unlocks_it_and_lives_on).needs(BPF),
    once!(every_kind_of_lock_can_be_given_up_by_its_holder).needs(BPF),
    once!(only_the_planned_bytes_are_given_up_by_the_owner).needs(BPF),
    once!(whatever_its_threads_wait_in_they_wait_to_the_end).needs(BPF),
    once!(the_call_that_it_was_in_is_taken_up_again).needs(SHELL),
    once!(a_stopped_process_stays_stopped).needs(BPF),
    once!(a_seccomp_filter_does_not_end_its_process).needs(BPF),
    once!(a_process_that_is_traced_is_left_alone).needs(&[
        "root",
        "mounts",
        "iter/task_file",
        "pidfd_getfd",
        "kcmp",
        "program:strace",
    ]),
];

const INJECT: &[&str] = &["--method", "inject"];

/// Nobody traces it, and no signal of its is blocked that was not.
fn is_as_it_was(pid: i32, before: &str) -> Result<()> {
    same!("its signals and its tracer", state(pid)?, before);
    Ok(())
}

fn state(pid: i32) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kept = ["TracerPid", "SigBlk", "SigPnd", "ShdPnd", "SigIgn", "SigCgt", "Threads"];
    let kept = text.lines().filter(|line| kept.iter().any(|name| line.starts_with(name)));
    Ok(kept.collect::<Vec<_>>().join("\n"))
}

fn the_owner_of_a_posix_lock_unlocks_it_and_lives_on(scene: &mut Scene) -> Result<()> {
    scene.play(SHARED_TABLE)?;
    scene.play(
        "heir: posix a wr 100 109
         heir: open other other
         heir: flock other ex
         start waiter
         waiter: open w lock
         waiter: later posix w wr 0 9
         await waiter blocked",
    )?;
    let heir = scene.pid("heir")?;
    let before = state(heir)?;
    let (code, account) = execute(scene, INJECT)?;
    same!("exit code", code, Some(0));
    same!("method", text(&account, "/plans/0/method")?, "inject");
    same!("result", text(&account, "/outcomes/0/result")?, "taken_by");
    scene.play(
        "await waiter done
         heir: write a alive",
    )?;
    is_as_it_was(heir, &before)?;
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    let mut starts: Vec<_> = locks.iter().map(|lock| lock.start).collect();
    starts.sort();
    same!("what is locked", starts, [0, 100]);
    report.only_lock_on(&scene.file("other")?)?.held_by(&[heir])
}

fn every_kind_of_lock_can_be_given_up_by_its_holder(scene: &mut Scene) -> Result<()> {
    for (name, take) in [("f", "flock a ex"), ("o", "ofd a wr 10 eof"), ("l", "lease a wr")] {
        scene.play(&format!(
            "start owner-{name}
             owner-{name}: open a lock
             owner-{name}: {take}
             owner-{name}: fork heir-{name}
             heir-{name}: exec
             owner-{name}: exit 0"
        ))?;
        let (code, account) = execute(scene, INJECT)?;
        same!(take, code, Some(0));
        same!(take, text(&account, "/outcomes/0/result")?, "released");
        scene.play(&format!(
            "heir-{name}: write a alive
             heir-{name}: close a"
        ))?;
    }
    Ok(())
}

fn only_the_planned_bytes_are_given_up_by_the_owner(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    scene.play(
        "start owner
         owner: open a lock
         owner: posix a wr 0 9
         owner: posix a rd 20 29
         owner: posix a wr 40 eof",
    )?;
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    let middle = locks.iter().find(|lock| lock.start == 20).context("bytes 20-29")?;
    let run = scene.run(&[
        "reclaim",
        &middle.id,
        "--force",
        "--method",
        "inject",
        "--execute",
        "--config",
        crate::reclaim::CONFIG,
    ])?;
    run.exits(0)?;
    let report = scene.scan()?;
    let mut left: Vec<_> =
        report.locks_on(&scene.file("lock")?).iter().map(|lock| (lock.start, lock.end)).collect();
    left.sort();
    same!("what is left", left, [(0, Some(9)), (40, None)]);
    Ok(())
}

fn whatever_its_threads_wait_in_they_wait_to_the_end(scene: &mut Scene) -> Result<()> {
    for call in ["sleep", "poll", "epoll", "futex"] {
        scene.play(&format!(
            "start owner-{call}
             owner-{call}: open a lock
             owner-{call}: posix a wr 0 9
             owner-{call}: rest {call} 3000
             await owner-{call} blocked"
        ))?;
        let (code, _) = execute(scene, &["--force", "--method", "inject"])?;
        same!(call, code, Some(0));
        scene.play(&format!(
            "await owner-{call} done
             owner-{call}: close a"
        ))?;
    }
    // And in the lock that it waits for itself.
    scene.play(
        "start other
         other: open b other
         other: flock b ex
         start owner
         owner: open a lock
         owner: posix a wr 0 9
         owner: open b other
         owner: later flock b ex
         await owner blocked",
    )?;
    let (code, _) = execute(scene, &["--force", "--method", "inject"])?;
    same!("exit code", code, Some(0));
    scene.play(
        "await owner blocked
         other: flock b un
         await owner done",
    )
}

fn the_call_that_it_was_in_is_taken_up_again(scene: &mut Scene) -> Result<()> {
    // The shell tells how long its sleep took, and how it ended; only the sleep has the lock.
    fs::write(
        scene.path("script"),
        "sleep 3 & exec 3>&-; : > ready; wait $!; echo $? > code; : > done\n",
    )?;
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: spawn shell sh script",
    )?;
    patience::until("the sleep", || Ok(scene.path("ready").exists().then_some(())))?;
    let begun = std::time::Instant::now();
    scene.play("owner: exit 0")?;
    let (code, account) = execute(scene, INJECT)?;
    same!("exit code", code, Some(0));
    same!("who unlocked", text(&account, "/plans/0/through/comm")?, "sleep");
    ensure!(!scene.path("done").exists(), "the sleep was cut short");
    patience::until("the end of the sleep", || Ok(scene.path("done").exists().then_some(())))?;
    same!("how it ended", fs::read_to_string(scene.path("code"))?, "0\n");
    ensure!(begun.elapsed().as_secs_f64() < 10.0, "it began anew: {:?}", begun.elapsed());
    Ok(())
}

fn a_stopped_process_stays_stopped(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let pid = scene.pid("heir")?;
    let status = || -> Result<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Ok(text.rsplit(") ").next().unwrap_or_default()[..1].to_owned())
    };
    let signal = |signal| {
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).context("a pid")?, signal)
            .context("a signal")
    };
    signal(rustix::process::Signal::STOP)?;
    patience::until("the stop", || Ok((status()? == "T").then_some(())))?;
    let (code, account) = execute(scene, INJECT)?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    patience::until("the stop", || Ok((status()? == "T").then_some(())))?;
    signal(rustix::process::Signal::CONT)?;
    scene.play("heir: write a alive")
}

fn a_seccomp_filter_does_not_end_its_process(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play("heir: filter")?;
    let (code, account) = execute(scene, INJECT)?;
    if code == Some(0) {
        same!("result", text(&account, "/outcomes/0/result")?, "released");
    } else {
        // Where the kernel cannot suspend a filter, nothing is done.
        same!("result", text(&account, "/outcomes/0/result")?, "failed");
        ensure!(text(&account, "/outcomes/0/why")?.contains("seccomp"), "{account}");
    }
    scene.play("heir: write a alive")
}

fn a_process_that_is_traced_is_left_alone(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let pid = scene.pid("heir")?;
    scene.play(&format!(
        "start starter
         starter: spawn strace strace -q -o trace -p {pid}"
    ))?;
    patience::until("the tracer", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok((!status.contains("TracerPid:\t0\n")).then_some(()))
    })?;
    let (code, account) = execute(scene, INJECT)?;
    same!("exit code", code, Some(1));
    ensure!(text(&account, "/outcomes/0/why")?.contains("traces it already"), "{account}");
    scene.scan()?.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")
}
