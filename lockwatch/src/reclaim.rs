//! `lockwatch reclaim FILE|ID`: release an orphaned lock; a dry run unless it is to be carried out.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write as _};

use crate::act::turn::Turn;
use crate::act::{ActError, release};
use crate::engine::classify::State;
use crate::engine::id::LockId;
use crate::engine::reclaim::{End, Outcome, Plan, Refusal, Wanted, plan};
use crate::engine::view::LockView;
use crate::failure::{EXIT_CLEAR, EXIT_FINDINGS};
use crate::look::{Choice, Look, look};
use crate::machine;
use crate::sight::Whole;
use crate::sink::escape::Escaped;
use crate::sink::reclaim::{Account, write_json, write_text};
use crate::target::Targets;

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
    /// Write JSON.
    pub json: bool,
}

/// Runs the verb.
///
/// # Errors
/// Where the file is not there, the source cannot be read, or the caller may not do it.
pub fn run(asked: &Reclaim) -> anyhow::Result<u8> {
    if asked.execute && !rustix::process::geteuid().is_root() {
        anyhow::bail!("reclaim: --execute: releasing what others hold takes root's rights");
    }
    let targets = Targets::file(&asked.file)?;
    let seen = look(asked.source, &targets.handles)?;
    let chosen = targets.select(&seen.view, &seen.files)?;
    let (plans, refusals) = plans(asked, &seen, &chosen);
    let outcomes = if asked.execute { carry_out(seen.source, &plans) } else { Vec::new() };
    tell(asked, &seen, chosen.is_empty(), &plans, &refusals, &outcomes)?;
    let done = outcomes.iter().all(|outcome| outcome.end.is_released());
    Ok(if refusals.is_empty() && done { EXIT_CLEAR } else { EXIT_FINDINGS })
}

fn plans(asked: &Reclaim, seen: &Look, chosen: &[u32]) -> (Vec<Plan>, Vec<(LockId, Refusal)>) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let view = &seen.view;
    let locks: Vec<&LockView> = chosen.iter().map(|&place| &view.locks[place as usize]).collect();
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
        match plan(view, lock, asked.method, asked.force, own) {
            Ok(plan) => made.0.push(plan),
            Err(refusal) => made.1.push((lock.id, refusal)),
        }
    }
    made
}

fn carry_out(source: &str, plans: &[Plan]) -> Vec<Outcome> {
    let mut sight = Whole::like(source);
    let Some(first) = plans.first() else { return Vec::new() };
    let turn = Turn::take(first.lock.file);
    let refused = |end: &End| {
        let outcome = |plan: &Plan| Outcome {
            lock: plan.lock.id,
            end: end.clone(),
            steps: Vec::new(),
            took: None,
        };
        plans.iter().map(outcome).collect()
    };
    match turn {
        Ok(_turn) => plans.iter().map(|plan| release::release(plan, &mut sight)).collect(),
        Err(ActError::Race(race)) => refused(&End::Race(race)),
        Err(error) => refused(&End::Failed { why: error.to_string() }),
    }
}

fn tell(
    asked: &Reclaim,
    seen: &Look,
    nothing: bool,
    plans: &[Plan],
    refusals: &[(LockId, Refusal)],
    outcomes: &[Outcome],
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
        outcomes,
        hooks: &[],
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
