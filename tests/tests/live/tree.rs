//! The tree as programs see it: what is in its files, what may be written, who may come near.
//!
//! Most of it is done with system calls, because there is no shell in the virtual machines; what
//! shells and their tools make of it is in `tree_shell`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::{Scene, Test, note, patience};
use lockwatch_tests::{once, same};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;

use crate::stories::{LEAKED, SHELL_IDIOM};

/// What every test of the tree needs.
pub(crate) const NEEDS: &[&str] = &["root", "iter/task_file", "tp_btf", "mounts", "fuse"];

pub(crate) const TESTS: &[Test] = &[
    once!(the_tree_has_the_files_of_the_contract_with_their_modes).needs(NEEDS),
    once!(a_watched_file_goes_from_free_to_held_to_orphaned_to_free).needs(NEEDS),
    once!(an_orphan_elsewhere_has_a_folder_while_it_lasts).needs(NEEDS),
    once!(orphans_with_the_same_stem_are_told_apart).needs(NEEDS),
    once!(hostile_names_stay_inside_the_tree).needs(NEEDS),
    once!(idioms_are_no_orphans_here_either).needs(NEEDS),
    once!(an_open_file_is_of_one_generation_until_it_is_read_from_the_start).needs(NEEDS),
    once!(what_is_gone_says_so_to_who_has_it_open).needs(NEEDS),
    once!(writes_that_are_not_documented_are_invalid_and_do_nothing).needs(NEEDS),
    once!(a_release_of_what_is_free_succeeds_and_of_what_is_held_is_busy).needs(NEEDS),
    once!(a_release_needs_the_switch).needs(NEEDS),
    once!(the_interval_and_the_switch_are_read_as_they_were_written).needs(NEEDS),
    once!(gc_answers_when_the_tree_shows_what_is).needs(NEEDS),
    once!(nothing_can_be_made_removed_or_renamed).needs(NEEDS),
    once!(poll_wakes_when_a_value_changes).needs(NEEDS),
];

/// `owner` holds an exclusive flock on the watched file.
pub(crate) const HELD_CONF: &str = "
    start owner
    owner: open a lock.conf
    owner: flock a ex";

/// The watched file's flock has leaked to `heir`.
pub(crate) const LEAKED_CONF: &str = "
    start owner
    owner: open a lock.conf
    owner: flock a ex
    owner: fork heir
    heir: exec
    owner: exit 0";

/// A grace and a reconciliation that a test need not wait long for.
pub(crate) const QUICK: &str = "gc_interval = \"200ms\"\ngrace = \"50ms\"";

/// A daemon in a house of its own, with the tree.
pub(crate) struct Garden {
    pub(crate) house: House,
    pub(crate) daemon: Daemon,
}

impl Garden {
    pub(crate) fn begin(scene: &mut Scene, more: &str) -> Result<Self> {
        let house = House::build(scene)?;
        house.configure(more)?;
        let daemon = house.start(scene, &[])?;
        Ok(Self { house, daemon })
    }

    /// With `lock` watched as `guarded`.
    pub(crate) fn watching(scene: &mut Scene, more: &str) -> Result<Self> {
        let path = scene.path("lock.conf");
        fs::write(&path, "x").context("the watched file")?;
        let path = path.display();
        Self::begin(
            scene,
            &format!("{QUICK}\n{more}\n[[watch]]\nname = \"guarded\"\npath = \"{path}\""),
        )
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.house.path("tree").join(name)
    }

    /// What is in a file.
    pub(crate) fn value(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.path(name)).with_context(|| name.to_owned())
    }

    /// Waits until a file says so.
    pub(crate) fn until(&self, name: &str, value: &str) -> Result<()> {
        let mut last = String::new();
        let said = patience::until(&format!("{name} says {value:?}"), || {
            last = match fs::read_to_string(self.path(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => "nothing".into(),
                text => text.with_context(|| name.to_owned())?,
            };
            Ok((last.trim_end() == value).then_some(()))
        });
        said.with_context(|| format!("it said {last:?} last"))
    }

    /// Waits until the file of the scene has no folder.
    pub(crate) fn until_gone(&self, scene: &Scene, name: &str) -> Result<()> {
        let path = scene.path_text(name)?;
        patience::until(&format!("{name} has no folder"), || {
            Ok(self.folder_of(&path)?.is_none().then_some(()))
        })
    }

    /// Writes, as `echo -n … > name` does, and gives the errno.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<Option<i32>> {
        let path = self.path(name);
        let file = OpenOptions::new().write(true).truncate(true).open(&path);
        let mut file = file.with_context(|| format!("opening {name}"))?;
        Ok(file.write_all(bytes.as_ref()).err().and_then(|error| error.raw_os_error()))
    }

    /// How many orphans there are on the machine. Others may have some, too.
    pub(crate) fn hot(&self) -> Result<u64> {
        let status = patience::until("the first view is shown", || {
            Ok(Some(self.value("status")?).filter(|status| status != "UNKNOWN\n"))
        })?;
        match status.trim_end().strip_prefix("HOT ") {
            Some(count) => Ok(count.parse()?),
            None => {
                same!("status", status, "ALL CLEAR\n");
                Ok(0)
            }
        }
    }

    /// The folder of the file at a path, where it has one.
    pub(crate) fn folder_of(&self, path: &str) -> Result<Option<String>> {
        for name in self.names("locks")? {
            let folder = format!("locks/{name}");
            match fs::read_to_string(self.path(&folder).join("path")) {
                Ok(found) if found.trim_end() == path => return Ok(Some(folder)),
                // It may be gone since it was listed.
                _ => {}
            }
        }
        Ok(None)
    }

    /// Waits until the file of the scene has a folder that says that it is orphaned.
    pub(crate) fn orphan(&self, scene: &Scene, name: &str) -> Result<String> {
        let path = scene.path_text(name)?;
        let folder = patience::until(&format!("{name} has a folder"), || self.folder_of(&path))?;
        self.until(&format!("{folder}/state"), "orphaned")?;
        Ok(folder)
    }

    pub(crate) fn names(&self, name: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(name)).with_context(|| name.to_owned())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }
}

fn the_tree_has_the_files_of_the_contract_with_their_modes(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    same!(
        "the top",
        garden.names("")?,
        ["events", "gc", "gc_interval_ms", "locks", "reclaim_enabled", "status"]
    );
    ensure!(garden.names("locks")?.contains(&"guarded".to_owned()), "no folder");
    let names = garden.names("locks/guarded")?;
    same!(
        "a folder",
        names,
        [
            "access",
            "acquirer",
            "conf_locked",
            "force_unlock",
            "generation",
            "holders",
            "last_touched",
            "locked",
            "path",
            "reason",
            "since",
            "state",
            "type",
            "waiters"
        ]
    );
    let mut numbers = std::collections::BTreeSet::new();
    for (name, mode) in [
        ("status", 0o444),
        ("events", 0o400),
        ("gc", 0o200),
        ("gc_interval_ms", 0o644),
        ("reclaim_enabled", 0o644),
    ] {
        let meta = fs::symlink_metadata(garden.path(name)).context(name)?;
        same!(name, meta.mode() & 0o7777, mode);
        same!(name, (meta.uid(), meta.gid(), meta.nlink()), (0, 0, 1));
        ensure!(numbers.insert(meta.ino()), "{name}: another has its inode number");
    }
    for name in names {
        let path = garden.path("locks/guarded").join(&name);
        let meta = fs::symlink_metadata(&path).context(name.clone())?;
        same!(name, meta.mode() & 0o033, 0);
        let length = fs::read(&path).context(name.clone())?.len() as u64;
        same!(name, meta.len(), length);
        ensure!(numbers.insert(meta.ino()), "{name}: another has its inode number");
    }
    garden.daemon.stop()?;
    Ok(())
}

fn a_watched_file_goes_from_free_to_held_to_orphaned_to_free(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let value = |name: &str| garden.value(&format!("locks/guarded/{name}"));
    let hot = garden.hot()?;
    note(&format!("{hot} orphans of others"));
    same!("locked", value("locked")?, "0\n");
    same!("state", value("state")?, "free\n");
    same!("path", value("path")?, format!("{}\n", scene.path_text("lock.conf")?));
    ensure!(value("last_touched")?.starts_with("unknown at 2"), "{:?}", value("last_touched"));

    scene.play(
        "start owner
         owner: comm locksmith
         owner: open a lock.conf
         owner: flock a ex",
    )?;
    garden.until("locks/guarded/locked", "1")?;
    same!("state", value("state")?, "held\n");
    same!("alias", value("conf_locked")?, "1\n");
    same!("type", value("type")?, "FLOCK\n");
    same!("access", value("access")?, "WRITE\n");
    let owner = scene.pid("owner")?;
    ensure!(value("acquirer")?.contains(&format!("pid {owner})")), "{:?}", value("acquirer"));
    ensure!(
        value("holders")?.contains(&format!("(pid {owner}) via fd ")),
        "{:?}",
        value("holders")
    );
    ensure!(value("since")?.ends_with("Z\n"), "{:?}", value("since"));
    let since = value("since")?;
    let host = rustix::system::uname();
    let touched = format!(
        "locksmith (pid {owner}) on {} at {since}",
        host.nodename().to_str().context("the host's name")?
    );
    same!("last_touched", value("last_touched")?, touched);

    scene.play(
        "owner: fork heir
         heir: exec
         owner: die KILL",
    )?;
    garden.until("locks/guarded/state", "orphaned")?;
    same!("reason", value("reason")?, "inherited\n");
    same!("since", value("since")?, since);
    ensure!(garden.hot()? > 0, "an orphan, and nothing is hot");

    scene.play("heir: exit 0")?;
    garden.until("locks/guarded/locked", "0")?;
    same!("since", value("since")?, "-\n");
    same!("who was last", value("last_touched")?, touched);
    garden.daemon.stop()?;
    Ok(())
}

fn an_orphan_elsewhere_has_a_folder_while_it_lasts(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    scene.play(LEAKED)?;
    let folder = garden.orphan(scene, "lock")?;
    ensure!(folder == "locks/lock" || folder.starts_with("locks/lock~"), "it is named {folder}");
    let number = fs::metadata(garden.path(&folder))?.ino();
    ensure!(!garden.names(&folder)?.contains(&"_locked".to_owned()), "no extension");
    std::thread::sleep(patience::stretched(Duration::from_millis(500)));
    same!("number", fs::metadata(garden.path(&folder))?.ino(), number);
    same!("name", garden.orphan(scene, "lock")?, folder);
    scene.play("heir: exit 0")?;
    garden.until_gone(scene, "lock")?;
    garden.daemon.stop()?;
    Ok(())
}

fn orphans_with_the_same_stem_are_told_apart(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    // Nobody else's files are named so.
    let stem = format!("same{}", std::process::id());
    scene.new_folder("one")?;
    scene.new_folder("two")?;
    let files = [format!("one/{stem}.conf"), format!("two/{stem}.lock")];
    for (number, path) in [1, 2].into_iter().zip(&files) {
        scene.play(&format!(
            "start owner{number}
             owner{number}: open a {path}
             owner{number}: flock a ex
             owner{number}: fork heir{number}
             heir{number}: exec
             owner{number}: exit 0"
        ))?;
        garden.orphan(scene, path)?;
    }
    same!("first", garden.orphan(scene, &files[0])?, format!("locks/{stem}"));
    same!("second", garden.orphan(scene, &files[1])?, format!("locks/{stem}~2"));
    scene.play("heir1: exit 0")?;
    garden.until_gone(scene, &files[0])?;
    same!("kept", garden.orphan(scene, &files[1])?, format!("locks/{stem}~2"));
    garden.daemon.stop()?;
    Ok(())
}

fn hostile_names_stay_inside_the_tree(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    scene.play(
        r"start owner
         owner: open a ..\s$(reboot)\n\e[2J
         owner: flock a ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let shown = scene.path_text(r"..")? + r" $(reboot)\n\x1b[2J";
    let folder = patience::until("it has a folder", || garden.folder_of(&shown))?;
    let name = folder.strip_prefix("locks/").context("elsewhere")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    ensure!(name.bytes().all(plain) && !name.starts_with('.'), "{name:?}");
    let path = garden.value(&format!("{folder}/path"))?;
    same!("lines", path.lines().count(), 1);
    ensure!(!path.contains('\u{1b}'), "{path:?}");
    garden.daemon.stop()?;
    Ok(())
}

fn idioms_are_no_orphans_here_either(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    scene.play(SHELL_IDIOM)?;
    for _ in 0..3 {
        same!("gc", garden.write("gc", "1\n")?, None);
        same!("folder", garden.folder_of(&scene.path_text("lock")?)?, None);
        std::thread::sleep(patience::stretched(Duration::from_millis(60)));
    }
    garden.daemon.stop()?;
    Ok(())
}

fn an_open_file_is_of_one_generation_until_it_is_read_from_the_start(
    scene: &mut Scene,
) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let file = File::open(garden.path("locks/guarded/state"))?;
    let mut piece = [0; 3];
    same!("read", file.read_at(&mut piece, 0)?, 3);
    same!("piece", &piece, b"fre");
    scene.play(HELD_CONF)?;
    garden.until("locks/guarded/state", "held")?;
    same!("read", file.read_at(&mut piece, 3)?, 2);
    same!("the rest of what was begun", &piece[..2], b"e\n");
    same!("end", file.read_at(&mut piece, 5)?, 0);
    same!("far behind", file.read_at(&mut piece, 1 << 40)?, 0);
    same!("read", file.read_at(&mut piece, 0)?, 3);
    same!("what is now", &piece, b"hel");
    garden.daemon.stop()?;
    Ok(())
}

fn what_is_gone_says_so_to_who_has_it_open(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    scene.play(LEAKED)?;
    let folder = garden.orphan(scene, "lock")?;
    let mut file = File::open(garden.path(&folder).join("state"))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    same!("state", text, "orphaned\n");
    let opened = File::open(garden.path(&folder))?;
    let flags = std::thread::scope(|scope| -> Result<_> {
        let file = &file;
        let waits = scope.spawn(move || woken(file));
        std::thread::sleep(Duration::from_millis(100));
        scene.play("heir: exit 0")?;
        waits.join().map_err(|_| anyhow::anyhow!("who waited panicked"))?
    })?;
    garden.until_gone(scene, "lock")?;
    let gone = PollFlags::IN | PollFlags::PRI | PollFlags::ERR | PollFlags::HUP;
    same!("who waited", flags, gone);
    let error = file.read_at(&mut [0; 3], 0).expect_err("it was taken");
    same!("reading", error.raw_os_error(), Some(libc::ENODEV));
    let inside = rustix::fs::openat(
        opened.as_fd(),
        "state",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    ensure!(inside.is_err(), "the folder still has files");
    garden.daemon.stop()?;
    Ok(())
}

fn writes_that_are_not_documented_are_invalid_and_do_nothing(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let huge = vec![b' '; 1 << 20];
    let long_zero = [b"0\n".as_slice(), &huge].concat();
    for (name, bytes) in [
        ("locks/guarded/locked", b"1".as_slice()),
        ("locks/guarded/locked", b"00"),
        ("locks/guarded/locked", b"\n"),
        ("locks/guarded/locked", &long_zero),
        ("locks/guarded/conf_locked", b"yes\n"),
        ("locks/guarded/force_unlock", b"0\n"),
        ("gc", b"0\n"),
        ("gc", &huge),
        ("gc_interval_ms", b"99\n"),
        ("gc_interval_ms", b"-500\n"),
        ("gc_interval_ms", b"3600001\n"),
        ("gc_interval_ms", b"500ms\n"),
        ("reclaim_enabled", b"2\n"),
        ("reclaim_enabled", b"true\n"),
    ] {
        same!(name, garden.write(name, bytes)?, Some(libc::EINVAL));
    }
    same!("interval", garden.value("gc_interval_ms")?, "200\n");
    same!("switch", garden.value("reclaim_enabled")?, "0\n");
    // Nothing is written: `: > locked`.
    same!("cut", garden.write("locks/guarded/locked", "")?, None);
    for name in ["status", "events", "locks/guarded/state", "locks/guarded/generation"] {
        let error =
            OpenOptions::new().write(true).open(garden.path(name)).expect_err("it was taken");
        same!(name, error.raw_os_error(), Some(libc::EACCES));
    }
    garden.daemon.stop()?;
    Ok(())
}

fn a_release_of_what_is_free_succeeds_and_of_what_is_held_is_busy(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "[reclaim]\nmode = \"reclaim\"")?;
    for _ in 0..3 {
        same!("free", garden.write("locks/guarded/locked", "0\n")?, None);
        same!("free", garden.write("locks/guarded/force_unlock", "1\n")?, None);
    }
    scene.play(HELD_CONF)?;
    garden.until("locks/guarded/locked", "1")?;
    same!("held", garden.write("locks/guarded/conf_locked", "0")?, Some(libc::EBUSY));
    let mut appending =
        OpenOptions::new().append(true).open(garden.path("locks/guarded/locked"))?;
    let error = appending.write_all(b"0\n").expect_err("it was taken");
    same!("appended", error.raw_os_error(), Some(libc::EBUSY));
    same!("still", garden.value("locks/guarded/state")?, "held\n");
    garden.daemon.stop()?;
    Ok(())
}

fn a_release_needs_the_switch(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    scene.play(LEAKED)?;
    let folder = garden.orphan(scene, "lock")?;
    same!("switch", garden.value("reclaim_enabled")?, "0\n");
    let value = |name: &str| format!("{folder}/{name}");
    same!("orphan", garden.write(&value("locked"), "0\n")?, Some(libc::EPERM));
    same!("force", garden.write(&value("force_unlock"), "1\n")?, Some(libc::EPERM));
    same!("still", garden.value(&value("locked"))?, "1\n");
    garden.daemon.stop()?;
    Ok(())
}

fn the_interval_and_the_switch_are_read_as_they_were_written(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    for interval in ["100", "3600000", "250"] {
        same!(interval, garden.write("gc_interval_ms", interval)?, None);
        same!("interval", garden.value("gc_interval_ms")?, format!("{interval}\n"));
    }
    for switch in ["1\n", "0\n", "1\n"] {
        same!(switch, garden.write("reclaim_enabled", switch)?, None);
        same!("switch", garden.value("reclaim_enabled")?, switch);
    }
    garden.daemon.stop()?;
    Ok(())
}

fn gc_answers_when_the_tree_shows_what_is(scene: &mut Scene) -> Result<()> {
    // So many that a tree is not made in the time that it takes to read a file of the last one.
    let others: String = (0..1000)
        .map(|number| format!("[[watch]]\nname = \"w{number}\"\npath = \"/srv/none/{number}\"\n"))
        .collect();
    let garden = Garden::watching(scene, &others)?;
    // Nothing happens by itself any more, but what happens is still heard of.
    same!("interval", garden.write("gc_interval_ms", "3600000\n")?, None);
    let file = File::open(scene.path("lock.conf")).context("the watched file")?;
    let lock = |operation| rustix::fs::flock(&file, operation).context("flock");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        // Others ask, too.
        let busy = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                same!("gc beside it", garden.write("gc", "1\n")?, None);
            }
            Ok(())
        });
        let change = || -> Result<()> {
            for _ in 0..patience::rounds(20) {
                lock(FlockOperation::NonBlockingLockExclusive)?;
                same!("gc", garden.write("gc", "1\n")?, None);
                same!("locked", garden.value("locks/guarded/locked")?, "1\n");
                lock(FlockOperation::Unlock)?;
                same!("gc", garden.write("gc", "1\n")?, None);
                same!("unlocked", garden.value("locks/guarded/locked")?, "0\n");
            }
            Ok(())
        };
        let changed = change();
        stop.store(true, Ordering::Relaxed);
        changed.and(busy.join().map_err(|_| anyhow::anyhow!("who was busy panicked"))?)
    })?;
    garden.daemon.stop()?;
    Ok(())
}

fn nothing_can_be_made_removed_or_renamed(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let refused = |what: &str, done: std::io::Result<()>| -> Result<()> {
        let Err(error) = done else { bail!("{what} was done") };
        same!(what, error.raw_os_error(), Some(libc::EPERM));
        Ok(())
    };
    let new = garden.path("locks/guarded/new");
    refused("making a file", File::create(&new).map(drop))?;
    refused("making a folder", fs::create_dir(&new))?;
    refused("a link", std::os::unix::fs::symlink("status", &new))?;
    let locked = garden.path("locks/guarded/locked");
    refused("removing a file", fs::remove_file(&locked))?;
    refused("removing a folder", fs::remove_dir(garden.path("locks/guarded")))?;
    refused("renaming", fs::rename(&locked, &new))?;
    refused("opening up", fs::set_permissions(&locked, fs::Permissions::from_mode(0o666)))?;
    refused("giving away", std::os::unix::fs::chown(&locked, Some(65534), None))?;
    same!("still", garden.names("locks/guarded")?.len(), 14);
    garden.daemon.stop()?;
    Ok(())
}

/// What a file is ready for within that time.
pub(crate) fn ready(file: &File, wait: Duration) -> Result<PollFlags> {
    let flags = PollFlags::IN | PollFlags::PRI;
    let mut polled = [PollFd::new(file, flags)];
    rustix::event::poll(&mut polled, Some(&Timespec::try_from(wait)?)).context("poll")?;
    Ok(polled[0].revents())
}

/// What a file is ready for when it wakes who waits for it. At the end of its time poll(2) asks once
/// more by itself: who was not woken until then was not woken at all.
pub(crate) fn woken(file: &File) -> Result<PollFlags> {
    let wait = patience::stretched(patience::USUAL * 2);
    let begun = Instant::now();
    let flags = ready(file, wait)?;
    ensure!(begun.elapsed() < wait, "nobody woke it within {wait:?}; then it was {flags:?}");
    Ok(flags)
}

fn poll_wakes_when_a_value_changes(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let at_once = Duration::ZERO;
    // What `status` says others may change, too.
    let names = ["locks/guarded/state", "locks/guarded/locked", "status"];
    let mut files = Vec::new();
    for name in names {
        let mut file = File::open(garden.path(name))?;
        ensure!(ready(&file, at_once)?.contains(PollFlags::IN), "{name}: not yet read, not ready");
        file.read_to_string(&mut String::new())?;
        let flags = ready(&file, at_once)?;
        ensure!(flags.is_empty() || name == "status", "{name}: ready, and nothing is new");
        files.push(file);
    }
    let waits: Vec<_> = std::thread::scope(|scope| -> Result<Vec<_>> {
        let waits: Vec<_> = files.iter().map(|file| scope.spawn(move || woken(file))).collect();
        std::thread::sleep(Duration::from_millis(100));
        scene.play(LEAKED_CONF)?;
        waits.into_iter().map(|wait| wait.join().map_err(|_| anyhow::anyhow!("panic"))).collect()
    })?;
    for (wait, name) in waits.into_iter().zip(names) {
        let flags = wait?;
        ensure!(flags.contains(PollFlags::IN | PollFlags::PRI), "{name}: woke with {flags:?}");
    }
    garden.until("locks/guarded/state", "orphaned")?;
    let mut text = [0; 8];
    for (file, name) in files.iter().zip(names) {
        file.read_at(&mut text, 0)?;
        let flags = ready(file, at_once)?;
        ensure!(flags.is_empty() || name == "status", "{name}: read, and ready again");
    }
    garden.daemon.stop()?;
    Ok(())
}
