//! What keeps a lock that no process has any more: the kernel itself, or nothing that can be found.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

pub(crate) const TESTS: &[Test] = &[
    once!(a_loop_device_over_the_file_is_named).needs(&[
        "root",
        "iter/task_file",
        "iter/task_vma",
        "loop-devices",
    ]),
    once!(a_loop_device_over_another_file_is_not).needs(&[
        "root",
        "iter/task_file",
        "iter/task_vma",
        "loop-devices",
    ]),
    once!(what_only_a_system_call_in_progress_keeps_is_unaccounted).needs(&[
        "root",
        "iter/task_file",
        "iter/task_vma",
    ]),
    once!(what_waits_for_another_lock_is_in_use).needs(&["root", "iter/task_file"]),
    once!(a_living_acquirer_without_a_descriptor_is_no_finding_under_a_loop_device).needs(&[
        "root",
        "iter/task_file",
        "loop-devices",
    ]),
];

/// `heir` has a loop device over `lock`, and no descriptor of it; `owner`, who locked it, is dead.
const LOOPED: &str = "
    start owner
    owner: open a lock
    owner: write a _________________________________________________________________________________
    owner: flock a ex
    owner: loopdev device a
    owner: close a
    owner: fork heir
    owner: exit 0";

fn a_loop_device_over_the_file_is_named(scene: &mut Scene) -> Result<()> {
    scene.play(LOOPED)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/kernel")?;
    same!("confidence", lock.confidence, "likely");
    same!("holders", lock.holders.len(), 1);
    same!("via", lock.holders[0].via, "kernel");
    same!("pid", lock.holders[0].pid, None);
    lock.rests_on("the kernel uses the file: loop device /dev/loop")?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?;
    let told = text.contains("It is used by the kernel (loop device /dev/loop");
    ensure!(told, "the device is not named: {text}");
    Ok(())
}

fn a_loop_device_over_another_file_is_not(scene: &mut Scene) -> Result<()> {
    scene.play(&LOOPED.replace(" lock\n", " backing\n"))?;
    scene.play(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork sender
         sender: open a lock
         sender: flock a ex
         sender: send tx a
         sender: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    report.only_lock_on(&scene.file("backing")?).context("backing")?.is("orphaned/kernel")
}

fn what_only_a_system_call_in_progress_keeps_is_unaccounted(scene: &mut Scene) -> Result<()> {
    let fifo = scene.path("fifo");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).context("mkfifo")?;
    scene.play(
        "start keeper
         keeper: open a fifo
         keeper: fork owner
         owner: flock a ex
         owner: exit 0
         keeper: later read a
         await keeper blocked
         keeper: close a",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("fifo")?)?;
    lock.is("orphaned/unaccounted")?;
    same!("confidence", lock.confidence, "likely");
    same!("holders", lock.holders.len(), 0);
    lock.rests_on("searched and not found: scm_rights, io_uring, mmap")?;
    lock.rests_on("not searched: kernel (the kernel uses the file neither for a loop device")?;
    let path = scene.path_text("fifo")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?;
    ensure!(text.contains("What would release it is not known."), "said {text}");
    Ok(())
}

fn what_waits_for_another_lock_is_in_use(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start other
         other: open b lock
         other: flock b ex
         start keeper
         keeper: open a lock
         keeper: fork owner
         owner: ofd a wr 0 9
         owner: exit 0
         keeper: later flock a ex
         await keeper blocked
         keeper: close a",
    )?;
    let report = scene.scan_by_bpf()?;
    let locks = report.locks_on(&scene.file("lock")?);
    let lock = locks.iter().find(|lock| lock.kind == "OFDLCK").context("no OFD lock")?;
    ensure!(lock.state != "orphaned", "it is in use by a system call: {lock:?}");
    lock.held_via("fd", &[scene.pid("keeper")?])
}

fn a_living_acquirer_without_a_descriptor_is_no_finding_under_a_loop_device(
    scene: &mut Scene,
) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: write a _____________________________________________________________________________
         owner: flock a ex
         owner: loopdev device a
         owner: close a",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("unknown")?;
    lock.raises("acquirer_detached")
}
