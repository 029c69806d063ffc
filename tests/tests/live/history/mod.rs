//! The history in the kernel: who took each lock and when, joined with what the kernel's lists show.
//!
//! Each test opens a history of its own, on a BPF file system of its own, in this process.

mod ranges;
mod witness;

use anyhow::{Context, Result, ensure};
use lockwatch::engine::identity::{Access, LockKind};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

use witness::Witness;

pub(crate) const TESTS: &[Test] = &[
    once!(each_kind_of_lock_has_its_taker_and_its_time).needs(NEEDS),
    once!(a_lock_from_before_the_history_has_none).needs(NEEDS),
    once!(a_scan_reads_the_pinned_history).needs(NEEDS),
];

const NEEDS: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts"];

fn each_kind_of_lock_has_its_taker_and_its_time(scene: &mut Scene) -> Result<()> {
    let mut witness = Witness::appear(scene)?;
    let before = witness.now();
    scene.play(
        "start owner
         owner: comm keeper
         owner: open a a
         owner: flock a ex
         owner: open b b
         owner: posix b wr 10 19
         owner: open c c
         owner: ofd c rd 5 eof
         owner: open made d
         owner: close made
         owner: open d d ro
         owner: lease d rd",
    )?;
    let after = witness.now();
    let pid = scene.pid("owner")?;
    let seen = witness.locks(scene, &["a", "b", "c", "d"])?;
    let kinds: Vec<_> = seen.iter().map(|lock| lock.kind).collect();
    same!("kinds", kinds, [LockKind::Flock, LockKind::Posix, LockKind::Ofd, LockKind::Lease]);
    for lock in &seen {
        let taken = lock.taken.as_ref().with_context(|| format!("{:?}: no taking", lock.kind))?;
        ensure!(taken.at >= before && taken.at <= after, "{:?} at {:?}", lock.kind, taken.at);
        same!("taker", taken.by.id.pid, pid);
        same!("comm", &*taken.by.comm, b"keeper");
        ensure!(taken.by.exe.is_some(), "{:?}: no executable", lock.kind);
    }
    scene.play("owner: flock a un\nowner: posix b un 10 19\nowner: ofd c un 5 eof")?;
    same!("locks left", witness.locks(scene, &["a", "b", "c"])?.len(), 0);
    witness.has_nothing_of(pid, 1)
}

fn a_lock_from_before_the_history_has_none(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a a
         owner: flock a ex
         owner: open b b
         owner: posix b rd 0 9",
    )?;
    let mut witness = Witness::appear(scene)?;
    // Neither taking what one has anew, nor more of it, makes it known.
    scene.play("owner: flock a ex\nowner: posix b rd 0 9\nowner: posix b rd 5 19")?;
    for lock in witness.locks(scene, &["a", "b"])? {
        ensure!(lock.taken.is_none(), "{:?} has a taking: {:?}", lock.kind, lock.taken);
    }
    scene.play("owner: flock a sh")?;
    let changed = witness.locks(scene, &["a"])?;
    same!("access", changed[0].access, Access::Read);
    ensure!(changed[0].taken.is_some(), "the kernel made a new lock of it");
    Ok(())
}

fn a_scan_reads_the_pinned_history(scene: &mut Scene) -> Result<()> {
    let witness = Witness::appear(scene)?;
    scene.play(crate::stories::LEAKED)?;
    let run = scene
        .lockwatch(&["scan", "--json", "--source", "bpf"])?
        .env("LOCKWATCH_STATE_DIR", witness.folder())
        .run()?;
    let report = scene.report(&run)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.acquired_by_dead(scene.pid("owner")?)?;
    same!("confidence", lock.confidence.as_str(), "certain");
    Ok(())
}
