//! A daemon under test: its house, its events, its end.
//!
//! The house is a tmpfs in mounts of the test's own: the daemon obeys only files that nobody but
//! root could have written, and whatever it pins or leaves is gone with the test.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::MountFlags;
use rustix::process::Signal;
use serde_json::Value;

use super::invocation::{Invocation, Run, Running};
use super::scene::{Scene, note};
use super::{capability, patience};

/// Where the house is; a folder of root's that every Linux has or can have.
const HOUSE: &str = "/srv";

/// What a daemon needs to run, and a place for what it leaves.
pub struct House {
    folder: PathBuf,
    manager: UnixDatagram,
}

impl House {
    /// Builds it; before any rig starts, so that rigs see the same files.
    pub fn build(scene: &mut Scene) -> Result<Self> {
        scene.private_mounts()?;
        let folder = PathBuf::from(HOUSE);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        capability::tmpfs(&folder)?;
        let pins = folder.join("bpf");
        fs::create_dir(&pins).context("a folder for pins")?;
        rustix::mount::mount(c"bpf", &pins, c"bpf", MountFlags::NOSUID, None)
            .context("mounting a BPF file system")?;
        let manager = UnixDatagram::bind(folder.join("notify")).context("the manager's socket")?;
        manager.set_nonblocking(true).context("the manager's socket")?;
        let house = Self { folder, manager };
        house.configure("")?;
        Ok(house)
    }

    /// A file of the house.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the configuration: the places of this house, and what the test adds at the top level
    /// and behind it.
    pub fn configure(&self, more: &str) -> Result<()> {
        let folder = self.folder.display();
        // A socket of the house's own: several daemons of several tests run at once.
        let text = format!(
            "mount = \"{folder}/tree\"\nstate_dir = \"{folder}/bpf/lockwatch\"\n\
             metrics_listen = \"unix:{folder}/metrics.sock\"\n{more}\n"
        );
        fs::write(self.path("lockwatch.toml"), text).context("the configuration")
    }

    /// The option that names the configuration.
    pub fn config(&self) -> String {
        self.path("lockwatch.toml").display().to_string()
    }

    /// Starts a daemon and waits until it is ready.
    pub fn start(&self, scene: &Scene, args: &[&str]) -> Result<Daemon> {
        self.ready(self.launch(scene, args)?)
    }

    /// Waits until it is ready; says what it does instead where it is not.
    fn ready(&self, daemon: Daemon) -> Result<Daemon> {
        let word = "READY=1";
        let waited = patience::until(&format!("{word} from the daemon"), || {
            // Asked before: what it said before its end is heard.
            let ended = daemon.running.has_ended()?;
            let heard = self.hears(word)?;
            ensure!(heard.is_some() || !ended, "the daemon ended before it was ready");
            Ok(heard)
        });
        let Err(error) = waited else { return Ok(daemon) };
        daemon.describe_threads();
        // What it said so far is told with its end.
        let _ = daemon.running.signal(Signal::KILL);
        let _ = daemon.finish();
        Err(error)
    }

    /// Starts a daemon.
    pub fn launch(&self, scene: &Scene, args: &[&str]) -> Result<Daemon> {
        self.launch_with(scene, args, |invocation| invocation)
    }

    /// Starts a daemon in surroundings of its own.
    pub fn launch_with(
        &self,
        scene: &Scene,
        args: &[&str],
        surround: impl FnOnce(Invocation) -> Invocation,
    ) -> Result<Daemon> {
        self.launch_from(scene, &self.path("lockwatch.toml"), args, surround)
    }

    /// Starts a daemon of another configuration, in surroundings of its own, and waits until it is
    /// ready. Its events are in a file beside the configuration.
    pub fn start_from(
        &self,
        scene: &Scene,
        config: &Path,
        surround: impl FnOnce(Invocation) -> Invocation,
    ) -> Result<Daemon> {
        self.ready(self.launch_from(scene, config, &[], surround)?)
    }

    fn launch_from(
        &self,
        scene: &Scene,
        config: &Path,
        args: &[&str],
        surround: impl FnOnce(Invocation) -> Invocation,
    ) -> Result<Daemon> {
        let log = match config.file_stem() {
            Some(stem) if stem != "lockwatch" => {
                config.with_file_name(stem).with_extension("jsonl")
            }
            _ => self.path("events.jsonl"),
        };
        let (config, log_text) = (config.display().to_string(), log.display().to_string());
        let daemon = scene.lockwatch(&["daemon", "--config", &config, "--log", &log_text])?;
        let daemon = daemon
            .args(args)
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("RUST_LOG", "lockwatch=info");
        // Last: what is said twice, the surroundings decide.
        let running = surround(daemon).start()?;
        let read = fs::metadata(&log).map_or(0, |meta| meta.len());
        let folder = scene.folder().to_owned();
        Ok(Daemon { running, log, folder, read, pending: Vec::new() })
    }

    /// Fills the manager's queue, so that whoever tells it anything waits.
    pub fn deafen_manager(&self) -> Result<()> {
        let crier = UnixDatagram::unbound().context("a socket to the manager")?;
        crier.set_nonblocking(true).context("a socket to the manager")?;
        loop {
            match crier.send_to(b"NOISE=1", self.folder.join("notify")) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("filling the manager's queue"),
            }
        }
    }

    /// Waits for what the daemon tells its service manager.
    pub fn wait_for_manager(&self, word: &str) -> Result<()> {
        patience::until(&format!("{word} from the daemon"), || self.hears(word))
    }

    /// Takes what the daemon has told its service manager, up to this word.
    fn hears(&self, word: &str) -> Result<Option<()>> {
        let mut message = [0; 1024];
        loop {
            match self.manager.recv(&mut message) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&message[..length]).into_owned();
                    if text.lines().any(|line| line == word) {
                        return Ok(Some(()));
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error).context("the manager's socket"),
            }
        }
    }
}

/// A daemon that runs.
pub struct Daemon {
    running: Running,
    log: PathBuf,
    /// Where the test's own files are.
    folder: PathBuf,
    /// Bytes of the log that were read.
    read: u64,
    /// Events that nobody asked for yet.
    pending: Vec<Value>,
}

impl Daemon {
    /// Takes the events that came since the last call, but for those about files of others: other
    /// work on the machine has no part in the test.
    pub fn events(&mut self) -> Result<Vec<Value>> {
        self.look()?;
        let mut taken = std::mem::take(&mut self.pending);
        taken.retain(|event| self.is_own(event));
        Ok(taken)
    }

    /// Waits for an event of a kind that fits, and takes it and all before it away.
    pub fn expect(&mut self, kind: &str, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let event = patience::until(&format!("an event {kind}"), || {
            self.look()?;
            let fits = |event: &Value| event["kind"] == kind && fits(event);
            Ok(self.pending.iter().position(fits).map(|at| {
                let mut taken: Vec<_> = self.pending.drain(..=at).collect();
                taken.pop()
            }))
        });
        match event {
            Ok(event) => {
                let event = event.context("an event")?;
                note(&format!("event: {event}"));
                Ok(event)
            }
            Err(error) => {
                for event in &self.pending {
                    note(&format!("event: {event}"));
                }
                Err(error)
            }
        }
    }

    fn is_own(&self, event: &Value) -> bool {
        let path = event["lock"]["file"]["path"].as_str().map(Path::new);
        path.is_none_or(|path| path.starts_with(&self.folder))
    }

    /// Fails where there was an event of one of these kinds about a file of the test, among those
    /// not yet taken.
    pub fn told_none_of(&mut self, kinds: &[&str]) -> Result<()> {
        self.look()?;
        for event in &self.pending {
            let kind = event["kind"].as_str().unwrap_or_default();
            let own = self.is_own(event);
            ensure!(!own || !kinds.contains(&kind), "there was an event {event}");
        }
        Ok(())
    }

    /// Reads on in the log.
    fn look(&mut self) -> Result<()> {
        let mut file = match fs::File::open(&self.log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file.context("the events' file")?,
        };
        file.seek(SeekFrom::Start(self.read)).context("the events' file")?;
        let mut text = String::new();
        file.read_to_string(&mut text).context("the events' file")?;
        // The last line may still be being written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for line in text[..whole].lines() {
            let event = serde_json::from_str(line).with_context(|| format!("an event: {line}"))?;
            self.pending.push(event);
        }
        self.read += whole as u64;
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running.signal(signal)
    }

    /// Stops it, all of its threads: the signal is back before the last of them stands still.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let threads = format!("/proc/{}/task", self.pid());
        patience::until("every thread stands still", || {
            for thread in fs::read_dir(&threads).context("the daemon's threads")? {
                let stat = thread.context("a thread")?.path().join("stat");
                let text = fs::read_to_string(&stat).with_context(|| stat.display().to_string())?;
                let state = text.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
                if state != Some("T") {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// Notes where in the kernel each of its threads is, as far as can be read.
    fn describe_threads(&self) {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid()));
        for thread in threads.into_iter().flatten().flatten() {
            let read = |name| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let (comm, wait, stack) = (read("comm"), read("wchan"), read("stack"));
            let stack: Vec<&str> = stack.lines().take(6).collect();
            note(&format!("thread {} waits in {wait}: {}", comm.trim(), stack.join("; ")));
        }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Ends it by SIGTERM, which it must take well.
    pub fn stop(self) -> Result<Run> {
        self.running.signal(Signal::TERM)?;
        let run = self.running.patiently().finish()?;
        run.exits(0)?;
        Ok(run)
    }

    /// Kills it on the spot.
    pub fn kill(self) -> Result<Run> {
        self.running.signal(Signal::KILL)?;
        let run = self.running.patiently().finish()?;
        if run.code().is_some() {
            bail!("it ended by itself before it could be killed");
        }
        Ok(run)
    }

    /// Waits for its end, whatever that is.
    pub fn finish(self) -> Result<Run> {
        self.running.patiently().finish()
    }

    /// The file with its events.
    pub fn log(&self) -> &Path {
        &self.log
    }
}
