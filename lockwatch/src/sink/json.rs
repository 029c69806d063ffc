//! The JSON of `scan --json`: schema 1.
//!
//! Refuses to invent: what is not known is `null`.

use std::io;

use base64::Engine as _;
use hashbrown::HashMap; // not iterated
use serde::Serialize;
use serde::ser::Serializer;
use serde_json::value::{RawValue, to_raw_value};

use super::clock::Timestamp;
use super::{Report, labels};
use crate::engine::classify::State;
use crate::engine::container::{self, Container};
use crate::engine::identity::{Pid, ProcessId, RecordedPid};
use crate::engine::snapshot::{Death, Place, PlaceKind, Process};
use crate::engine::view::{LockView, View};

/// The number of the schema; another one may mean other names.
pub const SCHEMA: u32 = 1;

/// Locks that are written in one piece; more are written by several threads at once.
const CHUNK: usize = 2048;

/// Writes the report and a newline.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl io::Write, report: &Report<'_>) -> io::Result<()> {
    let view = report.view;
    let head = Head {
        schema: SCHEMA,
        host: report.host,
        kernel: report.kernel,
        source: report.source,
        history: view.snapshot.history,
        scanned_at: report.clock.now(),
        complete: view.is_complete(),
        limits: view.snapshot.limits.iter().map(|limit| limit.what.as_str()).collect(),
    };
    let findings = report
        .asked
        .iter()
        .map(|&place| &view.locks[place as usize])
        .filter(|lock| labels::is_finding(lock))
        .map(|lock| Finding {
            kind: "orphaned_lock",
            lock: Text(&lock.id),
            message: labels::finding(view, lock),
        })
        .collect();
    let summary = Summary {
        locks: report.asked.len(),
        orphaned: report.orphaned(),
        waiters: report.waiters(),
    };
    // One object in three pieces: its braces are taken off where they meet.
    let head = serde_json::to_vec(&head)?;
    out.write_all(head.strip_suffix(b"}").unwrap_or(&head))?;
    out.write_all(b",\"locks\":[")?;
    write_locks(out, report)?;
    out.write_all(b"],")?;
    let tail = serde_json::to_vec(&Tail { findings, summary })?;
    out.write_all(tail.strip_prefix(b"{").unwrap_or(&tail))?;
    out.write_all(b"\n")
}

/// Writes the elements of the list, in order. Each thread writes every so-many-th chunk.
fn write_locks(out: &mut impl io::Write, report: &Report<'_>) -> io::Result<()> {
    let deaths = &report.view.snapshot.deaths;
    let report = &Context {
        report,
        processes: process_texts(report)?,
        deaths: deaths.iter().map(|death| (death.process, death)).collect(),
    };
    let chunks = report.report.listed.chunks(CHUNK);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(chunks.len());
    if threads <= 1 {
        let mut comma = false;
        for chunk in chunks {
            out.write_all(&write_chunk(report, chunk, &mut comma)?)?;
        }
        return Ok(());
    }
    std::thread::scope(|scope| {
        let mut sources = Vec::with_capacity(threads);
        for first in 0..threads {
            let (send, receive) = std::sync::mpsc::sync_channel(1);
            let chunks = chunks.clone().skip(first).step_by(threads);
            std::thread::Builder::new().spawn_scoped(scope, move || {
                let mut comma = first > 0;
                for chunk in chunks {
                    // Where nobody receives any more, writing failed.
                    if send.send(write_chunk(report, chunk, &mut comma)).is_err() {
                        break;
                    }
                }
            })?;
            sources.push(receive);
        }
        for source in (0..chunks.len()).map(|index| &sources[index % threads]) {
            let chunk = source.recv().map_err(io::Error::other)?;
            out.write_all(&chunk?)?;
        }
        Ok(())
    })
}

fn write_chunk(context: &Context<'_>, chunk: &[u32], comma: &mut bool) -> io::Result<Vec<u8>> {
    /// A lock takes about so many bytes.
    const TYPICAL: usize = 640;
    let mut text = Vec::with_capacity(chunk.len() * TYPICAL);
    for &place in chunk {
        if std::mem::replace(comma, true) {
            text.push(b',');
        }
        let view = context.report.view;
        serde_json::to_writer(&mut text, &lock(context, &view.locks[place as usize]))?;
    }
    Ok(text)
}

/// The report, and the texts that one process has in common in all its places.
struct Context<'a> {
    report: &'a Report<'a>,
    processes: HashMap<Pid, ProcessText>,  // not iterated
    deaths: HashMap<ProcessId, &'a Death>, // not iterated
}

/// Values that are the same wherever a process is named, written once.
struct ProcessText {
    comm: Box<RawValue>,
    exe: Option<Box<RawValue>>,
    cgroup: Option<Box<RawValue>>,
    container: Option<Box<RawValue>>,
    start_time: Option<Box<RawValue>>,
}

fn process_texts(report: &Report<'_>) -> io::Result<HashMap<Pid, ProcessText>> {
    let bytes = |bytes: &[u8]| to_raw_value(&Lossy(bytes));
    let text = |(&pid, process): (&Pid, &Process)| {
        let start = process.start.map(|start| report.clock.at(start));
        Ok((
            pid,
            ProcessText {
                comm: bytes(&process.comm)?,
                exe: process.exe.as_deref().map(bytes).transpose()?,
                cgroup: process.cgroup.as_deref().map(bytes).transpose()?,
                container: process
                    .cgroup
                    .as_deref()
                    .and_then(container::of_control_group)
                    .map(|Container { runtime, id }| {
                        to_raw_value(&ContainerText { runtime, id: Lossy(id) })
                    })
                    .transpose()?,
                start_time: start.as_ref().map(to_raw_value).transpose()?,
            },
        ))
    };
    report.view.snapshot.processes.iter().map(text).collect()
}

impl Context<'_> {
    fn process(&self, pid: Pid) -> Option<&ProcessText> {
        self.processes.get(&pid)
    }
}

#[derive(Serialize)]
struct Head<'a> {
    schema: u32,
    host: &'a str,
    kernel: &'a str,
    source: &'a str,
    history: bool,
    scanned_at: Timestamp,
    complete: bool,
    limits: Vec<&'a str>,
}

#[derive(Serialize)]
struct Tail<'a> {
    findings: Vec<Finding<'a>>,
    summary: Summary,
}

#[derive(Serialize)]
struct Finding<'a> {
    kind: &'static str,
    lock: Text<'a, crate::engine::id::LockId>,
    message: String,
}

#[derive(Serialize)]
struct Summary {
    locks: usize,
    orphaned: usize,
    waiters: usize,
}

/// Anything that can be displayed, as a string.
pub(super) struct Text<'a, T>(pub(super) &'a T);

impl<T: std::fmt::Display> Serialize for Text<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// Bytes as a string; what is not UTF-8 becomes U+FFFD.
pub(super) struct Lossy<'a>(pub(super) &'a [u8]);

impl Serialize for Lossy<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(self.0))
    }
}

#[derive(Serialize)]
struct Lock<'a> {
    id: Text<'a, crate::engine::id::LockId>,
    #[serde(rename = "type")]
    kind: &'static str,
    access: &'static str,
    start: u64,
    end: Option<u64>,
    file: File<'a>,
    state: &'static str,
    reason: Option<&'static str>,
    confidence: &'static str,
    evidence: Each<'a, crate::engine::evidence::Evidence>,
    flags: Vec<&'static str>,
    acquirer: Acquirer<'a>,
    acquired_at: Option<Timestamp>,
    holders: Holders<'a>,
    waiters: Waiters<'a>,
}

#[derive(Serialize)]
struct File<'a> {
    path: Option<Lossy<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    dev: Text<'a, crate::engine::identity::Dev>,
    ino: u64,
    size: Option<u64>,
    deleted: Option<bool>,
    replaced: Option<bool>,
}

#[derive(Serialize)]
struct Acquirer<'a> {
    pid: Option<Pid>,
    ns_pid: Option<Pid>,
    alive: Option<bool>,
    recycled: bool,
    comm: Option<Said<'a>>,
    exe: Option<Said<'a>>,
    start_time: Option<Said<'a>>,
    cgroup: Option<Said<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a RawValue>,
    exit: Option<Exit>,
}

/// A value of a process that is there, or as history has it of one that is gone.
#[derive(Serialize)]
#[serde(untagged)]
enum Said<'a> {
    Text(&'a RawValue),
    Bytes(Lossy<'a>),
    When(Timestamp),
}

#[derive(Serialize)]
struct Exit {
    code: Option<i32>,
    signal: Option<i32>,
    at: Timestamp,
}

#[derive(Serialize)]
struct Holder<'a> {
    pid: Option<Pid>,
    tid: Option<Pid>,
    comm: Option<&'a RawValue>,
    via: &'static str,
    fd: Option<u32>,
    start_time: Option<&'a RawValue>,
    /// Where it is another number, and known.
    #[serde(skip_serializing_if = "Option::is_none")]
    ns_pid: Option<Pid>,
    /// Where it was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<Where<'a>>,
}

/// The place in which a description lives on without a descriptor.
#[derive(Serialize)]
#[serde(untagged)]
enum Where<'a> {
    Queue { socket: Option<u64>, name: Option<String>, depth: u32 },
    Ring { slot: u32, depth: u32 },
    Mapping { start: String, end: String, protection: Lossy<'a> },
    Kernel { what: &'a str },
}

fn place(place: &Place) -> Where<'_> {
    match &place.kind {
        // An abstract name begins with NUL, which is shown as `@`, as ss(8) shows it.
        PlaceKind::Queue { socket, name, depth } => Where::Queue {
            socket: *socket,
            name: name.as_deref().map(|name| match name {
                [0, name @ ..] => format!("@{}", String::from_utf8_lossy(name)),
                name => String::from_utf8_lossy(name).into_owned(),
            }),
            depth: *depth,
        },
        PlaceKind::Ring { slot, depth } => Where::Ring { slot: *slot, depth: *depth },
        PlaceKind::Mapping { start, end, protection } => Where::Mapping {
            start: format!("{start:x}"),
            end: format!("{end:x}"),
            protection: Lossy(protection),
        },
        PlaceKind::Kernel { what } => Where::Kernel { what },
    }
}

/// The container that a process is in.
#[derive(Serialize)]
struct ContainerText<'a> {
    runtime: &'static str,
    id: Lossy<'a>,
}

#[derive(Serialize)]
struct Waiter<'a> {
    pid: Option<Pid>,
    comm: Option<&'a RawValue>,
    access: &'static str,
    since: Option<Timestamp>,
    blocked_by: Blockers<'a>,
}

struct Each<'a, T>(&'a [T]);

impl<T: std::fmt::Display> Serialize for Each<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Text))
    }
}

struct Holders<'a>(&'a Context<'a>, &'a LockView);

impl Serialize for Holders<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(context, lock) = self;
        let view = context.report.view;
        serializer.collect_seq(view.holdings(lock).map(|holding| {
            let reader = holding.pid.and_then(|pid| view.process(pid)?.reader_pid);
            let process = holding.pid.and_then(|pid| context.process(pid));
            let own = holding.pid.and_then(|pid| view.process(pid)?.ns_pid);
            let shown = reader.or(holding.pid);
            Holder {
                pid: shown,
                tid: if holding.tid == holding.pid { reader.or(holding.tid) } else { holding.tid },
                comm: process.map(|process| &*process.comm),
                via: holding.via.name(),
                fd: holding.fd,
                start_time: process.and_then(|process| process.start_time.as_deref()),
                ns_pid: own.filter(|own| Some(*own) != shown),
                cgroup: process.and_then(|process| process.cgroup.as_deref()),
                container: process.and_then(|process| process.container.as_deref()),
                place: holding.place.map(place),
            }
        }))
    }
}

struct Waiters<'a>(&'a Context<'a>, &'a LockView);

impl Serialize for Waiters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(context, lock) = self;
        let view = context.report.view;
        serializer.collect_seq(view.waiters(lock).iter().map(|&place| {
            let waiter = &view.snapshot.waiters[place as usize];
            let process = match waiter.requester {
                RecordedPid::Local(pid) => context.process(pid),
                _ => None,
            };
            Waiter {
                pid: labels::recorded_pid(view, waiter.requester),
                comm: process.map(|process| &*process.comm),
                access: waiter.access.name(),
                since: waiter.since.map(|since| context.report.clock.moment(since)),
                blocked_by: Blockers(view, &view.blockers[place as usize]),
            }
        }))
    }
}

struct Blockers<'a>(&'a View, &'a [u32]);

impl Serialize for Blockers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.iter().map(|&place| Text(&self.0.locks[place as usize].id)))
    }
}

fn lock<'a>(context: &'a Context<'a>, lock: &'a LockView) -> Lock<'a> {
    let view = context.report.view;
    let facts = view.lock(lock);
    let file = view.file(lock);
    let path = file.path.as_deref();
    let raw = path.filter(|path| std::str::from_utf8(path).is_err());
    Lock {
        id: Text(&lock.id),
        kind: facts.kind.name(),
        access: facts.access.name(),
        start: facts.range.start,
        end: facts.range.end(),
        file: File {
            path: path.map(Lossy),
            path_b64: raw.map(|path| base64::engine::general_purpose::STANDARD.encode(path)),
            dev: Text(&file.dev),
            ino: file.ino,
            size: file.size.map(crate::engine::identity::Size::bytes),
            deleted: file.deleted,
            replaced: file.replaced,
        },
        state: lock.verdict.state.name(),
        reason: lock.verdict.reason.map(|reason| reason.name()),
        confidence: lock.verdict.confidence.name(),
        evidence: Each(&lock.verdict.evidence),
        flags: lock.flags.iter().map(|flag| flag.name()).collect(),
        acquirer: acquirer(context, lock),
        acquired_at: facts.taken.as_ref().map(|taken| context.report.clock.moment(taken.at)),
        holders: Holders(context, lock),
        waiters: Waiters(context, lock),
    }
}

fn acquirer<'a>(context: &'a Context<'a>, lock: &'a LockView) -> Acquirer<'a> {
    let view = context.report.view;
    let recorded = view.lock(lock).acquirer;
    let process: Option<&Process> = view.acquirer(lock);
    let text = match recorded {
        RecordedPid::Local(pid) if process.is_some() => context.process(pid),
        _ => None,
    };
    let remote = lock.verdict.state == State::Remote;
    // Of a process that is gone history knows what it was when it took the lock.
    let clock = context.report.clock;
    let taken = view.lock(lock).taken.as_ref().map(|taken| &*taken.by);
    let gone = taken.filter(|_| process.is_none());
    let bytes = |bytes: Option<&'a [u8]>| bytes.map(|bytes| Said::Bytes(Lossy(bytes)));
    let exit = taken.and_then(|by| context.deaths.get(&by.id)).map(|death| Exit {
        code: death.code,
        signal: death.signal,
        at: clock.moment(death.at),
    });
    Acquirer {
        pid: labels::recorded_pid(view, recorded),
        ns_pid: process.and_then(|process| process.ns_pid).or(gone.and_then(|by| by.ns_pid)),
        alive: if remote { None } else { lock.verdict.acquirer_alive },
        recycled: lock.verdict.recycled,
        comm: match (text, gone) {
            (Some(text), _) => Some(Said::Text(&text.comm)),
            (None, gone) => bytes(gone.map(|by| &*by.comm)),
        },
        exe: match text {
            Some(text) => text.exe.as_deref().map(Said::Text),
            None => bytes(gone.and_then(|by| by.exe.as_deref())),
        },
        start_time: match text {
            Some(text) => text.start_time.as_deref().map(Said::Text),
            None => gone.map(|by| Said::When(clock.at(by.id.start))),
        },
        cgroup: match text {
            Some(text) => text.cgroup.as_deref().map(Said::Text),
            None => bytes(gone.and_then(|by| by.cgroup.as_deref())),
        },
        container: text.and_then(|text| text.container.as_deref()),
        exit,
    }
}
