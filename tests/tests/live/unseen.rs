//! Locks that no fd table leads to: in flight in a socket, or left with a mapping alone.
//!
//! `lockwatch` finds them in the kernel's lists without /proc/locks; lslocks, lsfd and lsof see
//! neither the holder nor, mostly, the lock.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

use crate::kernel;

pub(crate) const TESTS: &[Test] = &[
    once!(a_lock_in_flight_is_listed_with_its_path).needs(&["root", "iter/task_file"]),
    once!(a_lock_in_flight_on_another_mount_is_listed_with_its_path).needs(&[
        "root",
        "iter/task_file",
        "mounts",
    ]),
    once!(a_lock_in_flight_whose_file_is_gone_is_flagged).needs(&["root", "iter/task_file"]),
    once!(check_of_a_lock_in_flight_is_hot).needs(&["root", "iter/task_file"]),
    once!(what_is_in_flight_from_the_living_is_no_orphan).needs(&["root", "iter/task_file"]),
    once!(many_locks_in_flight_are_all_listed).needs(&["root", "iter/task_file"]),
];

/// A dead process's lock, kept by the queue of a living one's socket.
fn leave_in_flight(scene: &mut Scene, path: &str) -> Result<()> {
    scene.play(&format!(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a {path}
         owner: flock a ex
         owner: send tx a
         owner: exit 0"
    ))?;
    same!("locks", kernel::proc_locks_on(&scene.file(path)?)?.len(), 1);
    Ok(())
}

fn a_lock_in_flight_is_listed_with_its_path(scene: &mut Scene) -> Result<()> {
    leave_in_flight(scene, "lock")?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    same!("path", lock.path, Some(scene.path_text("lock")?));
    lock.is("orphaned/scm_rights")?;
    lock.acquired_by_dead(scene.pid("owner")?)
}

fn a_lock_in_flight_on_another_mount_is_listed_with_its_path(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.tmpfs("disk")?;
    leave_in_flight(scene, "disk/lock")?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("disk/lock")?)?;
    same!("path", lock.path, Some(scene.path_text("disk/lock")?));
    Ok(())
}

fn a_lock_in_flight_whose_file_is_gone_is_flagged(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: unlink lock
         owner: exit 0",
    )?;
    let path = scene.path_text("lock")?;
    let report = scene.scan_by_bpf()?;
    let lock = report.locks.iter().find(|lock| lock.path.as_ref() == Some(&path));
    lock.context("the lock of the unlinked file is not listed by its path")?.raises("deleted")
}

fn check_of_a_lock_in_flight_is_hot(scene: &mut Scene) -> Result<()> {
    leave_in_flight(scene, "lock")?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["check", &path, "--source", "bpf"])?;
    let line = run.exits(1)?.last_line()?;
    ensure!(line.starts_with("ERROR: lock: HOT (scm_rights"), "said {line:?}");
    Ok(())
}

fn what_is_in_flight_from_the_living_is_no_orphan(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: socketpair tx rx
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: close a",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.does_not_raise("acquirer_detached")
}

fn many_locks_in_flight_are_all_listed(scene: &mut Scene) -> Result<()> {
    const MANY: usize = 40;
    scene.new_folder("crowd")?;
    let mut story = String::from(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         start other
         other: mass files 500 crowd
",
    );
    for number in 0..MANY {
        story.push_str(&format!(
            "owner: open f{number} lock{number}
             owner: flock f{number} ex
             owner: send tx f{number}
             owner: close f{number}
"
        ));
    }
    story.push_str("owner: exit 0");
    scene.play(&story)?;
    let report = scene.scan_by_bpf()?;
    for number in 0..MANY {
        let name = format!("lock{number}");
        report.only_lock_on(&scene.file(&name)?).context(name)?.is("orphaned/scm_rights")?;
    }
    Ok(())
}
