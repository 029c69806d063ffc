//! What changed between the pass over the processes and the listing of the locks.
//!
//! Refuses to read the listing again. A lock that only one of the two shows is looked for once
//! more where it should be: at its acquirer, at whoever showed it, and at processes that were
//! born meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::locks_line::Body;
use super::table::Table;
use super::tasks::{ProcessScan, Scanner, Sight};
use crate::engine::identity::{Pid, RecordedPid};

/// Brings `scans` up to date, and returns the listed locks that were seen at a descriptor and are
/// no longer there: they have been released since.
pub(super) fn recheck(
    scanner: &Scanner<'_>,
    scans: &mut BTreeMap<Pid, ProcessScan>,
    table: &Table,
    workers: usize,
) -> HashSet<Body> {
    let listed: HashSet<Body> = table.locks.iter().map(|lock| lock.body).collect();
    let held: HashSet<Body> = bodies(scans).collect();
    let mut suspects = BTreeSet::new();

    // Released since the pass, unless the listing leaves it out as it does for pid 0.
    for (&pid, scan) in &*scans {
        let mut lines = scan.descriptors().flat_map(|(_, fd)| &fd.info.locks);
        if lines.any(|line| line.body.pid != 0 && !listed.contains(&line.body)) {
            suspects.insert(pid);
        }
    }
    // Taken since the pass, by its acquirer or, if inherited, by a process younger than the pass.
    // Only listed numbers are processes: `/proc/TID` answers for threads too.
    let mut unexplained = listed.difference(&held).peekable();
    if unexplained.peek().is_some() {
        let now = scanner.pids().unwrap_or_default();
        for body in unexplained {
            if let RecordedPid::Local(pid) = body.recorded_pid()
                && now.binary_search(&pid).is_ok()
                && scans.get(&pid).is_none_or(|scan| scan.sight != Sight::Denied)
            {
                suspects.insert(pid);
            }
        }
        suspects.extend(now.into_iter().filter(|pid| !scans.contains_key(pid)));
    }
    if suspects.is_empty() {
        return HashSet::new();
    }

    let suspects: Vec<Pid> = suspects.into_iter().collect();
    scans.extend(scanner.scan(&suspects, workers));
    let still: HashSet<Body> = bodies(scans).collect();
    held.into_iter().filter(|body| listed.contains(body) && !still.contains(body)).collect()
}

fn bodies(scans: &BTreeMap<Pid, ProcessScan>) -> impl Iterator<Item = Body> {
    scans
        .values()
        .flat_map(|scan| scan.descriptors().flat_map(|(_, fd)| &fd.info.locks))
        .map(|line| line.body)
}
