//! What was looked up of processes a moment ago, for snapshots that follow close on each other.
//!
//! Refuses to know anybody for longer than [`KNOWN_FOR`], or by the pid alone, and to say of who waits
//! how many threads it has: a deadlock is told by that.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::engine::identity::{Pid, RecordedPid, StartTime};
use crate::engine::snapshot::{Process, Snapshot};

/// How long that holds which the kernel's lists do not tell: the session and the executable's path,
/// say.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// The processes that were looked up last.
#[derive(Default)]
pub(super) struct Acquaintance {
    known: HashMap<Pid, Known>,
}

/// One of them, as it was.
struct Known {
    looked_up: Instant,
    /// What must still be the same.
    start: StartTime,
    comm: Box<[u8]>,
    forked_no_exec: Option<bool>,
    /// What was looked up.
    group: Option<Pid>,
    session: Option<Pid>,
    threads: Option<u64>,
    exe: Option<Box<[u8]>>,
    cgroup: Option<Box<[u8]>>,
}

impl Known {
    fn of(process: &Process, looked_up: Instant) -> Option<Self> {
        Some(Self {
            looked_up,
            start: process.start?,
            comm: process.comm.clone(),
            forked_no_exec: process.forked_no_exec,
            group: process.group,
            session: process.session,
            threads: process.threads,
            exe: process.exe.clone(),
            cgroup: process.cgroup.clone(),
        })
    }

    fn is(&self, process: &Process) -> bool {
        process.start == Some(self.start)
            && process.comm == self.comm
            && process.forked_no_exec == self.forked_no_exec
            && !process.exiting
    }
}

impl Acquaintance {
    /// Completes whom the snapshot shows and who is known, and takes them out of `wanted`.
    pub(super) fn introduce(&mut self, snapshot: &mut Snapshot, wanted: &mut BTreeSet<Pid>) {
        let now = Instant::now();
        self.known.retain(|_, known| now.duration_since(known.looked_up) < KNOWN_FOR);
        let waiting: BTreeSet<Pid> = (snapshot.waiters.iter())
            .filter_map(|waiter| match waiter.requester {
                RecordedPid::Local(pid) => Some(pid),
                _ => None,
            })
            .collect();
        wanted.retain(|pid| {
            let Some(process) = snapshot.processes.get_mut(pid) else { return true };
            let known = self.known.get(pid).filter(|known| known.is(process));
            let Some(known) = known.filter(|_| !waiting.contains(pid)) else { return true };
            process.group = known.group;
            process.session = known.session;
            process.threads = known.threads;
            process.exe.clone_from(&known.exe);
            process.cgroup.clone_from(&known.cgroup);
            false
        });
    }

    /// Remembers those of `pids` that were found.
    pub(super) fn remember(&mut self, snapshot: &Snapshot, pids: &BTreeSet<Pid>) {
        let now = Instant::now();
        for pid in pids {
            let process = snapshot.processes.get(pid).filter(|process| process.session.is_some());
            if let Some(known) = process.and_then(|process| Known::of(process, now)) {
                self.known.insert(*pid, known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::identity::{Access, LockKind, Range};
    use crate::engine::snapshot::{FileIx, Waiter};

    fn process(start: u64) -> Process {
        Process { start: Some(StartTime(start)), comm: b"db"[..].into(), ..Process::default() }
    }

    fn looked_up(start: u64) -> Process {
        Process { session: Some(3), threads: Some(2), ..process(start) }
    }

    fn snapshot(process: Process) -> Snapshot {
        Snapshot { processes: [(7, process)].into(), ..Snapshot::default() }
    }

    /// Who is still to be looked up where `process` is met after it was known.
    fn left(met: &mut Snapshot) -> BTreeSet<Pid> {
        let mut known = Acquaintance::default();
        known.remember(&snapshot(looked_up(5)), &[7].into());
        let mut wanted = [7, 9].into();
        known.introduce(met, &mut wanted);
        wanted
    }

    #[test]
    fn who_is_the_same_need_not_be_looked_up_again() {
        let mut met = snapshot(process(5));
        assert_eq!(left(&mut met), [9].into());
        assert_eq!(met.processes[&7], looked_up(5));
    }

    #[test]
    fn another_with_the_same_pid_is_a_stranger_and_so_is_who_has_execd_or_is_on_its_way_out() {
        for stranger in [
            process(6),
            Process { comm: b"sh"[..].into(), ..process(5) },
            Process { forked_no_exec: Some(true), ..process(5) },
            Process { exiting: true, ..process(5) },
        ] {
            let mut met = snapshot(stranger.clone());
            assert_eq!(left(&mut met), [7, 9].into(), "{stranger:?}");
            assert_eq!(met.processes[&7], stranger);
        }
    }

    #[test]
    fn who_waits_is_looked_up_each_time() {
        let mut met = snapshot(process(5));
        met.waiters.push(Waiter {
            behind: None,
            file: FileIx(0),
            kind: LockKind::Flock,
            access: Access::Write,
            range: Range::WHOLE,
            owner: None,
            requester: RecordedPid::Local(7),
            since: None,
        });
        assert_eq!(left(&mut met), [7, 9].into());
    }
}
