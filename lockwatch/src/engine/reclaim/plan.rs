//! What would be done to release one lock, and why that harms nobody.
//!
//! Refuses to plan what was not proven to be an orphan, unless it was forced for one lock by name;
//! then the plan says who loses the lock.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use crate::engine::classify::{Confidence, Reason, State, Verdict};
use crate::engine::evidence::Evidence;
use crate::engine::identity::{LockKind, Owner, Pid, ProcessId, RecordedPid};
use crate::engine::input::LockName;
use crate::engine::snapshot::{PlaceKind, Taken, Via};
use crate::engine::view::{Holding, LockView, View};

/// How a lock is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A holder's descriptor is fetched, and the description unlocked through it.
    Fd,
    /// The description is cloned out of a unix socket's queue, and unlocked.
    Queue,
    /// The holders are ended.
    Signal,
    /// A holder is halted for a moment and made to unlock it itself.
    Inject,
}

impl Method {
    /// The name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fd => "fd",
            Self::Queue => "queue",
            Self::Signal => "signal",
            Self::Inject => "inject",
        }
    }
}

/// Which method was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One that leaves every process alone.
    Auto,
    /// Through a descriptor.
    Fd,
    /// By ending the holders.
    Signal,
    /// By having a holder unlock it.
    Inject,
}

/// What a plan may do.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// By which method.
    pub wanted: Wanted,
    /// Also without an orphan's verdict.
    pub forced: bool,
    /// How sure that verdict must be at least.
    pub at_least: Confidence,
    /// The pid of whoever would carry it out, as it knows itself.
    pub own: Pid,
}

/// A process that refers to the description or fd table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub process: ProcessId,
    /// Its pid as the reader knows it: the one to act upon.
    pub reader_pid: Pid,
    /// The thread through which it was found, as the reader knows it.
    pub tid: Pid,
    /// Its command.
    pub comm: Box<[u8]>,
    /// How it refers.
    pub via: Via,
    /// Its descriptor: of the file, or of the socket or ring that the description is in. Of a POSIX
    /// lock: any of the file.
    pub fd: Option<u32>,
    /// Sockets and rings around the one of the description that are in no fd table.
    pub depth: u32,
    /// False where nothing is left of it but its exit status.
    pub runs: bool,
}

/// A process that has the file open for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Its pid as the reader knows it.
    pub pid: Pid,
    /// Its command.
    pub comm: Box<[u8]>,
    /// Its descriptor.
    pub fd: Option<u32>,
    /// True where that is of the lock's own description.
    pub holds: bool,
}

/// What is to be done for one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which lock.
    pub lock: LockName,
    /// The description or fd table; never shown.
    pub owner: Owner,
    /// Who took it.
    pub acquirer: RecordedPid,
    /// When, where history knows.
    pub taken: Option<Taken>,
    /// The path of its file.
    pub path: Option<Box<[u8]>>,
    /// Whether the file had lost its name.
    pub deleted: Option<bool>,
    /// Whether the path named another file.
    pub replaced: Option<bool>,
    /// The verdict on which the plan rests.
    pub state: State,
    /// Its reason.
    pub reason: Option<Reason>,
    /// How sure it is.
    pub confidence: Confidence,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// Planned without an orphan's verdict.
    pub forced: bool,
    /// How.
    pub method: Method,
    /// The process through which it is done.
    pub through: Holder,
    /// Every process that holds it, each once.
    pub holders: Vec<Holder>,
    /// Who has the file open for writing; `None` where the source does not tell.
    pub writers: Option<Vec<Writer>>,
    /// How many requests wait for it.
    pub waiters: usize,
    /// What will be done, in order.
    pub steps: Vec<String>,
    /// Why that is safe.
    pub safe: Vec<String>,
    /// What could not be excluded.
    pub not_excluded: Vec<String>,
    /// What whoever carries it out should know; who loses what.
    pub warnings: Vec<String>,
}

/// Plans the release of one lock.
///
/// # Errors
/// Why there is no plan.
pub fn plan(view: &View, lock: &LockView, terms: Terms) -> Result<Plan, Refusal> {
    let Terms { wanted, forced, at_least, own } = terms;
    let facts = view.lock(lock);
    let verdict = &lock.verdict;
    match (verdict.state, facts.kind) {
        (State::Remote, _) => return Err(Refusal::remote()),
        (_, kind @ (LockKind::Deleg | LockKind::Layout)) => return Err(Refusal::nfs_server(kind)),
        _ if forced => {}
        (State::Orphaned, _) => doubt(verdict, at_least).map_or(Ok(()), Err)?,
        (state, _) => {
            let because = verdict.evidence.first().cloned();
            return Err(Refusal::NotOrphaned { state, because });
        }
    }
    let forced = forced && verdict.state != State::Orphaned;
    let owner = facts.owner.ok_or(Refusal::OwnerUnknown)?;
    let holders = holders(view, lock)?;
    let (method, through) = choose(view, lock, wanted, &holders)?;
    let touched: &[Holder] = match method {
        Method::Signal => &holders,
        Method::Fd | Method::Queue | Method::Inject => std::slice::from_ref(&through),
    };
    if matches!(method, Method::Signal | Method::Inject)
        && let Some(holder) = touched.iter().find(|holder| [1, own].contains(&holder.reader_pid))
    {
        return Err(Refusal::Untouchable { pid: holder.reader_pid });
    }
    let file = view.file(lock);
    let mut plan = Plan {
        lock: view.name(lock),
        owner,
        acquirer: facts.acquirer,
        taken: facts.taken.clone(),
        path: file.path.as_deref().map(Box::from),
        deleted: file.deleted,
        replaced: file.replaced,
        state: verdict.state,
        reason: verdict.reason,
        confidence: verdict.confidence,
        evidence: verdict.evidence.to_vec(),
        forced,
        method,
        through,
        writers: writers(view, lock, own),
        waiters: view.waiters(lock).len(),
        holders,
        steps: Vec::new(),
        safe: Vec::new(),
        not_excluded: Vec::new(),
        warnings: Vec::new(),
    };
    super::words::tell(&mut plan, view);
    Ok(plan)
}

/// Why an orphan is not for whoever must be so sure.
fn doubt(verdict: &Verdict, at_least: Confidence) -> Option<Refusal> {
    if verdict.confidence > at_least {
        return Some(Refusal::OnlyLikely { because: verdict.evidence.first().cloned() });
    }
    // Nobody has it now; whether somebody is about to receive it no table tells.
    let in_flight = verdict.reason == Some(Reason::ScmRights);
    (in_flight && at_least == Confidence::Certain).then_some(Refusal::InFlight)
}

/// Every process that holds the lock, each once, by the way that is in easiest reach.
fn holders(view: &View, lock: &LockView) -> Result<Vec<Holder>, Refusal> {
    let mut found: Vec<Holder> = Vec::new();
    for holding in view.holdings(lock) {
        let Some(held) = holder(view, &holding)? else { continue };
        match found.iter_mut().find(|other| other.process == held.process) {
            Some(other) if reach(&held) < reach(other) => *other = held,
            Some(_) => {}
            None => found.push(held),
        }
    }
    Ok(found)
}

fn holder(view: &View, holding: &Holding<'_>) -> Result<Option<Holder>, Refusal> {
    let Some(pid) = holding.pid else { return Ok(None) };
    let unknown = Refusal::ProcessUnknown { pid };
    let process = view.process(pid).ok_or(unknown.clone())?;
    let reader_pid = process.reader_pid.unwrap_or(pid);
    let tid = holding.tid.filter(|&tid| tid != pid).unwrap_or(reader_pid);
    let depth = holding.place.map_or(0, |place| match place.kind {
        // Its socket is in no fd table either.
        PlaceKind::Queue { depth, socket: None, .. } => depth + 1,
        PlaceKind::Queue { depth, .. } | PlaceKind::Ring { depth, .. } => depth,
        PlaceKind::Mapping { .. } | PlaceKind::Kernel { .. } => 0,
    });
    Ok(Some(Holder {
        process: ProcessId { pid, start: process.start.ok_or(unknown)? },
        reader_pid,
        tid,
        comm: process.comm.clone(),
        via: holding.via,
        fd: holding.fd,
        depth,
        runs: !process.zombie,
    }))
}

/// How far away a holder's description is: 0 is a descriptor in the process's own table.
fn reach(holder: &Holder) -> (u32, u32) {
    let of_thread = u32::from(holder.tid != holder.reader_pid);
    let via = match holder.via {
        _ if !holder.runs || holder.fd.is_none() => 4,
        Via::Fd | Via::Files => of_thread,
        Via::ScmRights => 2 + of_thread,
        Via::IoUring | Via::Mmap | Via::Kernel => 4,
    };
    (via, holder.depth)
}

/// The method, and the process through which it goes.
fn choose(
    view: &View,
    lock: &LockView,
    wanted: Wanted,
    holders: &[Holder],
) -> Result<(Method, Holder), Refusal> {
    let by_table = view.lock(lock).kind.belongs_to_fd_table();
    let no_way = || match view.places(lock).next() {
        Some(place) => Refusal::without_descriptor(place.via()),
        None => Refusal::NoWay { reason: lock.verdict.reason },
    };
    let nearest =
        holders.iter().min_by_key(|holder| (reach(holder), holder.process)).ok_or_else(no_way)?;
    let has_descriptor = reach(nearest).0 < 2;
    match wanted {
        Wanted::Auto | Wanted::Fd if by_table => Err(Refusal::posix_by_descriptor()),
        Wanted::Auto | Wanted::Fd if has_descriptor => Ok((Method::Fd, nearest.clone())),
        Wanted::Auto | Wanted::Fd if reach(nearest).0 < 4 && nearest.depth == 0 => {
            Ok((Method::Queue, nearest.clone()))
        }
        Wanted::Inject if has_descriptor => Ok((Method::Inject, nearest.clone())),
        Wanted::Auto | Wanted::Fd | Wanted::Inject => Err(no_way()),
        Wanted::Signal => {
            if view.holdings(lock).any(|holding| holding.pid.is_none()) {
                // It would outlive them all.
                return Err(no_way());
            }
            let first = holders.iter().find(|holder| holder.runs).ok_or_else(no_way)?;
            Ok((Method::Signal, first.clone()))
        }
    }
}

/// Who has the file open for writing, but for the reader itself. `None` where that cannot be told
/// of one who has it open.
fn writers(view: &View, lock: &LockView, own: Pid) -> Option<Vec<Writer>> {
    let facts = view.lock(lock);
    // A descriptor may be there twice, once without its mode.
    let mut found: BTreeMap<(Pid, Option<u32>), (Option<bool>, Writer)> = BTreeMap::new();
    for reference in view.snapshot.references.iter().filter(|of| of.file == facts.file) {
        let process = view.process(reference.pid);
        let pid = process.and_then(|process| process.reader_pid).unwrap_or(reference.pid);
        let writer = Writer {
            pid,
            comm: process.map(|process| process.comm.clone()).unwrap_or_default(),
            fd: reference.fd,
            holds: !facts.kind.belongs_to_fd_table() && reference.description == facts.owner,
        };
        let known = found.entry((pid, reference.fd)).or_insert((None, writer));
        known.0 = known.0.or(reference.writes);
    }
    found.retain(|(pid, _), _| *pid != own);
    if found.values().any(|(writes, _)| writes.is_none()) {
        return None;
    }
    let writes =
        |(writes, writer): (Option<bool>, Writer)| (writes == Some(true)).then_some(writer);
    Some(found.into_values().filter_map(writes).collect())
}
