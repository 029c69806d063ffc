//! The drill: the night for which lockwatch exists, with real processes on a real kernel.
//!
//! A test like every other, and told as a story by `cargo xtask demo`. Nothing in it is for show:
//! each line of output is what the program above it printed, and each is also judged.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lockwatch_tests::harness::daemon::{Daemon, House};
use lockwatch_tests::harness::invocation::Running;
use lockwatch_tests::harness::scrape::samples;
use lockwatch_tests::harness::{Run, Scene, Test, capability, descent, patience, place, tell};
use lockwatch_tests::rig::language::escape;
use lockwatch_tests::{once, same};
use rustix::process::Signal;

const NEEDS: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "pidns",
    "fuse",
    "pidfd_getfd",
    "kcmp",
    "program:sh",
];
const AND_A_SESSION: &[&str] = &[
    "root",
    "iter/task_file",
    "tp_btf",
    "mounts",
    "pidns",
    "fuse",
    "pidfd_getfd",
    "kcmp",
    "program:sh",
    "program:setsid",
];

pub(crate) const TESTS: &[Test] = &[
    once!(the_night_of_the_incident_ends_all_clear).needs(NEEDS),
    once!(a_night_that_is_interrupted_leaves_nothing_behind).needs(AND_A_SESSION),
];

/// The file that steers a dozen drones. Nobody else's: `/srv` is the test's own.
const FILE: &str = "/srv/aim/aim_lock_config.conf";
const NAME: &str = "aim_lock_config.conf";
const TREE: &str = "/run/lockwatch";
const FOLDER: &str = "locks/aim_lock_config";

// The first line of the file, in one length: an update overwrites it in place.
const CLEAN: &str = "# clean;      last touched by node-6\n";
const BEGUN: &str = "# UPDATING;   last touched by node-7\n";
const CLEAN_AGAIN: &str = "# clean;      last touched by node-7\n";
const SETTINGS: &str = "drones = 12\naim = steady\n";

/// What the configuration says of the file, as the story shows it.
const WATCH: &str = "\
[[watch]]
name = \"aim_lock_config\"
path = \"/srv/aim/aim_lock_config.conf\"
reclaim = true
drain = { run = [\"/srv/bin/drain\", \"fleet\"] }
canary = { run = [\"/srv/bin/canary\"] }
resume = { run = [\"/srv/bin/resume\", \"fleet\"] }";

fn the_night_of_the_incident_ends_all_clear(scene: &mut Scene) -> Result<()> {
    let begun = Instant::now();
    let mut night = Night::begin(scene)?;
    night.locksmith_dies_in_the_middle_of_an_update(scene)?;
    night.the_operator_asks(scene)?;
    night.the_lock_is_released(scene)?;
    night.the_watchdog_takes_over(scene)?;
    night.all_is_clear(scene)?;
    tell(&format!("\nThat took {:.1} s.", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// As Ctrl-C does it: everybody in the group gets the signal.
fn a_night_that_is_interrupted_leaves_nothing_behind(scene: &mut Scene) -> Result<()> {
    let own = std::env::current_exe().context("this program")?;
    let own = own.to_str().context("this program's path is not UTF-8")?;
    let tmp = scene.new_folder("tmp")?;
    let night = "drill::the_night_of_the_incident_ends_all_clear";
    let drill = scene.program("setsid", &[own, "--aloud", "--exact", night])?;
    let drill = drill.env("TMPDIR", &tmp).start()?;
    // The daemon runs by then, and Locksmith.
    let told = CLEAN.len() + WATCH.len() + 300;
    patience::until("the story has begun", || Ok((drill.written_so_far() > told).then_some(())))?;
    let playing = descent::alive_below(drill.pid())?;
    ensure!(playing.len() > 3, "only {playing:?} play");
    let group = rustix::process::Pid::from_raw(drill.pid()).context("no group")?;
    rustix::process::kill_process_group(group, Signal::INT).context("Ctrl-C")?;
    let run = drill.patiently().finish()?;
    run.exits(130)?;
    let left: Vec<_> = playing.into_iter().filter(|process| descent::is_alive(*process)).collect();
    ensure!(left.is_empty(), "these are left: {left:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains("fuse.lockwatch"), "a tree is left: {mounts}");
    let left: Vec<_> = fs::read_dir(&tmp)?.flatten().map(|entry| entry.path()).collect();
    ensure!(left.is_empty(), "files are left: {left:?}");
    Ok(())
}

/// A control node on which lockwatch runs.
struct Night {
    house: House,
    daemon: Daemon,
    /// `lockwatch events`, from the evening on.
    log: Running,
}

impl Night {
    fn begin(scene: &mut Scene) -> Result<Self> {
        let house = House::build(scene)?;
        // The tree is where it always is, and yet in nobody's way.
        capability::tmpfs(Path::new("/run"))?;
        for folder in ["/srv/aim", "/srv/bin"] {
            fs::create_dir(folder).context(folder)?;
        }
        fs::write(FILE, format!("{CLEAN}{SETTINGS}")).context(FILE)?;
        hook("drain", "echo \"drain: the drones of the $1 hold their position\"")?;
        let lockwatch = place::lockwatch()?;
        let check = format!(
            "{} check \"$LOCKWATCH_PATH\" && echo canary: one drone has read it",
            lockwatch.display()
        );
        hook("canary", &check)?;
        hook("resume", "echo \"resume: the $1 flies on; it was $LOCKWATCH_RESULT\"")?;
        let config = format!(
            "gc_interval = \"1s\"\nmount = \"{TREE}\"\nstate_dir = \"/srv/bpf/lockwatch\"\n\
             metrics_listen = \"unix:/srv/metrics.sock\"\n\
             [reclaim]\naudit = \"/srv/reclaim.jsonl\"\n{WATCH}\n"
        );
        fs::write(house.path("lockwatch.toml"), config).context("the configuration")?;

        chapter("A control node. lockwatch watches the file that steers a dozen drones.");
        tell(&indented(WATCH));
        let daemon = house.start(scene, &[])?;
        let log = scene.lockwatch(&["events", "--config", &house.config()])?.start()?;
        let night = Self { house, daemon, log };
        night.until("state", "free")?;
        night.shell(scene, &format!("cat {FOLDER}/state"))?.exits(0)?;
        Ok(night)
    }

    fn locksmith_dies_in_the_middle_of_an_update(&mut self, scene: &mut Scene) -> Result<()> {
        chapter("Locksmith, in a container of its own, locks the file and begins an update.");
        scene.play(
            "start node
             node: fork container pidns mounts
             container: mount proc /proc
             container: fork locksmith
             locksmith: comm locksmith",
        )?;
        scene.direct(&format!("locksmith: open conf {FILE}"))?;
        scene.direct("locksmith: flock conf ex")?;
        scene.direct(&format!("locksmith: write conf {}", escape(BEGUN.as_bytes())))?;
        let check = self.lockwatch(scene, &["check", FILE])?;
        check.exits(3)?;
        let held = format!("{NAME}: held by locksmith (pid {}) since 2", scene.pid("locksmith")?);
        ensure!(check.text()?.starts_with(&held), "{:?}", check.text());
        self.until("state", "held")?;

        chapter(
            "It starts a helper, which inherits the descriptor, and is killed before it is done.",
        );
        scene.play(
            "locksmith: fork helper
             helper: comm telemetry
             helper: exec
             helper: comm telemetry
             locksmith: die KILL",
        )?;
        tell(&format!("  (pid {} is gone)\n  $ head -n 1 {FILE}", scene.pid("locksmith")?));
        let first = fs::read_to_string(FILE)?;
        tell(&indented(first.lines().next().unwrap_or_default()));
        same!("the file", first, format!("{BEGUN}{SETTINGS}"));
        self.until("state", "orphaned")
    }

    fn the_operator_asks(&mut self, scene: &mut Scene) -> Result<()> {
        chapter("A client wants to write its settings, and is refused.");
        scene.play("start client")?;
        scene.direct("client: comm ground-control")?;
        scene.direct(&format!("client: open conf {FILE}"))?;
        let refused = scene.direct("client: flock conf ex");
        let refused = format!("{:#}", refused.err().context("the client was not refused")?);
        ensure!(refused.contains("os error 11"), "refused so: {refused}");
        let why = refused.rsplit(": ").next().unwrap_or_default();
        tell(&format!("  ground-control: flock(LOCK_EX | LOCK_NB): {why}"));
        self.daemon.expect("refused", |event| event["lock"]["watch"] == "aim_lock_config")?;
        let check = self.lockwatch(scene, &["check", FILE])?;
        check.exits(1)?;
        let expected = format!("ERROR: {NAME}: HOT (inherited; acquirer locksmith ");
        ensure!(check.text()?.starts_with(&expected), "{:?}", check.text());

        chapter("In the container the kernel says: held by PID 0.");
        let (pid, _) = scene.own_ids("helper")?;
        let lock = self.shown_inside(scene, pid)?;
        ensure!(lock.contains("FLOCK  ADVISORY  WRITE 0 "), "{lock:?}");

        chapter("lockwatch says who.");
        let scan = self.lockwatch(scene, &["scan", "-t", NAME])?;
        scan.exits(1)?;
        ensure!(scan.text()?.contains("orphaned"), "{:?}", scan.text());
        ensure!(scan.last_line()?.starts_with("HOT: "), "{:?}", scan.text());
        let explain = self.lockwatch(scene, &["explain", FILE])?;
        explain.exits(1)?;
        let told = explain.text()?;
        for words in [
            "It is orphaned/inherited: ",
            "It was taken by locksmith ",
            "It ended at ",
            "It was taken at ",
            "held by PID 0: that is only how",
            &format!("telemetry (pid {}", scene.pid("helper")?),
        ] {
            ensure!(told.contains(words), "{words:?} is not in {told:?}");
        }
        let samples = samples(&self.house.path("metrics.sock"))?;
        let hot = "lockwatch_watched_lock_hot{name=\"aim_lock_config\"}";
        same!("the metric", samples.get(hot), Some(&1.0));
        tell(&format!("  GET /metrics says, for the alert: {hot} 1"));
        Ok(())
    }

    fn the_lock_is_released(&mut self, scene: &mut Scene) -> Result<()> {
        chapter("Nothing is released unless somebody switches it on.");
        // The shell's own echo says "I/O error" whatever the errno.
        let refused = self.shell(scene, &format!("env echo 0 > {FOLDER}/conf_locked"))?;
        ensure!(refused.code() != Some(0), "it was done");
        let why = refused.complaints()?.join("\n");
        ensure!(why.contains("not permitted"), "{why:?}");
        self.shell(scene, "echo 1 > reclaim_enabled")?.exits(0)?;

        chapter("Drain, recheck, release, verification, canary, resume: one line.");
        let line = format!("echo 0 > {FOLDER}/conf_locked && echo OK");
        let done = self.shell(scene, &line)?;
        same!("the answer", done.text()?, "OK\n");
        let hooks = fs::read_to_string("/srv/hooks.log").context("what the hooks said")?;
        tell(&indented(&format!("the hooks said:\n{hooks}")));
        let expected = format!(
            "drain: the drones of the fleet hold their position\n{NAME}: free\n\
             canary: one drone has read it\nresume: the fleet flies on; it was released\n"
        );
        same!("the hooks", hooks, expected);
        let locked = self.shell(scene, &format!("cat {FOLDER}/conf_locked"))?;
        same!("locked", locked.text()?, "0\n");
        // The helper lives on: it lost a lock that was not its own, and nothing else.
        scene.direct("helper: comm telemetry")?;
        tell(&format!("  (telemetry, pid {}, was not touched)", scene.pid("helper")?));
        self.daemon.expect("recovered", |event| event["lock"]["watch"] == "aim_lock_config")?;
        Ok(())
    }

    fn the_watchdog_takes_over(&mut self, scene: &mut Scene) -> Result<()> {
        chapter("Locksmith's watchdog comes back, takes the file, and finishes the update.");
        scene.play("start watchdog")?;
        scene.direct("watchdog: comm locksmith-wd")?;
        scene.direct(&format!("watchdog: open conf {FILE}"))?;
        scene.direct("watchdog: flock conf ex")?;
        let pid = scene.pid("watchdog")?;
        self.until("acquirer", &format!("locksmith-wd (pid {pid})"))?;
        self.shell(scene, &format!("cat {FOLDER}/state {FOLDER}/acquirer"))?.exits(0)?;
        scene.direct(&format!("watchdog: write conf {}", escape(CLEAN_AGAIN.as_bytes())))?;
        scene.direct("watchdog: flock conf un")?;
        same!("the file", fs::read_to_string(FILE)?, format!("{CLEAN_AGAIN}{SETTINGS}"));
        self.shell(scene, &format!("cat {FILE}"))?.exits(0)?;
        let check = self.lockwatch(scene, &["check", FILE])?;
        check.exits(0)?;
        same!("check", check.text()?, format!("{NAME}: free\n"));
        self.until("state", "free")
    }

    fn all_is_clear(mut self, scene: &mut Scene) -> Result<()> {
        chapter("All clear.");
        self.until_clear()?;
        let status = self.shell(scene, "cat status")?;
        let touched = self.shell(scene, &format!("cat {FOLDER}/last_touched"))?;
        let expected = format!("locksmith-wd (pid {}) on ", scene.pid("watchdog")?);
        ensure!(touched.text()?.starts_with(&expected), "{:?}", touched.text());
        if status.text()? == "ALL CLEAR\n" {
            self.daemon.expect("all_clear", |_| true)?;
        }
        self.log.signal(Signal::INT)?;
        let log = self.log.finish()?;
        log.exits(130)?;
        let own = |line: &&str| line.contains(FILE) || line.contains("all_clear");
        let lines: Vec<&str> = log.lines()?.into_iter().filter(own).collect();
        chapter("What `lockwatch events` had to say that night.");
        tell(&indented(&lines.join("\n")));
        for kind in ["refused", "orphaned", "recovered"] {
            ensure!(lines.iter().any(|line| line.contains(kind)), "{kind} is not in {lines:?}");
        }
        self.daemon.stop()?;
        Ok(())
    }

    /// Where others of this machine have orphans, too, the status says so rightly; then it is enough
    /// that none of them is of this night.
    fn until_clear(&self) -> Result<()> {
        let (begun, limit) = (Instant::now(), patience::stretched(Duration::from_secs(2)));
        loop {
            let status = fs::read_to_string(tree("status"))?;
            if status == "ALL CLEAR\n" {
                return Ok(());
            }
            if begun.elapsed() > limit {
                ensure!(status.starts_with("HOT "), "{status:?}");
                tell("  (HOT because of orphans of others on this machine)");
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a file of the folder says so.
    fn until(&self, name: &str, value: &str) -> Result<()> {
        let mut last = String::new();
        let said = patience::until(&format!("{name} says {value:?}"), || {
            last = match fs::read_to_string(tree(FOLDER).join(name)) {
                // The daemon is ready a moment before the tree shows its first view.
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                text => text.context(name.to_owned())?,
            };
            Ok((last.trim_end() == value).then_some(()))
        });
        said.with_context(|| format!("it said {last:?} last"))
    }

    /// Runs a verb, and shows it.
    fn lockwatch(&self, scene: &Scene, args: &[&str]) -> Result<Run> {
        let invocation = scene.lockwatch(args)?;
        let run = invocation.env("LOCKWATCH_STATE_DIR", self.house.path("bpf/lockwatch")).run()?;
        show(&format!("lockwatch {}", args.join(" ")), &run)?;
        Ok(run)
    }

    /// Runs a line of shell in the tree, and shows it.
    fn shell(&self, scene: &Scene, line: &str) -> Result<Run> {
        let run = scene.program("sh", &["-c", &format!("cd {TREE} && {line}")])?.run()?;
        show(line, &run)?;
        Ok(run)
    }

    /// The line of the lock in the container's own /proc, where the helper has this pid.
    fn shown_inside(&self, scene: &mut Scene, pid: i32) -> Result<String> {
        // The helper has it under the number that Locksmith had.
        for fd in 3..64 {
            let path = format!("/proc/{pid}/fdinfo/{fd}");
            let Ok(text) = scene.shown_to("container", &path) else { continue };
            if let Some(line) = text.lines().find(|line| line.starts_with("lock:")) {
                tell(&format!("  container $ cat {path}\n{}", indented(line)));
                return Ok(line.to_owned());
            }
        }
        anyhow::bail!("no descriptor of {pid} has a lock")
    }
}

fn tree(name: &str) -> PathBuf {
    Path::new(TREE).join(name)
}

/// A program of the night: what it says goes into a file.
fn hook(name: &str, script: &str) -> Result<()> {
    let program = Path::new("/srv/bin").join(name);
    fs::write(&program, format!("#!/bin/sh\nexec >> /srv/hooks.log\n{script}\n"))
        .with_context(|| name.to_owned())?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("its mode")
}

fn chapter(title: &str) {
    tell(&format!("\n{title}"));
}

/// A command and what came of it.
fn show(line: &str, run: &Run) -> Result<()> {
    tell(&format!("  $ {line}"));
    for text in [run.text()?, &run.complaints()?.join("\n")] {
        if !text.is_empty() {
            tell(&indented(text));
        }
    }
    if let Some(code) = run.code()
        && code != 0
    {
        tell(&format!("  (exit code {code})"));
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
