//! Whether a plan still holds, and what the tables say once it was carried out.
//!
//! Refuses to let a plan through of which one thing is not what it was.

use std::fmt;

use super::outcome::{End, Successor};
use super::plan::{Holder, Method, Plan};
use crate::engine::classify::{Confidence, State};
use crate::engine::id::LockId;
use crate::engine::identity::{Owner, Pid, RecordedPid};
use crate::engine::view::{LockView, View};

/// What was not as planned any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Race {
    /// The lock is not there.
    Gone,
    /// Another lock is there in its place: of another owner, acquirer, access or range.
    Another {
        /// What differs.
        what: &'static str,
    },
    /// Its file lost its name, or the name belongs to another file.
    File {
        /// What happened to it.
        what: &'static str,
    },
    /// It is no orphan any more.
    Verdict {
        /// What it is now.
        now: State,
    },
    /// That it is an orphan was certain when it was planned, and is only likely now.
    Doubt,
    /// A process of the plan is gone or is another one.
    Process {
        /// Its pid.
        pid: Pid,
        /// What became of it.
        what: &'static str,
    },
    /// What was fetched is another description.
    Description,
    /// Another reclaim of the same file is at work.
    Busy,
}

impl Race {
    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Another { .. } => "another_lock",
            Self::File { .. } => "file",
            Self::Verdict { .. } => "verdict",
            Self::Doubt => "doubt",
            Self::Process { .. } => "process",
            Self::Description => "description",
            Self::Busy => "busy",
        }
    }
}

impl fmt::Display for Race {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the lock is not there any more"),
            Self::Another { what } => write!(f, "the lock is another one now: {what}"),
            Self::File { what } => write!(f, "the file is not what it was: {what}"),
            Self::Verdict { now } => write!(f, "the lock is {} now", now.name()),
            Self::Doubt => {
                f.write_str("that the lock is orphaned was certain, and is only likely now")
            }
            Self::Process { pid, what } => write!(f, "pid {pid} {what}"),
            Self::Description => f.write_str("the descriptor leads to another description now"),
            Self::Busy => f.write_str("another reclaim of this file is at work"),
        }
    }
}

/// The same lock, however its id is written.
pub fn is_same(one: LockId, other: LockId) -> bool {
    (one.dev, one.ino, one.hash) == (other.dev, other.ino, other.hash)
}

/// Finds the plan's lock in a view.
pub fn find<'view>(plan: &Plan, view: &'view View) -> Option<&'view LockView> {
    view.locks.iter().find(|lock| is_same(lock.id, plan.lock.id))
}

/// Finds that everything is as planned. `fetched` is the description that the actuator fetched for
/// it, where it has to fetch one, as this very view knows it.
///
/// # Errors
/// The first thing that is not.
pub fn recheck(plan: &Plan, view: &View, fetched: Option<Owner>) -> Result<(), Race> {
    let lock = find(plan, view).ok_or_else(|| what_became_of(plan, view))?;
    let facts = view.lock(lock);
    for (differs, what) in [
        (facts.kind != plan.lock.kind, "its kind"),
        (facts.access != plan.lock.access, "its access"),
        (facts.range != plan.lock.range, "its range"),
        (facts.acquirer != plan.acquirer, "who took it"),
        (view.snapshot.stable_owners && facts.owner != Some(plan.owner), "its owner"),
        (
            matches!((&facts.taken, &plan.taken), (Some(now), Some(then)) if now != then),
            "it was given up and taken again",
        ),
    ] {
        if differs {
            return Err(Race::Another { what });
        }
    }
    let file = view.file(lock);
    if file.deleted != plan.deleted {
        return Err(Race::File { what: "it has lost its name" });
    }
    if file.replaced != plan.replaced {
        return Err(Race::File { what: "its path names another file" });
    }
    if !plan.forced && lock.verdict.state != State::Orphaned {
        return Err(Race::Verdict { now: lock.verdict.state });
    }
    if !plan.forced
        && (plan.confidence, lock.verdict.confidence) == (Confidence::Certain, Confidence::Likely)
    {
        // What made it certain is gone: it would also have told that the lock was taken anew.
        return Err(Race::Doubt);
    }
    let needed: &[Holder] = match plan.method {
        Method::Fd | Method::Queue | Method::Inject => std::slice::from_ref(&plan.through),
        Method::Signal => &plan.holders,
    };
    for holder in needed {
        still_holds(holder, view, lock)?;
    }
    let fetches = matches!(plan.method, Method::Fd | Method::Queue);
    if fetches && (facts.owner.is_none() || fetched != facts.owner) {
        return Err(Race::Description);
    }
    Ok(())
}

fn still_holds(holder: &Holder, view: &View, lock: &LockView) -> Result<(), Race> {
    let race = |what| Err(Race::Process { pid: holder.reader_pid, what });
    let Some(process) = view.process(holder.process.pid) else {
        return race("is gone");
    };
    if process.start.map(|start| start.ticks()) != Some(holder.process.start.ticks()) {
        return race("is another process");
    }
    let by_table = view.lock(lock).kind.belongs_to_fd_table();
    let refers = view.holdings(lock).any(|holding| {
        holding.pid == Some(holder.process.pid)
            && (by_table || (holding.via, holding.fd) == (holder.via, holder.fd))
    });
    if refers { Ok(()) } else { race("holds it no more") }
}

/// Why the id is not there.
fn what_became_of(plan: &Plan, view: &View) -> Race {
    let on_file = view.locks.iter().filter(|lock| {
        (lock.id.dev, lock.id.ino) == (plan.lock.id.dev, plan.lock.id.ino)
            && view.lock(lock).kind == plan.lock.kind
    });
    for lock in on_file {
        let facts = view.lock(lock);
        if view.snapshot.stable_owners && facts.owner == Some(plan.owner) {
            if facts.acquirer != plan.acquirer {
                return Race::Another { what: "who took it" };
            }
            if facts.range.overlaps(plan.lock.range) {
                return Race::Another { what: "its range" };
            }
        }
    }
    Race::Gone
}

/// What the tables say after the act. `before` is the view that the recheck passed.
pub fn verify(plan: &Plan, before: &View, after: &View) -> End {
    if let Some(lock) = find(plan, after) {
        let again = matches!(
            (&after.lock(lock).taken, &plan.taken),
            (Some(now), Some(then)) if now != then
        );
        if !again {
            return End::StillHeld;
        }
    } else if !after.has_every_lock() {
        let why = after.gaps().map(|limit| limit.what.clone()).collect::<Vec<_>>().join("; ");
        return End::Unverified { why };
    }
    let class = plan.lock.kind.conflict_class();
    let taken_by = after
        .locks
        .iter()
        .filter(|lock| (lock.id.dev, lock.id.ino) == (plan.lock.id.dev, plan.lock.id.ino))
        .filter(|lock| {
            let facts = after.lock(lock);
            facts.kind.conflict_class() == class && facts.range.overlaps(plan.lock.range)
        })
        .filter(|lock| {
            is_same(lock.id, plan.lock.id)
                || !before.locks.iter().any(|old| is_same(old.id, lock.id))
        })
        .map(|lock| successor(after, lock))
        .collect();
    End::Released { taken_by }
}

fn successor(view: &View, lock: &LockView) -> Successor {
    let local = match view.lock(lock).acquirer {
        RecordedPid::Local(pid) => Some(pid),
        _ => None,
    };
    let process = local.and_then(|pid| view.process(pid));
    Successor {
        lock: lock.id,
        pid: local.map(|pid| process.and_then(|process| process.reader_pid).unwrap_or(pid)),
        comm: process.map(|process| process.comm.clone()),
    }
}
