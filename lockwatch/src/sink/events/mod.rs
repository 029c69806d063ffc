//! Events, one line each: as JSON, and as a sentence for a terminal.
//!
//! Refuses to invent: what is not known is `null`, and what an event has nothing to say of is not
//! there.

mod sentence;

use std::io;

use base64::Engine as _;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use super::clock::{Clock, Timestamp};
use super::json::{Lossy, Text};
use crate::engine::event::{Event, Holding, Kind, Member, Party, Recovery, Told};
use crate::engine::id::LockId;
use crate::engine::identity::{Dev, Pid};
use crate::engine::input::Outcome;
use crate::engine::reclaim::Method;
use crate::engine::reclaim::progress::HookEnd;
use crate::engine::snapshot::Death;

/// Writes an event and a newline, as JSON.
///
/// # Errors
/// Those of `out`.
pub fn write_json(out: &mut impl io::Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line(event))?;
    out.write_all(b"\n")
}

/// Writes an event and a newline, as a sentence, every name from outside escaped.
///
/// # Errors
/// Those of `out`.
pub fn write_sentence(out: &mut impl io::Write, event: &Event) -> io::Result<()> {
    writeln!(out, "{} {} {}", clock(event).now(), event.seq, sentence::Sentence(event))
}

fn clock(event: &Event) -> Clock {
    Clock { unix: event.at.unix, boot: event.at.boot.0 }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Refused => "refused",
        Outcome::Blocked => "blocked",
    }
}

fn recovery(how: Recovery) -> &'static str {
    match how {
        Recovery::Released => "released",
        Recovery::Reclassified => "reclassified",
    }
}

struct Line<'a>(&'a Event);

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(event) = *self;
        let clock = clock(event);
        let process = |party| Process::of(clock, party);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("ts", &clock.now())?;
        map.serialize_entry("seq", &event.seq)?;
        map.serialize_entry("kind", event.kind.name())?;
        if let Some(told) = &event.lock {
            map.serialize_entry("lock", &Lock::of(clock, told))?;
        }
        match &event.kind {
            Kind::Started { continued, last_seq, version, kernel } => {
                if let Some(last_seq) = last_seq {
                    map.serialize_entry("last_seq", last_seq)?;
                }
                map.serialize_entry("continued", continued)?;
                map.serialize_entry("version", version)?;
                map.serialize_entry("kernel", kernel)?;
            }
            Kind::Orphaned { verdict, holders, more } => {
                let evidence: Vec<_> = verdict.evidence.iter().map(Text).collect();
                let holders: Vec<_> =
                    holders.iter().map(|holding| Holder::of(clock, holding)).collect();
                map.serialize_entry("state", verdict.state.name())?;
                map.serialize_entry("reason", &verdict.reason.map(|reason| reason.name()))?;
                map.serialize_entry("confidence", verdict.confidence.name())?;
                map.serialize_entry("evidence", &evidence)?;
                map.serialize_entry("holders", &holders)?;
                map.serialize_entry("more_holders", more)?;
            }
            Kind::Recovered { how } => map.serialize_entry("how", recovery(*how))?,
            Kind::CrashHandoff { death, released_at, to, acquired_at, written } => {
                map.serialize_entry("died_at", &clock.moment(death.at))?;
                map.serialize_entry("released_at", &clock.moment(*released_at))?;
                map.serialize_entry("acquired_at", &clock.moment(*acquired_at))?;
                map.serialize_entry("to", &process(to))?;
                map.serialize_entry("written", written)?;
            }
            Kind::ExitRace { death, by, at, outcome: how } => {
                map.serialize_entry("died_at", &clock.moment(death.at))?;
                map.serialize_entry("tried_at", &clock.moment(*at))?;
                map.serialize_entry("by", &process(by))?;
                map.serialize_entry("outcome", outcome(*how))?;
            }
            Kind::PidRecycled { to } => map.serialize_entry("to", &process(to))?,
            Kind::LockReplaced { new } => {
                map.serialize_entry("new_lock", &Lock::of(clock, new))?;
            }
            Kind::Refused { by, at } => {
                map.serialize_entry("by", &process(by))?;
                map.serialize_entry("tried_at", &clock.moment(*at))?;
            }
            Kind::LongWait { by, since, blocked_by } => {
                let blocked_by: Vec<Text<'_, LockId>> = blocked_by.iter().map(Text).collect();
                map.serialize_entry("by", &by.as_ref().map(process))?;
                map.serialize_entry("since", &since.map(|since| clock.moment(since)))?;
                map.serialize_entry("blocked_by", &blocked_by)?;
            }
            Kind::Deadlock { members } => {
                let members: Vec<_> =
                    members.iter().map(|member| Waiting::of(clock, member)).collect();
                map.serialize_entry("members", &members)?;
            }
            Kind::ReclaimPlanned { by, method, forced, through, warnings } => {
                map.serialize_entry("by", by.name())?;
                map.serialize_entry("method", method.name())?;
                map.serialize_entry("forced", forced)?;
                map.serialize_entry("through", &process(through))?;
                map.serialize_entry("warnings", warnings)?;
            }
            Kind::ReclaimDone { by, method, taken_by, took, hooks } => {
                let taken_by: Vec<_> = taken_by.iter().map(process).collect();
                map.serialize_entry("by", by.name())?;
                map.serialize_entry("method", method.name())?;
                map.serialize_entry("taken_by", &taken_by)?;
                map.serialize_entry("took_ns", took)?;
                map.serialize_entry("hooks", &Hook::all(hooks))?;
            }
            Kind::ReclaimFailed { by, method, result, why, hooks } => {
                map.serialize_entry("by", by.name())?;
                map.serialize_entry("method", &method.map(Method::name))?;
                map.serialize_entry("result", result)?;
                map.serialize_entry("why", why)?;
                map.serialize_entry("hooks", &Hook::all(hooks))?;
            }
            Kind::ReclaimRace { by, method, race, why, writer, hooks } => {
                map.serialize_entry("by", by.name())?;
                map.serialize_entry("method", &method.map(Method::name))?;
                map.serialize_entry("race", race)?;
                map.serialize_entry("why", why)?;
                if let Some(writer) = writer {
                    map.serialize_entry("writer", &process(writer))?;
                }
                map.serialize_entry("hooks", &Hook::all(hooks))?;
            }
            Kind::Lost { records } => map.serialize_entry("records", records)?,
            Kind::AllClear => {}
            Kind::Acquired { by, at } => {
                map.serialize_entry("by", &process(by))?;
                map.serialize_entry("acquired_at", &clock.moment(*at))?;
            }
            Kind::Released { by, at } => {
                map.serialize_entry("by", &process(by))?;
                map.serialize_entry("released_at", &clock.moment(*at))?;
            }
            Kind::Blocked { by, at } => {
                map.serialize_entry("by", &process(by))?;
                map.serialize_entry("since", &clock.moment(*at))?;
            }
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Lock<'a> {
    id: Text<'a, LockId>,
    #[serde(rename = "type")]
    kind: &'static str,
    access: &'static str,
    start: u64,
    end: Option<u64>,
    file: File<'a>,
    watch: Option<&'a str>,
    acquirer: Option<Acquirer<'a>>,
    acquired_at: Option<Timestamp>,
}

#[derive(Serialize)]
struct File<'a> {
    path: Option<Lossy<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
    dev: Text<'a, Dev>,
    ino: u64,
}

#[derive(Default, Serialize)]
struct Process<'a> {
    pid: Option<Pid>,
    ns_pid: Option<Pid>,
    comm: Option<Lossy<'a>>,
    exe: Option<Lossy<'a>>,
    start_time: Option<Timestamp>,
    cgroup: Option<Lossy<'a>>,
}

#[derive(Serialize)]
struct Acquirer<'a> {
    #[serde(flatten)]
    process: Process<'a>,
    exit: Option<Exit>,
}

#[derive(Serialize)]
struct Exit {
    code: Option<i32>,
    signal: Option<i32>,
    at: Timestamp,
}

#[derive(Serialize)]
struct Holder<'a> {
    #[serde(flatten)]
    process: Process<'a>,
    via: &'static str,
    fd: Option<u32>,
}

#[derive(Serialize)]
struct Waiting<'a> {
    #[serde(flatten)]
    process: Process<'a>,
    waits_for: Lock<'a>,
}

#[derive(Serialize)]
struct Hook<'a> {
    hook: &'a str,
    ok: bool,
    status: &'a str,
    said: &'a str,
    took_ns: u64,
}

impl<'a> Hook<'a> {
    fn all(hooks: &'a [HookEnd]) -> Vec<Self> {
        let hook = |end: &'a HookEnd| Self {
            hook: &end.hook,
            ok: end.ok,
            status: &end.status,
            said: &end.said,
            took_ns: end.took,
        };
        hooks.iter().map(hook).collect()
    }
}

impl<'a> Lock<'a> {
    fn of(clock: Clock, told: &'a Told) -> Self {
        let lock = &told.lock;
        let path = told.path.as_deref();
        let raw = path.filter(|path| std::str::from_utf8(path).is_err());
        Self {
            id: Text(&lock.id),
            kind: lock.kind.name(),
            access: lock.access.name(),
            start: lock.range.start,
            end: lock.range.end(),
            file: File {
                path: path.map(Lossy),
                path_b64: raw.map(|path| base64::engine::general_purpose::STANDARD.encode(path)),
                dev: Text(&lock.file.dev),
                ino: lock.file.ino,
            },
            watch: told.watch.as_deref(),
            acquirer: told.acquirer.as_ref().map(|party| Acquirer {
                process: Process::of(clock, party),
                exit: told.death.map(|death| Exit::of(clock, death)),
            }),
            acquired_at: told.taken_at.map(|at| clock.moment(at)),
        }
    }
}

impl<'a> Process<'a> {
    fn of(clock: Clock, party: &'a Party) -> Self {
        Self {
            pid: Some(party.pid),
            ns_pid: party.ns_pid,
            comm: party.comm.as_deref().map(Lossy),
            exe: party.exe.as_deref().map(Lossy),
            start_time: party.start.map(|start| clock.at(start)),
            cgroup: party.cgroup.as_deref().map(Lossy),
        }
    }
}

impl Exit {
    fn of(clock: Clock, death: Death) -> Self {
        Self { code: death.code, signal: death.signal, at: clock.moment(death.at) }
    }
}

impl<'a> Holder<'a> {
    fn of(clock: Clock, holding: &'a Holding) -> Self {
        let by = holding.by.as_ref().map(|party| Process::of(clock, party));
        Self { process: by.unwrap_or_default(), via: holding.via.name(), fd: holding.fd }
    }
}

impl<'a> Waiting<'a> {
    fn of(clock: Clock, member: &'a Member) -> Self {
        Self {
            process: Process::of(clock, &member.process),
            waits_for: Lock::of(clock, &member.waits_for),
        }
    }
}

#[cfg(test)]
mod tests;
