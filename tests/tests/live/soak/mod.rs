//! Long runs beside the daemon, each in a short form here; `cargo xtask soak` plays the long ones.
//!
//! What happens is provoked by crowds of the rig, which write down what they did.

pub(crate) mod fleet;
mod hammer;
pub(crate) mod kill;
pub(crate) mod mixed;
pub(crate) mod ordinary;
pub(crate) mod races;
pub(crate) mod stressors;
pub(crate) mod traces;
pub(crate) mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::{Scene, note, patience};
use serde_json::Value;

pub(crate) use crate::daemon::NEEDS;

/// Names how much is done; `cargo xtask soak` sets it.
const ROUNDS: &str = "LOCKWATCH_SOAK_ROUNDS";
/// Names a file for what came of it.
const REPORT: &str = "LOCKWATCH_SOAK_REPORT";
/// How long a long form may take.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

/// How much is done this time.
fn rounds(usual: u32) -> Result<u32> {
    match std::env::var(ROUNDS) {
        Ok(number) => number.parse().context(ROUNDS),
        Err(_) => Ok(usual),
    }
}

/// Says what came of it.
fn tell(line: &str) -> Result<()> {
    note(line);
    let Some(path) = std::env::var_os(REPORT) else { return Ok(()) };
    let mut file = fs::File::options().create(true).append(true).open(path).context(REPORT)?;
    std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes()).context(REPORT)
}

/// A daemon, in a house of its own, and a folder for crowds.
fn begin(scene: &mut Scene, more: &str) -> Result<(House, Daemon)> {
    begin_with(scene, more, &[])
}

/// The same, and the daemon records what it is told into the file `recorded` of the scene.
fn begin_recorded(scene: &mut Scene, more: &str) -> Result<(House, Daemon)> {
    let record = scene.path_text("recorded")?;
    begin_with(scene, more, &["--record", &record])
}

fn begin_with(scene: &mut Scene, more: &str, args: &[&str]) -> Result<(House, Daemon)> {
    let house = House::build(scene)?;
    house.configure(more)?;
    scene.new_folder("crowd")?;
    let mut daemon = house.start(scene, args)?;
    daemon.expect("started", |_| true)?;
    Ok((house, daemon))
}

/// A line of what a crowd provoked.
type Provoked = Vec<u64>;

/// What a crowd wrote down.
fn provoked(path: &Path) -> Result<Vec<Provoked>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let number = |word: &str| word.parse::<u64>().with_context(|| format!("{word:?} of a crowd"));
    text.lines().map(|line| line.split(' ').map(number).collect()).collect()
}

/// Has a rig play a part of a crowd to its end, and answers what it did.
fn crowd(scene: &mut Scene, part: &str, count: u32, seed: u32) -> Result<Vec<Provoked>> {
    scene.direct(&format!("crowd: crowd told-{seed} {part} {count} crowd {seed}"))?;
    provoked(&scene.path(&format!("told-{seed}")))
}

/// Workers of a crowd that go on by themselves.
struct Workers(Vec<(i32, u32)>);

impl Workers {
    /// Lets so many do so much each, in the folder of crowds.
    fn start(scene: &mut Scene, part: &str, workers: u32, count: u32, seed: u32) -> Result<Self> {
        Self::start_by(scene, "crowd", part, workers, count, seed)
    }

    /// The same by a rig of choice.
    fn start_by(
        scene: &mut Scene,
        rig: &str,
        part: &str,
        workers: u32,
        count: u32,
        seed: u32,
    ) -> Result<Self> {
        let mut started = Vec::new();
        for seed in seed..seed + workers {
            let line = format!("{rig}: crowd told-{seed} {part} {count} crowd {seed}");
            let answer = scene.direct(&line)?;
            let pid = answer.strip_prefix("ok pid=").context("no pid")?;
            started.push((pid.parse()?, seed));
        }
        Ok(Self(started))
    }

    fn signal(&self, signal: libc::c_int) {
        for (pid, _) in &self.0 {
            // SAFETY: takes numbers only.
            unsafe { libc::kill(*pid, signal) };
        }
    }

    /// Stops them, wherever they are, and waits until they have.
    fn stop(&self) -> Result<()> {
        self.signal(libc::SIGSTOP);
        for (pid, _) in &self.0 {
            patience::until("that a worker has stopped", || {
                Ok(state(*pid).is_none_or(|state| state == 'T').then_some(()))
            })?;
        }
        Ok(())
    }

    fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    /// True as long as any is at work.
    fn are_at_work(&self) -> bool {
        self.0.iter().any(|(pid, _)| state(*pid).is_some())
    }

    /// What they did, now that they are done; fails where one ended before that.
    fn done(&self, scene: &Scene) -> Result<u64> {
        let mut done = 0;
        for (pid, seed) in &self.0 {
            let told = provoked(&scene.path(&format!("told-{seed}")));
            done += told.with_context(|| format!("worker {pid} ended early"))?[0][0];
        }
        Ok(done)
    }
}

/// The state of a process, as ps(1) has it; `None` of one that is gone.
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next().filter(|state| !matches!(state, 'Z' | 'X'))
}

/// Inode numbers of everything in the folder of crowds, and its device, as events name it.
struct Own {
    dev: String,
    folder: String,
}

impl Own {
    fn of(scene: &Scene) -> Result<Self> {
        let folder = scene.path_text("crowd")?;
        let dev = scene.file("crowd")?.dev;
        Ok(Self { dev, folder })
    }

    /// True for an event about a file of these inodes.
    fn is_one_of(&self, inodes: &BTreeSet<u64>, event: &Value) -> bool {
        let file = &event["lock"]["file"];
        file["dev"] == self.dev.as_str()
            && file["ino"].as_u64().is_some_and(|inode| inodes.contains(&inode))
    }

    /// True for an event about a file of the folder, by its path: also one that is gone by now.
    fn is_below(&self, event: &Value) -> bool {
        let file = &event["lock"]["file"];
        let path = file["path"].as_str().unwrap_or_default();
        path.starts_with(&self.folder)
    }
}

/// Fails where records were lost: then nothing can be said of what was told.
fn ensure_nothing_was_lost(events: &[Value]) -> Result<()> {
    let lost = events.iter().find(|event| event["kind"] == "lost");
    ensure!(lost.is_none(), "records were lost: {lost:?}");
    Ok(())
}
