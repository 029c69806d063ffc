//! A user without privileges can have nothing reclaimed, through no entrance, nor change what root
//! would do.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};

use crate::reclaim::is_refused_to_nobody;
use crate::reclaim_hooks::program;
use crate::stories::LEAKED;
use crate::tree_around::become_nobody;

pub(crate) const TESTS: &[Test] = &[
    once!(no_entrance_is_open_to_who_is_not_root).needs(&[
        "root",
        "nobody",
        "iter/task_file",
        "tp_btf",
        "mounts",
        "fuse",
        "pidfd_getfd",
        "kcmp",
    ]),
    once!(what_anybody_may_read_leads_nowhere).needs(&[
        "root",
        "nobody",
        "iter/task_file",
        "mounts",
        "pidfd_getfd",
        "kcmp",
    ]),
];

type Deed = Box<dyn Fn() -> io::Result<()> + Send>;

/// Has a thread do it that is "nobody", and gives the errno.
fn as_nobody(deed: Deed) -> Result<Option<i32>> {
    // What a thread becomes ends with the thread.
    let thread = std::thread::spawn(move || -> Result<Option<i32>> {
        become_nobody()?;
        Ok(deed().err().map(|error| error.raw_os_error().unwrap_or(-1)))
    });
    thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

fn is_refused(what: &str, deed: Deed) -> Result<()> {
    let errno = as_nobody(deed).with_context(|| what.to_owned())?;
    ensure!(matches!(errno, Some(libc::EACCES | libc::EPERM)), "{what}: errno {errno:?}");
    Ok(())
}

fn write(path: PathBuf, text: &'static str) -> Deed {
    Box::new(move || {
        let mut file = OpenOptions::new().write(true).open(&path)?;
        io::Write::write_all(&mut file, text.as_bytes())
    })
}

fn read(path: PathBuf) -> Deed {
    Box::new(move || fs::read(&path).map(drop))
}

/// `BPF_OBJ_GET` of `include/uapi/linux/bpf.h`.
fn take_pin(path: &Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    #[repr(C)]
    struct Named {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let named = Named { path: name.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads `named`, and the text that it names; both live until it returns.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const named, size_of::<Named>()) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn no_entrance_is_open_to_who_is_not_root(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let hook = house.path("drain");
    program(&hook.display().to_string(), "exit 0")?;
    let (path, audit) = (scene.path_text("lock")?, house.path("audit.jsonl"));
    house.configure(&format!(
        "gc_interval = \"200ms\"\ngrace = \"50ms\"\n[reclaim]\naudit = \"{}\"\n\
         [[watch]]\nname = \"it\"\npath = \"{path}\"\ndrain = {{ run = [\"{}\"] }}",
        audit.display(),
        hook.display()
    ))?;
    // The record of a reclaim before.
    scene.play(LEAKED)?;
    scene.run(&["reclaim", "./lock", "--execute", "--config", &house.config()])?.exits(0)?;
    let mut daemon = house.start(scene, &[])?;
    scene.play(&LEAKED.replace("owner", "second").replace("heir", "child"))?;
    daemon.expect("orphaned", |event| event["lock"]["file"]["path"] == path.as_str())?;
    let locks = house.path("tree/locks/it");
    patience::until("the tree shows it", || {
        Ok((fs::read_to_string(locks.join("state"))? == "orphaned\n").then_some(()))
    })?;

    // The way there is open: it is each thing itself that is refused.
    same!("status", as_nobody(read(house.path("tree/status")))?, None);
    same!("hook", as_nobody(read(hook.clone()))?, None);
    for (name, text) in [("locked", "0"), ("force_unlock", "1")] {
        is_refused(name, write(locks.join(name), text))?;
    }
    for (name, text) in [("reclaim_enabled", "1"), ("gc", "1"), ("gc_interval_ms", "200")] {
        is_refused(name, write(house.path("tree").join(name), text))?;
    }
    is_refused("events", read(house.path("tree/events")))?;
    for socket in ["tree.sock", "metrics.sock"] {
        let path = house.path(socket);
        is_refused(socket, Box::new(move || UnixStream::connect(&path).map(drop)))?;
    }
    for file in [&audit, &hook, &house.path("lockwatch.toml")] {
        let (name, file) = (file.display().to_string(), file.clone());
        let other = file.with_extension("other");
        is_refused(&format!("write {name}"), write(file.clone(), "x"))?;
        let gone = file.clone();
        is_refused(&format!("remove {name}"), Box::new(move || fs::remove_file(&gone)))?;
        let moved = file.clone();
        is_refused(&format!("rename {name}"), Box::new(move || fs::rename(&moved, &other)))?;
    }
    is_refused("read the record", read(audit.clone()))?;
    let turns = PathBuf::from("/run/lockwatch.turns");
    is_refused("the turns", write(turns, "x"))?;
    let pins: Vec<_> = fs::read_dir(house.path("bpf/lockwatch"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    ensure!(!pins.is_empty(), "nothing is pinned");
    for pin in pins.into_iter().filter(|pin| pin.is_file()) {
        let name = pin.display().to_string();
        take_pin(&pin).with_context(|| format!("root takes {name}"))?;
        is_refused(&name, Box::new(move || take_pin(&pin)))?;
    }
    let pid = rustix::process::Pid::from_raw(daemon.pid()).context("the daemon's pid")?;
    is_refused(
        "a signal to the daemon",
        Box::new(move || Ok(rustix::process::kill_process(pid, rustix::process::Signal::HUP)?)),
    )?;

    same!("state", fs::read_to_string(locks.join("state"))?, "orphaned\n");
    same!("switch", fs::read_to_string(house.path("tree/reclaim_enabled"))?, "0\n");
    let record = fs::read_to_string(&audit)?;
    same!("reclaims on record", record.matches("\"record\":\"begun\"").count(), 1);
    daemon.told_none_of(&["reclaim_planned", "reclaim_failed"])?;
    daemon.stop()?;
    Ok(())
}

fn what_anybody_may_read_leads_nowhere(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    // What the daemon uses between itself and its runs is the verb's own, and asks for root, too.
    for more in [&["--attended", "tree"][..], &["--attended", "policy", "--force"]] {
        is_refused_to_nobody(scene, more)?;
    }
    // Another configuration does not make another user.
    let config = scene.path("own.toml");
    fs::write(&config, "[reclaim]\nmode = \"reclaim\"\naudit = \"/tmp/own.jsonl\"\n")?;
    let config = config.display().to_string();
    let run = scene
        .public_lockwatch(&["reclaim", "./lock", "--execute", "--config", &config])?
        .as_nobody()
        .run()?;
    ensure!(run.fails_in_one_line()?.contains("root"), "{:?}", run.complaints());
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")
}
