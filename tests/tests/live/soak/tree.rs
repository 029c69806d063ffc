//! Sixty-four readers and writers on the mounted tree, while locks and orphans come and go by the
//! thousand: no error that is not documented, nothing stale, no growth, and it can be unmounted.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lockwatch_tests::harness::memory::Look;
use lockwatch_tests::harness::{Run, Scene, Test, note, patience};
use lockwatch_tests::once;
use serde_json::Value;

use super::hammer::Hammer;
use super::{LONG, Workers, crowd, ensure_nothing_was_lost, rounds, tell};
use crate::tree::Garden;

const NEEDS: &[&str] =
    &["root", "iter/task_file", "tp_btf", "mounts", "fuse", "pidfd_getfd", "kcmp"];

pub(crate) const TESTS: &[Test] =
    &[once!(sixty_four_see_nothing_but_the_contract_and_nothing_stale).needs(NEEDS).within(LONG)];

/// Releases are on record in the house of the daemon.
const RECLAIM: &str = "[reclaim]\nmode = \"reclaim\"\naudit = \"/srv/audit.jsonl\"";
/// Seconds of the short form.
const USUAL: u32 = 6;
/// Orphans at a time.
const BATCH: u32 = 100;
/// Ordinary sequences of locks at a time.
const SEQUENCES: u32 = 500;
/// How often the daemon is looked at when nothing happens.
const PARTS: u32 = 4;
/// What its memory may differ by between two moments of rest, kB: what the allocator keeps.
const GROWTH: u64 = 4 * 1024;
/// Descriptors that it has for a while, to see who writes to what was released.
const WATCHES: usize = 16;

fn sixty_four_see_nothing_but_the_contract_and_nothing_stale(scene: &mut Scene) -> Result<()> {
    let mut garden = Garden::watching(scene, RECLAIM)?;
    scene.new_folder("crowd")?;
    scene.play("start crowd\nstart busy")?;
    let tree = garden.path("");
    let hammer = Hammer::new(tree.clone(), scene.path("lock.conf"), scene.path_text("crowd/")?);
    let mut come_and_go = ComeAndGo::default();

    let seconds = Duration::from_secs(rounds(USUAL)?.into());
    let mut rests = Vec::new();
    for _ in 0..PARTS {
        hammer.around(|| come_and_go.play(scene, &mut garden, seconds / PARTS))?;
        if !hammer.errors().is_empty() {
            garden.daemon.events()?.iter().for_each(|event| note(&format!("event: {event}")));
            garden.daemon.stop()?;
            bail!("{:?}", hammer.errors());
        }
        // Whoever was reading has closed, and the kernel has said so, when others are answered.
        for _ in 0..3 {
            fs::write(tree.join("gc"), "1\n").context("gc")?;
            std::thread::sleep(patience::stretched(Duration::from_millis(300)));
        }
        rests.push(Look::at(garden.daemon.pid())?);
    }
    let counts = &hammer.counts;
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let (exact, unknown) = (count(&counts.exact), count(&counts.unknown));
    tell(&format!(
        "{} reads ({} of what was gone), {} writes, woken {} times, {} events read ({} skipped)",
        count(&counts.reads),
        count(&counts.gone),
        count(&counts.writes),
        count(&counts.woken),
        count(&counts.events),
        count(&counts.skipped),
    ))?;
    tell(&format!(
        "{} orphans and {} ordinary sequences came and went; releases of orphans: {:?}",
        come_and_go.orphans,
        come_and_go.sequences,
        hammer.releases()
    ))?;
    tell(&format!(
        "{exact} values after a gc were what is, {unknown} said unknown; none was stale"
    ))?;
    tell(&format!("at rest, after each quarter: {rests:?}"))?;
    ensure!(exact > 0 && exact > unknown * 10, "{exact} exact, {unknown} unknown");
    ensure_it_is_flat(&rests)?;

    patience::until("the tree can be unmounted", || {
        match rustix::mount::unmount(&tree, rustix::mount::UnmountFlags::empty()) {
            Ok(()) => Ok(Some(())),
            // Files that were closed last are let go of a moment later.
            Err(rustix::io::Errno::BUSY) => Ok(None),
            Err(error) => Err(error).context("umount"),
        }
    })?;
    // Warnings there may be: that an evicted holder is watched no longer because it has gone, say.
    ensure_a_log_without(&["ERROR"], &garden.daemon.stop()?)
}

/// Fails where a line of a daemon's log has one of these words.
pub(super) fn ensure_a_log_without(words: &[&str], run: &Run) -> Result<()> {
    let complaints = run.complaints()?;
    let is_bad = |line: &&&str| words.iter().any(|word| line.contains(word));
    let bad: Vec<_> = complaints.iter().filter(is_bad).collect();
    ensure!(bad.is_empty(), "the daemon's log has {bad:?}");
    Ok(())
}

/// What comes and goes meanwhile.
#[derive(Default)]
struct ComeAndGo {
    orphans: u32,
    sequences: u64,
    seed: u32,
}

impl ComeAndGo {
    /// Orphans, a crowd at a time, and ordinary locks beside them.
    fn play(&mut self, scene: &mut Scene, garden: &mut Garden, lasting: Duration) -> Result<()> {
        let begun = Instant::now();
        let batch = patience::rounds(BATCH).max(10);
        let mut busy: Option<Workers> = None;
        loop {
            if let Some(workers) = &busy
                && !workers.are_at_work()
            {
                self.sequences += workers.done(scene)?;
                busy = None;
            }
            if begun.elapsed() > lasting {
                break;
            }
            if busy.is_none() {
                self.seed += 1;
                let each = patience::rounds(SEQUENCES).max(10);
                busy = Some(Workers::start_by(scene, "busy", "ordinary", 1, each, self.seed)?);
            }
            self.seed += 1;
            let folders = format!("orphan-{}-", self.seed);
            let provoked = crowd(scene, "orphans", batch, self.seed)?;
            let mut missing: BTreeSet<u64> = provoked.iter().map(|words| words[0]).collect();
            let told = patience::until("that every orphan is told", || {
                let events = garden.daemon.events()?;
                ensure_nothing_was_lost(&events)?;
                for event in events.iter().filter(|event| event["kind"] == "orphaned") {
                    missing.remove(&event["lock"]["file"]["ino"].as_u64().unwrap_or_default());
                }
                Ok(missing.is_empty().then_some(()))
            });
            if told.is_err() {
                show(scene, garden, &missing)?;
            }
            told.with_context(|| format!("{missing:?} of {} were not", provoked.len()))?;
            scene.play("crowd: dismiss")?;
            patience::until("that no orphan has a folder", || {
                Ok(garden.names("locks")?.iter().all(|n| !n.starts_with(&folders)).then_some(()))
            })?;
            self.orphans += batch;
        }
        if let Some(workers) = busy {
            patience::until("that the last sequences are done", || {
                Ok((!workers.are_at_work()).then_some(()))
            })?;
            self.sequences += workers.done(scene)?;
        }
        Ok(())
    }
}

/// What is known of files of which something was expected.
fn show(scene: &Scene, garden: &Garden, inodes: &BTreeSet<u64>) -> Result<()> {
    let crowd = scene.path_text("crowd")?;
    let scan = scene.lockwatch(&["scan", "--json", &crowd])?;
    let run = scan.env("LOCKWATCH_STATE_DIR", garden.house.path("bpf/lockwatch")).run()?;
    let report: Value = serde_json::from_slice(&run.stdout).context("a scan")?;
    let is_one = |file: &Value| file["ino"].as_u64().is_some_and(|inode| inodes.contains(&inode));
    for lock in report["locks"].as_array().context("no locks")? {
        if is_one(&lock["file"]) {
            note(&format!("lock: {lock}"));
        }
    }
    let log = fs::read_to_string(garden.daemon.log()).context("the events")?;
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).context("an event")?;
        if is_one(&event["lock"]["file"]) {
            note(&format!("event: {line}"));
        }
    }
    Ok(())
}

/// Fails where the daemon had more memory or descriptors at the end than half-way. What the load makes
/// the allocator keep at first is no growth.
fn ensure_it_is_flat(rests: &[Look]) -> Result<()> {
    let (half, end) = (&rests[rests.len() / 2 - 1], rests.last().context("never at rest")?);
    ensure!(end.resident <= half.resident + GROWTH, "it grew: {half:?}, then {end:?}");
    ensure!(
        end.descriptors <= half.descriptors + WATCHES,
        "it keeps descriptors: {half:?}, then {end:?}"
    );
    Ok(())
}
