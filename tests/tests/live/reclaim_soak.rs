//! An adversary who changes something while a reclaim is at work, at a moment of chance, again and
//! again: not one lock is released that was not planned.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test, note, patience};
use lockwatch_tests::{once, same};
use serde_json::Value;

use crate::reclaim::{AUDIT, CONFIG, prepare};

/// Name how many rounds are played, and the number of the first; `cargo xtask soak reclaim` sets
/// them.
const ROUNDS: &str = "LOCKWATCH_SOAK_ROUNDS";
const FIRST: &str = "LOCKWATCH_SOAK_FIRST";
/// Names a file for how often each act came to which end.
const REPORT: &str = "LOCKWATCH_SOAK_REPORT";
const USUAL: u32 = 2 * ACTS.len() as u32;
/// How long a long form may take.
pub(crate) const LONG: Duration = Duration::from_secs(12 * 3600);
/// In a long form one round of so many is one in which a daemon is killed, at an exact step.
const KILLED_ONCE_IN: u32 = 25;

/// A program that makes a pause between plan and act.
const PAUSE: &str = "/usr/bin/sleep";

pub(crate) const TESTS: &[Test] = &[once!(no_lock_is_released_that_was_not_planned)
    .needs(&["root", "mounts", "iter/task_file", "pidfd_getfd", "kcmp", "choose-pid"])
    .within(LONG)];

/// What the adversary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Unlock,
    Relock,
    Die,
    Exec,
    CloseAndReuse,
    PidReused,
    Unlink,
    MadeAnew,
    AnotherTakesIt,
    SecondReclaim,
    LockwatchDies,
}

const ACTS: [Act; 11] = [
    Act::Unlock,
    Act::Relock,
    Act::Die,
    Act::Exec,
    Act::CloseAndReuse,
    Act::PidReused,
    Act::Unlink,
    Act::MadeAnew,
    Act::AnotherTakesIt,
    Act::SecondReclaim,
    Act::LockwatchDies,
];

/// Chance that comes out the same again (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Which rounds of a long form.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// Somebody interferes at a moment of chance.
    Adversary,
    /// The daemon is killed at an exact step.
    Killed,
}

/// The numbers of the rounds of a part: `usual` of them, or its share of what was asked for.
pub(crate) fn rounds(part: Part, usual: u32) -> Result<Vec<u32>> {
    let number = |name| match std::env::var(name) {
        Ok(number) => number.parse().map(Some).context(name),
        Err(_) => Ok(None),
    };
    let Some(all) = number(ROUNDS)? else { return Ok((0..usual).collect()) };
    let first: u32 = number(FIRST)?.unwrap_or(0);
    let is_killed = |round: &u32| round % KILLED_ONCE_IN == KILLED_ONCE_IN - 1;
    let all = first..first + all;
    Ok(match part {
        Part::Adversary => all.filter(|round| !is_killed(round)).collect(),
        Part::Killed => all.filter(is_killed).map(|round| round / KILLED_ONCE_IN).collect(),
    })
}

/// How often which round came to which end.
#[derive(Default)]
pub(crate) struct Ends(std::collections::BTreeMap<String, u32>);

impl Ends {
    pub(crate) fn count(&mut self, end: String) {
        *self.0.entry(end).or_default() += 1;
    }

    /// Says it, at the end of the report where there is one.
    pub(crate) fn tell(&self) -> Result<()> {
        let lines: String =
            self.0.iter().map(|(end, times)| format!("{times:>6} {end}\n")).collect();
        let Some(path) = std::env::var_os(REPORT) else {
            lines.lines().for_each(note);
            return Ok(());
        };
        let mut file =
            std::fs::File::options().create(true).append(true).open(path).context(REPORT)?;
        std::io::Write::write_all(&mut file, lines.as_bytes()).context(REPORT)
    }
}

fn no_lock_is_released_that_was_not_planned(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    let rounds = rounds(Part::Adversary, patience::rounds(USUAL))?;
    let first = u64::from(rounds.first().copied().unwrap_or(0));
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15 ^ first << 20);
    let mut ends = Ends::default();
    scene.play("start warden")?;
    // The moment is somewhere in the run, however long that takes on this machine.
    let mut usual = Duration::from_millis(250);
    for round in rounds {
        let act = ACTS[round as usize % ACTS.len()];
        let paused = round as usize / ACTS.len() % 2 == 1 && Path::new(PAUSE).exists();
        configure(scene, round, paused)?;
        let longest = usual + if paused { Duration::from_millis(100) } else { Duration::ZERO };
        let longest = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        let wait = Duration::from_micros(chance.below(longest.max(1)));
        let (end, took) = play(scene, round, act, wait)
            .with_context(|| format!("round {round}: {act:?} after {wait:?}"))?;
        if !paused && act != Act::LockwatchDies {
            usual = (usual * 7 + took.min(Duration::from_secs(2))) / 8;
        }
        ends.count(format!("{act:?}: {end}"));
    }
    ends.tell()
}

/// Writes the configuration of a round: with a pause between plan and act, or without.
fn configure(scene: &Scene, round: u32, paused: bool) -> Result<()> {
    let mut text = format!("[reclaim]\naudit = \"{AUDIT}\"\n");
    if paused {
        let path = scene.path_text(&format!("lock-{round}"))?;
        text.push_str(&format!("[[watch]]\nname = \"it\"\npath = \"{path}\"\n"));
        text.push_str(&format!("drain = {{ run = [\"{PAUSE}\", \"0.1\"] }}\n"));
    }
    Ok(std::fs::write(CONFIG, text)?)
}

fn play(scene: &mut Scene, round: u32, act: Act, wait: Duration) -> Result<(String, Duration)> {
    let (owner, heir, other) =
        (format!("owner-{round}"), format!("heir-{round}"), format!("other-{round}"));
    let lock = format!("lock-{round}");
    scene.play(&format!(
        "start {owner}
         {owner}: open a {lock}
         {owner}: flock a ex
         {owner}: fork {heir}
         {heir}: exec
         {heir}: open own own-{round}
         {heir}: flock own ex
         {owner}: exit 0
         start {other}
         {other}: open b {lock}"
    ))?;
    let args = |lock: &str| {
        let lock = format!("./{lock}");
        vec![
            "reclaim".to_owned(),
            lock,
            "--execute".into(),
            "--json".into(),
            "--config".into(),
            CONFIG.into(),
        ]
    };
    let args = args(&lock);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let begun = Instant::now();
    let run = scene.lockwatch(&args)?.start()?;
    sleep(wait);
    let mut second = None;
    match act {
        Act::Unlock => scene.play(&format!("{heir}: flock a un"))?,
        Act::Relock => {
            scene.play(&format!("{heir}: flock a un"))?;
            scene.play(&format!("{heir}: flock a ex"))?;
        }
        Act::Die => scene.play(&format!("kill {heir}"))?,
        Act::Exec => scene.play(&format!("{heir}: exec"))?,
        Act::CloseAndReuse => scene.play(&format!(
            "{heir}: close a
             {heir}: open c reused-{round}
             {heir}: flock c ex"
        ))?,
        Act::PidReused => scene.play(&format!(
            "kill {heir}
             warden: fork again-{round} as {{{heir}}}
             again-{round}: open c-{round} reused-{round}
             again-{round}: flock c-{round} ex"
        ))?,
        Act::Unlink => scene.play(&format!("{heir}: unlink {lock}"))?,
        Act::MadeAnew => scene.play(&format!("{heir}: replace {lock}"))?,
        Act::AnotherTakesIt => scene.play(&format!("{other}: later flock b ex"))?,
        Act::SecondReclaim => second = Some(scene.lockwatch(&args)?.start()?),
        Act::LockwatchDies => run.signal(rustix::process::Signal::KILL)?,
    }
    let run = run.finish()?;
    let took = begun.elapsed();
    let end = if act == Act::LockwatchDies { "killed".to_owned() } else { end(&run)? };
    if let Some(second) = second {
        let ended = self::end(&second.finish()?)?;
        // One of the two has released it, and the other found nothing to do or was refused.
        ensure!([&end, &ended].iter().any(|end| end.starts_with("released")), "{end}, {ended}");
    }

    // Nobody has lost a lock but the orphan.
    let is_free = |scene: &mut Scene, file: &str| -> Result<bool> {
        let name = file.replace('.', "-");
        scene.play(&format!("warden: open {name} {file}"))?;
        let free = scene.direct(&format!("warden: flock {name} ex")).is_ok();
        scene.play(&format!("warden: close {name}"))?;
        Ok(free)
    };
    let dead = matches!(act, Act::Die | Act::PidReused);
    if !dead {
        // A rig that execs forgets names, but not its lock.
        ensure!(!is_free(scene, &format!("own-{round}"))?, "the holder lost another lock");
        scene.direct(&format!("{heir}: progress")).context("the holder lives on")?;
    }
    match act {
        Act::Relock => {
            ensure!(!is_free(scene, &lock)?, "what its holder took anew was released ({end})");
        }
        Act::CloseAndReuse | Act::PidReused => {
            let free = is_free(scene, &format!("reused-{round}"))?;
            ensure!(!free, "another lock with that descriptor was released ({end})");
        }
        // Where it came first it was not planned; it gets it either way.
        Act::AnotherTakesIt if end.starts_with("released") => {
            scene.play(&format!("await {other} done"))?;
            ensure!(!is_free(scene, &lock)?, "who got it lost it ({end})");
        }
        _ => {}
    }
    for name in [&owner, &heir, &other] {
        if *name != owner && !(dead && *name == heir) {
            scene.play(&format!("kill {name}"))?;
        }
    }
    if act == Act::PidReused {
        scene.play(&format!("kill again-{round}"))?;
    }
    Ok((end, took))
}

/// How a run ended; a refusal has its reason, and fits the exit code.
fn end(run: &lockwatch_tests::harness::Run) -> Result<String> {
    if run.code() == Some(2) {
        // Its file was gone before it looked.
        let complaints = run.complaints()?.join("; ");
        ensure!(complaints.contains("no lock remembers that path"), "{complaints}");
        return Ok("no such file".into());
    }
    let account: Value =
        serde_json::from_slice(&run.stdout).with_context(|| format!("{:?}", run.complaints()))?;
    if let Some(refusal) = account["refusals"].get(0) {
        same!("exit code", run.code(), Some(1));
        return Ok(format!("refused {}", refusal["reason"].as_str().context("no reason")?));
    }
    let Some(outcome) = account["outcomes"].get(0) else {
        same!("exit code", run.code(), Some(0));
        return Ok("nothing to do".into());
    };
    let result = outcome["result"].as_str().context("no result")?;
    if ["released", "taken_by"].contains(&result) {
        same!("exit code", run.code(), Some(0));
        return Ok(format!("released ({result})"));
    }
    same!("exit code", run.code(), Some(1));
    ensure!(!outcome["why"].as_str().unwrap_or_default().is_empty(), "no reason: {outcome}");
    Ok(format!("{result} {}", outcome["race"].as_str().unwrap_or("")))
}
