//! What keeps a lock that no process has any more: the kernel itself, or nothing that can be found.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Report, Scene, Test};
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

fn scan(scene: &Scene) -> Result<Report> {
    scene.report(&scene.run(&["scan", "--json", "--source", "bpf"])?)
}

fn a_loop_device_over_the_file_is_named(scene: &mut Scene) -> Result<()> {
    scene.play(LOOPED)?;
    let report = scan(scene)?;
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
    let report = scan(scene)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    report.only_lock_on(&scene.file("backing")?).context("backing")?.is("orphaned/kernel")
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
    let report = scan(scene)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("unknown")?;
    lock.raises("acquirer_detached")
}
