//! The daemon's tables against the kernel's own list, under a random mix of operations.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, note};
use lockwatch_tests::once;
use serde_json::Value;

use super::ordinary::falsehoods;
use super::{LONG, NEEDS, Own, Workers, begin, rounds, tell};

pub(crate) const TESTS: &[Test] =
    &[once!(the_tables_are_the_kernels_own_list_at_every_pause).needs(NEEDS).within(LONG)];

/// Operations of the short form.
const USUAL: u32 = 20_000;
const WORKERS: u32 = 4;

/// How `/proc/locks` has a lease that is being broken.
const BREAKING: &str = "BREAKING";

/// One entry: type, access, inode, first and last byte, and who took it, where that is shown.
pub(super) type Entry = (String, String, u64, u64, Option<u64>, Option<i32>);

/// The kernel's own list of the locks on the crowd's files, as often as each is there.
pub(super) fn kernels(own: &Own, inodes: &BTreeSet<u64>) -> Result<BTreeMap<Entry, u32>> {
    let text = fs::read_to_string("/proc/locks").context("/proc/locks")?;
    let mut entries = BTreeMap::new();
    for line in text.lines().filter(|line| !line.contains("->")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, kind, phase, access, pid, file, start, end] = words[..] else { continue };
        // Of a lease that is being broken the list shows what it is to become.
        let access = if phase == BREAKING { BREAKING } else { access };
        let Some((dev, inode)) = file.rsplit_once(':') else { continue };
        let inode: u64 = inode.parse().with_context(|| line.to_owned())?;
        if dev != own.dev || !inodes.contains(&inode) {
            continue;
        }
        let end = if end == "EOF" { None } else { Some(end.parse()?) };
        // Of an OFD lock nobody is shown.
        let pid: i32 = pid.parse()?;
        let pid = (pid > 0).then_some(pid);
        let entry = (kind.to_owned(), access.to_owned(), inode, start.parse()?, end, pid);
        *entries.entry(entry).or_default() += 1;
    }
    Ok(entries)
}

/// Of which locks it must be known when they were taken.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Times {
    OfAll,
    /// But for flocks of descriptions that several processes have: what they do to one at the same
    /// time is seen in any order.
    OfUnshared,
}

/// Looks that are taken until the two lists are the same.
const LOOKS: u32 = 5;

/// Compares what a scan with the daemon's history shows with the kernel's own list, and finds who
/// took each lock, and when. Answers how many locks there were.
///
/// The crowd stands still, but the rest of the machine does not, and of a list that changes
/// `/proc/locks`, which is read in pieces, may show an entry twice or not at all. What is really
/// different is so at each look.
pub(super) fn compare(scene: &Scene, house: &House, own: &Own, times: Times) -> Result<u32> {
    for _ in 1..LOOKS {
        if let Ok(found) = look(scene, house, own, times) {
            return Ok(found);
        }
    }
    look(scene, house, own, times)
}

fn look(scene: &Scene, house: &House, own: &Own, times: Times) -> Result<u32> {
    let state = house.path("bpf/lockwatch").display().to_string();
    let scan = scene.lockwatch(&["scan", "--json", "--source", "bpf", &own.folder])?;
    let run = scan.env("LOCKWATCH_STATE_DIR", &state).run()?;
    let report: Value = serde_json::from_slice(&run.stdout).context("the scan's report")?;
    ensure!(report["history"] == true, "the scan knew of no history: {:?}", run.complaints());
    ensure!(report["complete"] == true, "the scan was not complete: {}", report["limits"]);
    let inodes = inodes_below(Path::new(&own.folder))?;
    let kernels = kernels(own, &inodes)?;
    let mut seen = BTreeMap::new();
    for lock in report["locks"].as_array().context("no locks")? {
        let inode = lock["file"]["ino"].as_u64().context("no inode")?;
        // Of those that have lost their name nobody can tell whose they are.
        if !inodes.contains(&inode) {
            continue;
        }
        let text = |place: &Value| place.as_str().map(str::to_owned).context("no text");
        let acquirer = &lock["acquirer"];
        let pid = acquirer["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        ensure!(pid.is_some(), "nobody took it: {lock}");
        ensure!(acquirer["start_time"].is_string(), "who took it has no start: {lock}");
        let kind = text(&lock["type"])?;
        let holders = lock["holders"].as_array().context("no holders")?;
        let timeless = times == Times::OfUnshared && kind == "FLOCK" && holders.len() > 1;
        ensure!(timeless || lock["acquired_at"].is_string(), "it was taken at no time: {lock}");
        let shown = pid.filter(|_| kind != "OFDLCK");
        let evidence = lock["evidence"].to_string();
        let access = match evidence.contains("is being broken") {
            true => BREAKING.to_owned(),
            false => text(&lock["access"])?,
        };
        let entry = (
            kind,
            access,
            inode,
            lock["start"].as_u64().context("no start")?,
            lock["end"].as_u64(),
            shown,
        );
        *seen.entry(entry).or_default() += 1;
    }
    if seen != kernels {
        for (entry, times) in &kernels {
            if seen.get(entry) != Some(times) {
                note(&format!("the kernel has {times} of {entry:?}"));
            }
        }
        for (entry, times) in &seen {
            if kernels.get(entry) != Some(times) {
                note(&format!("the scan shows {times} of {entry:?}"));
            }
        }
    }
    ensure!(seen == kernels, "the scan shows other locks than the kernel has");
    Ok(seen.values().sum())
}

/// The inode numbers of all that is in a folder, and in those in it.
fn inodes_below(folder: &Path) -> Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(folder).context("the folder of crowds")? {
        let entry = entry.context("an entry")?;
        inodes.insert(entry.ino());
        if entry.file_type().context("an entry")?.is_dir() {
            inodes.append(&mut inodes_below(&entry.path())?);
        }
    }
    Ok(inodes)
}

fn the_tables_are_the_kernels_own_list_at_every_pause(scene: &mut Scene) -> Result<()> {
    let (house, mut daemon) = begin(scene, "gc_interval = \"200ms\"")?;
    let own = Own::of(scene)?;
    let each = rounds(USUAL)?.div_ceil(WORKERS);
    scene.play("start crowd")?;
    let workers = Workers::start(scene, "mixed", WORKERS, each, 1)?;
    let (mut pauses, mut compared) = (0, 0);
    while workers.are_at_work() {
        std::thread::sleep(std::time::Duration::from_millis(150));
        workers.stop()?;
        let found = compare(scene, &house, &own, Times::OfAll);
        let found = found.with_context(|| format!("pause {pauses}"));
        workers.go_on();
        compared += found?;
        pauses += 1;
        let events = daemon.events()?;
        let orphans = falsehoods(&own, &events).into_iter();
        let orphans: Vec<_> = orphans.filter(|event| event["kind"] == "orphaned").collect();
        ensure!(orphans.is_empty(), "false orphans: {orphans:?}");
    }
    let done = workers.done(scene)?;
    scene.play("crowd: dismiss")?;
    daemon.stop()?;
    tell(&format!("{done} operations, {pauses} pauses, {compared} locks compared, all the same"))
}
