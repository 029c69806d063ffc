//! Locks of containers: who holds them, in whose numbers, and what a look from inside can show.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{ControlGroup, Scene, Test};
use lockwatch_tests::{each_source, once, same};

pub(crate) const TESTS: &[Test] = &[
    each_source!(an_acquirer_in_a_container_has_its_id).needs(&["cgroup2", "pidns"]),
    each_source!(a_holder_in_a_container_has_its_id_and_its_own_pid)
        .needs(&["cgroup2", "pidns"])
        .procfs_needs(&["every-process"]),
    once!(the_container_is_told_in_sentences).needs(&[
        "root",
        "iter/task_file",
        "cgroup2",
        "pidns",
    ]),
    once!(a_lock_in_flight_in_a_container_is_explained_from_outside).needs(&[
        "root",
        "iter/task_file",
        "cgroup2",
        "pidns",
    ]),
    once!(inside_with_privilege_the_limits_say_what_is_outside).needs(&[
        "root",
        "iter/task_file",
        "pidns",
        "mounts",
    ]),
    once!(inside_without_privilege_the_limits_say_what_is_outside)
        .needs(&["root", "nobody", "pidns", "mounts"]),
    once!(inside_a_lock_in_flight_is_shown_and_no_orphan).needs(&[
        "root",
        "iter/task_file",
        "pidns",
        "mounts",
    ]),
];

/// As long as the runtimes' own, and nobody's.
const ID: &str = "10c4a7c410c4a7c410c4a7c410c4a7c410c4a7c410c4a7c410c4a7c410c4a7c4";

/// `init` is the first process of a pid namespace, in the group of a container.
fn container(scene: &mut Scene) -> Result<ControlGroup> {
    // Tests may run beside each other.
    let slice = format!("lockwatch-test-{}.slice", std::process::id());
    let group = ControlGroup::new(&format!("{slice}/docker-{ID}.scope"))?;
    scene.play(
        "start outside
         outside: fork init pidns",
    )?;
    group.add(scene.pid("init")?)?;
    Ok(group)
}

fn docker() -> Option<(String, String)> {
    Some(("docker".to_owned(), ID.to_owned()))
}

fn an_acquirer_in_a_container_has_its_id(scene: &mut Scene) -> Result<()> {
    let _group = container(scene)?;
    scene.play(
        "init: fork owner
         owner: open a lock
         owner: flock a ex",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    same!("container", lock.acquirer()?.container, docker());
    same!("its own pid", lock.acquirer()?.ns_pid, Some(scene.own_ids("owner")?.0));
    let cgroup = lock.acquirer()?.cgroup.clone().context("no control group")?;
    ensure!(cgroup.contains(".slice/docker-"), "it is in {cgroup}");
    Ok(())
}

fn a_holder_in_a_container_has_its_id_and_its_own_pid(scene: &mut Scene) -> Result<()> {
    let _group = container(scene)?;
    scene.play(
        "init: fork owner
         owner: open a lock
         owner: flock a ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/inherited")?;
    lock.held_by(&[scene.pid("heir")?])?;
    same!("container", lock.holders[0].container, docker());
    same!("its own pid", lock.holders[0].ns_pid, Some(scene.own_ids("heir")?.0));
    Ok(())
}

fn the_container_is_told_in_sentences(scene: &mut Scene) -> Result<()> {
    let _group = container(scene)?;
    scene.play(
        "init: fork owner
         owner: open a lock
         owner: flock a ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let path = scene.path_text("lock")?;
    let run = scene.run(&["explain", &path, "--source", "bpf"])?;
    let text = run.exits(1)?.text()?.to_owned();
    let (heir, (inner, _)) = (scene.pid("heir")?, scene.own_ids("heir")?);
    let sentence = format!(
        "rig (pid {heir}), pid {inner} in its own pid namespace, in docker container 10c4a7c410c4, \
         holds it as descriptor "
    );
    ensure!(text.contains(&sentence), "no {sentence:?} in {text}");
    Ok(())
}

fn a_lock_in_flight_in_a_container_is_explained_from_outside(scene: &mut Scene) -> Result<()> {
    let _group = container(scene)?;
    scene.play(
        "init: fork keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: exit 0",
    )?;
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("orphaned/scm_rights")?;
    lock.held_via("scm_rights", &[scene.pid("keeper")?])?;
    same!("container", lock.holders[0].container, docker());
    same!("its own pid", lock.holders[0].ns_pid, Some(scene.own_ids("keeper")?.0));
    Ok(())
}

/// `init` is the first process of a pid namespace, with a /proc of its own; `owner`, in it, is dead
/// and left its lock to `heir`, and `outside` locks the same file's neighbour.
const INSIDE: &str = "
    start outside
    outside: open b elsewhere
    outside: flock b ex
    outside: close b
    outside: open b outer
    outside: flock b ex
    outside: fork init pidns mounts
    init: close b
    init: mount proc /proc
    init: fork owner
    owner: open a lock
    owner: flock a ex
    owner: fork heir
    heir: exec
    owner: exit 0";

fn inside_with_privilege_the_limits_say_what_is_outside(scene: &mut Scene) -> Result<()> {
    scene.play(INSIDE)?;
    let run = scene.lockwatch_run_by("init", &["scan", "--json", "--source", "bpf"])?;
    let report = scene.report(&run)?;
    ensure!(!report.complete, "it claims to have seen everything");
    let told = report.limits.iter().any(|limit| limit.contains("of this pid namespace only"));
    ensure!(told, "the limits do not say so: {:?}", report.limits);
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.raises("pid_zero")?;
    lock.held_by(&[scene.own_ids("heir")?.0])?;
    // A lock of a living process outside is in the kernel's lists, and nobody's in here.
    let outer = report.only_lock_on(&scene.file("outer")?)?;
    outer.is("unknown")?;
    same!("holders", outer.holders.len(), 0);
    Ok(())
}

fn inside_without_privilege_the_limits_say_what_is_outside(scene: &mut Scene) -> Result<()> {
    scene.play(INSIDE)?;
    // Its own output it must be able to write.
    scene.play(
        "init: fork visitor
         visitor: become 65534",
    )?;
    let folder = scene.folder().to_owned();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let run = scene.lockwatch_run_by("visitor", &["scan", "--json"])?;
    let report = scene.report(&run)?;
    same!("source", report.source, "procfs");
    ensure!(!report.complete, "it claims to have seen everything");
    for words in ["in this pid namespace /proc/locks leaves out locks", "Permission denied"] {
        let told = report.limits.iter().any(|limit| limit.contains(words));
        ensure!(told, "the limits do not say {words:?}: {:?}", report.limits);
    }
    Ok(())
}

fn inside_a_lock_in_flight_is_shown_and_no_orphan(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start outside
         outside: fork init pidns mounts
         init: mount proc /proc
         init: fork keeper
         keeper: socketpair tx rx
         keeper: fork owner
         owner: open a lock
         owner: flock a ex
         owner: send tx a
         owner: exit 0",
    )?;
    let run = scene.lockwatch_run_by("init", &["scan", "--json", "--source", "bpf"])?;
    let report = scene.report(&run)?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    // In here nobody can tell whether the acquirer is dead or lives outside.
    lock.is("unknown")?;
    lock.held_via("scm_rights", &[scene.own_ids("keeper")?.0])
}
