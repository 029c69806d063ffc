//! The JSON of `scan --json`: schema 1.
//!
//! Refuses to invent: what is not known is `null`.

use std::io;

use base64::Engine as _;
use serde::Serialize;
use serde::ser::{SerializeSeq as _, Serializer};

use super::clock::Timestamp;
use super::{Report, labels};
use crate::engine::classify::State;
use crate::engine::identity::{Pid, RecordedPid};
use crate::engine::snapshot::{Process, Via};
use crate::engine::view::{LockView, View};

/// The number of the schema; another one may mean other names.
pub const SCHEMA: u32 = 1;

/// Writes the report and a newline.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl io::Write, report: &Report<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &document(report))?;
    out.write_all(b"\n")
}

fn document<'a>(report: &'a Report<'a>) -> Document<'a> {
    let view = report.view;
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
    Document {
        schema: SCHEMA,
        host: report.host,
        kernel: report.kernel,
        source: report.source,
        history: false,
        scanned_at: report.clock.now(),
        complete: view.is_complete(),
        limits: view.snapshot.limits.iter().map(|limit| limit.what.as_str()).collect(),
        locks: Locks(report),
        findings,
        summary: Summary {
            locks: report.asked.len(),
            orphaned: report.orphaned(),
            waiters: report.waiters(),
        },
    }
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    host: &'a str,
    kernel: &'a str,
    source: &'a str,
    history: bool,
    scanned_at: Timestamp,
    complete: bool,
    limits: Vec<&'a str>,
    locks: Locks<'a>,
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
struct Text<'a, T>(&'a T);

impl<T: std::fmt::Display> Serialize for Text<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// Bytes as a string; what is not UTF-8 becomes U+FFFD.
struct Lossy<'a>(&'a [u8]);

impl Serialize for Lossy<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(self.0))
    }
}

struct Locks<'a>(&'a Report<'a>);

impl Serialize for Locks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.listed.len()))?;
        for &place in self.0.listed {
            list.serialize_element(&lock(self.0, &self.0.view.locks[place as usize]))?;
        }
        list.end()
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
    comm: Option<Lossy<'a>>,
    exe: Option<Lossy<'a>>,
    start_time: Option<Timestamp>,
    cgroup: Option<Lossy<'a>>,
    exit: Option<()>,
}

#[derive(Serialize)]
struct Holder<'a> {
    pid: Pid,
    tid: Pid,
    comm: Option<Lossy<'a>>,
    via: &'static str,
    fd: Option<u32>,
    start_time: Option<Timestamp>,
}

#[derive(Serialize)]
struct Waiter<'a> {
    pid: Option<Pid>,
    comm: Option<Lossy<'a>>,
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

struct Holders<'a>(&'a Report<'a>, &'a LockView);

impl Serialize for Holders<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(Report { view, clock, .. }, lock) = self;
        let of_table = view.lock(lock).kind.belongs_to_fd_table();
        serializer.collect_seq(view.holders(lock).map(|reference| {
            let process = view.process(reference.pid);
            let reader = process.and_then(|process| process.reader_pid);
            Holder {
                pid: reader.unwrap_or(reference.pid),
                tid: match reader {
                    Some(reader) if reference.tid == reference.pid => reader,
                    _ => reference.tid,
                },
                comm: process.map(|process| Lossy(&process.comm)),
                via: if of_table { Via::Files.name() } else { reference.via.name() },
                fd: reference.fd,
                start_time: process.and_then(|process| process.start).map(|start| clock.at(start)),
            }
        }))
    }
}

struct Waiters<'a>(&'a View, &'a LockView);

impl Serialize for Waiters<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(view, lock) = self;
        serializer.collect_seq(lock.waiters.iter().map(|&place| {
            let waiter = &view.snapshot.waiters[place as usize];
            let process = match waiter.requester {
                RecordedPid::Local(pid) => view.process(pid),
                _ => None,
            };
            Waiter {
                pid: labels::recorded_pid(view, waiter.requester),
                comm: process.map(|process| Lossy(&process.comm)),
                access: waiter.access.name(),
                since: None,
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

fn lock<'a>(report: &'a Report<'a>, lock: &'a LockView) -> Lock<'a> {
    let view = report.view;
    let facts = view.lock(lock);
    let file = view.file(lock);
    let path = file.path.as_deref();
    let raw = path.filter(|path| std::str::from_utf8(path).is_err());
    Lock {
        id: Text(&lock.id),
        kind: facts.kind.name(),
        access: facts.access.name(),
        start: facts.range.start,
        end: facts.range.end,
        file: File {
            path: path.map(Lossy),
            path_b64: raw.map(|path| base64::engine::general_purpose::STANDARD.encode(path)),
            dev: Text(&file.dev),
            ino: file.ino,
            size: file.size,
            deleted: file.deleted,
            replaced: file.replaced,
        },
        state: lock.verdict.state.name(),
        reason: lock.verdict.reason.map(|reason| reason.name()),
        confidence: lock.verdict.confidence.name(),
        evidence: Each(&lock.verdict.evidence),
        flags: lock.flags.iter().map(|flag| flag.name()).collect(),
        acquirer: acquirer(report, lock),
        acquired_at: None,
        holders: Holders(report, lock),
        waiters: Waiters(view, lock),
    }
}

fn acquirer<'a>(report: &'a Report<'a>, lock: &'a LockView) -> Acquirer<'a> {
    let view = report.view;
    let process: Option<&Process> = view.acquirer(lock);
    let remote = lock.verdict.state == State::Remote;
    Acquirer {
        pid: labels::recorded_pid(view, view.lock(lock).acquirer),
        ns_pid: process.and_then(|process| process.ns_pid),
        alive: if remote { None } else { lock.verdict.acquirer_alive },
        recycled: lock.verdict.recycled,
        comm: process.map(|process| Lossy(&process.comm)),
        exe: process.and_then(|process| process.exe.as_deref()).map(Lossy),
        start_time: process.and_then(|process| process.start).map(|start| report.clock.at(start)),
        cgroup: process.and_then(|process| process.cgroup.as_deref()).map(Lossy),
        exit: None,
    }
}
