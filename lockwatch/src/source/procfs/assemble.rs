//! From groups of equal lines to the snapshot's locks, waiters and references.
//!
//! Refuses to read anything: all that it needs has been read.

use std::collections::{HashMap, HashSet};

use super::descriptions::{Group, Grouped, Held};
use super::locks_line::{Body, Mode};
use super::table::Table;
use crate::engine::identity::{Access, Dev, LockKind};
use crate::engine::snapshot::{FileIx, Lock, Reference, Via, Waiter};

/// The parts of a snapshot that come from lock lines.
#[derive(Debug, Default)]
pub(super) struct Assembled {
    pub files: Vec<(Dev, u64)>,
    pub locks: Vec<Lock>,
    pub waiters: Vec<Waiter>,
    pub references: Vec<Reference>,
    /// Listed locks of which no descriptor was found.
    pub unreferenced: usize,
    /// Requests of which the file is not known.
    pub lost_waiters: usize,
}

/// The two lowest bits of open(2)'s flags, and "for reading only" in them.
const O_ACCMODE: u32 = 3;
const O_RDONLY: u32 = 0;

/// Puts the parts together. `released` are listed locks that are known to be gone by now.
pub(super) fn assemble(grouped: &Grouped, table: &Table, released: &HashSet<Body>) -> Assembled {
    let mut made = Assembled::default();
    let mut index = HashMap::new();
    // Entries of the listing are counted from 1, those that it leaves out go on from there.
    let mut unlisted = table.locks.len() as u64;
    let mut dropped = HashSet::new();

    for group in &grouped.groups {
        let Some(inode) = group.body.inode else { continue };
        let mut listed = still_listed(group, table, released, &mut dropped);
        let unknown = Vec::new();
        let owners = group.owners.as_ref().unwrap_or(&unknown);
        if group.body.kind.belongs_to_fd_table() && !owners.is_empty() {
            // A table has a range once. What is listed again was seen twice, because the listing
            // is read a page at a time, by position.
            listed.truncate(owners.len());
        }
        let at_least = usize::from(!group.held.is_empty());
        let count = listed.len().max(owners.len()).max(at_least);
        if count == 0 {
            continue;
        }
        if group.owners.is_some() {
            made.unreferenced += listed.len().saturating_sub(owners.len());
        }
        let file = file_index(&mut made.files, &mut index, inode);
        let (access, breaking_to) =
            access(&group.body, group.held.iter().map(|&at| &grouped.held[at]));
        for nth in 0..count {
            let entry = listed.get(nth).map_or_else(
                || {
                    unlisted += 1;
                    unlisted
                },
                |&at| at as u64 + 1,
            );
            made.locks.push(Lock {
                entry,
                file,
                kind: group.body.kind,
                access,
                range: group.body.range,
                owner: owners.get(nth).copied(),
                acquirer: group.body.recorded_pid(),
                breaking_to,
                taken: None,
            });
        }
    }
    made.locks.sort_by_key(|lock| lock.entry);

    for waiter in &table.waiters {
        let root = waiter.root.map(|root| (root, table.locks[root].body));
        if root.is_some_and(|(root, _)| dropped.contains(&root)) {
            continue;
        }
        // A lease breaker has no open file yet: the file is that of the lease it waits for.
        let inode = waiter.body.inode.or(root.and_then(|(_, body)| body.inode));
        let Some(inode) = inode else {
            made.lost_waiters += 1;
            continue;
        };
        made.waiters.push(Waiter {
            behind: root.filter(|(_, body)| body.inode.is_some()).map(|(root, _)| root as u64 + 1),
            file: file_index(&mut made.files, &mut index, inode),
            kind: waiter.body.kind,
            access: waiter.body.access,
            range: waiter.body.range,
            owner: None,
            requester: waiter.body.recorded_pid(),
            since: None,
        });
    }

    let shown: HashSet<usize> =
        grouped.groups.iter().flat_map(|group| group.held.iter().copied()).collect();
    for (at, held) in grouped.held.iter().enumerate() {
        if let (Some(inode), true) = (held.body.inode, shown.contains(&at)) {
            made.references.push(Reference {
                pid: held.pid,
                tid: held.tid,
                via: Via::Fd,
                fd: Some(held.fd),
                file: file_index(&mut made.files, &mut index, inode),
                description: held.description,
                table: Some(held.files),
                opener: None,
                writes: held.flags.map(|flags| flags & O_ACCMODE != O_RDONLY),
            });
        }
    }
    made
}

/// The group's entries of the listing, without those that are gone or were handed out twice.
fn still_listed(
    group: &Group,
    table: &Table,
    released: &HashSet<Body>,
    dropped: &mut HashSet<usize>,
) -> Vec<usize> {
    if group.held.is_empty() && released.contains(&group.body) {
        dropped.extend(&group.listed);
        return Vec::new();
    }
    let Some(owners) = &group.owners else { return group.listed.clone() };
    let mut surplus = group.listed.len().saturating_sub(owners.len().max(1));
    let mut listed = Vec::with_capacity(group.listed.len());
    for &at in &group.listed {
        if surplus > 0 && table.locks[at].maybe_repeated {
            surplus -= 1;
            dropped.insert(at);
        } else {
            listed.push(at);
        }
    }
    listed
}

fn file_index(
    files: &mut Vec<(Dev, u64)>,
    index: &mut HashMap<(Dev, u64), FileIx>,
    inode: (Dev, u64),
) -> FileIx {
    *index.entry(inode).or_insert_with(|| {
        files.push(inode);
        FileIx(u32::try_from(files.len() - 1).unwrap_or(u32::MAX))
    })
}

/// The access of a lock, and of a lease that is being broken what it shall come down to.
///
/// The kernel shows only the latter (`target_leasetype`). What comes down to READ was WRITE. What
/// comes down to UNLCK may have been either: a read lease is granted only while nobody has the
/// file open for writing, its own holder included (`check_conflicting_open`), so a descriptor that
/// can write had a write lease (or one that the kernel itself cut down to READ when an earlier
/// break timed out). With a descriptor for reading only nothing follows, and the access stays as
/// it is shown. Delegations are granted without that check.
fn access<'held>(
    body: &Body,
    mut held: impl Iterator<Item = &'held Held>,
) -> (Access, Option<Access>) {
    if body.mode != Mode::Breaking {
        return (body.access, None);
    }
    let mut writable =
        || held.any(|held| held.flags.is_some_and(|flags| flags & O_ACCMODE != O_RDONLY));
    let was = match body.access {
        Access::Read => Access::Write,
        Access::Unlock if body.kind == LockKind::Lease && writable() => Access::Write,
        shown => shown,
    };
    (was, Some(body.access))
}
