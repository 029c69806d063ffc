//! The ways to a lock that no descriptor leads to: queues of sockets, and the end of its holders.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

use crate::reclaim::{BPF, execute, text};
use crate::stories::LEAKED;

pub(crate) const TESTS: &[Test] = &[
    once!(a_lock_in_flight_is_given_back_and_the_message_stays).needs(BPF),
    once!(what_is_behind_another_message_with_descriptors_is_out_of_reach).needs(BPF),
    once!(what_nobody_accepted_is_out_of_reach).needs(BPF),
    once!(a_posix_lock_is_refused_without_a_method_and_ended_with_its_process).needs(BPF),
    once!(a_holder_that_will_not_end_is_killed).needs(BPF),
    once!(no_more_holders_are_ended_than_it_takes).needs(BPF),
    once!(a_mapping_ends_with_its_process_and_in_no_other_way).needs(&[
        "root",
        "mounts",
        "iter/task_file",
        "iter/task_vma",
    ]),
    once!(a_mapping_that_cannot_be_found_is_refused).needs(&[
        "root",
        "mounts",
        "iter/task_file",
        "no-iter/task_vma",
    ]),
    once!(a_registered_file_ends_with_its_process_and_in_no_other_way).needs(&[
        "root",
        "iter/task_file",
        "io_uring",
    ]),
];

/// `owner` is dead; `heir`, which shares its fd table, keeps its POSIX lock on `lock`.
pub(crate) const SHARED_TABLE: &str = "
    start owner
    owner: open a lock
    owner: posix a wr 0 9
    owner: fork heir files
    owner: exit 0";

fn a_lock_in_flight_is_given_back_and_the_message_stays(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: open other other
         owner: flock other ex
         owner: send tx a
         owner: exit 0
         start waiter
         waiter: open w lock
         waiter: later flock w ex
         await waiter blocked",
    )?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    same!("method", text(&account, "/plans/0/method")?, "queue");
    same!("result", text(&account, "/outcomes/0/result")?, "taken_by");
    scene.play(
        "await waiter done
         keeper: receive rx got
         keeper: write got received",
    )?;
    same!("the file", scene.shown_to("keeper", "lock")?, "received");
    Ok(())
}

fn what_is_behind_another_message_with_descriptors_is_out_of_reach(
    scene: &mut Scene,
) -> Result<()> {
    scene.play(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open other other
         owner: send tx other
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: exit 0",
    )?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(1));
    same!("result", text(&account, "/outcomes/0/result")?, "failed");
    ensure!(text(&account, "/outcomes/0/why")?.contains("first message"), "{account}");
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/scm_rights")?;
    // Once that one is received it is in reach.
    scene.play("keeper: receive rx got")?;
    let (code, _) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    Ok(())
}

fn what_nobody_accepted_is_out_of_reach(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: listen door socket
         start owner
         owner: open a lock
         owner: flock a ex
         owner: connect visitor socket
         owner: send visitor a
         owner: exit 0",
    )?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(1));
    same!("reason", text(&account, "/refusals/0/reason")?, "method_does_not_fit");
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/scm_rights")
}

fn a_posix_lock_is_refused_without_a_method_and_ended_with_its_process(
    scene: &mut Scene,
) -> Result<()> {
    scene.play(SHARED_TABLE)?;
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/shared_files")?;
    for more in [&[][..], &["--method", "fd"]] {
        let (code, account) = execute(scene, more)?;
        same!("exit code", code, Some(1));
        ensure!(text(&account, "/refusals/0/message")?.contains("--method inject"), "{account}");
    }
    scene.play(
        "start waiter
         waiter: open w lock
         waiter: later posix w wr 0 9
         await waiter blocked",
    )?;
    let (code, account) = execute(scene, &["--method", "signal"])?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "taken_by");
    scene.play(
        "await waiter done
         await heir gone",
    )
}

fn a_holder_that_will_not_end_is_killed(scene: &mut Scene) -> Result<()> {
    // A stopped process does not take SIGTERM.
    scene.play(LEAKED)?;
    scene.play("start stopper")?;
    let pid = scene.pid("heir")?.to_string();
    scene.program("kill", &["-STOP", &pid])?.run()?.exits(0)?;
    let (code, account) = execute(scene, &["--method", "signal"])?;
    same!("exit code", code, Some(0));
    let steps = account["outcomes"][0]["steps"].to_string();
    ensure!(steps.contains("SIGTERM") && steps.contains("SIGKILL"), "{steps}");
    scene.play("await heir gone")
}

fn no_more_holders_are_ended_than_it_takes(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: fork first
         first: exec
         owner: fork second
         second: exec
         start bystander
         bystander: open b lock
         owner: exit 0",
    )?;
    let (code, account) = execute(scene, &["--method", "signal"])?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    scene.play(
        "await first gone
         await second gone
         bystander: write b alive",
    )
}

/// `owner` is dead; `heir` has nothing but a mapping of `lock`.
const MAPPED: &str = "
    start owner
    owner: open a lock
    owner: flock a ex
    owner: map a
    owner: fork heir
    heir: close a
    owner: die KILL";

fn a_mapping_that_cannot_be_found_is_refused(scene: &mut Scene) -> Result<()> {
    scene.play(MAPPED)?;
    for more in [&[][..], &["--method", "fd"], &["--method", "inject"], &["--method", "signal"]] {
        let (code, account) = execute(scene, more)?;
        same!("exit code", code, Some(1));
        same!("reason", text(&account, "/refusals/0/reason")?, "no_way");
    }
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/unaccounted")
}

fn a_mapping_ends_with_its_process_and_in_no_other_way(scene: &mut Scene) -> Result<()> {
    scene.play(MAPPED)?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/mmap")?;
    only_by_signal(scene)
}

fn a_registered_file_ends_with_its_process_and_in_no_other_way(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: uring ring a
         owner: close a
         owner: fork heir
         owner: die KILL",
    )?;
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/io_uring")?;
    only_by_signal(scene)
}

fn only_by_signal(scene: &mut Scene) -> Result<()> {
    for more in [&[][..], &["--method", "fd"], &["--method", "inject"]] {
        let (code, account) = execute(scene, more)?;
        same!("exit code", code, Some(1));
        same!("reason", text(&account, "/refusals/0/reason")?, "method_does_not_fit");
        ensure!(text(&account, "/refusals/0/message")?.contains("--method signal"), "{account}");
    }
    let (code, account) = execute(scene, &["--method", "signal"])?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    scene.play("await heir gone")
}
