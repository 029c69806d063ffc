//! What keeps a lock that is in flight in a unix socket: found, named, and proven.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

const NEEDS: &[&str] = &["root", "iter/task_file"];

pub(crate) const TESTS: &[Test] = &[
    once!(it_is_kept_by_whoever_has_the_receiving_socket).needs(NEEDS),
    once!(every_process_that_has_the_receiving_socket_is_named).needs(NEEDS),
    once!(a_socket_that_is_itself_in_flight_is_looked_into).needs(NEEDS),
    once!(a_connection_that_nobody_accepted_is_looked_into).needs(NEEDS),
    once!(the_name_of_the_socket_is_told_in_sentences).needs(NEEDS),
    once!(an_ofd_lock_and_a_lease_in_flight_are_found_too).needs(NEEDS),
    once!(a_socket_of_another_network_namespace_is_looked_into).needs(&[
        "root",
        "iter/task_file",
        "netns",
    ]),
    once!(a_living_acquirer_that_has_the_socket_itself_holds_it).needs(NEEDS),
    once!(a_living_acquirer_that_gave_it_away_is_no_finding).needs(NEEDS),
    once!(what_is_received_within_the_grace_is_the_receivers).needs(NEEDS),
    once!(what_was_received_long_ago_is_the_receivers).needs(NEEDS),
    once!(it_is_found_among_thousands_of_locks_and_sockets).needs(NEEDS),
    once!(a_descriptor_that_leaked_as_well_is_named_beside_the_socket).needs(NEEDS),
];

/// `keeper` has both ends of a pair; `owner`, its child, locked `lock`, sent it and died.
const IN_FLIGHT: &str = "
    start keeper
    keeper: socketpair tx rx
    keeper: fork owner
    owner: open a lock
    owner: flock a ex
    owner: send tx a
    owner: exit 0";

fn it_is_kept_by_whoever_has_the_receiving_socket(scene: &mut Scene) -> Result<()> {
    scene.play(IN_FLIGHT)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    same!("confidence", lock.confidence, "certain");
    lock.acquired_by_dead(scene.pid("owner")?)?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?])?;
    lock.rests_on("it is in flight in the queue of the unix socket")?;
    // The receiving end, and not the sending one: the pair was made in this order.
    let rx = scene.direct("keeper: dup rx copy")?;
    ensure!(rx.contains("fd="), "said {rx:?}");
    let links = crate::kernel::descriptors(scene.pid("keeper")?)?;
    let fd = lock.holders[0].fd.context("no descriptor")?;
    let link = links.iter().find(|(number, _)| u64::try_from(*number) == Ok(fd));
    let copy = rx.rsplit('=').next().and_then(|fd| fd.parse::<i32>().ok());
    let (_, copy) = links.iter().find(|(number, _)| Some(*number) == copy).context("no copy")?;
    same!("the socket", link.map(|(_, link)| link.clone()), Some(copy.clone()));
    Ok(())
}

fn every_process_that_has_the_receiving_socket_is_named(scene: &mut Scene) -> Result<()> {
    scene.play(IN_FLIGHT)?;
    scene.play(
        "keeper: fork worker
         keeper: fork sender
         sender: close rx",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?, scene.pid("worker")?])
}

fn a_socket_that_is_itself_in_flight_is_looked_into(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: socketpair outer-tx outer-rx
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: send outer-tx rx
         owner: exit 0
         keeper: close rx
         keeper: close tx",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?])?;
    lock.rests_on("which is itself in flight or registered, 1 deep")
}

fn a_connection_that_nobody_accepted_is_looked_into(scene: &mut Scene) -> Result<()> {
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
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?])?;
    lock.rests_on("a unix socket that nobody accepted yet")
}

fn the_name_of_the_socket_is_told_in_sentences(scene: &mut Scene) -> Result<()> {
    scene.play(
        r"start keeper
         keeper: listen door so\ecket
         start owner
         owner: open a lock
         owner: flock a ex
         owner: connect visitor so\ecket
         owner: send visitor a
         owner: exit 0",
    )?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?.to_owned();
    let keeper = scene.pid("keeper")?;
    for sentence in [
        "It is orphaned/scm_rights: its acquirer is gone, and it is in flight in a socket that \
         nobody reads."
            .to_owned(),
        r"(bound to so\x1bcket)".to_owned(),
        format!("of rig (pid {keeper}), descriptor "),
        format!("It ends when rig (pid {keeper}) receives what is in flight"),
    ] {
        ensure!(text.contains(&sentence), "no {sentence:?} in {text}");
    }
    Ok(())
}

fn an_ofd_lock_and_a_lease_in_flight_are_found_too(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a ofd
         owner: ofd a wr 0 9
         owner: send tx a
         owner: open b lease
         owner: close b
         owner: open b lease ro
         owner: lease b rd
         owner: send tx b
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    for name in ["ofd", "lease"] {
        let lock = report.only_lock_on(&scene.file(name)?)?;
        lock.is("orphaned/scm_rights").context(name)?;
        lock.held_via("scm_rights", &[scene.pid("keeper")?])?;
    }
    Ok(())
}

fn a_socket_of_another_network_namespace_is_looked_into(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: unshare net
         keeper: listen door socket
         start owner
         owner: open a lock
         owner: flock a ex
         owner: connect visitor socket
         owner: send visitor a
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?])
}

fn a_living_acquirer_that_has_the_socket_itself_holds_it(scene: &mut Scene) -> Result<()> {
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
    lock.acquired_by_living(scene.pid("owner")?)?;
    lock.held_via("scm_rights", &[scene.pid("owner")?])
}

fn a_living_acquirer_that_gave_it_away_is_no_finding(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: close a
         owner: close rx",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("unknown")?;
    lock.raises("acquirer_detached")?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?])
}

fn what_is_received_within_the_grace_is_the_receivers(scene: &mut Scene) -> Result<()> {
    scene.play(IN_FLIGHT)?;
    let path = scene.path_text("lock")?;
    let args = ["scan", "--json", "--source", "bpf", &path];
    let scan = scene.lockwatch(&args)?.start()?;
    // The first reading is over by now, or is not begun: either way the second one comes later.
    std::thread::sleep(std::time::Duration::from_millis(150));
    scene.play("keeper: receive rx a")?;
    let report = scene.report(scan.finish()?.exits(0)?)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    lock.held_via("fd", &[scene.pid("keeper")?])
}

fn what_was_received_long_ago_is_the_receivers(scene: &mut Scene) -> Result<()> {
    scene.play(IN_FLIGHT)?;
    scene.play("keeper: receive rx a")?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("shared")?;
    lock.held_via("fd", &[scene.pid("keeper")?])
}

fn it_is_found_among_thousands_of_locks_and_sockets(scene: &mut Scene) -> Result<()> {
    scene.new_folder("crowd")?;
    scene.play(
        "start other
         other: mass files 3000 crowd
         other: mass sockets 4000",
    )?;
    scene.play(IN_FLIGHT)?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?])
}

fn a_descriptor_that_leaked_as_well_is_named_beside_the_socket(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: close rx
         owner: close tx
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.held_by(&[scene.pid("heir")?, scene.pid("keeper")?])
}
