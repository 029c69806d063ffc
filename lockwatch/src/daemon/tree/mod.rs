//! The daemon's side of the tree: what the engine concluded goes in, what was written comes out.
//!
//! Refuses to end the watch for the tree's sake: where it cannot be mounted and need not be, or
//! somebody unmounts it, the watch goes on without.

mod keeper;
mod places;

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::mpsc;

use self::keeper::{Keeper, Switches};
use crate::config::{Config, Mode, TreeWanted};
use crate::engine::identity::BootTime;
use crate::engine::input::{Input, Watched};
use crate::engine::view::View;
use crate::machine;
use crate::sink::clock::Clock;
use crate::sink::fuse::{self, Options, Reply, Request};
use crate::sink::tree::command::{Command, Refusal};

/// The tree, if there is one.
pub(super) struct Tree {
    keeper: Option<Keeper>,
    requests: mpsc::UnboundedReceiver<Request>,
    switches: Switches,
    /// Who waits for a reading that is begun at that moment or later.
    reconciling: Vec<(BootTime, Reply)>,
    shown: Option<(Arc<View>, Arc<[Watched]>)>,
}

impl Tree {
    /// Mounts it, as far as the configuration wants it.
    ///
    /// # Errors
    /// Where there must be a tree and cannot.
    pub(super) fn grow(config: &Config) -> anyhow::Result<Self> {
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
        Ok(Self { keeper, requests, switches, reconciling: Vec::new(), shown: None })
    }

    /// False where there was a tree and somebody has unmounted it.
    pub(super) fn is_whole(&self) -> bool {
        self.keeper.as_ref().is_none_or(Keeper::is_served)
    }

    /// Waits for what somebody writes; for ever where there is no tree.
    pub(super) async fn request(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            None => std::future::pending().await,
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
            Command::Release(_) | Command::ForceUnlock(_) => {
                self.answer(reply, Err(Refusal::Unverified));
            }
        }
        None
    }

    /// Shows what follows from a reading that was begun at `begun`.
    pub(super) fn show(&mut self, view: Arc<View>, watched: &[Watched], begun: BootTime) {
        self.shown = Some((view, watched.into()));
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
