//! What shells and their tools make of the tree.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Run, Scene, Test, note, patience};
use lockwatch_tests::{once, same};
use rustix::process::Signal;

use crate::stories::LEAKED;
use crate::tree::{Garden, HELD_CONF, LEAKED_CONF, QUICK};

const AND_SHELL: &[&str] =
    &["root", "iter/task_file", "tp_btf", "mounts", "fuse", "program:sh", "program:grep"];

const AND_TOOLS: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "fuse",
    "program:sh",
    "program:cat",
    "program:cp",
    "program:dd",
    "program:diff",
    "program:find",
    "program:grep",
    "program:head",
    "program:ls",
    "program:stat",
    "program:tail",
    "program:timeout",
    "program:wc",
];

const AND_PAGER: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "fuse",
    "program:sh",
    "program:less",
    "program:script",
];

const AND_TAIL: &[&str] =
    &["root", "iter/task_file", "tp_btf", "mounts", "fuse", "program:sh", "program:tail"];

/// What `cat` makes of the state and the reason of an orphan.
const ORPHAN: &str = "orphaned\ninherited\n";

pub(crate) const TESTS: &[Test] = &[
    once!(a_shell_reads_and_writes_it_like_sysfs).needs(AND_SHELL),
    once!(usual_tools_take_its_files_for_files).needs(AND_TOOLS),
    once!(a_pager_shows_a_value_and_what_became_of_it).needs(AND_PAGER),
    once!(tail_follows_events_from_their_beginning_on).needs(AND_TAIL),
    once!(a_follower_is_ended_by_any_signal).needs(AND_SHELL),
    once!(a_walk_shows_every_value_of_a_thousand_locks).needs(AND_SHELL).within(MINUTE),
];

const MINUTE: Duration = Duration::from_secs(60);

/// Runs a line of shell in the tree.
pub(crate) fn shell(scene: &Scene, garden: &Garden, line: &str) -> Result<Run> {
    let line = format!("cd {} && {line}", garden.path("").display());
    scene.program("sh", &["-c", &line])?.run()
}

fn a_shell_reads_and_writes_it_like_sysfs(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "[reclaim]\nmode = \"reclaim\"")?;
    for line in [
        "grep -Eqx 'ALL CLEAR|HOT [0-9]+' status",
        "test $(cat locks/guarded/locked) = 0",
        "echo 0 > locks/guarded/conf_locked",
        "echo 0 >> locks/guarded/conf_locked",
        "printf 0 > locks/guarded/conf_locked",
        ": > locks/guarded/conf_locked",
        "exec 3> locks/guarded/locked && echo 0 >&3 && echo 0 >&3",
        "echo 500 > gc_interval_ms && test $(cat gc_interval_ms) = 500",
        "echo 200 > gc_interval_ms",
        "echo 1 > gc",
        "read state < locks/guarded/state && test $state = free",
    ] {
        shell(scene, &garden, line)?.exits(0)?;
    }
    scene.play(HELD_CONF)?;
    garden.until("locks/guarded/locked", "1")?;
    for (line, words) in [
        ("env echo 0 > locks/guarded/conf_locked", "usy"),
        ("env echo 1 > locks/guarded/conf_locked", "nvalid argument"),
        ("head -c 100000 /dev/zero > locks/guarded/locked", "nvalid argument"),
        ("echo x > status", "ermission denied"),
        ("echo x > locks/new", "not permitted"),
        ("rm locks/guarded/locked", "not permitted"),
    ] {
        let run = shell(scene, &garden, line)?;
        ensure!(run.code() != Some(0), "{line}: was done");
        let complaints = run.complaints()?.join("\n");
        ensure!(complaints.contains(words), "{line}: complained {complaints:?}");
    }
    garden.daemon.stop()?;
    Ok(())
}

fn usual_tools_take_its_files_for_files(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let (before, after) = (scene.path_text("before")?, scene.path_text("after")?);
    // Files are dated by a clock that goes in steps.
    let step = Duration::from_millis(50);
    std::thread::sleep(step);
    fs::write(&before, "")?;
    scene.play(LEAKED_CONF)?;
    garden.until("locks/guarded/state", "orphaned")?;
    std::thread::sleep(step);
    fs::write(&after, "")?;
    let (copy, folder) = (scene.path_text("copy")?, scene.path_text("folder")?);
    for (line, expected) in [
        ("cat locks/guarded/state", "orphaned\n"),
        ("dd if=locks/guarded/state bs=1 2>/dev/null", "orphaned\n"),
        ("head -c 3 locks/guarded/state", "orp"),
        ("tail -c 4 locks/guarded/state", "ned\n"),
        ("tail -n 1 locks/guarded/reason", "inherited\n"),
        ("wc -c < locks/guarded/state", "9\n"),
        ("stat -c '%U %s %h %F' locks/guarded/state", "root 9 1 regular file\n"),
        (&format!("cp locks/guarded/state {copy} && cat {copy}"), "orphaned\n"),
        (&format!("cp -r locks/guarded {folder} && cat {folder}/state {folder}/reason"), ORPHAN),
        (&format!("ls {folder} | wc -l"), "14\n"),
        (&format!("diff -r locks/guarded {folder} && echo same"), "same\n"),
        ("grep -rl orphaned locks/guarded", "locks/guarded/state\n"),
        ("grep -r . locks/guarded | wc -l", "12\n"),
        ("find locks/guarded -name conf_locked", "locks/guarded/conf_locked\n"),
        ("find locks/guarded -type f | wc -l", "14\n"),
        ("find locks/guarded -empty | wc -l", "2\n"),
        (&format!("find locks/guarded -newer {before} -name state"), "locks/guarded/state\n"),
        (&format!("find locks/guarded -newer {before} -name path"), ""),
        (&format!("find locks/guarded -newer {after} -name state"), ""),
        ("timeout 0.3 tail -f -n +1 locks/guarded/state", "orphaned\n"),
        ("ls locks/guarded | wc -l", "14\n"),
    ] {
        let run = shell(scene, &garden, line)?;
        same!(line, run.text()?, expected);
        ensure!(run.complaints()?.is_empty(), "{line}: complained {:?}", run.complaints());
    }
    garden.daemon.stop()?;
    Ok(())
}

/// `less` on a terminal of its own: shows a file, reads it again when told to, and ends with `q`.
fn a_pager_shows_a_value_and_what_became_of_it(scene: &mut Scene) -> Result<()> {
    let garden = Garden::watching(scene, "")?;
    let pages = scene.path_text("pages")?;
    // What is typed comes from a pipe that the test writes to at its own pace.
    let keys = scene.path("keys");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &keys,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )?;
    let state = garden.path("locks/guarded/state");
    let less = format!("less --no-init {}", state.display());
    let line = format!("script --quiet --flush --command '{less}' {pages} < {}", keys.display());
    let pager =
        scene.program("sh", &["-c", &line])?.env("TERM", "xterm").env("LESS", "").start()?;
    let mut keys = OpenOptions::new().write(true).open(&keys).context("typing")?;
    let shown = |what: &str| {
        patience::until(&format!("the pager shows {what:?}"), || {
            let text = fs::read(&pages).unwrap_or_default();
            Ok(String::from_utf8_lossy(&text).contains(what).then_some(()))
        })
    };
    shown("free")?;
    scene.play(HELD_CONF)?;
    garden.until("locks/guarded/state", "held")?;
    // Reads the file anew.
    keys.write_all(b"R")?;
    shown("held")?;
    keys.write_all(b"q")?;
    drop(keys);
    pager.finish()?.exits(0)?;
    garden.daemon.stop()?;
    Ok(())
}

/// `events` has no end, so `tail -f` must be told to begin at the beginning, which is when it opened.
/// On a terminal, because it is the end at which it writes the rest of what it has to a pipe.
fn tail_follows_events_from_their_beginning_on(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    let events = garden.path("events").display().to_string();
    let tail = scene.program("tail", &["-f", "-n", "+1", &events])?.on_terminal().start()?;
    patience::until("tail has opened it", || {
        let open = fs::read_dir(format!("/proc/{}/fd", tail.pid())).context("its descriptors")?;
        let is_it = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|path| path == garden.path("events"))
        };
        Ok(open.flatten().any(|entry| is_it(&entry)).then_some(()))
    })?;
    let path = scene.path_text("lock")?;
    scene.play(LEAKED)?;
    garden.orphan(scene, "lock")?;
    scene.play("heir: exit 0")?;
    garden.until_gone(scene, "lock")?;
    let told = |kind: &str, text: &str| {
        text.lines().any(|line| line.contains(&format!("\"{kind}\"")) && line.contains(&path))
    };
    let mut before = 0;
    patience::until("tail has written all there is", || {
        let so_far = tail.written_so_far();
        let is_all = so_far > 0 && so_far == std::mem::replace(&mut before, so_far);
        std::thread::sleep(patience::stretched(Duration::from_millis(100)));
        Ok(is_all.then_some(()))
    })?;
    tail.signal(Signal::TERM)?;
    let run = tail.finish()?;
    let text = run.text()?;
    ensure!(told("orphaned", text) && told("recovered", text), "tail wrote {text:?}");
    garden.daemon.stop()?;
    Ok(())
}

fn a_follower_is_ended_by_any_signal(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    let events = garden.path("events").display().to_string();
    for signal in [Signal::TERM, Signal::INT, Signal::KILL, Signal::KILL] {
        let cat = scene.program("cat", &[&events])?.start()?;
        std::thread::sleep(patience::stretched(Duration::from_millis(100)));
        let sent = Instant::now();
        cat.signal(signal)?;
        let run = cat.finish()?;
        ensure!(run.code().is_none(), "cat ended by itself");
        ensure!(sent.elapsed() < patience::stretched(Duration::from_secs(1)), "it lingered");
    }
    // Those who were interrupted took nobody else's place.
    let cat = scene.program("timeout", &["5", "cat", &events])?.start()?;
    std::thread::sleep(patience::stretched(Duration::from_millis(100)));
    scene.play(LEAKED)?;
    patience::until("the reader gets the event", || Ok((cat.written_so_far() > 0).then_some(())))?;
    cat.signal(Signal::TERM)?;
    cat.finish()?;
    garden.daemon.stop()?;
    Ok(())
}

fn a_walk_shows_every_value_of_a_thousand_locks(scene: &mut Scene) -> Result<()> {
    let count = patience::rounds(1000).max(20);
    let garden = Garden::begin(scene, QUICK)?;
    scene.play("start owner")?;
    for number in 0..count {
        scene.direct(&format!("owner: open f{number} file{number}"))?;
        scene.direct(&format!("owner: flock f{number} ex"))?;
    }
    scene.play(
        "owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let below = scene.path_text("")?;
    let own = |garden: &Garden| -> Result<usize> {
        let run = shell(scene, garden, "grep -rh . locks --include=path | sort -u")?;
        Ok(run.text()?.lines().filter(|path| path.starts_with(&below)).count())
    };
    patience::until("every orphan has a folder", || {
        Ok((own(&garden)? == count as usize).then_some(()))
    })?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let run = shell(scene, &garden, "grep -r . locks | wc -l")?;
        // Every value but `force_unlock`, the empty list of waiters and the alias that is not there.
        let lines: u32 = run.text()?.trim().parse()?;
        ensure!(lines >= count * 11, "{lines} lines of {count} locks");
        best = best.min(run.seconds);
    }
    note(&format!("a walk of {count} locks: {best:.3} s"));
    garden.daemon.stop()?;
    Ok(())
}
