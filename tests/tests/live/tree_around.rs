//! The tree around its files: who may see them, and where it is mounted.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use rustix::process::Signal;

use crate::stories::LEAKED;
use crate::tree::{Garden, NEEDS, QUICK};

const AND_NOBODY: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts", "fuse", "nobody"];

pub(crate) const TESTS: &[Test] = &[
    once!(others_see_what_they_could_see_anyway_and_write_nothing).needs(AND_NOBODY),
    once!(where_others_may_not_come_near_it_is_roots_alone).needs(AND_NOBODY),
    once!(who_waits_for_a_daemon_that_stands_still_can_be_killed).needs(&[
        "root",
        "iter/task_file",
        "tp_btf",
        "mounts",
        "fuse",
        "program:cat",
    ]),
    once!(the_tree_is_mounted_over_what_a_killed_daemon_left).needs(NEEDS),
    once!(the_tree_goes_with_the_daemon_and_takes_its_folder_along).needs(NEEDS),
    once!(a_mount_point_in_use_is_refused_in_one_line).needs(NEEDS),
    once!(without_a_device_the_watch_goes_on_where_it_may).needs(NEEDS),
    once!(an_unmounted_tree_does_not_end_the_watch).needs(NEEDS),
];

/// Makes "nobody" of the calling thread alone.
pub(crate) fn become_nobody() -> Result<()> {
    use lockwatch_tests::harness::invocation::NOBODY;
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let (uid, gid) = (rustix::fs::Uid::from_raw(NOBODY), rustix::fs::Gid::from_raw(NOBODY));
    set_thread_groups(&[]).context("groups")?;
    set_thread_res_gid(gid, gid, gid).context("group")?;
    set_thread_res_uid(uid, uid, uid).context("user")
}

fn others_see_what_they_could_see_anyway_and_write_nothing(scene: &mut Scene) -> Result<()> {
    let public = Path::new("/srv/public");
    let house = House::build(scene)?;
    fs::create_dir(public)?;
    fs::set_permissions(public, fs::Permissions::from_mode(0o755))?;
    let file = public.join("open.conf");
    fs::write(&file, "x")?;
    house.configure(&format!(
        "{QUICK}\n[[watch]]\nname = \"open\"\npath = \"{}\"",
        file.display()
    ))?;
    let garden = Garden { daemon: house.start(scene, &[])?, house };
    fs::set_permissions(scene.new_folder("secret")?, fs::Permissions::from_mode(0o700))?;
    scene.play(
        "start owner
         owner: open a secret/hidden
         owner: flock a ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let hidden = garden.orphan(scene, "secret/hidden")?;
    let tree = garden.path("");
    let as_nobody = |what: &'static str, deed: &(dyn Fn(&Path) -> std::io::Result<()> + Sync)| {
        // What a thread becomes ends with the thread.
        std::thread::scope(|scope| {
            let deed = scope.spawn(|| -> Result<Option<i32>> {
                become_nobody()?;
                Ok(deed(&tree).err().map(|error| error.raw_os_error().unwrap_or(-1)))
            });
            deed.join().map_err(|_| anyhow::anyhow!("{what}: panicked"))?
        })
    };
    let read = |name: &str| {
        let name = name.to_owned();
        move |tree: &Path| fs::read(tree.join(&name)).map(drop)
    };
    same!("status", as_nobody("status", &read("status"))?, None);
    same!("open", as_nobody("open", &read("locks/open/state"))?, None);
    same!("events", as_nobody("events", &read("events"))?, Some(libc::EACCES));
    same!("hidden", as_nobody("hidden", &read(&format!("{hidden}/state")))?, Some(libc::ENOENT));
    let name = hidden.strip_prefix("locks/").context("elsewhere")?;
    let list = |tree: &Path| -> std::io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(tree.join("locks"))? {
            names.push(entry?.file_name());
        }
        let fine = names.iter().any(|n| n == "open") && !names.iter().any(|n| n == name);
        if fine { Ok(()) } else { Err(std::io::Error::other(format!("{names:?}"))) }
    };
    same!("names", as_nobody("names", &list)?, None);
    let write = |name: &'static str| {
        move |tree: &Path| OpenOptions::new().write(true).open(tree.join(name)).map(drop)
    };
    for name in [
        "gc",
        "gc_interval_ms",
        "reclaim_enabled",
        "locks/open/locked",
        "locks/open/conf_locked",
        "locks/open/force_unlock",
    ] {
        same!(name, as_nobody(name, &write(name))?, Some(libc::EACCES));
    }
    same!("root sees it", garden.value(&format!("{hidden}/state"))?, "orphaned\n");
    garden.daemon.stop()?;
    Ok(())
}

fn where_others_may_not_come_near_it_is_roots_alone(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, &format!("{QUICK}\ntree_allow_other = false"))?;
    let status = garden.path("status");
    let read = || {
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| -> Result<Option<i32>> {
                become_nobody()?;
                Ok(fs::read(&status).err().map(|error| error.raw_os_error().unwrap_or(-1)))
            });
            reader.join().map_err(|_| anyhow::anyhow!("it panicked"))?
        })
    };
    same!("nobody reads the status", read()?, Some(libc::EACCES));
    garden.hot()?;
    garden.daemon.stop()?;
    Ok(())
}

fn who_waits_for_a_daemon_that_stands_still_can_be_killed(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    garden.hot()?;
    let paths = ["status", "locks/guarded/state", "events"].map(|name| garden.path(name));
    garden.daemon.freeze()?;
    let mut readers = Vec::new();
    for path in &paths {
        readers.push(scene.program("cat", &[&path.display().to_string()])?.start()?);
    }
    std::thread::sleep(patience::stretched(Duration::from_millis(200)));
    let killed = Instant::now();
    for reader in readers {
        reader.signal(Signal::KILL)?;
        let run = reader.finish()?;
        ensure!(run.code().is_none(), "cat did not wait");
    }
    ensure!(killed.elapsed() < patience::stretched(Duration::from_secs(2)), "they lingered");
    garden.daemon.signal(Signal::CONT)?;
    garden.hot()?;
    garden.daemon.stop()?;
    Ok(())
}

fn the_tree_is_mounted_over_what_a_killed_daemon_left(scene: &mut Scene) -> Result<()> {
    let mut garden = Garden::begin(scene, QUICK)?;
    for _ in 0..2 {
        garden.daemon.kill()?;
        let error = fs::read(garden.house.path("tree").join("status")).expect_err("it was taken");
        let dead = [libc::ENOTCONN, libc::ECONNABORTED].map(Some);
        ensure!(dead.contains(&error.raw_os_error()), "a dead tree: {error}");
        let daemon = garden.house.start(scene, &[])?;
        garden = Garden { house: garden.house, daemon };
        garden.hot()?;
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    same!("mounts", mounts.lines().filter(|line| line.contains("fuse.lockwatch")).count(), 1);
    garden.daemon.stop()?;
    Ok(())
}

fn the_tree_goes_with_the_daemon_and_takes_its_folder_along(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let mut events = File::open(garden.path("events"))?;
    let state = File::open(garden.path("locks/guarded/state"))?;
    // Events of others may come first.
    let reader = std::thread::spawn(move || {
        loop {
            if let Err(error) = events.read(&mut [0; 1000]) {
                return error;
            }
        }
    });
    std::thread::sleep(Duration::from_millis(100));
    let (path, started) = (garden.path(""), Instant::now());
    garden.daemon.stop()?;
    let error = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    ensure!(started.elapsed() < patience::stretched(Duration::from_secs(3)), "it took too long");
    let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::ENODEV, libc::EIO].map(Some);
    ensure!(dead.contains(&error.raw_os_error()), "the reader got {error}");
    ensure!(state.read_at(&mut [0; 9], 0).is_err(), "a file of a tree that is gone can be read");
    ensure!(!path.try_exists()?, "the mount point was made, and is still there");
    Ok(())
}

fn a_mount_point_in_use_is_refused_in_one_line(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let required = format!("{QUICK}\ntree = \"required\"");
    house.configure(&required)?;
    let tree = house.path("tree");
    let refused = |scene: &Scene, words: &str| -> Result<()> {
        let run = scene.lockwatch(&["daemon", "--config", &house.config()])?.run()?;
        let line = run.fails_in_one_line()?;
        ensure!(line.contains("daemon: mount: /srv/tree: ") && line.contains(words), "{line:?}");
        Ok(())
    };
    fs::write(&tree, "x")?;
    refused(scene, "not a folder")?;
    fs::remove_file(&tree)?;
    fs::create_dir(&tree)?;
    fs::write(tree.join("something"), "x")?;
    refused(scene, "not empty")?;
    fs::remove_file(tree.join("something"))?;
    lockwatch_tests::harness::capability::tmpfs(&tree)?;
    refused(scene, "something is mounted there already")?;
    rustix::mount::unmount(&tree, rustix::mount::UnmountFlags::empty())?;
    // An empty folder is as good as none, and stays.
    house.start(scene, &[])?.stop()?;
    ensure!(tree.is_dir(), "a folder that was there was taken away");
    Ok(())
}

fn without_a_device_the_watch_goes_on_where_it_may(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    // As in a container that was not given it.
    let flags = rustix::mount::MountFlags::NOSUID;
    rustix::mount::mount(c"tmpfs", "/dev", c"tmpfs", flags, None).context("a tmpfs on /dev")?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        "/dev/null",
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )?;
    house.configure(&format!("{QUICK}\ntree = \"required\""))?;
    let run = scene.lockwatch(&["daemon", "--config", &house.config()])?.run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("/dev/fuse: ") && line.contains("load the module"), "{line:?}");
    ensure!(!house.path("tree").try_exists()?, "a mount point was left");
    house.configure(QUICK)?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(LEAKED)?;
    let path = scene.path_text("lock")?;
    daemon.expect("orphaned", |event| event["lock"]["file"]["path"] == path.as_str())?;
    let run = daemon.stop()?;
    let complaints = run.complaints()?;
    let said = complaints.iter().any(|line| line.contains("going on without the tree: "));
    ensure!(said, "it did not say so: {complaints:?}");
    Ok(())
}

fn an_unmounted_tree_does_not_end_the_watch(scene: &mut Scene) -> Result<()> {
    let mut garden = Garden::begin(scene, QUICK)?;
    rustix::mount::unmount(garden.path(""), rustix::mount::UnmountFlags::DETACH)?;
    scene.play(LEAKED)?;
    let path = scene.path_text("lock")?;
    garden.daemon.expect("orphaned", |event| event["lock"]["file"]["path"] == path.as_str())?;
    garden.daemon.stop()?;
    Ok(())
}
