//! A plan in sentences: what is done, why that is safe, what it may cost.
//!
//! Refuses to name a process by anything but its pid: names from outside are for sinks to escape.

use std::fmt::Write as _;

use super::plan::{Holder, Method, Plan};
use crate::engine::classify::{Confidence, Reason};
use crate::engine::identity::{LockKind, Range, RecordedPid};
use crate::engine::view::View;

/// Fills in the plan's sentences.
pub(super) fn tell(plan: &mut Plan, view: &View) {
    plan.steps = steps(plan);
    plan.safe = safe(plan);
    plan.not_excluded = not_excluded(plan, view);
    plan.warnings = warnings(plan);
}

fn steps(plan: &Plan) -> Vec<String> {
    let pid = plan.through.reader_pid;
    let again = "read the kernel's tables anew: the lock, its owner, its file and its holders must be \
                 what they are now";
    let mut steps = Vec::new();
    match plan.method {
        Method::Fd | Method::Queue => {
            steps.push(format!("open a handle on pid {pid} and find that it is this very process"));
            let from = match plan.method {
                Method::Queue => "clone it out of the queue of the socket that is its descriptor",
                _ => "fetch its descriptor",
            };
            let fd = plan.through.fd.map_or_else(|| "?".into(), |fd| fd.to_string());
            steps.push(format!("{from} {fd}, which is the same open file description"));
            steps.push(format!(
                "{again}, and the fetched descriptor must be that description (kcmp, and the \
                 table itself)"
            ));
            steps.push(unlock(plan));
        }
        Method::Signal => {
            steps.push(again.into());
            for holder in &plan.holders {
                steps.push(format!(
                    "send SIGTERM to {}, and SIGKILL where it has not ended in time; stop as soon \
                     as the lock is gone",
                    pid_of(holder)
                ));
            }
        }
        Method::Inject => {
            steps.push(format!("halt every thread of pid {pid}"));
            steps.push(again.into());
            steps.push(format!(
                "have one thread of it make one system call, {}, put everything of it back and \
                 let all go on",
                call(plan)
            ));
        }
    }
    steps.push("read the kernel's tables again: the lock must be gone".into());
    steps
}

fn pid_of(holder: &Holder) -> String {
    format!("pid {}", holder.reader_pid)
}

fn unlock(plan: &Plan) -> String {
    format!("unlock that description: {}", call(plan))
}

fn call(plan: &Plan) -> String {
    match plan.lock.kind {
        LockKind::Flock => "flock(LOCK_UN)".into(),
        LockKind::Ofd => format!("fcntl(F_OFD_SETLK, F_UNLCK) of {}", bytes(plan.lock.range)),
        LockKind::Posix => format!("fcntl(F_SETLK, F_UNLCK) of {}", bytes(plan.lock.range)),
        LockKind::Lease | LockKind::Deleg | LockKind::Layout => "fcntl(F_SETLEASE, F_UNLCK)".into(),
    }
}

fn bytes(range: Range) -> String {
    match range.end() {
        None if range.start == 0 => "all bytes".into(),
        None => format!("bytes {} to the end of the file", range.start),
        Some(end) => format!("bytes {} to {end}", range.start),
    }
}

fn safe(plan: &Plan) -> Vec<String> {
    let mut safe = Vec::new();
    if !plan.forced {
        let sure = match plan.confidence {
            Confidence::Certain => "certain",
            Confidence::Likely => "likely",
        };
        let reason = plan.reason.map_or("", |reason| reason.name());
        let mut text = format!("it is orphaned ({reason}, {sure})");
        for (index, fact) in plan.evidence.iter().enumerate() {
            let _ = write!(text, "{}{fact}", if index == 0 { ": " } else { "; " });
        }
        safe.push(text);
    }
    match plan.method {
        Method::Fd | Method::Queue => {
            safe.push(
                "unlocking acts on one open file description: a lock that anybody takes through \
                 another one meanwhile is out of its reach"
                    .into(),
            );
            let mut holders: Vec<String> = plan.holders.iter().map(pid_of).collect();
            if holders.is_empty() {
                holders.push("whoever has it".into());
            }
            safe.push(format!(
                "{} run{} on with every descriptor and every other lock",
                holders.join(", "),
                if holders.len() == 1 { "s" } else { "" }
            ));
        }
        Method::Inject => safe.push(format!(
            "pid {} goes on where it was, with every descriptor and every other lock",
            plan.through.reader_pid
        )),
        Method::Signal => safe.push(
            "signals go through handles on these very processes: nobody who gets one of their \
             pids later is hit"
                .into(),
        ),
    }
    safe
}

fn not_excluded(plan: &Plan, view: &View) -> Vec<String> {
    let mut open = Vec::new();
    if !plan.forced && plan.confidence == Confidence::Likely {
        open.push(
            "that the lock is held by right after all: the verdict is likely, not certain, \
             because nobody watched when it was taken"
                .into(),
        );
    }
    if plan.reason == Some(Reason::ScmRights) {
        open.push(
            "that whoever has the socket is about to receive the descriptor, and relies on the lock \
             that it was sent with"
                .into(),
        );
    }
    if plan.method != Method::Signal {
        open.push(
            "that a holder takes it anew, through the same description, between the last look and \
             the unlocking"
                .into(),
        );
    }
    if plan.method == Method::Inject {
        open.push(format!(
            "that lockwatch itself is killed while pid {} stands still: it would go on where it was \
             led to, and not where it was",
            plan.through.reader_pid
        ));
    }
    if plan.writers.is_none() {
        open.push("that others have the file open for writing: this source does not tell".into());
    }
    open.extend(view.gaps().map(|limit| format!("what was not read: {}", limit.what)));
    open
}

fn warnings(plan: &Plan) -> Vec<String> {
    let mut told = Vec::new();
    if plan.forced {
        told.push(format!(
            "this lock is {}, not orphaned: it is released by force",
            plan.state.name()
        ));
        if plan.holders.is_empty() {
            told.push("who loses it is not known".into());
        }
        for holder in &plan.holders {
            let acquirer = plan.acquirer == RecordedPid::Local(holder.process.pid);
            told.push(format!(
                "pid {}{} loses this lock, is not told, and goes on as if it had it",
                holder.reader_pid,
                if acquirer { ", which took it," } else { "" }
            ));
        }
    }
    if plan.method == Method::Signal {
        for holder in &plan.holders {
            told.push(format!(
                "pid {} is ended: all its locks, files and work in progress go with it",
                holder.reader_pid
            ));
        }
    }
    if plan.method == Method::Inject {
        told.push(format!(
            "pid {} stands still for some milliseconds; whoever debugs or traces it is in the way",
            plan.through.reader_pid
        ));
    }
    for writer in plan.writers.iter().flatten() {
        let fd = writer.fd.map_or_else(String::new, |fd| format!(" (descriptor {fd})"));
        told.push(format!(
            "pid {} has the file open for writing{fd}{}",
            writer.pid,
            if writer.holds { ", through the lock's own description" } else { "" }
        ));
    }
    told
}
