//! Plans to release locks and what came of them: JSON, and sentences.
//!
//! Refuses to say "released" of anything but a lock that the kernel's tables were seen without.

use std::io;

use base64::Engine as _;
use serde::Serialize;
use serde_json::{Value, json};

use super::clock::Timestamp;
use super::escape::Escaped;
use super::json::SCHEMA;
use super::labels;
use crate::engine::id::LockId;
use crate::engine::identity::{LockKind, RecordedPid};
use crate::engine::reclaim::outcome::{Captured, Successor};
use crate::engine::reclaim::{End, Holder, HookRun, HookStatus, Outcome, Plan, Refusal, Writer};

/// All that a run of `reclaim` has to tell.
pub struct Account<'a> {
    /// Host name.
    pub host: &'a str,
    /// Kernel release.
    pub kernel: &'a str,
    /// Name of the source.
    pub source: &'a str,
    /// When the plans were made.
    pub planned_at: Timestamp,
    /// What could not be read.
    pub limits: Vec<String>,
    /// Whether the plans were carried out.
    pub executed: bool,
    /// The plans.
    pub plans: &'a [Plan],
    /// Locks for which there is none, and why.
    pub refusals: &'a [(LockId, Refusal)],
    /// What came of each plan.
    pub outcomes: &'a [Outcome],
    /// The hooks that were run.
    pub hooks: &'a [HookRun],
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    host: &'a str,
    kernel: &'a str,
    source: &'a str,
    planned_at: Timestamp,
    limits: &'a [String],
    executed: bool,
    plans: Vec<Value>,
    refusals: Vec<Value>,
    outcomes: Vec<Value>,
    hooks: Vec<Value>,
}

/// Writes the account as JSON and a newline.
///
/// # Errors
/// Those of `out`.
pub fn write_json(out: &mut impl io::Write, account: &Account<'_>) -> io::Result<()> {
    let document = Document {
        schema: SCHEMA,
        host: account.host,
        kernel: account.kernel,
        source: account.source,
        planned_at: account.planned_at,
        limits: &account.limits,
        executed: account.executed,
        plans: account.plans.iter().map(plan).collect(),
        refusals: account
            .refusals
            .iter()
            .map(|(lock, refusal)| {
                json!({
                    "lock": lock.to_string(),
                    "reason": refusal.name(),
                    "message": refusal.to_string(),
                })
            })
            .collect(),
        outcomes: account.outcomes.iter().map(outcome).collect(),
        hooks: account.hooks.iter().map(hook).collect(),
    };
    serde_json::to_writer(&mut *out, &document)?;
    out.write_all(b"\n")
}

/// A plan.
pub fn plan(plan: &Plan) -> Value {
    let path = plan.path.as_deref();
    let raw = path.filter(|path| std::str::from_utf8(path).is_err());
    let mut value = json!({
        "lock": plan.lock.id.to_string(),
        "type": plan.lock.kind.name(),
        "access": plan.lock.access.name(),
        "start": plan.lock.range.start,
        "end": plan.lock.range.end(),
        "file": {
            "path": path.map(String::from_utf8_lossy),
            "dev": plan.lock.file.dev.to_string(),
            "ino": plan.lock.file.ino,
            "deleted": plan.deleted,
            "replaced": plan.replaced,
        },
        "state": plan.state.name(),
        "reason": plan.reason.map(|reason| reason.name()),
        "confidence": plan.confidence.name(),
        "evidence": plan.evidence.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "acquirer_pid": match plan.acquirer {
            RecordedPid::Local(pid) => Some(pid),
            _ => None,
        },
        "forced": plan.forced,
        "method": plan.method.name(),
        "through": holder(&plan.through),
        "holders": plan.holders.iter().map(holder).collect::<Vec<_>>(),
        "writers": plan.writers.as_ref().map(|all| all.iter().map(writer).collect::<Vec<_>>()),
        "waiters": plan.waiters,
        "steps": plan.steps,
        "safe": plan.safe,
        "not_excluded": plan.not_excluded,
        "warnings": plan.warnings,
    });
    if let Some(raw) = raw {
        value["file"]["path_b64"] = base64::engine::general_purpose::STANDARD.encode(raw).into();
    }
    value
}

fn holder(holder: &Holder) -> Value {
    json!({
        "pid": holder.reader_pid,
        "tid": holder.tid,
        "comm": String::from_utf8_lossy(&holder.comm),
        // Nanoseconds since boot: with the pid the identity of the process.
        "start_boottime_ns": holder.process.start.0,
        "via": holder.via.name(),
        "fd": holder.fd,
    })
}

fn writer(writer: &Writer) -> Value {
    json!({
        "pid": writer.pid,
        "comm": String::from_utf8_lossy(&writer.comm),
        "fd": writer.fd,
        "holds": writer.holds,
    })
}

/// What came of a plan.
pub fn outcome(outcome: &Outcome) -> Value {
    let (race, why, taken_by): (_, Option<String>, &[Successor]) = match &outcome.end {
        End::Released { taken_by } => (None, None, taken_by),
        End::StillHeld => (None, None, &[]),
        End::Race(race) => (Some(race.name()), Some(race.to_string()), &[]),
        End::Unverified { why } | End::Failed { why } | End::NotTried { why } => {
            (None, Some(why.clone()), &[])
        }
    };
    json!({
        "lock": outcome.lock.to_string(),
        "result": outcome.end.name(),
        "race": race,
        "why": why,
        "taken_by": taken_by.iter().map(|by| json!({
            "lock": by.lock.to_string(),
            "pid": by.pid,
            "comm": by.comm.as_deref().map(String::from_utf8_lossy),
        })).collect::<Vec<_>>(),
        "took_ns": outcome.took,
        "steps": outcome.steps.iter().map(|step| json!({
            "step": step.name,
            "at_ns": step.at,
            "what": step.what,
        })).collect::<Vec<_>>(),
    })
}

/// A run of a hook.
pub fn hook(run: &HookRun) -> Value {
    let (exit, signal) = match run.status {
        HookStatus::Exited(code) => (Some(code), None),
        HookStatus::Signalled(signal) => (None, Some(signal)),
        _ => (None, None),
    };
    json!({
        "hook": run.name,
        "program": run.program,
        "ok": run.status.is_success(),
        "status": run.status.to_string(),
        "exit": exit,
        "signal": signal,
        "timed_out": run.status == HookStatus::TimedOut,
        "took_ns": run.took,
        "leftovers": run.leftovers,
        "stdout": captured(&run.stdout),
        "stderr": captured(&run.stderr),
    })
}

fn captured(captured: &Captured) -> Value {
    json!({
        "bytes": captured.bytes,
        "head": String::from_utf8_lossy(&captured.head),
        "tail": String::from_utf8_lossy(&captured.tail),
    })
}

/// Writes the account in sentences.
///
/// # Errors
/// Those of `out`.
pub fn write_text(out: &mut impl io::Write, account: &Account<'_>) -> io::Result<()> {
    for (lock, refusal) in account.refusals {
        writeln!(out, "{lock}: refused: {refusal}")?;
    }
    for plan in account.plans {
        write_plan(out, plan, account.executed)?;
    }
    for run in account.hooks {
        writeln!(out, "{} ({}) {}", run.name, Escaped(run.program.as_bytes()), run.status)?;
        if !run.status.is_success() {
            let said = if run.stderr.bytes > 0 { &run.stderr } else { &run.stdout };
            let end = if said.tail.is_empty() { &said.head } else { &said.tail };
            if let Some(line) = end.split(|&byte| byte == b'\n').rfind(|line| !line.is_empty()) {
                writeln!(out, "  it said: {}", Escaped(line))?;
            }
        }
    }
    for (outcome, plan) in account.outcomes.iter().zip(account.plans) {
        writeln!(out, "{}: {}", name(plan), result(outcome))?;
    }
    if !account.executed && !account.plans.is_empty() {
        writeln!(out, "Nothing was done: this is a dry run. `--execute` carries it out.")?;
    }
    Ok(())
}

fn name(plan: &Plan) -> String {
    match &plan.path {
        Some(path) => Escaped(path).to_string(),
        None => format!("{}:{}", plan.lock.file.dev, plan.lock.file.ino),
    }
}

fn write_plan(out: &mut impl io::Write, plan: &Plan, executed: bool) -> io::Result<()> {
    let through = match plan.lock.kind {
        LockKind::Posix => String::new(),
        _ => plan.through.fd.map_or_else(String::new, |fd| format!(", descriptor {fd}")),
    };
    writeln!(
        out,
        "{}: {} lock ({}) {}: {} released by {} through {} (pid {}){through}",
        name(plan),
        plan.lock.kind.name(),
        plan.lock.access.name(),
        plan.lock.id,
        if executed { "to be" } else { "would be" },
        plan.method.name(),
        Escaped(&plan.through.comm),
        plan.through.reader_pid,
    )?;
    if !executed {
        for (index, step) in plan.steps.iter().enumerate() {
            writeln!(out, "  {}. {step}.", index + 1)?;
        }
        for safe in &plan.safe {
            writeln!(out, "  Safe: {safe}.")?;
        }
        for open in &plan.not_excluded {
            writeln!(out, "  Not excluded: {open}.")?;
        }
    }
    for warning in &plan.warnings {
        writeln!(out, "  Warning: {warning}.")?;
    }
    Ok(())
}

fn result(outcome: &Outcome) -> String {
    let time = outcome.took.map_or_else(String::new, |took| {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let milliseconds = took as f64 / 1e6;
        format!(" after {milliseconds:.1} ms")
    });
    match &outcome.end {
        End::Released { taken_by } if taken_by.is_empty() => {
            format!("released, and seen to be gone{time}")
        }
        End::Released { taken_by } => {
            let by: Vec<String> = taken_by.iter().map(successor).collect();
            format!("released{time}, and taken by {}", by.join(", "))
        }
        End::StillHeld => "unlocked, but it is still there".into(),
        End::Unverified { why } => {
            format!("unlocked, but what came of it could not be read: {why}")
        }
        End::Race(race) => format!("refused, nothing was done: {race}"),
        End::Failed { why } => format!("not released: {why}"),
        End::NotTried { why } => format!("nothing was done: {why}"),
    }
}

fn successor(by: &Successor) -> String {
    match (&by.comm, by.pid) {
        (Some(comm), Some(pid)) => format!("{} (pid {pid})", Escaped(comm)),
        (None, Some(pid)) => format!("pid {pid}"),
        _ => format!("lock {}", by.lock),
    }
}

/// One sentence about a plan's lock, as a finding has it.
pub fn message(plan: &Plan) -> String {
    let acquirer = match plan.acquirer {
        RecordedPid::Local(pid) => format!("pid {pid}"),
        other => format!("{other:?}"),
    };
    format!(
        "{} lock ({}) on {} is {}: taken by {acquirer}",
        plan.lock.kind.name(),
        plan.lock.access.name(),
        name(plan),
        labels::verdict(plan.state, plan.reason),
    )
}
