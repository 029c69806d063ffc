//! One lock, told in sentences.
//!
//! Refuses to advise what could do harm: it names what would release the lock, and what that means
//! for whoever holds it.

use std::io::{self, Write};

use super::escape::Escaped;
use super::{Report, labels};
use crate::engine::classify::{Confidence, Reason, State};
use crate::engine::identity::{LockKind, RecordedPid};
use crate::engine::snapshot::{Place, PlaceKind, PlaceOwner};
use crate::engine::view::{Flag, LockView, View};

/// Writes the story of one lock.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut impl Write, report: &Report<'_>, lock: &LockView) -> io::Result<()> {
    let view = report.view;
    writeln!(out, "{}", heading(view, lock))?;
    for sentence in sentences(report, lock) {
        writeln!(out, "  {sentence}")?;
    }
    Ok(())
}

fn heading(view: &View, lock: &LockView) -> String {
    let facts = view.lock(lock);
    let bytes = match (facts.range.start, facts.range.end()) {
        (0, None) => "the whole file".into(),
        (start, None) => format!("bytes {start} to the end of the file"),
        (start, Some(end)) => format!("bytes {start} to {end}"),
    };
    let access = match (facts.kind, facts.access) {
        (LockKind::Lease, crate::engine::identity::Access::Write) => "write",
        (LockKind::Lease, _) => "read",
        (_, crate::engine::identity::Access::Write) => "exclusive",
        _ => "shared",
    };
    format!(
        "{}: {access} {} lock on {bytes} ({})",
        labels::path(view, lock),
        facts.kind.name(),
        lock.id
    )
}

fn sentences(report: &Report<'_>, lock: &LockView) -> Vec<String> {
    let view = report.view;
    let mut told = vec![verdict(lock)];
    told.push(format!("It was taken by {}.", labels::acquirer(view, lock)));
    if let Some(process) = view.acquirer(lock) {
        if let Some(exe) = &process.exe {
            told.push(format!("The acquirer runs {}.", Escaped(exe)));
        }
        if let RecordedPid::Local(pid) = view.lock(lock).acquirer {
            let whereabouts = labels::whereabouts(view, pid);
            if let Some(whereabouts) = whereabouts.strip_prefix(", ") {
                told.push(format!("The acquirer is {whereabouts}."));
            }
        }
        if let Some(cgroup) = &process.cgroup {
            told.push(format!("Its control group is {}.", Escaped(cgroup)));
        }
    }
    if let Some(by) = labels::remembered(view, lock) {
        told.extend(by.exe.as_ref().map(|exe| format!("The acquirer ran {}.", Escaped(exe))));
        let cgroup = by.cgroup.as_ref();
        told.extend(cgroup.map(|cgroup| format!("Its control group was {}.", Escaped(cgroup))));
        let mut deaths = view.snapshot.deaths.iter();
        let death = deaths.find(|death| death.process == by.id);
        told.extend(death.map(|death| format!("It ended at {}.", report.clock.moment(death.at))));
    }
    told.push(match &view.lock(lock).taken {
        Some(taken) => {
            let (at, age) = (report.clock.moment(taken.at), report.clock.since(taken.at));
            format!("It was taken at {at}, {age} ago.")
        }
        None => "When it was taken is not known: nobody watched.".into(),
    });
    if lock.flags.contains(Flag::PidZero) {
        told.push(
            "In its pid namespace the kernel shows this lock as held by PID 0: that is only how it \
             shows a pid that is dead or foreign there."
                .into(),
        );
    }
    told.extend(holders(report, lock));
    told.extend(lock.verdict.evidence.iter().map(|fact| format!("Evidence: {fact}.")));
    if lock.flags.contains(Flag::Deleted) {
        told.push("The file has no name left: nobody can open it anew.".into());
    }
    if lock.flags.contains(Flag::Replaced) {
        told.push(
            "Its path now names another file: whoever locks that path does not meet this lock."
                .into(),
        );
    }
    told.extend(waiters(view, lock));
    told.extend(release(view, lock));
    told
}

fn verdict(lock: &LockView) -> String {
    let likely = match lock.verdict.confidence {
        Confidence::Certain => "",
        Confidence::Likely => ", likely",
    };
    let meaning = match (lock.verdict.state, lock.verdict.reason) {
        (State::Held, _) => "its acquirer lives and still has it",
        (State::Shared, _) => {
            "its acquirer is gone, but a process that had the description before still has it"
        }
        (State::HandedOver, _) => {
            "its acquirer is gone, and left it to a forked child that goes on with it"
        }
        (State::Orphaned, Some(Reason::Inherited)) => {
            "its acquirer is gone, and what keeps it is a descriptor that leaked to a later process"
        }
        (State::Orphaned, Some(Reason::SharedFiles)) => {
            "its acquirer is gone, and a task that shares its fd table keeps it"
        }
        (State::Orphaned, Some(Reason::ScmRights)) => {
            "its acquirer is gone, and it is in flight in a socket that nobody reads"
        }
        (State::Orphaned, Some(Reason::IoUring)) => {
            "its acquirer is gone, and what keeps it is registered with an io_uring, without a \
             descriptor"
        }
        (State::Orphaned, Some(Reason::Mmap)) => {
            "its acquirer is gone, and only a mapping is left of what it locked"
        }
        (State::Orphaned, Some(Reason::Kernel)) => {
            "its acquirer is gone, and the kernel itself uses the file"
        }
        (State::Orphaned, Some(Reason::Exiting)) => {
            "its acquirer is on its way out and is stuck there"
        }
        (State::Orphaned, Some(Reason::Unaccounted)) => {
            "its acquirer is gone, and nothing was found that keeps it"
        }
        (State::Orphaned, _) => {
            "its acquirer is gone, and nothing that is left was meant to hold it"
        }
        (State::Remote, _) => "another machine or a file system server holds it",
        (State::Unknown, _) => "not enough could be read to say whether it is held by right",
    };
    format!("It is {}{likely}: {meaning}.", labels::state(lock))
}

fn holders(report: &Report<'_>, lock: &LockView) -> Vec<String> {
    let view = report.view;
    let table = view.lock(lock).kind.belongs_to_fd_table();
    let mut told: Vec<String> = Vec::new();
    let mut last: Option<(i32, usize)> = None;
    for holder in view.holders(lock) {
        if let Some((pid, more)) = &mut last
            && *pid == holder.pid
        {
            *more += 1;
            continue;
        }
        if let (Some((_, more @ 1..)), Some(sentence)) = (last, told.last_mut()) {
            sentence.push_str(&format!(" (and {more} more descriptors)"));
        }
        let mut process = labels::process(view, holder.pid);
        let whereabouts = labels::whereabouts(view, holder.pid);
        if !whereabouts.is_empty() {
            process = format!("{process}{whereabouts},");
        }
        let since = view
            .process(holder.pid)
            .and_then(|process| process.start)
            .map_or(String::new(), |start| format!(", running since {}", report.clock.at(start)));
        told.push(match holder.fd {
            _ if table => format!("{process} holds it through its fd table{since}"),
            Some(fd) => format!("{process} holds it as descriptor {fd}{since}"),
            None => {
                format!("{process} waits for another lock with it, without a descriptor{since}")
            }
        });
        last = Some((holder.pid, 0));
    }
    if let (Some((_, more @ 1..)), Some(sentence)) = (last, told.last_mut()) {
        sentence.push_str(&format!(" (and {more} more descriptors)"));
    }
    for sentence in &mut told {
        sentence.push('.');
    }
    told.extend(places(report, lock));
    if told.is_empty() && lock.verdict.reason != Some(Reason::Exiting) {
        told.push("Nothing was found that refers to it.".into());
    }
    told
}

/// Where it lives on without a descriptor, and whose that is.
fn places(report: &Report<'_>, lock: &LockView) -> Vec<String> {
    let view = report.view;
    let sentence = |place: &Place| {
        let mut text = format!("It is {}", labels::within(place));
        let owner = |owner: &PlaceOwner| {
            let mut process = labels::process(view, owner.pid);
            process.push_str(&labels::whereabouts(view, owner.pid));
            match owner.fd {
                Some(fd) => format!("{process}, descriptor {fd}"),
                None => process,
            }
        };
        let of = match place.kind {
            PlaceKind::Mapping { .. } => "by",
            _ => ", of",
        };
        match place.owners.as_slice() {
            [] if matches!(place.kind, PlaceKind::Kernel { .. }) => {}
            [] => text.push_str(", of no process that was found"),
            owners => {
                let named: Vec<String> = owners.iter().take(NAMED).map(owner).collect();
                let blank = if of == "by" { " " } else { "" };
                text.push_str(&format!("{blank}{of} {}", named.join("; ")));
                if owners.len() > NAMED {
                    text.push_str(&format!(" and {} more", owners.len() - NAMED));
                }
            }
        }
        text + "."
    };
    view.places(lock).map(sentence).collect()
}

/// Owners of a place that are named.
const NAMED: usize = 4;

fn waiters(view: &View, lock: &LockView) -> Vec<String> {
    view.waiters(lock)
        .iter()
        .map(|&place| {
            let waiter = &view.snapshot.waiters[place as usize];
            let who = match waiter.requester {
                RecordedPid::Local(pid) => labels::process(view, pid),
                _ => "A process that is not visible from here".into(),
            };
            let others = view.blockers[place as usize].len().saturating_sub(1);
            let behind = match others {
                0 => String::new(),
                1 => ", and for one other lock".into(),
                many => format!(", and for {many} other locks"),
            };
            format!("{who} waits for it ({}){behind}.", waiter.access.name())
        })
        .collect()
}

fn release(view: &View, lock: &LockView) -> Option<String> {
    let facts = view.lock(lock);
    let first = view.holders(lock).next().map(|holder| labels::process(view, holder.pid));
    Some(match (lock.verdict.state, first) {
        (State::Remote, _) => {
            "The other side can release it. On the NFS server that gave it, an administrator can, \
             too: one client's by writing `expire` to its ctl below /proc/fs/nfsd/clients, a whole \
             file system's by writing its path to /proc/fs/nfsd/unlock_filesystem."
                .into()
        }
        (State::Unknown, _) => {
            "Do not release it before it is known who holds it: run as root, on the host, or with \
             the daemon's history."
                .into()
        }
        (State::Orphaned, None) if lock.verdict.reason == Some(Reason::Exiting) => {
            match facts.acquirer {
                RecordedPid::Local(pid) => format!(
                    "It ends when {} gets out: look at what it waits for in /proc/{}/stack. Killing \
                     it again changes nothing.",
                    labels::process(view, pid),
                    labels::reader_pid(view, pid)
                ),
                _ => "It ends when its acquirer gets out.".into(),
            }
        }
        (_, None) => match view.places(lock).next() {
            Some(place) => release_place(view, place),
            None => "What would release it is not known.".into(),
        },
        (_, Some(first)) if facts.kind == LockKind::Posix => {
            format!("It ends when {first} unlocks it, closes any descriptor of the file, or ends.")
        }
        (State::Orphaned, Some(first)) => format!(
            "It ends when the last of these descriptors is closed, or when anybody unlocks the \
             description itself: {first} need not end for that."
        ),
        (_, Some(first)) => {
            format!(
                "It ends when {first} unlocks it, or when the last of these descriptors is closed."
            )
        }
    })
}

/// What would release a lock of which only a place is left.
fn release_place(view: &View, place: &Place) -> String {
    let owner = match place.owners.first() {
        Some(owner) => labels::process(view, owner.pid),
        None => "whoever has it".into(),
    };
    match place.kind {
        PlaceKind::Queue { .. } => format!(
            "It ends when {owner} receives what is in flight and unlocks or closes it, or when the \
             socket is closed for good. Peeking at the queue gives the description without taking \
             it out, and whoever has the description can unlock it."
        ),
        PlaceKind::Ring { .. } => format!(
            "It ends when {owner} unregisters the file, or when the ring is closed for good: its \
             descriptors and its mappings."
        ),
        PlaceKind::Mapping { .. } => {
            format!("It ends when {owner} unmaps the file or ends; nothing else reaches it.")
        }
        PlaceKind::Kernel { .. } => "It ends when the kernel lets go of the file.".into(),
    }
}
