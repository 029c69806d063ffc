//! The loop of the daemon.
//!
//! Every influence on the engine goes through [`Watching::step`], and nowhere else.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::time::{ClockId, clock_gettime};
use tokio::signal::unix::{SignalKind, signal};

use super::Watch;
use super::alarm::Alarm;
use super::follow::{Hub, Socket};
use super::instance::Instance;
use super::log_file::LogFile;
use super::readiness;
use super::readings::{Readings, Taken};
use crate::config::Config;
use crate::engine::identity::BootTime;
use crate::engine::input::{Input, Moment, Output, Settings, Started, Watched};
use crate::engine::machine::Engine;
use crate::failure::{EXIT_CLEAR, EXIT_INTERRUPTED};
use crate::machine;
use crate::sink::events;
use crate::source::history::History;
use crate::source::trace::Writer;

/// How often it is looked whether the service manager wants to hear of it, where it does not say.
const NO_HEARTBEAT: Duration = Duration::from_secs(3600);

/// Watches until it is ended.
pub(super) async fn watch(config: &Config, options: &Watch) -> anyhow::Result<u8> {
    let socket = config.socket();
    let _instance = Instance::take(&config.state_dir, &socket).context("daemon")?;
    let mut terminated = signal(SignalKind::terminate()).context("daemon: catching SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("daemon: catching SIGINT")?;
    let mut hung_up = signal(SignalKind::hangup()).context("daemon: catching SIGHUP")?;

    let log = options.log.as_deref().map(open_log).transpose()?;
    let record = options.record.as_deref().map(start_recording).transpose()?;
    let (mut history, reader) = History::open(&config.state_dir, config.handoff_window)
        .with_context(|| format!("daemon: {}", config.state_dir.display()))?;
    let socket = Socket::bind(&socket)
        .with_context(|| format!("daemon: listen on {}", socket.display()))?;
    let paths: Vec<PathBuf> =
        config.watch.iter().map(|watch| watch.path.get_ref().clone()).collect();
    let readings = Readings::start(reader, paths).context("daemon: starting the reader")?;
    let settings = Settings {
        grace: nanos(config.grace),
        gc_interval: nanos(config.gc_interval),
        handoff_window: nanos(config.handoff_window),
        long_wait: nanos(config.long_wait),
        verbose: options.verbose,
    };
    let mut watching = Watching {
        engine: Engine::new(settings),
        watched: Vec::new(),
        hub: Hub::new(),
        log,
        record,
        readings,
    };
    let (_, kernel) = machine::names();
    let started = Started {
        last_seq: history.last_seq(),
        continued: history.is_continued(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel,
    };
    watching.step(&mut history, Input::Started(started))?;
    watching.readings.ask();

    let mut alarm = Alarm::new().context("daemon: making the alarm")?;
    let mut heartbeat = tokio::time::interval(readiness::heartbeat().unwrap_or(NO_HEARTBEAT));
    let hub = watching.hub.clone();
    let followers = socket.serve(&hub);
    tokio::pin!(followers);
    let mut ready = false;
    loop {
        alarm.set(watching.engine.deadline()).context("daemon: setting the alarm")?;
        tokio::select! {
            biased;
            _ = terminated.recv() => break,
            _ = interrupted.recv() => {
                readiness::stopping();
                return Ok(EXIT_INTERRUPTED);
            }
            _ = hung_up.recv() => watching.log.iter_mut().for_each(LogFile::reopen),
            _ = heartbeat.tick() => readiness::alive(),
            rang = alarm.rings() => {
                rang.context("daemon: waiting for the alarm")?;
                watching.step(&mut history, Input::Tick)?;
            }
            drained = history.records() => {
                for input in drained.context("daemon: reading the kernel's records")? {
                    watching.step(&mut history, input)?;
                }
            }
            taken = watching.readings.next() => {
                let Some(taken) = taken else { bail!("daemon: the reader has ended") };
                watching.taken(&mut history, config, taken)?;
                if !ready {
                    ready = true;
                    readiness::ready("watching");
                }
            }
            () = &mut followers => {}
        }
    }
    readiness::stopping();
    Ok(EXIT_CLEAR)
}

/// The engine and what hangs on it.
struct Watching {
    engine: Engine,
    watched: Vec<Watched>,
    hub: Hub,
    log: Option<LogFile>,
    record: Option<Writer>,
    readings: Readings,
}

impl Watching {
    /// The only way to the engine.
    fn step(&mut self, history: &mut History, input: Input) -> anyhow::Result<()> {
        let now = now();
        if let Some(record) = &mut self.record {
            record.write(now, &input).context("daemon: recording")?;
        }
        for output in self.engine.step(now, input) {
            match output {
                Output::Event(event) => {
                    history.set_last_seq(event.seq);
                    if let Some(log) = &mut self.log {
                        let mut line = Vec::new();
                        events::write_json(&mut line, &event)?;
                        log.line(&line);
                    }
                    self.hub.tell(&Arc::new(*event));
                }
                Output::Read => self.readings.ask(),
                Output::Attend(files) => {
                    history.attend(&files).context("daemon: telling the kernel what to watch")?;
                }
            }
        }
        Ok(())
    }

    /// Takes in what a reading found.
    fn taken(
        &mut self,
        history: &mut History,
        config: &Config,
        taken: Taken,
    ) -> anyhow::Result<()> {
        let watched: Vec<Watched> = config
            .watch
            .iter()
            .zip(taken.files)
            .map(|(watch, file)| Watched {
                name: watch.name.get_ref().clone(),
                path: watch.path.get_ref().as_os_str().as_bytes().into(),
                file,
            })
            .collect();
        if watched != self.watched {
            self.watched.clone_from(&watched);
            self.step(history, Input::Watch(watched))?;
        }
        let reading = taken.reading.context("daemon: reading the kernel's tables")?;
        self.step(history, Input::Reading(Box::new(reading)))
    }
}

fn now() -> Moment {
    let nanos = |clock| {
        let time = clock_gettime(clock);
        (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
    };
    Moment { boot: BootTime(nanos(ClockId::Boottime)), unix: nanos(ClockId::Realtime) }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn open_log(path: &Path) -> anyhow::Result<LogFile> {
    LogFile::open(path).with_context(|| format!("daemon: log to {}", path.display()))
}

fn start_recording(path: &Path) -> anyhow::Result<Writer> {
    Writer::create(path).with_context(|| format!("daemon: record to {}", path.display()))
}
