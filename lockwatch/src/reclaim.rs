//! `lockwatch reclaim FILE|ID`: release an orphaned lock; a dry run unless it is to be carried out.
//!
//! Refuses to begin what it could not record, and to run a hook that others than root could have
//! written.

mod account;
mod attended;
mod watched;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;

use crate::act::audit::Audit;
use crate::act::procedure::{self, Report};
use crate::config::Config;
use crate::engine::classify::{Confidence, State};
use crate::engine::id::LockId;
use crate::engine::input::FileId;
use crate::engine::reclaim::progress::Asker;
use crate::engine::reclaim::{Plan, Refusal, Terms, Wanted, plan};
use crate::engine::view::LockView;
use crate::failure::{EXIT_CLEAR, EXIT_FINDINGS, EXIT_INTERRUPTED};
use crate::look::{Choice, Look, look};
use crate::machine;
use crate::sight::Whole;
use crate::sink::escape::Escaped;
use crate::sink::reclaim::{Account, write_json, write_text};
use crate::target::Targets;
use watched::Watched;

/// What is asked for.
#[derive(Debug)]
pub struct Reclaim {
    /// The file, or the id of a lock.
    pub file: OsString,
    /// The source.
    pub source: Choice,
    /// Carry it out.
    pub execute: bool,
    /// Also without the verdict of an orphan.
    pub force: bool,
    /// How.
    pub method: Wanted,
    /// The configuration, where it is not the default one.
    pub config: Option<PathBuf>,
    /// Run no hooks.
    pub no_hooks: bool,
    /// Write JSON.
    pub json: bool,
    /// How sure it must be that a lock is orphaned.
    pub at_least: Confidence,
    /// Who has the daemon do it, where the daemon does.
    pub attended: Option<Asker>,
}

/// Runs the verb.
///
/// # Errors
/// Where the file is not there, the source cannot be read, the configuration or a hook cannot be
/// trusted, or the caller may not do it. Then nothing was done.
pub fn run(asked: &Reclaim) -> anyhow::Result<u8> {
    if asked.execute && !rustix::process::geteuid().is_root() {
        anyhow::bail!("reclaim: --execute: releasing what others hold takes root's rights");
    }
    let config = if asked.execute || asked.config.is_some() {
        Config::read_trusted(asked.config.as_deref()).context("reclaim: the configuration")?
    } else {
        Config::default()
    };
    let mut targets = Targets::itself(&asked.file)?;
    let watched = Watched::open(&config, &mut targets.handles);
    let seen = look(asked.source, &targets.handles)?;
    let chosen = targets.select(&seen.view, &seen.files)?;
    let (plans, refusals) = plans(asked, &seen, &chosen);
    let interrupted = Arc::new(AtomicBool::new(false));
    if asked.attended.is_some() {
        attended::follow(&interrupted).context("reclaim: nothing was done")?;
    }
    let report = if asked.execute && !plans.is_empty() {
        let watch = watched.of(&seen, &plans).filter(|_| !asked.no_hooks);
        carry_out(asked, &config, seen.source, &plans, watch, &interrupted)?
    } else {
        Report::default()
    };
    if asked.attended.is_some() {
        attended::done(&seen.view, &plans, &refusals, &report)?;
        return Ok(exit_code(&interrupted, &refusals, &report));
    }
    tell(asked, &seen, chosen.is_empty(), &plans, &refusals, &report)?;
    Ok(exit_code(&interrupted, &refusals, &report))
}

fn exit_code(interrupted: &AtomicBool, refusals: &[(LockId, Refusal)], report: &Report) -> u8 {
    if interrupted.load(Ordering::Relaxed) {
        EXIT_INTERRUPTED
    } else if refusals.is_empty() && report.is_success() {
        EXIT_CLEAR
    } else {
        EXIT_FINDINGS
    }
}

fn plans(asked: &Reclaim, seen: &Look, chosen: &[u32]) -> (Vec<Plan>, Vec<(LockId, Refusal)>) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let terms = Terms { wanted: asked.method, forced: asked.force, at_least: asked.at_least, own };
    let view = &seen.view;
    let locks: Vec<&LockView> = chosen.iter().map(|&place| &view.locks[place as usize]).collect();
    let files: BTreeSet<FileId> = locks.iter().map(|lock| view.name(lock).file).collect();
    if files.len() > 1 {
        // The hooks, the turn and the record are those of one file.
        let refusal = Refusal::SeveralFiles { files: files.len() };
        let refused = locks.iter().map(|lock| (lock.id, refusal.clone()));
        return (Vec::new(), refused.collect());
    }
    if asked.force && locks.len() > 1 {
        let refusal = Refusal::ForceNeedsOne { named: locks.len() };
        let refused = locks.iter().map(|lock| (lock.id, refusal.clone()));
        return (Vec::new(), refused.collect());
    }
    let orphaned = |lock: &&LockView| lock.verdict.state == State::Orphaned;
    // Beside an orphan, what others hold on the file by right is left alone.
    let only_orphans = locks.iter().any(orphaned);
    let mut made = (Vec::new(), Vec::new());
    for lock in locks.into_iter().filter(|lock| !only_orphans || orphaned(lock)) {
        match plan(view, lock, terms) {
            Ok(plan) => made.0.push(plan),
            Err(refusal) => made.1.push((lock.id, refusal)),
        }
    }
    made
}

fn carry_out(
    asked: &Reclaim,
    config: &Config,
    source: &str,
    plans: &[Plan],
    watch: Option<&crate::config::Watch>,
    interrupted: &Arc<AtomicBool>,
) -> anyhow::Result<Report> {
    let hooks = watched::hooks(watch).context("reclaim: nothing was done")?;
    let mut sight = Whole::like(source).context("reclaim: nothing was done")?;
    let mut audit = Audit::open(&config.reclaim.audit).context("reclaim: nothing was done")?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(interrupted))
            .context("reclaim: nothing was done: catching signals")?;
    }
    let begun = account::Begun::now();
    audit
        .append(&begun.record(plans, watch, asked.attended))
        .context("reclaim: nothing was done")?;
    if let Some(by) = asked.attended {
        attended::planned(by, plans);
    }
    let told = |hook: &str, outcomes: &[_]| watched::told(hook, watch, plans, outcomes);
    let mut note = |lock, step: &_| {
        // Half of it is done, and the rest belongs to it: the end says again what was done.
        let _ = audit.note(&begun.step(lock, step));
    };
    let report = procedure::carry_out(plans, &hooks, &mut sight, &told, interrupted, &mut note);
    if let Err(error) = audit.append(&begun.end(&report)) {
        // What was done was done: its account goes to whoever asked all the same.
        crate::failure::tell(format_args!(
            "reclaim: {}: the end of this reclaim is not on record: {error}",
            Escaped(std::os::unix::ffi::OsStrExt::as_bytes(asked.file.as_os_str()))
        ));
    }
    Ok(report)
}

fn tell(
    asked: &Reclaim,
    seen: &Look,
    nothing: bool,
    plans: &[Plan],
    refusals: &[(LockId, Refusal)],
    report: &Report,
) -> anyhow::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let (host, kernel) = machine::names();
    let account = Account {
        host: &host,
        kernel: &kernel,
        source: seen.source,
        planned_at: seen.clock.now(),
        limits: seen.view.snapshot.limits.iter().map(|limit| limit.what.clone()).collect(),
        executed: asked.execute,
        plans,
        refusals,
        outcomes: &report.outcomes,
        hooks: &report.hooks,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if asked.json {
        write_json(&mut out, &account)?;
    } else {
        if nothing {
            let sight = if seen.view.has_every_lock() { "" } else { ", as far as could be seen" };
            let file = Escaped(asked.file.as_bytes());
            writeln!(out, "{file}: no lock{sight}: nothing to do")?;
        }
        write_text(&mut out, &account)?;
    }
    Ok(out.flush()?)
}
