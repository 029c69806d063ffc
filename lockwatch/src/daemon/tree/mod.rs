//! The daemon's side of the tree: what the engine concluded goes in, what was written comes out.
//!
//! Refuses to end the watch for the tree's sake: where it cannot be mounted and need not be, or
//! somebody unmounts it, the watch goes on without.

mod keeper;
mod places;
mod release;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;

use self::keeper::{Keeper, Switches};
use super::reclaims::Job;
use crate::config::{Config, Mode, TreeWanted};
use crate::engine::identity::BootTime;
use crate::engine::input::{Input, Watched};
use crate::engine::reclaim::progress::Reclaimed;
use crate::engine::view::View;
use crate::machine;
use crate::sink::clock::Clock;
use crate::sink::fuse::{self, Options, Reply, Request};
use crate::sink::tree::command::{Aim, Command, Refusal};

/// The tree, if there is one.
pub(super) struct Tree {
    keeper: Option<Keeper>,
    requests: mpsc::UnboundedReceiver<Request>,
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
/// How long the first reading may take to be shown before the daemon says that it is ready.
const SHOWN_WITHIN: Duration = Duration::from_secs(1);

/// What the tree wants.
pub(super) enum Wanted {
    /// Somebody has written.
    Written(Request),
    /// A reading.
    Reading,
}

/// What follows from something that was written.
pub(super) enum Obeyed {
    /// The engine must be told.
    Input(Box<Input>),
    /// Something must be reclaimed, for whom the reply is.
    Reclaim(Job<Option<Reply>>),
    /// Nothing.
    Done,
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
        Ok(Self {
            keeper,
            requests,
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
            () = tokio::time::sleep_until((self.shown_at + BEHIND_AT_MOST).into()), if is_due => {
                self.is_behind = false;
                Wanted::Reading
            }
        }
    }

    /// Takes what was written; gives what follows from it.
    pub(super) fn obey(&mut self, request: Request, now: BootTime) -> Obeyed {
        let Request { command, reply } = request;
        match command {
            Command::Gc => {
                self.reconciling.push((now, reply));
                Obeyed::Input(Box::new(Input::Reconcile))
            }
            Command::GcInterval(ms) => {
                self.switches.gc_interval_ms = ms;
                self.show_again();
                self.answer(reply, Ok(()));
                Obeyed::Input(Box::new(Input::GcInterval(ms.saturating_mul(1_000_000))))
            }
            Command::ReclaimEnabled(on) => {
                self.switches.reclaim_enabled = on;
                self.show_again();
                self.answer(reply, Ok(()));
                Obeyed::Input(Box::new(Input::ReclaimEnabled(on)))
            }
            Command::Release(aim) => self.release(&aim, false, reply),
            Command::ForceUnlock(aim) => self.release(&aim, true, reply),
        }
    }

    /// Shows that there were too many reclaims.
    pub(super) fn switch_off(&mut self) {
        self.switches.reclaim_enabled = false;
        self.show_again();
    }

    fn release(&self, aim: &Aim, force: bool, reply: Reply) -> Obeyed {
        // It was switched off after the tree had let it pass.
        if !self.switches.reclaim_enabled {
            self.answer(reply, Err(Refusal::NotPermitted));
            return Obeyed::Done;
        }
        let watched = self.shown.as_ref().map_or(&[][..], |(_, watched)| watched);
        Obeyed::Reclaim(release::job(aim, force, watched, Some(reply)))
    }

    /// Takes the end of a release; whoever waits is told when the tree shows it.
    pub(super) fn released(&mut self, reclaimed: &Reclaimed, reply: Reply, now: BootTime) {
        match release::answer(reclaimed, self.switches.reclaim_enabled) {
            // The engine asks for a reading when it hears of the end.
            Ok(()) => self.reconciling.push((now, reply)),
            Err(refusal) => self.answer(reply, Err(refusal)),
        }
    }

    /// Waits, for a moment, until the mounted tree shows what was published; true also where none is
    /// mounted.
    pub(super) fn is_settled(&self) -> bool {
        self.keeper.as_ref().is_none_or(|keeper| keeper.settled(SHOWN_WITHIN))
    }

    /// Lets the view go that it showed: the next one is about to be made, and two of very many locks
    /// take much memory.
    pub(super) fn let_go(&mut self) {
        self.shown = None;
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
