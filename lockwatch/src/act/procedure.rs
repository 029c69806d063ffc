//! The whole of a reclaim: drain, release and verify, canary, resume.
//!
//! Refuses to release anything after a failed drain; and whatever happens, resume runs.

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::hook::{Hook, Told};
use super::sight::Sight;
use super::turn::Turn;
use super::{ActError, release};
use crate::engine::id::LockId;
use crate::engine::reclaim::{End, HookRun, Outcome, Plan, Step};

/// Is told each thing that was done, of a lock or of a hook, right after it.
pub type Note<'a> = &'a mut dyn FnMut(Option<LockId>, &Step);

/// The hooks of a file, as far as there are any.
#[derive(Default)]
pub struct Hooks {
    /// Must succeed first.
    pub drain: Option<Hook>,
    /// Must succeed after.
    pub canary: Option<Hook>,
    /// Comes last in any case.
    pub resume: Option<Hook>,
}

/// What came of it all.
#[derive(Default)]
pub struct Report {
    /// For each plan.
    pub outcomes: Vec<Outcome>,
    /// Every hook that was run.
    pub hooks: Vec<HookRun>,
}

impl Report {
    /// True where every lock was released and every hook succeeded.
    pub fn is_success(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.end.is_released())
            && self.hooks.iter().all(|run| run.status.is_success())
    }
}

/// Carries out the plans for one file. `told` makes what a hook is told out of its name and what
/// has come of the plans so far.
pub fn carry_out(
    plans: &[Plan],
    hooks: &Hooks,
    sight: &mut dyn Sight,
    told: &dyn Fn(&str, &[Outcome]) -> Told,
    interrupted: &AtomicBool,
    note: Note<'_>,
) -> Report {
    let Some(first) = plans.first() else { return Report::default() };
    let end = match Turn::take(first.lock.file) {
        Ok(_turn) => return in_turn(plans, hooks, sight, told, interrupted, note),
        Err(ActError::Race(race)) => End::Race(race),
        Err(error) => End::Failed { why: error.to_string() },
    };
    Report { outcomes: untouched(plans, &end), hooks: Vec::new() }
}

fn in_turn(
    plans: &[Plan],
    hooks: &Hooks,
    sight: &mut dyn Sight,
    told: &dyn Fn(&str, &[Outcome]) -> Told,
    interrupted: &AtomicBool,
    note: Note<'_>,
) -> Report {
    let mut report = Report::default();
    let begun = Instant::now();
    let mut run = |hook: &Option<Hook>, outcomes: &[Outcome], ends: bool, note: Note<'_>| {
        let hook = hook.as_ref()?;
        let run = hook.run(&told(hook.name, outcomes), ends.then_some(interrupted));
        let failure = (!run.status.is_success()).then(|| format!("{} {}", run.name, run.status));
        let at = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        note(None, &Step { name: run.name, at, what: run.status.to_string() });
        report.hooks.push(run);
        failure
    };
    report.outcomes = match run(&hooks.drain, &[], true, note) {
        Some(why) => untouched(plans, &End::NotTried { why }),
        None => {
            let release = |plan: &Plan| {
                let mut note = |step: &Step| note(Some(plan.lock.id), step);
                release::release(plan, sight, &mut note, interrupted)
            };
            plans.iter().map(release).collect()
        }
    };
    if report.outcomes.iter().any(|outcome| outcome.end.is_released()) {
        run(&hooks.canary, &report.outcomes, true, note);
    }
    run(&hooks.resume, &report.outcomes, false, note);
    report
}

fn untouched(plans: &[Plan], end: &End) -> Vec<Outcome> {
    let outcome = |plan: &Plan| Outcome {
        lock: plan.lock.id,
        end: end.clone(),
        steps: Vec::new(),
        took: None,
    };
    plans.iter().map(outcome).collect()
}
