//! `events` of the tree as its readers see it: each has everything since it opened the file, and
//! who is too slow loses its own oldest and nobody else's.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::House;
use lockwatch_tests::harness::{Scene, Test, note, patience};
use lockwatch_tests::{once, same};
use rustix::event::PollFlags;
use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::stories::LEAKED;
use crate::tree::{Garden, NEEDS, QUICK, ready, woken};

pub(crate) const TESTS: &[Test] = &[
    once!(every_reader_of_events_gets_all_since_it_opened).needs(NEEDS),
    once!(a_reader_that_does_not_want_to_wait_need_not).needs(NEEDS),
    once!(a_slow_reader_loses_its_own_oldest_and_a_quick_one_nothing).needs(NEEDS),
];

/// Events that a reader may be behind, as docs/tree.md has it.
const BEHIND: u64 = 4096;

/// What a reader of `events` has read.
#[derive(Default)]
pub(crate) struct Following {
    /// The number of the last event.
    last: Option<u64>,
    /// The beginning of a line.
    rest: Vec<u8>,
    /// How many events came.
    pub(crate) count: u64,
    /// How many it was told that it lost.
    pub(crate) skipped: u64,
}

impl Following {
    /// Takes what was read. Each event has the number after the last one, but for those that the
    /// reader is told it lost.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        for line in std::str::from_utf8(&whole)?.lines() {
            let event: Value = serde_json::from_str(line).context(line.to_owned())?;
            if let Some(skipped) = event["skipped"].as_u64() {
                self.skipped += skipped;
                self.last = self.last.map(|last| last + skipped);
                continue;
            }
            let seq = event["seq"].as_u64().context(line.to_owned())?;
            let fits = self.last.is_none_or(|last| seq == last + 1);
            ensure!(fits, "after event {:?} came {line}", self.last);
            self.last = Some(seq);
            self.count += 1;
        }
        Ok(())
    }

    /// Reads what has come; false where nothing has. The file must be one that does not wait.
    pub(crate) fn read(&mut self, events: &mut File) -> Result<bool> {
        let mut chunk = [0; 8192];
        match events.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            length => {
                let length = length.context("reading events")?;
                ensure!(length > 0, "events ended");
                self.take(&chunk[..length])?;
                Ok(true)
            }
        }
    }
}

/// Opens `events` so that a read does not wait.
pub(crate) fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK).open(path).context("opening events")
}

/// Reads lines until an event of a kind about a file has come; the kinds of those about the file.
fn kinds_until(file: &mut File, path: &str, last: &str) -> Result<Vec<String>> {
    let (mut text, mut chunk) = (Vec::new(), [0; 512]);
    loop {
        let length = file.read(&mut chunk).context("events")?;
        ensure!(length > 0, "events ended");
        text.extend_from_slice(&chunk[..length]);
        if text.last() != Some(&b'\n') {
            continue;
        }
        let mut kinds = Vec::new();
        for line in std::str::from_utf8(&text)?.lines() {
            let event: Value = serde_json::from_str(line).context(line.to_owned())?;
            if event["lock"]["file"]["path"] != path {
                continue;
            }
            kinds.push(event["kind"].as_str().context("no kind")?.to_owned());
        }
        if kinds.iter().any(|kind| kind == last) {
            return Ok(kinds);
        }
    }
}

fn every_reader_of_events_gets_all_since_it_opened(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    let mut first = File::open(garden.path("events"))?;
    let mut second = File::open(garden.path("events"))?;
    let path = scene.path_text("lock")?;
    scene.play(LEAKED)?;
    same!("first", kinds_until(&mut first, &path, "orphaned")?, ["orphaned"]);
    let mut late = File::open(garden.path("events"))?;
    scene.play("heir: exit 0")?;
    same!("first", kinds_until(&mut first, &path, "recovered")?, ["recovered"]);
    same!("late", kinds_until(&mut late, &path, "recovered")?, ["recovered"]);
    let all = ["orphaned", "recovered"];
    same!("second", kinds_until(&mut second, &path, "recovered")?, all);
    garden.daemon.stop()?;
    Ok(())
}

fn a_reader_that_does_not_want_to_wait_need_not(scene: &mut Scene) -> Result<()> {
    let garden = Garden::begin(scene, QUICK)?;
    let mut events = open(&garden.path("events"))?;
    let mut chunk = [0; 100];
    // Others may have made events meanwhile.
    let error = loop {
        if let Err(error) = events.read(&mut chunk) {
            break error;
        }
    };
    same!("nothing more", error.kind(), ErrorKind::WouldBlock);
    let flags = std::thread::scope(|scope| -> Result<_> {
        let events = &events;
        let waits = scope.spawn(move || woken(events));
        std::thread::sleep(Duration::from_millis(100));
        scene.play(LEAKED)?;
        waits.join().map_err(|_| anyhow::anyhow!("who waited panicked"))?
    })?;
    ensure!(flags.contains(PollFlags::IN), "woke with {flags:?}");
    ensure!(events.read(&mut chunk)? > 0, "ready, and nothing there");
    garden.daemon.stop()?;
    Ok(())
}

fn a_slow_reader_loses_its_own_oldest_and_a_quick_one_nothing(scene: &mut Scene) -> Result<()> {
    let house = House::build(scene)?;
    let path = scene.path("lock");
    fs::write(&path, "x").context("the watched file")?;
    let watch = format!("{QUICK}\n[[watch]]\nname = \"guarded\"\npath = \"{}\"", path.display());
    house.configure(&watch)?;
    let garden = Garden { daemon: house.start(scene, &["--verbose-events"])?, house };
    let events = garden.path("events");
    let (mut slow, mut quick) = (open(&events)?, open(&events)?);
    let lock = File::open(&path).context("the watched file")?;
    let change = || -> Result<()> {
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).context("flock")?;
        rustix::fs::flock(&lock, FlockOperation::Unlock).context("flock")
    };
    // Both begin with the same event.
    change()?;
    let (mut behind, mut ahead) = (Following::default(), Following::default());
    patience::until("the first event", || Ok(behind.read(&mut slow)?.then_some(())))?;

    let (stop, read) = (AtomicBool::new(false), AtomicU64::new(0));
    let ahead = std::thread::scope(|scope| -> Result<Following> {
        let reader = scope.spawn(|| -> Result<Following> {
            loop {
                let is_last = stop.load(Ordering::Relaxed);
                while ahead.read(&mut quick)? {
                    read.store(ahead.count, Ordering::Relaxed);
                }
                if is_last {
                    return Ok(ahead);
                }
                ready(&quick, Duration::from_millis(50))?;
            }
        });
        let changed = patience::until("more events than a reader may be behind", || {
            for _ in 0..200 {
                change()?;
            }
            Ok((read.load(Ordering::Relaxed) > 2 * BEHIND).then_some(()))
        });
        stop.store(true, Ordering::Relaxed);
        let ahead = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        changed.and(ahead)
    })?;
    let before = behind.count;
    while behind.read(&mut slow)? {}
    note(&format!(
        "quick: {} read, {} lost; slow: {before}, then {} read, {} lost",
        ahead.count,
        ahead.skipped,
        behind.count - before,
        behind.skipped
    ));
    same!("lost by the quick one", ahead.skipped, 0);
    ensure!(behind.skipped >= BEHIND / 2, "the slow one lost {} only", behind.skipped);
    let kept = behind.count - before;
    ensure!(kept >= BEHIND, "the slow one was left with {kept}");
    ensure!(behind.last >= ahead.last, "{:?} is not the end, {:?} is", behind.last, ahead.last);
    garden.daemon.stop()?;
    Ok(())
}
