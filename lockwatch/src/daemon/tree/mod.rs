//! The daemon's side of the tree: what the engine concluded goes in, what was written comes out.
//!
//! Refuses to end the watch for the tree's sake: where it cannot be mounted and need not be, or
//! somebody unmounts it, the watch goes on without.

mod keeper;
mod places;
mod release;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;

use self::keeper::{Keeper, Switches};
use self::release::Surroundings;
use crate::config::{Config, Mode, TreeWanted};
use crate::engine::identity::BootTime;
use crate::engine::input::{Input, Watched};
use crate::engine::view::View;
use crate::machine;
use crate::sink::clock::Clock;
use crate::sink::fuse::{self, Options, Reply, Request};
use crate::sink::tree::command::{Aim, Command, Refusal};
use crate::sink::tree::folder::Target;

/// The tree, if there is one.
pub(super) struct Tree {
    keeper: Option<Keeper>,
    requests: mpsc::UnboundedReceiver<Request>,
    releases: (mpsc::UnboundedSender<Released>, mpsc::UnboundedReceiver<Released>),
    surroundings: Surroundings,
    switches: Switches,
    /// Who waits for a reading that is begun at that moment or later.
    reconciling: Vec<(BootTime, Reply)>,
    shown: Option<(Arc<View>, Arc<[Watched]>)>,
    /// When it was shown last.
    shown_at: Instant,
    /// Whether something has happened since to a file that matters.
    is_behind: bool,
}

/// The tree shows what happens to a watched file this much later at the latest; the rest it shows
/// when the engine has it read. No more readings than this would ask for are taken for its sake.
const BEHIND_AT_MOST: Duration = Duration::from_millis(100);

/// What the tree wants.
pub(super) enum Wanted {
    /// Somebody has written.
    Written(Request),
    /// A reading.
    Reading,
    /// A release has ended.
    Released(Released),
}

/// A release that has ended, and who waits for that.
pub(super) struct Released(Reply, Result<(), Refusal>);

impl Tree {
    /// Mounts it, as far as the configuration wants it.
    ///
    /// # Errors
    /// Where there must be a tree and cannot.
    pub(super) fn grow(config: &Config, file: Option<&Path>) -> anyhow::Result<Self> {
        let (ask, requests) = mpsc::unbounded_channel();
        let keeper = match config.tree {
            TreeWanted::Off => None,
            TreeWanted::Required => Some(start(config, ask).context("daemon: mount")?),
            TreeWanted::Optional => match start(config, ask) {
                Ok(keeper) => Some(keeper),
                Err(error) => {
                    crate::failure::tell(format_args!(
                        "daemon: going on without the tree: {error:#}"
                    ));
                    None
                }
            },
        };
        let gc_interval_ms = u64::try_from(config.gc_interval.as_millis()).unwrap_or(u64::MAX);
        let reclaim_enabled = config.reclaim.mode == Mode::Reclaim;
        let switches = Switches { gc_interval_ms, reclaim_enabled };
        Ok(Self {
            keeper,
            requests,
            releases: mpsc::unbounded_channel(),
            surroundings: Surroundings {
                config: file.map(Path::to_owned),
                state_dir: config.state_dir.clone(),
            },
            switches,
            reconciling: Vec::new(),
            shown: None,
            shown_at: Instant::now(),
            is_behind: false,
        })
    }

    /// False where there was a tree and somebody has unmounted it.
    pub(super) fn is_whole(&self) -> bool {
        self.keeper.as_ref().is_none_or(Keeper::is_served)
    }

    /// Hears what the kernel told.
    pub(super) fn hear(&mut self, input: &Input) {
        self.is_behind |=
            matches!(input, Input::Acquired(_) | Input::Released(_) | Input::Ended(_));
    }

    /// Waits for what somebody writes, and until a reading should be taken for the tree's sake; for
    /// ever where there is no tree.
    pub(super) async fn next(&mut self) -> Wanted {
        let is_due = self.is_behind && self.keeper.is_some();
        tokio::select! {
            request = self.requests.recv() => match request {
                Some(request) => Wanted::Written(request),
                None => std::future::pending().await,
            },
            // This side keeps a sender: there is always one more to come.
            Some(released) = self.releases.1.recv() => Wanted::Released(released),
            () = tokio::time::sleep_until((self.shown_at + BEHIND_AT_MOST).into()), if is_due => {
                self.is_behind = false;
                Wanted::Reading
            }
        }
    }

    /// Takes what was written; gives what the engine must be told for it.
    pub(super) fn obey(&mut self, request: Request, now: BootTime) -> Option<Input> {
        let Request { command, reply } = request;
        match command {
            Command::Gc => {
                self.reconciling.push((now, reply));
                return Some(Input::Reconcile);
            }
            Command::GcInterval(ms) => {
                self.switches.gc_interval_ms = ms;
                self.show_again();
                self.answer(reply, Ok(()));
                return Some(Input::GcInterval(ms.saturating_mul(1_000_000)));
            }
            Command::ReclaimEnabled(on) => {
                self.switches.reclaim_enabled = on;
                self.show_again();
                self.answer(reply, Ok(()));
            }
            Command::Release(aim) => self.release(&aim, false, reply),
            Command::ForceUnlock(aim) => self.release(&aim, true, reply),
        }
        None
    }

    /// Has a release carried out on a thread of its own.
    fn release(&self, aim: &Aim, force: bool, reply: Reply) {
        let watched = self.shown.iter().flat_map(|(_, watched)| watched.iter());
        let path = |name: &str| watched.clone().find(|watch| watch.name == name).map(|w| &w.path);
        let subjects: Vec<OsString> = match &aim.target {
            // All its orphans at once, with its hooks around them.
            Target::Watch(name) if !force => {
                path(name).map(|path| OsString::from_vec(path.to_vec())).into_iter().collect()
            }
            _ => aim.locks.iter().map(|lock| lock.to_string().into()).collect(),
        };
        let (send, surroundings) = (self.releases.0.clone(), self.surroundings.clone());
        let run = move || {
            let outcome = release::release(&subjects, force, &surroundings);
            // Where nobody receives any more, the daemon ends, and everybody gets an error.
            let _ = send.send(Released(reply, outcome));
        };
        if let Err(error) = std::thread::Builder::new().name("release".into()).spawn(run) {
            log::error!("starting the thread of a release: {error}");
        }
    }

    /// Takes the end of a release; gives what the engine must be told for it. Whoever waits is told
    /// when the tree shows it.
    pub(super) fn released(&mut self, released: Released, now: BootTime) -> Option<Input> {
        let Released(reply, outcome) = released;
        match outcome {
            Ok(()) => {
                self.reconciling.push((now, reply));
                Some(Input::Reconcile)
            }
            Err(refusal) => {
                self.answer(reply, Err(refusal));
                None
            }
        }
    }

    /// Shows what follows from a reading that was begun at `begun`.
    pub(super) fn show(&mut self, view: Arc<View>, watched: &[Watched], begun: BootTime) {
        self.shown = Some((view, watched.into()));
        self.shown_at = Instant::now();
        self.show_again();
        let waiting = std::mem::take(&mut self.reconciling);
        for (asked, reply) in waiting {
            if asked <= begun {
                self.answer(reply, Ok(()));
            } else {
                self.reconciling.push((asked, reply));
            }
        }
    }

    fn show_again(&self) {
        if let (Some(keeper), Some((view, watched))) = (&self.keeper, &self.shown) {
            let now = super::now();
            let clock = Clock { unix: now.unix, boot: now.boot.0 };
            keeper.publish(view.clone(), clock, watched.clone(), self.switches);
        }
    }

    fn answer(&self, reply: Reply, outcome: Result<(), Refusal>) {
        if let Some(keeper) = &self.keeper {
            keeper.answer(reply, outcome);
        }
    }

    /// Hands an event, one line with its newline, to every reader of `events`.
    pub(super) fn tell(&self, line: &[u8]) {
        if let Some(keeper) = &self.keeper {
            keeper.tell(line);
        }
    }
}

fn start(config: &Config, ask: mpsc::UnboundedSender<Request>) -> anyhow::Result<Keeper> {
    let options = Options { allow_other: config.tree_allow_other };
    let mounted = fuse::mount(&config.mount, options, move |request| {
        // Where nobody receives any more, the request is answered as it is dropped.
        let _ = ask.send(request);
    })?;
    let (host, _) = machine::names();
    Ok(Keeper::start(mounted, host)?)
}
