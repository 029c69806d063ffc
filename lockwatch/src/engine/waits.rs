//! Who waits for which lock: every blocker of every request, not only the one that the kernel
//! queued it behind.
//!
//! Refuses to look beyond one file: locks on different files cannot conflict.

use std::collections::BTreeMap;

use super::identity::{Access, LockKind, Owner, Range};
use super::snapshot::{FileIx, Snapshot};

/// What one request waits for, and what each lock keeps waiting; indices into the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// For each waiter, the locks that block it, in rising order.
    pub blockers: Vec<Vec<u32>>,
    /// For each lock that blocks any, its waiters, in rising order.
    pub waiters: BTreeMap<u32, Vec<u32>>,
}

/// A lock or a request, as far as conflicts go.
#[derive(Clone, Copy)]
struct Claim {
    kind: LockKind,
    access: Access,
    range: Range,
    owner: Option<Owner>,
}

/// The rule of the kernel's `flock_locks_conflict`, `posix_locks_conflict`, `leases_conflict`.
fn conflict(request: Claim, lock: Claim) -> bool {
    let class = request.kind.conflict_class();
    if class != lock.kind.conflict_class() {
        return false;
    }
    if class == LockKind::Lease.conflict_class() {
        // What breaks a lease is an open: for writing it breaks every lease, for reading a write
        // lease.
        return request.access == Access::Write || lock.access == Access::Write;
    }
    let same_owner =
        request.kind == lock.kind && request.owner.is_some() && request.owner == lock.owner;
    !same_owner
        && (request.access == Access::Write || lock.access == Access::Write)
        && request.range.overlaps(lock.range)
}

/// Relates every waiter of the snapshot to the locks that it waits for.
pub fn relate(snapshot: &Snapshot) -> Waits {
    let mut waits =
        Waits { blockers: vec![Vec::new(); snapshot.waiters.len()], waiters: BTreeMap::new() };
    if snapshot.waiters.is_empty() {
        return waits;
    }
    let mut contended: BTreeMap<FileIx, Vec<u32>> =
        snapshot.waiters.iter().map(|waiter| (waiter.file, Vec::new())).collect();
    let mut by_entry = BTreeMap::new();
    for (index, lock) in snapshot.locks.iter().enumerate() {
        if let Some(locks) = contended.get_mut(&lock.file) {
            locks.push(index as u32);
            by_entry.insert(lock.entry, index as u32);
        }
    }
    for (index, waiter) in snapshot.waiters.iter().enumerate() {
        let request = Claim {
            kind: waiter.kind,
            access: waiter.access,
            range: waiter.range,
            owner: waiter.owner,
        };
        let blockers = &mut waits.blockers[index];
        for &candidate in contended.get(&waiter.file).map_or(&[][..], Vec::as_slice) {
            let lock = &snapshot.locks[candidate as usize];
            let held = Claim {
                kind: lock.kind,
                access: lock.access,
                range: lock.range,
                owner: lock.owner,
            };
            if conflict(request, held) {
                blockers.push(candidate);
            }
        }
        // The kernel knows best: what it queued the request behind blocks it, whatever the rule
        // says of the two.
        let root = waiter.behind.and_then(|entry| by_entry.get(&entry));
        if let Some(&root) = root
            && let Err(place) = blockers.binary_search(&root)
        {
            blockers.insert(place, root);
        }
        for &blocker in blockers.iter() {
            waits.waiters.entry(blocker).or_default().push(index as u32);
        }
    }
    waits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::identity::RecordedPid;
    use crate::engine::snapshot::{Lock, Waiter};

    fn lock(entry: u64, kind: LockKind, access: Access, range: (u64, Option<u64>)) -> Lock {
        Lock {
            entry,
            file: FileIx(0),
            kind,
            access,
            range: Range::new(range.0, range.1),
            owner: Some(Owner::new(entry)),
            acquirer: RecordedPid::Local(entry as i32),
            breaking_to: None,
            taken: None,
        }
    }

    fn waiter(behind: u64, kind: LockKind, access: Access, range: (u64, Option<u64>)) -> Waiter {
        Waiter {
            behind: Some(behind),
            file: FileIx(0),
            kind,
            access,
            range: Range::new(range.0, range.1),
            owner: Some(Owner::new(1000 + behind)),
            requester: RecordedPid::Local(9),
            since: None,
        }
    }

    const ALL: (u64, Option<u64>) = (0, None);

    fn relate_of(locks: Vec<Lock>, waiters: Vec<Waiter>) -> Waits {
        relate(&Snapshot { locks: locks.into(), waiters, ..Snapshot::default() })
    }

    #[test]
    fn an_exclusive_request_waits_for_every_shared_holder() {
        let shared = |entry| lock(entry, LockKind::Flock, Access::Read, ALL);
        let waits = relate_of(
            vec![shared(1), shared(2), shared(3)],
            vec![waiter(1, LockKind::Flock, Access::Write, ALL)],
        );
        assert_eq!(waits.blockers, [[0, 1, 2]]);
        assert_eq!(waits.waiters, BTreeMap::from([0, 1, 2].map(|lock| (lock, vec![0]))));
    }

    #[test]
    fn ranges_that_do_not_meet_do_not_block() {
        let waits = relate_of(
            vec![
                lock(1, LockKind::Posix, Access::Write, (0, Some(9))),
                lock(2, LockKind::Posix, Access::Write, (10, Some(19))),
                lock(3, LockKind::Ofd, Access::Write, (15, None)),
            ],
            vec![waiter(2, LockKind::Posix, Access::Write, (12, Some(30)))],
        );
        assert_eq!(waits.blockers, [[1, 2]]);
    }

    #[test]
    fn flock_and_posix_pass_each_other_by() {
        let waits = relate_of(
            vec![
                lock(1, LockKind::Flock, Access::Write, ALL),
                lock(2, LockKind::Posix, Access::Write, ALL),
            ],
            vec![waiter(2, LockKind::Posix, Access::Write, ALL)],
        );
        assert_eq!(waits.blockers, [[1]]);
    }

    #[test]
    fn an_upgrade_does_not_wait_for_its_own_lock() {
        let mut upgrade = waiter(2, LockKind::Ofd, Access::Write, ALL);
        upgrade.owner = Some(Owner::new(1));
        let waits = relate_of(
            vec![
                lock(1, LockKind::Ofd, Access::Read, ALL),
                lock(2, LockKind::Ofd, Access::Read, ALL),
            ],
            vec![upgrade],
        );
        assert_eq!(waits.blockers, [[1]]);
    }

    #[test]
    fn what_the_kernel_queued_a_request_behind_is_always_a_blocker() {
        let mut breaker = waiter(1, LockKind::Lease, Access::Read, ALL);
        breaker.owner = None;
        let waits = relate_of(vec![lock(1, LockKind::Lease, Access::Read, ALL)], vec![breaker]);
        assert_eq!(waits.blockers, [[0]]);
    }
}
