//! The release of one lock: fetch, look again, prove, unlock, look again.
//!
//! Refuses to unlock anything between whose proof and unlocking something else is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::description::Description;
use super::process::Handle;
use super::sight::{Sight, Sighting};
use super::{ActError, inject, queue, signal};
use crate::engine::reclaim::recheck::find;
use crate::engine::reclaim::{End, Holder, Method, Outcome, Plan, Race, Step, recheck, verify};

/// What is done for one lock, as it is done.
pub(super) struct Record<'a> {
    begun: Instant,
    steps: Vec<Step>,
    /// How many of them were noted.
    noted: usize,
    note: &'a mut dyn FnMut(&Step),
    interrupted: &'a AtomicBool,
}

impl<'a> Record<'a> {
    fn begin(note: &'a mut dyn FnMut(&Step), interrupted: &'a AtomicBool) -> Self {
        Self { begun: Instant::now(), steps: Vec::new(), noted: 0, note, interrupted }
    }

    /// The last word before something is done: whether it is still wanted.
    pub(super) fn is_wanted(&self) -> Result<(), Stop> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Stop::Interrupted) } else { Ok(()) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn step(&mut self, name: &'static str, what: impl Into<String>) {
        let at = self.now();
        self.steps.push(Step { name, at, what: what.into() });
    }

    /// Has what was done up to now noted; never between a look and the act that rests on it, which
    /// nothing may keep apart.
    pub(super) fn note(&mut self) {
        self.steps[self.noted..].iter().for_each(&mut *self.note);
        self.noted = self.steps.len();
    }
}

/// Why it did not come to a verified end.
pub(super) enum Stop {
    Before(ActError),
    Looking(anyhow::Error),
    Interrupted,
}

impl From<ActError> for Stop {
    fn from(error: ActError) -> Self {
        Self::Before(error)
    }
}

/// Carries out one plan, unless it is not wanted any more; `note` is told of its steps.
pub fn release(
    plan: &Plan,
    sight: &mut dyn Sight,
    note: &mut dyn FnMut(&Step),
    interrupted: &AtomicBool,
) -> Outcome {
    let mut record = Record::begin(note, interrupted);
    let acted = record.is_wanted().and_then(|()| act(plan, sight, &mut record));
    record.note();
    let end = match acted {
        Ok(before) => match sight.look(false) {
            Ok(after) => verify(plan, &before.view, &after.view),
            Err(error) => End::Unverified { why: format!("{error:#}") },
        },
        Err(Stop::Before(ActError::Race(race))) => End::Race(race),
        Err(Stop::Before(error)) => End::Failed { why: error.to_string() },
        Err(Stop::Interrupted) => End::NotTried { why: "it was interrupted".into() },
        Err(Stop::Looking(error)) => End::Failed { why: format!("{error:#}") },
    };
    record.step("verified", end.name());
    let took = end.is_released().then(|| record.now());
    record.note();
    Outcome { lock: plan.lock.id, end, steps: record.steps, took }
}

/// Everything up to the unlocking, and that. Returns what was seen right before.
fn act(plan: &Plan, sight: &mut dyn Sight, record: &mut Record<'_>) -> Result<Sighting, Stop> {
    match plan.method {
        Method::Fd => through_descriptor(plan, sight, record),
        Method::Queue => out_of_queue(plan, sight, record),
        Method::Signal => signal::end_holders(plan, sight, record),
        Method::Inject => inject::through_holder(plan, sight, record),
    }
}

fn through_descriptor(
    plan: &Plan,
    sight: &mut dyn Sight,
    record: &mut Record<'_>,
) -> Result<Sighting, Stop> {
    let (handle, fd) = reach(&plan.through, record)?;
    let description = Description::new(handle.fetch(fd)?);
    let before = description.locks()?;
    record.step("fetched", format!("descriptor {fd} of pid {}", plan.through.reader_pid));
    record.note();
    let seen = checked(plan, sight, Some(&description))?;
    record.step("rechecked", "lock, owner, file, holder and description are those of the plan");
    description.is_that_of(plan.through.tid, fd)?;
    still_runs(&handle, &plan.through)?;
    description.still_has(&before)?;
    record.step(
        "proven",
        "kcmp: the fetched description is the holder's, and its locks are the same",
    );
    record.is_wanted()?;
    description.unlock(&plan.lock)?;
    record.step("unlocked", plan.lock.kind.name());
    Ok(seen)
}

fn out_of_queue(
    plan: &Plan,
    sight: &mut dyn Sight,
    record: &mut Record<'_>,
) -> Result<Sighting, Stop> {
    let (handle, fd) = reach(&plan.through, record)?;
    let socket = handle.fetch(fd)?;
    record.step("fetched", format!("socket {fd} of pid {}", plan.through.reader_pid));
    let cloned: Vec<Description> =
        queue::peek(&socket)?.into_iter().map(Description::new).collect();
    let before = cloned.iter().map(Description::locks).collect::<Result<Vec<_>, _>>()?;
    record.step("cloned", format!("{} descriptors out of its queue", cloned.len()));
    record.note();
    let seen = sight.look(true).map_err(Stop::Looking)?;
    let of = |description: &Description| seen.own(description.number());
    let owner = find(plan, &seen.view).and_then(|lock| seen.view.lock(lock).owner);
    let found = cloned.iter().zip(&before);
    let found = found.into_iter().find(|(cloned, _)| owner.is_some() && of(cloned) == owner);
    let Some((description, before)) = found else {
        recheck(plan, &seen.view, owner).map_err(ActError::Race)?;
        return Err(ActError::Impossible(
            "it is not in the first message with descriptors, and those behind it are out of reach \
             until that one was received"
                .into(),
        )
        .into());
    };
    recheck(plan, &seen.view, of(description)).map_err(ActError::Race)?;
    still_runs(&handle, &plan.through)?;
    description.still_has(before)?;
    record.step("rechecked", "lock, owner, file, socket and description are those of the plan");
    record.is_wanted()?;
    description.unlock(&plan.lock)?;
    record.step("unlocked", plan.lock.kind.name());
    Ok(seen)
}

/// A handle on the planned process or thread, and the number of its descriptor.
pub(super) fn reach(holder: &Holder, record: &mut Record<'_>) -> Result<(Handle, u32), Stop> {
    let nowhere = || ActError::Impossible("the plan names no descriptor".into());
    let fd = holder.fd.ok_or_else(nowhere)?;
    let handle = if holder.tid == holder.reader_pid {
        Handle::open(holder)?
    } else {
        Handle::open_thread(holder)?
    };
    record.step("opened", format!("a handle on pid {}: it is that process", holder.reader_pid));
    Ok((handle, fd))
}

/// As long as a handle's process lives nobody else has its pid.
pub(super) fn still_runs(handle: &Handle, holder: &Holder) -> Result<(), Stop> {
    if handle.runs()? {
        return Ok(());
    }
    let what = "is gone";
    Err(ActError::Race(Race::Process { pid: holder.reader_pid, what }).into())
}

/// A look at the tables, which must be as planned.
pub(super) fn checked(
    plan: &Plan,
    sight: &mut dyn Sight,
    fetched: Option<&Description>,
) -> Result<Sighting, Stop> {
    // Who had it by right when it was planned was found then, and nobody comes by such a right
    // since: for a descriptor the fd tables are enough.
    let thorough = plan.method == Method::Signal;
    let seen = sight.look(thorough).map_err(Stop::Looking)?;
    let owner = fetched.and_then(|description| seen.own(description.number()));
    recheck(plan, &seen.view, owner).map_err(ActError::Race)?;
    Ok(seen)
}
