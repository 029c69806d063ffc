//! Who may hold a lock, and which locks nobody was meant to hold any more.
//!
//! A false orphan that is reclaimed is two writers in one file: so every idiom that looks like an
//! orphan and is none has its test here, beside the real ones.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{each_source, same};

use crate::stories::{HELD, LEAKED, SHELL_IDIOM};

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_leak_across_exec_is_orphaned).procfs_needs(&["every-process"]),
    each_source!(a_leak_into_another_program_is_orphaned)
        .needs(&["program:cat"])
        .procfs_needs(&["every-process"]),
    each_source!(a_leaked_ofd_lock_is_orphaned),
    each_source!(a_leaked_lease_is_orphaned).procfs_needs(&["every-process"]),
    each_source!(an_unreaped_acquirer_counts_as_dead).procfs_needs(&["every-process"]),
    each_source!(the_shell_idiom_is_shared),
    each_source!(the_shell_idiom_of_a_real_shell_is_shared).needs(&[
        "program:sh",
        "program:flock",
        "program:cat",
    ]),
    each_source!(a_daemon_that_forks_after_locking_hands_over),
    each_source!(a_daemon_that_forks_twice_hands_over),
    each_source!(forked_children_of_a_killed_process_are_handed_over),
    each_source!(a_leak_beside_an_older_holder_is_shared),
    each_source!(a_leak_beside_a_forked_child_is_handed_over),
    each_source!(an_acquirer_that_execs_still_holds),
    each_source!(a_leak_is_no_finding_while_the_acquirer_holds),
    each_source!(a_prefork_server_holds),
    each_source!(the_flock_command_holds_while_its_command_runs)
        .needs(&["program:flock", "program:cat"]),
    each_source!(an_acquirer_that_closed_its_descriptor_is_detached),
    each_source!(a_recycled_pid_is_not_blamed).needs(&["choose-pid"]),
    each_source!(a_recycled_pid_does_not_hide_a_leak).needs(&["choose-pid"]),
];

fn a_leak_across_exec_is_orphaned(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.acquired_by_dead(scene.pid("owner")?)?;
    same!("recycled", lock.acquirer()?.recycled, Some(false));
    lock.held_by(&[scene.pid("heir")?])?;
    same!("findings", report.findings.len(), 1);
    for finding in &report.findings {
        same!("the finding's kind", finding.kind, "orphaned_lock");
        ensure!(!finding.message.is_empty(), "a finding without a message");
    }
    same!("orphans counted", report.summary.orphaned, 1);
    Ok(())
}

fn a_leak_into_another_program_is_orphaned(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: spawn cat cat
         owner: die KILL",
    )?;
    let report = scene.scan_machine()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.held_by(&[scene.pid("cat")?])?;
    let comms: Vec<_> = lock.holders.iter().map(|holder| holder.comm.as_deref()).collect();
    same!("the holder's comm", comms, [Some("cat")]);
    Ok(())
}

fn a_leaked_ofd_lock_is_orphaned(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: ofd a wr 10 19
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.looks_like("OFDLCK WRITE 10-19")?;
    lock.held_by(&[scene.pid("heir")?])?;
    if scene.is_bpf() {
        lock.is("orphaned/inherited")?;
        lock.acquired_by_dead(scene.pid("owner")?)
    } else {
        // /proc does not tell who takes OFD locks, so it cannot tell an orphan either.
        lock.is("unknown")
    }
}

fn a_leaked_lease_is_orphaned(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: lease a wr
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.looks_like("LEASE WRITE 0-eof")?;
    lock.is("orphaned/inherited")?;
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("heir")?])
}

fn an_unreaped_acquirer_counts_as_dead(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork heir
         heir: exec",
    )?;
    scene.dies_unreaped("owner", "die KILL")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.acquired_by_dead(scene.pid("owner")?)?;
    same!("recycled", lock.acquirer()?.recycled, Some(false));
    lock.held_by(&[scene.pid("heir")?])
}

fn the_shell_idiom_is_shared(scene: &mut Scene) -> Result<()> {
    scene.play(SHELL_IDIOM)?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    lock.acquired_by_dead(scene.pid("locker")?)?;
    lock.held_by(&[scene.pid("shell")?])?;
    same!("findings", report.findings.len(), 0);
    Ok(())
}

fn the_shell_idiom_of_a_real_shell_is_shared(scene: &mut Scene) -> Result<()> {
    // cat is for the shell to wait for: it ends with the test.
    std::fs::write(scene.path("script"), "exec 9>lock\nflock 9\n: > ready\ncat <&0\n")?;
    scene.play(
        "start starter
         starter: spawn shell sh script",
    )?;
    patience::until("the lock of the shell", || Ok(scene.path("ready").exists().then_some(())))?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    same!("the acquirer lives", lock.acquirer()?.alive, Some(false));
    let shell = scene.pid("shell")?;
    ensure!(
        lock.holders.iter().any(|holder| holder.pid == Some(shell) && holder.fd == Some(9)),
        "the shell is no holder: {lock:?}"
    );
    Ok(())
}

fn a_daemon_that_forks_after_locking_hands_over(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork daemon
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("handed_over")?;
    // That it exited cleanly, only history can tell.
    same!("confidence", lock.confidence, "likely");
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("daemon")?])?;
    same!("findings", report.findings.len(), 0);
    Ok(())
}

fn a_daemon_that_forks_twice_hands_over(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork between
         owner: exit 0
         between: fork daemon
         between: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("handed_over")?;
    same!("confidence", lock.confidence, "likely");
    lock.held_by(&[scene.pid("daemon")?])
}

fn forked_children_of_a_killed_process_are_handed_over(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork one
         owner: fork two
         owner: die KILL",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    // That it crashed, only history can tell.
    lock.is("handed_over")?;
    same!("confidence", lock.confidence, "likely");
    lock.held_by(&[scene.pid("one")?, scene.pid("two")?])?;
    same!("findings", report.findings.len(), 0);
    Ok(())
}

fn a_leak_beside_an_older_holder_is_shared(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start shell
         shell: open a lock
         shell: fork locker
         locker: flock a ex
         locker: fork leak
         leak: exec
         locker: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    lock.held_by(&[scene.pid("shell")?, scene.pid("leak")?])
}

fn a_leak_beside_a_forked_child_is_handed_over(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork leak
         leak: exec
         owner: fork daemon
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("handed_over")?;
    lock.held_by(&[scene.pid("daemon")?, scene.pid("leak")?])
}

fn an_acquirer_that_execs_still_holds(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play("owner: exec")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.acquired_by_living(scene.pid("owner")?)
}

fn a_leak_is_no_finding_while_the_acquirer_holds(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork leak
         leak: exec",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.held_by(&[scene.pid("owner")?, scene.pid("leak")?])?;
    same!("findings", report.findings.len(), 0);
    Ok(())
}

fn a_prefork_server_holds(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let mut pids = vec![scene.pid("owner")?];
    for worker in ["w1", "w2", "w3", "w4"] {
        scene.play(&format!("owner: fork {worker}"))?;
        pids.push(scene.pid(worker)?);
    }
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.held_by(&pids)?;
    lock.does_not_raise("acquirer_detached")
}

fn the_flock_command_holds_while_its_command_runs(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start starter
         starter: spawn flock flock lock cat",
    )?;
    let pid = scene.pid("flock")?;
    let report = patience::until("the lock of flock(1)", || {
        let report = scene.scan()?;
        let found = scene.path("lock").exists()
            && report.locks_on(&scene.file("lock")?).iter().any(|lock| lock.holders.len() == 2);
        Ok(found.then_some(report))
    })?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    lock.acquired_by_living(pid)
}

fn an_acquirer_that_closed_its_descriptor_is_detached(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "owner: fork child
         owner: close a",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.raises("acquirer_detached")?;
    lock.acquired_by_living(scene.pid("owner")?)?;
    lock.held_by(&[scene.pid("child")?])?;
    ensure!(lock.state != "orphaned", "its acquirer lives: {lock:?}");
    ensure!(lock.state != "held", "its acquirer does not hold it: {lock:?}");
    Ok(())
}

fn a_recycled_pid_is_not_blamed(scene: &mut Scene) -> Result<()> {
    scene.play("start warden")?;
    scene.play(HELD)?;
    scene.play(
        "owner: fork child
         owner: exit 0
         await tick
         warden: fork bystander as {owner}",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.raises("pid_recycled")?;
    lock.is_one_of(&["handed_over", "unknown"])?;
    let acquirer = lock.acquirer()?;
    same!("recycled", acquirer.recycled, Some(true));
    same!("alive", acquirer.alive, Some(false));
    // The bystander's name, program and age are not the acquirer's.
    same!("comm", acquirer.comm, None);
    same!("executable", acquirer.exe, None);
    same!("start", acquirer.start_time, None);
    lock.held_by(&[scene.pid("child")?])
}

fn a_recycled_pid_does_not_hide_a_leak(scene: &mut Scene) -> Result<()> {
    scene.play("start warden")?;
    scene.play(LEAKED)?;
    scene.play(
        "await tick
         warden: fork bystander as {owner}",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.raises("pid_recycled")?;
    lock.is_one_of(&["orphaned/inherited", "unknown"])?;
    same!("recycled", lock.acquirer()?.recycled, Some(true));
    lock.held_by(&[scene.pid("heir")?])
}
