//! Where the facts come from: which source is taken, what it says of its limits, and that both say
//! the same.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Report, Scene, Test};
use lockwatch_tests::{each_source, once, same};

use crate::stories::{HELD, LEAKED};

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_report_names_its_source_kernel_and_host),
    once!(bpf_is_taken_where_it_loads).needs(&["root", "iter/task_file"]),
    once!(bpf_sees_everything_as_root).needs(&["root", "iter/task_file"]),
    once!(both_sources_tell_the_same).needs(&["root", "iter/task_file", "every-process"]),
    once!(without_privilege_it_falls_back_and_says_so_once).needs(&["nobody"]),
    once!(without_privilege_bpf_is_refused_in_one_line).needs(&["nobody"]),
    once!(without_privilege_own_locks_are_told_fully).needs(&["nobody"]),
    once!(without_privilege_nothing_is_called_orphaned).needs(&["nobody"]),
];

fn a_report_names_its_source_kernel_and_host(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let report = scene.scan()?;
    let system = rustix::system::uname();
    same!("source", report.source, scene.source()?.name());
    same!("kernel", Ok(report.kernel.as_str()), system.release().to_str());
    same!("host", Ok(report.host.as_str()), system.nodename().to_str());
    Ok(())
}

fn bpf_is_taken_where_it_loads(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let run = scene.run(&["scan", "--json", "."])?;
    same!("source", scene.report(&run)?.source, "bpf");
    same!("complaints", run.complaints()?.len(), 0);
    Ok(())
}

fn bpf_sees_everything_as_root(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let run = scene.run(&["scan", "--json", "--source", "bpf", "."])?;
    let report = scene.report(&run)?;
    ensure!(report.complete, "not complete: {:?}", report.limits);
    Ok(())
}

/// What both sources must agree on.
fn essence(scene: &Scene, report: &Report) -> Result<BTreeSet<String>> {
    let folder = format!("{}/", scene.folder().display());
    let mut lines = BTreeSet::new();
    for lock in &report.locks {
        let path = lock.path.as_deref().and_then(|path| path.strip_prefix(&folder));
        let path = path.context("a lock outside of the folder")?;
        let mut holders: Vec<_> =
            lock.holders.iter().map(|holder| (holder.pid, holder.fd, &holder.via)).collect();
        holders.sort();
        let mut waiters: Vec<_> = lock
            .waiters
            .iter()
            .map(|waiter| (waiter.pid, &waiter.access, waiter.blocked_by.len()))
            .collect();
        waiters.sort();
        lines.insert(format!(
            "{path} {} {} {}-{:?} {} {:?} by {:?} alive {:?}, held by {holders:?}, \
             awaited by {waiters:?}",
            lock.kind,
            lock.access,
            lock.start,
            lock.end,
            lock.verdict(),
            lock.flags,
            lock.acquirer()?.pid,
            lock.acquirer()?.alive,
        ));
    }
    Ok(lines)
}

fn both_sources_tell_the_same(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play(
        "start many
         many: open a ranges
         many: posix a wr 0 9
         many: posix a rd 20 29
         many: open b leased
         many: lease b wr
         many: open c gone
         many: flock c ex
         many: unlink gone
         start one
         one: open a shared
         one: flock a sh
         start two
         two: open a shared
         two: flock a sh
         two: fork child
         start waiter
         waiter: open a shared
         waiter: later flock a ex
         await waiter blocked
         start shell
         shell: open a idiom
         shell: fork locker
         locker: flock a ex
         locker: exit 0
         start parent
         parent: open a daemon
         parent: flock a ex
         parent: fork daemon
         parent: exit 0",
    )?;
    let told = |source: &str| -> Result<BTreeSet<String>> {
        let run = scene.run(&["scan", "--json", "--source", source, "."])?;
        essence(scene, &scene.report(&run)?)
    };
    let (bpf, procfs) = (told("bpf")?, told("procfs")?);
    let only = |these: &BTreeSet<String>, those: &BTreeSet<String>| -> String {
        these.difference(those).map(String::as_str).collect::<Vec<_>>().join("\n  ")
    };
    ensure!(
        bpf == procfs,
        "bpf alone:\n  {}\nprocfs alone:\n  {}",
        only(&bpf, &procfs),
        only(&procfs, &bpf)
    );
    same!("locks", bpf.len(), 9);
    Ok(())
}

fn without_privilege_it_falls_back_and_says_so_once(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let run = scene.public_lockwatch(&["scan", "--json", "."])?.as_nobody().run()?;
    let report = scene.report(&run)?;
    same!("source", report.source, "procfs");
    ensure!(!report.complete, "it claims to have seen everything");
    ensure!(!report.limits.is_empty(), "it does not say what it could not read");
    let complaints = run.complaints()?;
    same!("complaints", complaints.len(), 1);
    let line = complaints.first().context("no complaint")?;
    ensure!(line.starts_with("lockwatch: ") && line.contains("/proc"), "{line:?}");
    Ok(())
}

fn without_privilege_bpf_is_refused_in_one_line(scene: &mut Scene) -> Result<()> {
    let args = ["scan", "--source", "bpf"];
    scene.public_lockwatch(&args)?.as_nobody().run()?.fails_in_one_line()?;
    Ok(())
}

fn without_privilege_own_locks_are_told_fully(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play("owner: become 65534")?;
    let run = scene.public_lockwatch(&["scan", "--json"])?.as_nobody().run()?;
    let report = scene.report(&run)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.acquired_by_living(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("owner")?])?;
    same!("path", lock.path, Some(scene.path_text("lock")?));
    Ok(())
}

fn without_privilege_nothing_is_called_orphaned(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play(
        "start holder
         holder: open a held
         holder: flock a ex
         start shell
         shell: open a shared
         shell: fork locker
         locker: flock a ex
         locker: exit 0",
    )?;
    let run = scene.public_lockwatch(&["scan", "--json"])?.as_nobody().run()?;
    let report = scene.report(&run)?;
    // Root's descriptors cannot be read, so who has the descriptions cannot be told.
    for name in ["lock", "shared"] {
        let lock = report.only_lock_on(&scene.file(name)?)?;
        lock.is("unknown")?;
        ensure!(!lock.evidence.is_empty(), "no word about why: {lock:?}");
    }
    report.only_lock_on(&scene.file("held")?)?.is_one_of(&["held", "unknown"])
}
