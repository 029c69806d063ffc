//! The rig does what it is told: shown by what the kernel says, without `lockwatch`.
//!
//! Where one of these fails, the other themes' failures say nothing about `lockwatch`.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{once, same};

use crate::kernel;

pub(crate) const TESTS: &[Test] = &[
    once!(every_kind_of_lock_is_taken).without_lockwatch(),
    once!(a_lock_that_is_not_free_is_an_error).without_lockwatch(),
    once!(a_waiter_waits_until_the_lock_is_free).without_lockwatch(),
    once!(a_lease_break_waits).without_lockwatch(),
    once!(a_fork_child_outlives_its_parent_with_the_lock).without_lockwatch(),
    once!(an_exec_keeps_what_leaks_and_only_that).without_lockwatch(),
    once!(another_program_inherits_what_leaks).without_lockwatch().needs(&["program:cat"]),
    once!(a_thread_can_have_an_fd_table_of_its_own).without_lockwatch(),
    once!(a_leader_can_leave_its_threads).without_lockwatch(),
    once!(a_posix_lock_outlives_its_owner_in_a_shared_fd_table).without_lockwatch(),
    once!(a_child_can_get_a_dead_ones_pid).without_lockwatch().needs(&["choose-pid"]),
    once!(a_pid_namespace_hides_a_dead_acquirer).without_lockwatch().needs(&["root", "pidns"]),
    once!(a_description_lives_on_in_a_socket).without_lockwatch(),
    once!(a_description_lives_on_in_a_listeners_queue).without_lockwatch(),
    once!(a_description_lives_on_in_a_mapping).without_lockwatch(),
    once!(a_description_lives_on_in_a_ring).without_lockwatch(),
    once!(a_file_is_unlinked_and_replaced).without_lockwatch(),
    once!(any_bytes_make_a_name).without_lockwatch(),
    once!(an_actor_can_become_nobody).without_lockwatch().needs(&["nobody"]),
    once!(masses_are_complete).without_lockwatch().within(Duration::from_secs(60)),
    once!(an_exit_status_can_be_left_unread).without_lockwatch(),
    once!(two_fresh_tmpfs_number_their_files_alike).without_lockwatch().needs(&["root", "mounts"]),
    once!(locks_through_an_overlay_do_not_meet_those_below)
        .without_lockwatch()
        .needs(&["root", "mounts", "overlay"]),
];

fn every_kind_of_lock_is_taken(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a flock
         owner: flock a ex
         owner: open b posix
         owner: posix b wr 0 99
         owner: posix b rd 200 eof
         owner: open c ofd
         owner: ofd c rd 10 19
         owner: open d lease
         owner: lease d wr",
    )?;
    let pid = scene.pid("owner")?;
    let shown = |name: &str| kernel::proc_locks_on(&scene.file(name)?);
    same!("flock", shown("flock")?, [format!("FLOCK ADVISORY WRITE {pid} 0 EOF")]);
    let mut posix = shown("posix")?;
    posix.sort();
    let expected =
        [format!("POSIX ADVISORY READ {pid} 200 EOF"), format!("POSIX ADVISORY WRITE {pid} 0 99")];
    same!("posix", posix, expected);
    same!("ofd", shown("ofd")?, ["OFDLCK ADVISORY READ -1 10 19"]);
    same!("lease", shown("lease")?, [format!("LEASE ACTIVE WRITE {pid} 0 EOF")]);
    scene.play("owner: flock a un")?;
    same!("given up", kernel::proc_locks_on(&scene.file("flock")?)?.len(), 0);
    Ok(())
}

fn a_lock_that_is_not_free_is_an_error(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         start other
         other: open a lock",
    )?;
    ensure!(scene.direct("other: flock a sh").is_err(), "two owners of an exclusive lock");
    ensure!(scene.direct("other: flock nothing sh").is_err(), "a lock on nothing");
    ensure!(scene.direct("nobody: flock a sh").is_err(), "an order to nobody");
    scene.play("other: close a")
}

fn a_waiter_waits_until_the_lock_is_free(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         start waiter
         waiter: open a lock
         waiter: later flock a ex
         await waiter blocked",
    )?;
    let (owner, waiter) = (scene.pid("owner")?, scene.pid("waiter")?);
    let expected = [
        format!("FLOCK ADVISORY WRITE {owner} 0 EOF"),
        format!("-> FLOCK ADVISORY WRITE {waiter} 0 EOF"),
    ];
    same!("locks", kernel::proc_locks_on(&scene.file("lock")?)?, expected);
    scene.play(
        "owner: exit 0
         await waiter done",
    )?;
    let expected = [format!("FLOCK ADVISORY WRITE {waiter} 0 EOF")];
    same!("locks afterwards", kernel::proc_locks_on(&scene.file("lock")?)?, expected);
    Ok(())
}

fn a_lease_break_waits(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a leased
         owner: lease a wr
         start breaker
         breaker: later open b leased wo
         await breaker blocked",
    )?;
    let locks = fs::read_to_string("/proc/locks")?;
    ensure!(locks.contains("<none>:0"), "no blocked break in /proc/locks:\n{locks}");
    let pid = scene.pid("owner")?;
    let shown = kernel::proc_locks_on(&scene.file("leased")?)?;
    same!("the lease", shown, [format!("LEASE BREAKING UNLCK {pid} 0 EOF")]);
    scene.play(
        "owner: lease a un
         await breaker done",
    )
}

fn a_fork_child_outlives_its_parent_with_the_lock(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: fork heir
         owner: die KILL",
    )?;
    let (owner, heir) = (scene.pid("owner")?, scene.pid("heir")?);
    let file = scene.file("lock")?;
    let expected = [format!("FLOCK ADVISORY WRITE {owner} 0 EOF")];
    same!("locks", kernel::proc_locks_on(&file)?, expected);
    same!("the heir's", kernel::fdinfo_locks_on(heir, &file)?, expected);
    ensure!(kernel::has_not_execd(heir)?, "the heir counts as exec'd");
    scene.play("heir: flock a un")?;
    same!("released", kernel::proc_locks_on(&file)?.len(), 0);
    Ok(())
}

fn an_exec_keeps_what_leaks_and_only_that(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a leaky
         owner: flock a ex
         owner: open b tight rw cloexec
         owner: flock b ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let heir = scene.pid("heir")?;
    ensure!(!kernel::has_not_execd(heir)?, "the heir does not count as exec'd");
    let locks = kernel::fdinfo_locks_on(heir, &scene.file("leaky")?)?;
    same!("what leaked", locks.len(), 1);
    same!("what did not", kernel::proc_locks_on(&scene.file("tight")?)?.len(), 0);
    // The names survive the exec too.
    scene.play("heir: flock a un")?;
    ensure!(scene.direct("heir: flock b un").is_err(), "a closed descriptor has a name");
    // Standard input, output and error, the lock, and the connection.
    let numbers: Vec<_> = kernel::descriptors(heir)?.into_iter().map(|(fd, _)| fd).collect();
    same!("descriptors", numbers, [0, 1, 2, 3, 500]);
    Ok(())
}

fn another_program_inherits_what_leaks(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: spawn cat cat
         owner: abort",
    )?;
    let cat = scene.pid("cat")?;
    same!("locks", kernel::fdinfo_locks_on(cat, &scene.file("lock")?)?.len(), 1);
    scene.play("kill cat")?;
    same!("locks", kernel::proc_locks_on(&scene.file("lock")?)?.len(), 0);
    Ok(())
}

fn a_thread_can_have_an_fd_table_of_its_own(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: thread worker own-files
         worker: open a lock
         worker: flock a ex",
    )?;
    let (owner, worker) = (scene.pid("owner")?, scene.pid("worker")?);
    same!("the process", worker, owner);
    let (_, tid) = scene.own_ids("worker")?;
    ensure!(tid != owner, "the thread is the leader");
    let file = scene.file("lock")?;
    same!("the leader's", kernel::fdinfo_locks_on(owner, &file)?.len(), 0);
    let threads = format!("/proc/{owner}/task/{tid}/fd");
    let lock = scene.path("lock");
    let links = fs::read_dir(threads)?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    same!("the thread's", links.filter(|link| *link == lock).count(), 1);
    same!("locks", kernel::proc_locks_on(&file)?.len(), 1);
    Ok(())
}

fn a_leader_can_leave_its_threads(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: thread worker
         owner: leave
         await owner zombie
         worker: flock a sh",
    )?;
    let pid = scene.pid("owner")?;
    let expected = [format!("FLOCK ADVISORY READ {pid} 0 EOF")];
    same!("locks", kernel::proc_locks_on(&scene.file("lock")?)?, expected);
    Ok(())
}

fn a_posix_lock_outlives_its_owner_in_a_shared_fd_table(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: posix a wr 0 eof
         owner: fork heir files
         owner: exit 0",
    )?;
    let file = scene.file("lock")?;
    let owner = scene.pid("owner")?;
    let expected = [format!("POSIX ADVISORY WRITE {owner} 0 EOF")];
    same!("locks", kernel::proc_locks_on(&file)?, expected);
    scene.play("heir: exit 0")?;
    same!("locks afterwards", kernel::proc_locks_on(&file)?.len(), 0);
    Ok(())
}

fn a_child_can_get_a_dead_ones_pid(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start warden
         start owner
         owner: exit 0
         warden: fork bystander as {owner}",
    )?;
    same!("the pid", scene.pid("bystander")?, scene.pid("owner")?);
    Ok(())
}

fn a_pid_namespace_hides_a_dead_acquirer(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start outside
         outside: fork init pidns mounts
         init: mount proc /proc
         init: open a lock
         init: fork owner
         owner: flock a ex",
    )?;
    same!("init's own pid", scene.own_ids("init")?.0, 1);
    let file = scene.file("lock")?;
    let owner = scene.pid("owner")?;
    let (inner, _) = scene.own_ids("owner")?;
    let identity = format!("{}:{}", file.dev, file.ino);
    let line = |text: &str| {
        let line = text.lines().find(|line| line.contains(&identity)).unwrap_or_default();
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        words.split_at(words.len().min(1)).1.join(" ")
    };
    let descriptor = "/proc/self/fdinfo/3";
    let held = scene.shown_to("init", descriptor)?;
    // `lock:`, a tab, the number, and then the same as in /proc/locks.
    let entry = format!("1: FLOCK ADVISORY WRITE {inner} {identity} 0 EOF");
    same!("in fdinfo", line(&held), entry);
    scene.play("owner: exit 0")?;
    let held = scene.shown_to("init", descriptor)?;
    let entry = format!("1: FLOCK ADVISORY WRITE 0 {identity} 0 EOF");
    same!("in fdinfo, once it is dead", line(&held), entry);
    same!("in /proc/locks then", line(&scene.shown_to("init", "/proc/locks")?), "");
    let outside = [format!("FLOCK ADVISORY WRITE {owner} 0 EOF")];
    same!("outside", kernel::proc_locks_on(&file)?, outside);
    Ok(())
}

fn only_the_lock_is_left(scene: &Scene) -> Result<()> {
    let file = scene.file("lock")?;
    let owner = scene.pid("owner")?;
    same!("locks", kernel::proc_locks_on(&file)?.len(), 1);
    same!("the owner's descriptors of it", kernel::fdinfo_locks_on(owner, &file)?.len(), 0);
    Ok(())
}

fn a_description_lives_on_in_a_socket(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: socketpair tx rx
         owner: send tx a
         owner: close a",
    )?;
    only_the_lock_is_left(scene)?;
    // A socket in flight carries others: nested.
    scene.play(
        "owner: socketpair outer-tx outer-rx
         owner: send outer-tx rx
         owner: close rx",
    )?;
    only_the_lock_is_left(scene)?;
    scene.play(
        "owner: receive outer-rx inner
         owner: receive inner a
         owner: flock a un",
    )?;
    same!("locks", kernel::proc_locks_on(&scene.file("lock")?)?.len(), 0);
    Ok(())
}

fn a_description_lives_on_in_a_listeners_queue(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: listen door socket
         owner: connect visitor socket
         owner: send visitor a
         owner: close a",
    )?;
    only_the_lock_is_left(scene)
}

fn a_description_lives_on_in_a_mapping(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: map a
         owner: close a",
    )?;
    only_the_lock_is_left(scene)
}

fn a_description_lives_on_in_a_ring(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: uring ring a
         owner: close a",
    )?;
    only_the_lock_is_left(scene)
}

fn a_file_is_unlinked_and_replaced(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a one
         owner: open b two
         owner: write b some\\stext",
    )?;
    let before = scene.file("two")?;
    same!("what is written", fs::read(scene.path("two"))?, b"some text");
    scene.play(
        "owner: unlink one
         owner: replace two",
    )?;
    ensure!(!scene.path("one").exists(), "the name is still there");
    ensure!(scene.file("two")? != before, "the file is the same");
    let links = kernel::descriptors(scene.pid("owner")?)?;
    let deleted = links.iter().filter(|(_, link)| link.ends_with(" (deleted)")).count();
    same!("deleted files that are open", deleted, 2);
    Ok(())
}

fn any_bytes_make_a_name(scene: &mut Scene) -> Result<()> {
    use std::os::unix::ffi::OsStringExt;
    scene.play(
        r"start owner
          owner: comm a\nb\e[1mc
          owner: open a new\nline\xff\e[31m
          owner: flock a ex",
    )?;
    let name = std::ffi::OsString::from_vec(b"new\nline\xff\x1b[31m".to_vec());
    ensure!(scene.folder().join(name).exists(), "no such file");
    let comm = fs::read(format!("/proc/{}/comm", scene.pid("owner")?))?;
    same!("comm", comm, b"a\nb\x1b[1mc\n");
    Ok(())
}

fn an_actor_can_become_nobody(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: flock a ex
         owner: become 65534",
    )?;
    let status = fs::read_to_string(format!("/proc/{}/status", scene.pid("owner")?))?;
    ensure!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
    ensure!(status.contains("CapEff:\t0000000000000000"), "{status}");
    ensure!(scene.direct("owner: open b other").is_err(), "it still writes where root may");
    Ok(())
}

fn masses_are_complete(scene: &mut Scene) -> Result<()> {
    fs::create_dir(scene.path("many"))?;
    scene.play(
        "start owner
         owner: open a ranges
         owner: mass posix 3000 a
         owner: mass shares 500 shared
         owner: mass files 500 many",
    )?;
    same!("ranges", kernel::proc_locks_on(&scene.file("ranges")?)?.len(), 3000);
    same!("shares", kernel::proc_locks_on(&scene.file("shared")?)?.len(), 500);
    same!("files", fs::read_dir(scene.path("many"))?.count(), 500);
    same!("a file", kernel::proc_locks_on(&scene.file("many/499")?)?.len(), 1);
    Ok(())
}

fn an_exit_status_can_be_left_unread(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         start other",
    )?;
    scene.dies_unreaped("owner", "exit 3")?;
    scene.play(
        "other: exit 3
         await owner gone",
    )
}

fn two_fresh_tmpfs_number_their_files_alike(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.tmpfs("one")?;
    scene.tmpfs("two")?;
    scene.play(
        "start owner
         owner: open a one/lock
         owner: open b two/lock",
    )?;
    let (one, two) = (scene.file("one/lock")?, scene.file("two/lock")?);
    same!("inode numbers", one.ino, two.ino);
    ensure!(one.dev != two.dev, "one device: {one:?}");
    Ok(())
}

fn locks_through_an_overlay_do_not_meet_those_below(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    scene.overlay("layers")?;
    fs::write(scene.path("layers/lower/lock"), "lower")?;
    scene.play(
        "start owner
         owner: open a layers/merged/lock ro
         owner: flock a ex
         owner: open b layers/lower/lock
         owner: flock b ex
         start other
         other: open a layers/merged/lock rw",
    )?;
    // The file was copied up, and has yet another inode in the upper layer.
    ensure!(scene.direct("other: flock a ex").is_err(), "two exclusive locks on one inode");
    scene.play(
        "other: open c layers/upper/lock
         other: flock c ex",
    )
}
