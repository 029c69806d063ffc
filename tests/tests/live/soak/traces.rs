//! Real runs, recorded by the daemon and cut down to the test's own files: the golden traces.
//!
//! Each test plays a story beside a daemon that records, cuts the recording down and replays it.
//! `cargo xtask soak traces` writes what is left into `tests/fixtures/traces`, where the engine's
//! golden tests find it. Refuses to keep anything of the rest of the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lockwatch::engine::identity::{Pid, RecordedPid};
use lockwatch::engine::input::{FileId, Input, LockName, Reading};
use lockwatch::engine::snapshot::{FileIx, Snapshot};
use lockwatch::source::trace::{Reader, Writer};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, place};
use lockwatch_tests::{once, same};
use serde_json::Value;

use super::NEEDS;
use crate::daemon::AND_A_CHOSEN_PID;
use crate::stories::{self, LEAKED};

pub(crate) const TESTS: &[Test] = &[
    once!(an_orphan_and_its_end).needs(NEEDS),
    once!(a_crash_handoff).needs(NEEDS),
    once!(an_exit_race).needs(NEEDS),
    once!(a_recycled_pid).needs(AND_A_CHOSEN_PID),
    once!(a_replaced_file).needs(NEEDS),
    once!(a_refusal).needs(NEEDS),
    once!(a_long_wait).needs(NEEDS),
    once!(a_deadlock).needs(NEEDS),
];

/// Names the folder into which golden traces are written; `cargo xtask soak traces` sets it.
const GOLDEN: &str = "LOCKWATCH_GOLDEN_TRACES";
/// A part that is more than lines.
const DEADLOCK: &str = "deadlock";
/// Where the test's files are in a trace.
const SHOWN: &str = "/srv/traced";

fn an_orphan_and_its_end(scene: &mut Scene) -> Result<()> {
    record(scene, "orphan", &[LEAKED, "await-event orphaned", "heir: exit 0"], "recovered")
}

fn a_crash_handoff(scene: &mut Scene) -> Result<()> {
    let story = "start dies
        dies: open a lock
        dies: flock a ex
        dies: write a half
        start next
        next: open a lock
        next: later flock a ex
        await next blocked
        dies: die KILL
        await next done";
    record(scene, "crash_handoff", &[story], "crash_handoff")
}

fn an_exit_race(scene: &mut Scene) -> Result<()> {
    let story = "start owner
        owner: open a lock
        owner: flock a ex
        owner: mass shares 3000 other
        start rival
        rival: open a lock
        rival: insist flock a ex
        owner: die KILL
        await rival done";
    record(scene, "exit_race", &[story], "exit_race")
}

fn a_recycled_pid(scene: &mut Scene) -> Result<()> {
    let story = [LEAKED, "await-event orphaned", "start other\nother: fork bystander as {owner}"];
    record(scene, "pid_recycled", &story, "pid_recycled")
}

fn a_replaced_file(scene: &mut Scene) -> Result<()> {
    let story = "start owner
        owner: open a lock
        owner: flock a ex
        start other
        other: replace lock
        other: open b lock
        other: flock b ex";
    record(scene, "lock_replaced", &[story], "lock_replaced")
}

fn a_refusal(scene: &mut Scene) -> Result<()> {
    let story = [LEAKED, "await-event orphaned", "start rival\nrival: open a lock"];
    record(scene, "refused", &story, "refused")
}

fn a_long_wait(scene: &mut Scene) -> Result<()> {
    let story = "start owner
        owner: open a lock
        owner: flock a ex
        start waits
        waits: open a lock
        waits: later flock a ex
        await waits blocked";
    record(scene, "long_wait", &[story], "long_wait")
}

fn a_deadlock(scene: &mut Scene) -> Result<()> {
    record(scene, "deadlock", &[DEADLOCK], "deadlock")
}

/// Plays a story until the event, and checks the recording of it.
fn record(scene: &mut Scene, name: &str, story: &[&str], last: &str) -> Result<()> {
    let house = House::build(scene)?;
    house.configure("gc_interval = \"500ms\"\ngrace = \"50ms\"\nlong_wait = \"300ms\"")?;
    let trace = house.path("trace");
    let mut daemon = house.start(scene, &["--record", &trace.display().to_string()])?;
    daemon.expect("started", |_| true)?;
    let folder = scene.folder().to_owned();
    // Also of members, where an event is about no single lock.
    let is_own = move |event: &Value| {
        let text = event.to_string();
        let (own, many) = (format!("{}/", folder.display()), format!("{}/other", folder.display()));
        text.contains(&own) && !text.contains(&many)
    };
    for part in story {
        match part.strip_prefix("await-event ") {
            Some(kind) => drop(daemon.expect(kind, &is_own)?),
            None if *part == DEADLOCK => stories::deadlock(scene)?,
            None => scene.play(part)?,
        }
    }
    if last == "refused" {
        ensure!(scene.direct("rival: flock a ex").is_err(), "it was not refused");
    }
    daemon.expect(last, &is_own)?;
    daemon.stop()?;

    let cut = scene.path("cut.trace");
    fs::write(&cut, cut_down(scene, &trace)?).context("the trace")?;
    let told = replay(scene, &cut)?;
    let log = fs::read_to_string(house.path("events.jsonl")).context("the log")?;
    same!("kinds of the recording that was cut down", kinds(&told)?, own_kinds(&log, &is_own)?);
    ensure!(!told.contains(&scene.path_text("")?), "a path of this machine is left");
    let Some(golden) = std::env::var_os(GOLDEN).map(PathBuf::from) else { return Ok(()) };
    fs::copy(&cut, golden.join(format!("real_{name}.trace"))).context("the golden trace")?;
    fs::write(golden.join(format!("real_{name}.events")), told).context("its events")
}

fn replay(scene: &Scene, trace: &Path) -> Result<String> {
    let trace = trace.display().to_string();
    let run = scene.lockwatch(&["replay", "--json", &trace])?.run()?;
    Ok(String::from_utf8(run.exits(0)?.stdout.clone())?)
}

/// The kinds of events, without those about the machine as a whole but the first.
fn kinds(events: &str) -> Result<Vec<String>> {
    own_kinds(events, &|_| true)
}

fn own_kinds(events: &str, is_own: &dyn Fn(&Value) -> bool) -> Result<Vec<String>> {
    let mut kinds = Vec::new();
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).context("an event")?;
        let kind = event["kind"].as_str().context("no kind")?;
        if kind == "started" || kind != "all_clear" && is_own(&event) {
            kinds.push(kind.to_owned());
        }
    }
    Ok(kinds)
}

/// What a recording says of the test's own files, and of nobody else's.
fn cut_down(scene: &Scene, trace: &Path) -> Result<String> {
    let inputs = || -> Result<_> {
        let file = fs::File::open(trace).context("the recording")?;
        Ok(Reader::new(std::io::BufReader::new(file))?)
    };
    let mut own = Own { folder: scene.path_text("")?, files: BTreeSet::new() };
    let mut pids = scene.pids();
    for input in inputs()? {
        if let (_, Input::Reading(reading)) = input? {
            own.learn(&reading.snapshot, &mut pids);
        }
    }
    let reader = inputs()?;
    let settings = reader.settings().clone();
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, b"golden traces...", "0.1.0", &settings)?;
    for input in reader {
        let (at, input) = input?;
        if let Some(input) = own.of(input, &pids) {
            writer.write(at, &input)?;
        }
    }
    // Names of this machine: of folders, of programs, of groups.
    let mut text = String::from_utf8(out)?.replace(own.folder.trim_end_matches('/'), SHOWN);
    for (name, shown) in
        [(place::rig()?, "/usr/bin/rig"), (place::lockwatch()?, "/usr/bin/lockwatch")]
    {
        text = text.replace(&name.display().to_string(), shown);
    }
    Ok(text)
}

/// The test's own files.
struct Own {
    folder: String,
    files: BTreeSet<FileId>,
}

impl Own {
    fn learn(&mut self, snapshot: &Snapshot, pids: &mut BTreeSet<Pid>) {
        let mut places = BTreeSet::new();
        for (place, file) in snapshot.files.iter().enumerate() {
            let path = file.path.as_deref().unwrap_or_default();
            let name = path.strip_prefix(self.folder.as_bytes());
            // Three thousand shares of one file say no more than their owner's end.
            if name.is_some_and(|name| name != b"other") {
                self.files.insert(FileId { dev: file.dev, ino: file.ino });
                places.insert(place as u32);
            }
        }
        let of_locks = snapshot.locks.iter().map(|lock| (lock.file, lock.acquirer));
        let of_waiters = snapshot.waiters.iter().map(|waiter| (waiter.file, waiter.requester));
        for (file, who) in of_locks.chain(of_waiters) {
            if let (true, RecordedPid::Local(pid)) = (places.contains(&file.0), who) {
                pids.insert(pid);
            }
        }
        let of_file = snapshot.references.iter().filter(|of| places.contains(&of.file.0));
        pids.extend(of_file.map(|reference| reference.pid));
    }

    fn has(&self, lock: &LockName) -> bool {
        self.files.contains(&lock.file)
    }

    /// The part of an input that is about the test; `None` where there is none.
    fn of(&self, input: Input, pids: &BTreeSet<Pid>) -> Option<Input> {
        let is_own = match &input {
            Input::Died(death) => pids.contains(&death.process.pid),
            Input::PidReused(reused) => pids.contains(&reused.process.pid),
            Input::Ended(ended) => self.has(&ended.lock),
            Input::Acquired(acquired) => self.has(&acquired.lock),
            Input::Released(released) => self.has(&released.lock),
            Input::Attempt(attempt) => self.has(&attempt.met),
            Input::Lost(_) => false,
            _ => true,
        };
        if !is_own {
            return None;
        }
        Some(match input {
            Input::Reading(reading) => Input::Reading(Box::new(self.reading(*reading, pids))),
            Input::Started(mut started) => {
                let version = started.kernel.split('-').next().unwrap_or_default().to_owned();
                started.kernel = version;
                Input::Started(started)
            }
            other => other,
        })
    }

    fn reading(&self, reading: Reading, pids: &BTreeSet<Pid>) -> Reading {
        let Reading { begun, mut snapshot, ids } = reading;
        let mut places = BTreeMap::new();
        let mut files = Vec::new();
        for (place, file) in snapshot.files.drain(..).enumerate() {
            if self.files.contains(&FileId { dev: file.dev, ino: file.ino }) {
                places.insert(FileIx(place as u32), FileIx(files.len() as u32));
                files.push(file);
            }
        }
        snapshot.files = files.into();
        let mut kept = Vec::new();
        let mut locks = Vec::new();
        for (mut lock, id) in snapshot.locks.drain(..).zip(ids) {
            if let Some(&file) = places.get(&lock.file) {
                lock.file = file;
                locks.push(lock);
                kept.push(id);
            }
        }
        snapshot.locks = locks.into();
        snapshot.waiters.retain_mut(|waiter| at(&places, &mut waiter.file));
        snapshot.references.retain_mut(|reference| at(&places, &mut reference.file));
        let owners: BTreeSet<_> = snapshot.locks.iter().filter_map(|lock| lock.owner).collect();
        snapshot.places.retain(|place| owners.contains(&place.description));
        snapshot.processes.retain(|pid, _| pids.contains(pid));
        snapshot.deaths.retain(|death| pids.contains(&death.process.pid));
        snapshot.stuck.retain(|process| pids.contains(&process.pid));
        for process in snapshot.processes.values_mut() {
            process.cgroup = None;
        }
        Reading { begun, snapshot, ids: kept }
    }
}

/// Moves to where the file is now; false where it is no more.
fn at(places: &BTreeMap<FileIx, FileIx>, file: &mut FileIx) -> bool {
    let place = places.get(file).copied();
    *file = place.unwrap_or(*file);
    place.is_some()
}
