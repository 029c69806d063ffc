//! The loop of the daemon.
//!
//! Every influence on the engine goes through [`Watching::step`], and nowhere else.

use std::ffi::OsString;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::Watch;
use super::alarm::Alarm;
use super::follow::{Hub, Socket};
use super::instance::Instance;
use super::kernel::{Kernel, Words};
use super::log_file::LogFile;
use super::readiness::{self, Manager};
use super::readings::Readings;
use super::reclaims::{self, Job, Reclaims, Surroundings};
use super::scrapes::{PULSE, Scrapes};
use super::tree::{Obeyed, Tree, Wanted};
use super::{nanos, now, urgency};
use crate::config::{Config, Mode};
use crate::engine::input::{
    FileId, Input, Output, Permission, Policy, Settings, Started, Watched, Wrote,
};
use crate::engine::machine::{Engine, WATCHED_FOR};
use crate::engine::reclaim::progress::{Asker, Evicted, Order};
use crate::failure::{EXIT_CLEAR, EXIT_INTERRUPTED};
use crate::sink::events;
use crate::sink::fuse::Reply;
use crate::source::history::{HistoryError, Taken};
use crate::source::trace::Writer;
use crate::source::writes::Watches;
use crate::{id_key, machine};

/// How often it is looked whether the service manager wants to hear of it, where it does not say.
const NO_HEARTBEAT: Duration = Duration::from_secs(3600);

/// Readings in a row that may fail before the watch gives up.
const PATIENCE: u32 = 10;

/// How much more time the service manager is asked for while the sweep is at work.
const SWEEP: Duration = Duration::from_secs(30);

/// Watches until it is ended.
pub(super) async fn watch(
    config: &Config,
    file: Option<&Path>,
    options: &Watch,
) -> anyhow::Result<u8> {
    let socket = config.socket();
    let _instance = Instance::take(&config.state_dir, &socket).context("daemon")?;
    let mut terminated = signal(SignalKind::terminate()).context("daemon: catching SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("daemon: catching SIGINT")?;
    let mut hung_up = signal(SignalKind::hangup()).context("daemon: catching SIGHUP")?;

    let settings = Settings {
        grace: nanos(config.grace),
        gc_interval: nanos(config.gc_interval),
        handoff_window: nanos(config.handoff_window),
        long_wait: nanos(config.long_wait),
        verbose: options.verbose,
        reclaim: policy(config),
    };
    let log = options.log.as_deref().map(open_log).transpose()?;
    let recorded = options.record.as_deref();
    let record = recorded.map(|path| start_recording(path, &settings)).transpose()?;
    let (mut kernel, reader) = Kernel::open(config).context("daemon (see `lockwatch doctor`)")?;
    let socket =
        Socket::bind(&socket).with_context(|| format!("daemon: listen on {}", socket.display()))?;
    let paths: Vec<PathBuf> =
        config.watch.iter().map(|watch| watch.path.get_ref().clone()).collect();
    let readings = Readings::start(reader, paths).context("daemon: starting the reader")?;
    let tree = Tree::grow(config)?;
    let surroundings =
        Surroundings { config: file.map(Path::to_owned), state_dir: config.state_dir.clone() };
    let (_, release) = machine::names();
    let scrapes = Scrapes::start(config, release.clone(), now(), kernel.tables())?;
    let mut watching = Watching {
        engine: Engine::new(settings),
        watched: Vec::new(),
        hub: Hub::new(),
        log,
        record,
        readings,
        tree,
        reclaims: Reclaims::new(surroundings),
        writes: Watches::default(),
        wrote: mpsc::unbounded_channel(),
        failures: 0,
        manager: Manager::find(),
        told_orphans: None,
        scrapes,
    };
    if let Err(error) = urgency::prefer_this_thread() {
        log::info!("orphans may be told late while the processors are busy: {error}");
    }
    let started = Started {
        last_seq: kernel.last_seq(),
        told: kernel.told(),
        continued: kernel.is_continued(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: release,
    };
    watching.step(&mut kernel, Input::Started(started))?;
    watching.readings.ask();

    let mut alarm = Alarm::new().context("daemon: making the alarm")?;
    let mut heartbeat = tokio::time::interval(readiness::heartbeat().unwrap_or(NO_HEARTBEAT));
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let hub = watching.hub.clone();
    let followers = socket.serve(&hub);
    tokio::pin!(followers);
    let mut words = Words::open(config).context("daemon: asking the kernel's programs to speak")?;
    let mut ready = false;
    loop {
        alarm.set(watching.engine.deadline()).context("daemon: setting the alarm")?;
        tokio::select! {
            biased;
            _ = terminated.recv() => break,
            _ = interrupted.recv() => {
                watching.manager.stopping();
                return Ok(EXIT_INTERRUPTED);
            }
            _ = hung_up.recv() => watching.log.iter_mut().for_each(LogFile::reopen),
            _ = heartbeat.tick() => watching.manager.alive(),
            rang = alarm.rings() => {
                rang.context("daemon: waiting for the alarm")?;
                watching.step(&mut kernel, Input::Tick)?;
            }
            // A long interval between reconciliations must not look like an engine that is stuck.
            _ = pulse.tick() => {
                watching.step(&mut kernel, Input::Tick)?;
                if !ready {
                    watching.manager.not_yet(SWEEP);
                }
            }
            taken = watching.readings.next() => {
                let Some(taken) = taken else { bail!("daemon: the reader has ended") };
                // What happened before the reading is heard before it.
                let before = kernel.records_so_far();
                watching.hear(&mut kernel, before)?;
                watching.look_for_losses(&mut kernel)?;
                watching.taken(&mut kernel, config, taken)?;
                // A reading that failed shows nothing.
                let swept = !config.reclaim.on_boot || watching.engine.is_swept();
                if !ready && watching.failures == 0 && swept {
                    ready = true;
                    if !watching.tree.is_settled() {
                        log::warn!("the tree does not show the first reading yet");
                    }
                    watching.scrapes.ready();
                    watching.manager.ready("watching");
                }
            }
            wanted = watching.tree.next() => match wanted {
                Wanted::Reading => watching.readings.ask(),
                Wanted::Written(request) => match watching.tree.obey(request, now().boot) {
                    Obeyed::Input(input) => watching.step(&mut kernel, *input)?,
                    Obeyed::Reclaim(job) => watching.reclaims.begin(job),
                    Obeyed::Done => {}
                },
            },
            // This side keeps a sender.
            Some(wrote) = watching.wrote.1.recv() => {
                watching.step(&mut kernel, Input::Wrote(wrote))?;
            }
            news = watching.reclaims.next() => match news {
                reclaims::News::Planned(planned) => {
                    watching.step(&mut kernel, Input::Planned(planned))?;
                }
                reclaims::News::Ended(reclaimed, reply) => {
                    if let Some(reply) = reply {
                        watching.tree.released(&reclaimed, reply, now().boot);
                    }
                    watching.step(&mut kernel, Input::Reclaimed(reclaimed))?;
                }
            },
            () = &mut followers => {}
            heard = words.heard() => heard.context("daemon: hearing the kernel's programs")?,
            // Last, because of these there may be so many that another is always there.
            drained = kernel.records() => {
                let records = drained.context("daemon: reading the kernel's records")?;
                watching.hear(&mut kernel, records)?;
            }
        }
    }
    watching.manager.stopping();
    Ok(EXIT_CLEAR)
}

/// The engine and what hangs on it.
struct Watching {
    engine: Engine,
    watched: Vec<Watched>,
    hub: Hub,
    log: Option<LogFile>,
    record: Option<Recording>,
    readings: Readings,
    tree: Tree,
    /// What is reclaimed, and who waits for it at the tree.
    reclaims: Reclaims<Option<Reply>>,
    writes: Watches,
    wrote: (mpsc::UnboundedSender<Wrote>, mpsc::UnboundedReceiver<Wrote>),
    manager: Manager,
    /// Readings in a row that failed.
    failures: u32,
    /// Orphans that the service manager knows of.
    told_orphans: Option<usize>,
    scrapes: Scrapes,
}

impl Watching {
    /// The only way to the engine.
    fn step(&mut self, kernel: &mut Kernel, input: Input) -> anyhow::Result<()> {
        let now = now();
        if let Some(record) = &mut self.record {
            record.write(now, &input).and_then(|()| record.flush()).context("daemon: recording")?;
        }
        for output in self.engine.step(now, input) {
            match output {
                Output::Event(event) => {
                    // Before anybody sees it: an event that is lost with this daemon is better
                    // than one that the next tells again, and `started` says that it is.
                    kernel.set_last_seq(event.seq);
                    kernel.note(&event);
                    let mut line = Vec::new();
                    events::write_json(&mut line, &event)?;
                    self.scrapes.event(&event);
                    if let Some(log) = &mut self.log {
                        log.line(&line);
                    }
                    self.tree.tell(&line);
                    self.hub.tell(&Arc::new(*event));
                }
                Output::Read => self.readings.ask(),
                Output::Attend(files) => {
                    kernel.attend(&files).context("daemon: telling the kernel what to watch")?;
                }
                Output::Reclaim(order) => self.reclaims.begin(job(order)),
                Output::WatchWrites(file, evicted) => self.watch_writes(file, evicted),
                Output::StopReclaims => self.reclaims.stop(),
                Output::SwitchedOff => self.tree.switch_off(),
            }
        }
        self.scrapes.stepped(now);
        Ok(())
    }

    /// Takes in what the kernel recorded.
    fn hear(&mut self, kernel: &mut Kernel, records: Vec<Input>) -> anyhow::Result<()> {
        for input in records {
            self.tree.hear(&input);
            self.step(kernel, input)?;
        }
        Ok(())
    }

    /// Has it told when one of these writes to the file; where that cannot be, says so.
    fn watch_writes(&self, file: FileId, evicted: Vec<Evicted>) {
        let (tell, time) = (self.wrote.0.clone(), Duration::from_nanos(WATCHED_FOR));
        let told = move |wrote| {
            // Where nobody receives any more, the daemon ends.
            let _ = tell.send(wrote);
        };
        if let Err(error) = self.writes.begin(file, evicted, time, told) {
            log::warn!(
                "whether who lost a lock on {}:{} writes to it is not seen: {error}",
                file.dev,
                file.ino
            );
        }
    }

    /// Says that records were lost, where the kernel has counted any.
    fn look_for_losses(&mut self, kernel: &mut Kernel) -> anyhow::Result<()> {
        let lost = kernel.lost().context("daemon: reading the kernel's counters")?;
        if lost > 0 { self.step(kernel, Input::Lost(lost)) } else { Ok(()) }
    }

    /// Takes in what a reading found.
    fn taken(
        &mut self,
        kernel: &mut Kernel,
        config: &Config,
        taken: Result<Taken, HistoryError>,
    ) -> anyhow::Result<()> {
        let Taken { reading, files } = match taken {
            Ok(taken) => {
                self.failures = 0;
                taken
            }
            // It is tried again; what is wrong for good ends the watch.
            Err(error) if self.failures < PATIENCE => {
                self.failures += 1;
                log::error!("reading the kernel's tables: {error}");
                return Ok(());
            }
            Err(error) => return Err(error).context("daemon: reading the kernel's tables"),
        };
        let watched: Vec<Watched> = config
            .watch
            .iter()
            .zip(files)
            .map(|(watch, file)| Watched {
                name: watch.name.get_ref().clone(),
                path: watch.path.get_ref().as_os_str().as_bytes().into(),
                file,
            })
            .collect();
        if watched != self.watched {
            self.watched.clone_from(&watched);
            self.step(kernel, Input::Watch(watched))?;
        }
        kernel.attend_to_the_rest().context("daemon: telling the kernel what to watch")?;
        let begun = reading.begun;
        self.tree.let_go();
        self.step(kernel, Input::Reading(Box::new(reading)))?;
        self.tree.show(self.engine.view(), &self.watched, begun);
        self.scrapes.mounted(self.tree.is_whole());
        self.scrapes.reading(&self.engine.view(), &self.watched, now());
        self.tell_manager();
        Ok(())
    }

    /// Tells the service manager how many orphans there are, where that has changed.
    fn tell_manager(&mut self) {
        let orphans = self.engine.view().orphaned().count();
        if self.told_orphans.replace(orphans) == Some(orphans) {
            return;
        }
        match orphans {
            0 => self.manager.status("ALL CLEAR"),
            hot => self.manager.status(&format!("HOT {hot}")),
        }
    }
}

/// What the configuration says of reclaiming, for the engine.
fn policy(config: &Config) -> Policy {
    let permission = |watch: &crate::config::Watch| Permission {
        path: watch.path.get_ref().as_os_str().as_bytes().into(),
        allowed: watch.reclaim,
        likely: watch.reclaim_likely,
    };
    Policy {
        automatic: config.reclaim.mode == Mode::Reclaim,
        only_watched: config.reclaim.only_watched,
        per_minute: config.reclaim.per_minute.get(),
        retry: nanos(config.reclaim.retry),
        watches: config.watch.iter().map(permission).collect(),
    }
}

/// What the engine ordered: by the path of its watch, so that the hooks are run once for all locks
/// of the file, else each lock by its id.
fn job<T>(order: Order) -> Job<Option<T>> {
    let subjects = match order.path {
        Some(path) => vec![OsString::from_vec(path.into_vec())],
        None => order.locks.iter().map(|lock| lock.to_string().into()).collect(),
    };
    Job {
        by: Asker::Policy,
        file: Some(order.file),
        locks: order.locks,
        subjects,
        force: false,
        at_least: order.at_least,
        ticket: None,
    }
}

fn open_log(path: &Path) -> anyhow::Result<LogFile> {
    LogFile::open(path).with_context(|| format!("daemon: log to {}", path.display()))
}

type Recording = Writer<BufWriter<File>>;

fn start_recording(path: &Path, settings: &Settings) -> anyhow::Result<Recording> {
    let what = || format!("daemon: record to {}", path.display());
    // Paths of locked files are in it.
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    let out = BufWriter::new(file.with_context(what)?);
    let secret = id_key::fresh().with_context(what)?;
    Writer::new(out, &secret.0, env!("CARGO_PKG_VERSION"), settings).with_context(what)
}
