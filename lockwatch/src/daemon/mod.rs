//! `lockwatch daemon`: the witness.
//!
//! Wires the kernel side, the engine and whoever listens together, and has the only loop. Refuses
//! to conclude anything itself.

mod alarm;
pub mod follow;
mod instance;
mod kernel;
mod log_file;
mod readiness;
mod readings;
mod reclaims;
mod scrapes;
mod tree;
mod urgency;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::Config;
use crate::failure::EXIT_CLEAR;
use crate::machine::now;
use crate::source::history::History;
use instance::Instance;

/// What to do, and by which configuration.
#[derive(Debug)]
pub struct Daemon {
    /// The configuration, where it is not the default one.
    pub config: Option<PathBuf>,
    /// What to do.
    pub task: Task,
}

/// What a daemon can be asked for.
#[derive(Debug)]
pub enum Task {
    /// Only find out whether the configuration is sound.
    CheckConfig,
    /// Take what is pinned in the kernel away.
    Detach,
    /// Watch, until it is ended.
    Watch(Watch),
}

/// How to watch.
#[derive(Debug)]
pub struct Watch {
    /// Append every event to this file.
    pub log: Option<PathBuf>,
    /// Write every input of the engine to this file.
    pub record: Option<PathBuf>,
    /// Make events of every acquisition, release and blocked attempt.
    pub verbose: bool,
}

/// Runs the verb.
///
/// # Errors
/// Where the configuration is not sound, another daemon runs, or the kernel does not allow it.
pub fn run(daemon: &Daemon) -> anyhow::Result<u8> {
    let config = Config::read_trusted(daemon.config.as_deref()).context("daemon")?;
    match &daemon.task {
        Task::CheckConfig => {
            use std::io::Write as _;
            let watches = config.watch.len();
            let plural = if watches == 1 { "" } else { "es" };
            writeln!(std::io::stdout(), "the configuration is sound: {watches} watch{plural}")?;
            Ok(EXIT_CLEAR)
        }
        Task::Detach => {
            let _instance =
                Instance::take(&config.state_dir, &config.socket()).context("daemon: detach")?;
            let detached = History::detach(&config.state_dir).context("daemon: detach")?;
            log::info!("detached: {detached}");
            Ok(EXIT_CLEAR)
        }
        Task::Watch(watch) => {
            give_back_what_is_large();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("daemon: starting the loop")?;
            runtime.block_on(watch::watch(&config, daemon.config.as_deref(), watch))
        }
    }
}

/// Has each large piece of memory given back as soon as it is free, and what one thread has freed used
/// by the others: what a reading finds another thread frees. Of its own accord the C library learns
/// from the first large piece that it better kept the next ones, and keeps memory apart by thread.
fn give_back_what_is_large() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes two numbers, and no other thread runs yet.
    unsafe {
        const LARGE: libc::c_int = 128 * 1024;
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
