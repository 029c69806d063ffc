//! Short texts about one lock that several sinks share.
//!
//! Refuses to know a sink's layout.

use std::fmt::Write as _;

use super::escape::Escaped;
use crate::engine::classify::{Reason, State};
use crate::engine::container::{self, Container};
use crate::engine::identity::{Pid, RecordedPid};
use crate::engine::snapshot::{Place, PlaceKind, Remembered};
use crate::engine::view::{LockView, View};

/// True where the lock is something to act upon.
pub fn is_finding(lock: &LockView) -> bool {
    lock.verdict.state == State::Orphaned
}

/// The pid by which a reader knows a process of the snapshot.
pub fn reader_pid(view: &View, pid: Pid) -> Pid {
    view.process(pid).and_then(|process| process.reader_pid).unwrap_or(pid)
}

/// The recorded pid as a reader knows it, where there is one.
pub fn recorded_pid(view: &View, recorded: RecordedPid) -> Option<Pid> {
    match recorded {
        RecordedPid::Local(pid) => Some(reader_pid(view, pid)),
        RecordedPid::Zero | RecordedPid::Withheld | RecordedPid::Remote(_) => None,
    }
}

/// The command of a process, escaped; `?` where it could not be read.
pub fn command(view: &View, pid: Pid) -> String {
    match view.process(pid) {
        Some(process) => Escaped(&process.comm).to_string(),
        None => "?".into(),
    }
}

/// A process in a sentence: `sleep (pid 8130)`.
pub fn process(view: &View, pid: Pid) -> String {
    format!("{} (pid {})", command(view, pid), reader_pid(view, pid))
}

/// What else is known of where a process lives, after its name: `, pid 12 in its own pid namespace,
/// in docker container 0123456789ab`.
pub fn whereabouts(view: &View, pid: Pid) -> String {
    let Some(process) = view.process(pid) else { return String::new() };
    let mut text = String::new();
    if let Some(own) = process.ns_pid.filter(|&own| own != reader_pid(view, pid)) {
        let _ = write!(text, ", pid {own} in its own pid namespace");
    }
    if let Some(cgroup) = &process.cgroup
        && let Some(Container { runtime, id }) = container::of_control_group(cgroup)
    {
        // As the runtimes themselves shorten ids; a name is told whole.
        let short = if id.len() == FULL_ID { &id[..SHORT_ID] } else { id };
        let _ = write!(text, ", in {runtime} container {}", Escaped(short));
    }
    text
}

/// Digits of a container's id, and of what `docker ps` shows of it.
const FULL_ID: usize = 64;
const SHORT_ID: usize = 12;

/// What history knows of an acquirer that is gone.
pub fn remembered<'a>(view: &'a View, lock: &'a LockView) -> Option<&'a Remembered> {
    let taken = view.lock(lock).taken.as_ref()?;
    view.acquirer(lock).is_none().then_some(&*taken.by)
}

/// The acquirer in a sentence.
pub fn acquirer(view: &View, lock: &LockView) -> String {
    match view.lock(lock).acquirer {
        RecordedPid::Local(pid) => match view.acquirer(lock) {
            Some(acquirer) if acquirer.zombie => format!("{}, dead", process(view, pid)),
            Some(_) => process(view, pid),
            None => {
                let pid = reader_pid(view, pid);
                let name = match remembered(view, lock) {
                    Some(by) => format!("{} (pid {pid})", Escaped(&by.comm)),
                    None => format!("pid {pid}"),
                };
                if lock.verdict.recycled {
                    format!("{name}, gone, whose pid belongs to another process now")
                } else if lock.verdict.acquirer_alive == Some(false) {
                    format!("{name}, gone")
                } else {
                    format!("{name}, not visible from here")
                }
            }
        },
        RecordedPid::Zero => "shown as PID 0: dead, or outside of this pid namespace".into(),
        RecordedPid::Withheld => "not told by /proc".into(),
        RecordedPid::Remote(recorded) => format!("remote ({recorded})"),
    }
}

/// The file's path, or its device and inode where it has none.
pub fn path(view: &View, lock: &LockView) -> String {
    let file = view.file(lock);
    let mut text = match &file.path {
        Some(path) => Escaped(path).to_string(),
        None => format!("{}:{}", file.dev, file.ino),
    };
    if file.deleted == Some(true) {
        let _ = write!(text, " (deleted)");
    }
    text
}

/// The state, with its reason where it has one: `orphaned/inherited`.
pub fn state(lock: &LockView) -> String {
    verdict(lock.verdict.state, lock.verdict.reason)
}

/// A state and its reason: `orphaned/inherited`.
pub fn verdict(state: State, reason: Option<Reason>) -> String {
    match reason {
        Some(reason) => format!("{}/{}", state.name(), reason.name()),
        None => state.name().into(),
    }
}

/// Where a description lives on, after "it is".
pub fn within(place: &Place) -> String {
    let (mut text, depth) = match &place.kind {
        PlaceKind::Queue { socket, name, depth } => {
            let socket = match socket {
                Some(inode) => format!("in flight in the queue of unix socket {inode}"),
                None => "in flight in the queue of a unix socket that nobody accepted yet".into(),
            };
            let name = match name.as_deref() {
                None => String::new(),
                Some([0, name @ ..]) => format!(" (bound to @{})", Escaped(name)),
                Some(name) => format!(" (bound to {})", Escaped(name)),
            };
            (socket + &name, *depth)
        }
        PlaceKind::Ring { slot, depth } => {
            (format!("registered with an io_uring as file {slot}"), *depth)
        }
        PlaceKind::Mapping { start, end, protection } => {
            let protection = String::from_utf8_lossy(protection);
            (format!("mapped at {start:x}-{end:x} ({protection})"), 0)
        }
        PlaceKind::Kernel { what } => {
            (format!("used by the kernel ({})", Escaped(what.as_bytes())), 0)
        }
    };
    match depth {
        0 => {}
        1 => text.push_str(", inside another socket or ring"),
        deep => {
            let _ = write!(text, ", inside {deep} other sockets or rings");
        }
    }
    text
}

/// One sentence about a finding.
pub fn finding(view: &View, lock: &LockView) -> String {
    let facts = view.lock(lock);
    let mut text = format!(
        "{} lock ({}) on {} is orphaned ({}): taken by {}",
        facts.kind.name(),
        facts.access.name(),
        path(view, lock),
        lock.verdict.reason.map_or("", |reason| reason.name()),
        acquirer(view, lock),
    );
    let mut holders = Vec::new();
    let mut place = None;
    for holding in view.holdings(lock) {
        place = place.or(holding.place);
        if let Some(pid) = holding.pid
            && !holders.contains(&pid)
        {
            holders.push(pid);
        }
    }
    let within = place.map_or(String::new(), |place| format!("{}, ", within(place)));
    match holders.as_slice() {
        [] if place.is_some() => {
            let _ = write!(text, "; kept {within}which is nobody's that was found");
        }
        [] => text.push_str("; nothing was found that refers to it"),
        [pid] => {
            let _ = write!(text, "; kept {within}by {}", process(view, *pid));
        }
        [pid, rest @ ..] => {
            let _ =
                write!(text, "; kept {within}by {} and {} more", process(view, *pid), rest.len());
        }
    }
    text
}
