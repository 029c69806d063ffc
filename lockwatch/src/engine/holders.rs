//! Which references hold which lock: the join of locks and references by owner.
//!
//! Refuses to match by path, range or inode alone: a descriptor of another description of the same
//! file holds nothing.

use hashbrown::HashMap; // not iterated

use super::conclude::Span;
use super::identity::Owner;
use super::snapshot::{FileIx, Lock, Reference, Snapshot};

/// References by what they refer to.
pub(super) struct Holders {
    by_description: HashMap<Owner, Span>,     // not iterated
    by_table: HashMap<(Owner, FileIx), Span>, // not iterated
    list: Vec<u32>,
}

impl Holders {
    /// Sorts the snapshot's references; linearithmic.
    pub(super) fn index(snapshot: &Snapshot) -> Self {
        let references = &snapshot.references;
        let wanted_descriptions = owners(snapshot, false);
        let wanted_tables = owners(snapshot, true);

        let mut order: Vec<u32> = (0..references.len() as u32)
            .filter(|&index| {
                let description = references[index as usize].description;
                description.is_some_and(|owner| wanted_descriptions.binary_search(&owner).is_ok())
            })
            .collect();
        order.sort_unstable_by_key(|&index| {
            let Reference { description, pid, table, fd, tid, via, .. } =
                references[index as usize];
            (description, pid, fd, via, table, tid)
        });
        // Threads of an exited leader show one table once each.
        order.dedup_by_key(|index| {
            let Reference { description, pid, table, fd, via, .. } = references[*index as usize];
            (description, pid, table, fd, via)
        });
        // Which of two tables has the greater token must not show.
        order.sort_by_key(|&index| {
            let Reference { description, pid, fd, tid, via, .. } = references[index as usize];
            (description, pid, fd, via, tid)
        });
        let description = |index: &u32| references[*index as usize].description;
        let mut list = Vec::new();
        let by_description = groups(&mut list, &order, description);

        let mut order: Vec<u32> = (0..references.len() as u32)
            .filter(|&index| {
                let table = references[index as usize].table;
                table.is_some_and(|owner| wanted_tables.binary_search(&owner).is_ok())
            })
            .collect();
        order.sort_unstable_by_key(|&index| {
            let Reference { table, file, pid, tid, fd, .. } = references[index as usize];
            (table, file, pid, tid, fd)
        });
        // The table holds the lock, not the descriptor: one reference a process.
        order.dedup_by_key(|index| {
            let Reference { table, file, pid, .. } = references[*index as usize];
            (table, file, pid)
        });
        let table = |index: &u32| {
            let reference = &references[*index as usize];
            reference.table.map(|table| (table, reference.file))
        };
        let by_table = groups(&mut list, &order, table);
        list.shrink_to_fit();
        Self { by_description, by_table, list }
    }

    /// The references that hold `lock`, by pid and descriptor.
    pub(super) fn of(&self, lock: &Lock) -> Span {
        let found = lock.owner.and_then(|owner| {
            if lock.kind.belongs_to_fd_table() {
                self.by_table.get(&(owner, lock.file))
            } else {
                self.by_description.get(&owner)
            }
        });
        found.copied().unwrap_or_default()
    }

    /// What the spans are parts of: places in [`Snapshot::references`].
    pub(super) fn list(&self) -> &[u32] {
        &self.list
    }

    pub(super) fn into_list(self) -> Vec<u32> {
        self.list
    }
}

fn owners(snapshot: &Snapshot, tables: bool) -> Vec<Owner> {
    let of_kind = snapshot.locks.iter().filter(|lock| lock.kind.belongs_to_fd_table() == tables);
    let mut owners: Vec<Owner> = of_kind.filter_map(|lock| lock.owner).collect();
    owners.sort_unstable();
    owners.dedup();
    owners
}

fn groups<K: Eq + std::hash::Hash>(
    list: &mut Vec<u32>,
    order: &[u32],
    key: impl Fn(&u32) -> Option<K>,
) -> HashMap<K, Span> // not iterated
{
    order
        .chunk_by(|a, b| key(a) == key(b))
        .filter_map(|group| Some((key(group.first()?)?, Span::added(list, group))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::identity::{Access, LockKind, Range, RecordedPid};
    use crate::engine::snapshot::Via;

    fn lock(kind: LockKind, owner: u64, file: u32) -> Lock {
        Lock {
            entry: owner,
            file: FileIx(file),
            kind,
            access: Access::Write,
            range: Range::WHOLE,
            owner: Some(Owner::new(owner)),
            acquirer: RecordedPid::Local(1),
            breaking_to: None,
            taken: None,
        }
    }

    fn reference(pid: i32, tid: i32, fd: u32, description: u64, table: u64) -> Reference {
        Reference {
            pid,
            tid,
            via: Via::Fd,
            fd: Some(fd),
            file: FileIx(0),
            description: Some(Owner::new(description)),
            table: Some(Owner::new(table)),
            opener: None,
            writes: None,
        }
    }

    fn holders_of(lock: Lock, references: Vec<Reference>) -> Vec<(i32, Option<u32>)> {
        let snapshot = Snapshot {
            locks: vec![lock].into(),
            references: references.into(),
            ..Snapshot::default()
        };
        let holders = Holders::index(&snapshot);
        let found = holders.of(&snapshot.locks[0]).of(holders.list());
        let reference = |&index: &u32| &snapshot.references[index as usize];
        found.iter().map(reference).map(|reference| (reference.pid, reference.fd)).collect()
    }

    #[test]
    fn only_descriptors_of_the_very_description_hold_a_flock() {
        let references = vec![
            reference(20, 20, 4, 8, 201),
            reference(10, 10, 0, 7, 101),
            reference(10, 10, 3, 7, 101),
            reference(30, 30, 3, 7, 301),
        ];
        let holders = holders_of(lock(LockKind::Flock, 7, 0), references);
        assert_eq!(holders, [(10, Some(0)), (10, Some(3)), (30, Some(3))]);
    }

    #[test]
    fn threads_that_share_a_table_are_one_holder() {
        let references = vec![reference(10, 12, 3, 7, 101), reference(10, 11, 3, 7, 101)];
        assert_eq!(holders_of(lock(LockKind::Ofd, 7, 0), references), [(10, Some(3))]);
    }

    #[test]
    fn a_posix_lock_is_held_by_its_fd_table_on_its_file_once_a_process() {
        let mut elsewhere = reference(10, 10, 9, 6, 101);
        elsewhere.file = FileIx(1);
        let references = vec![
            reference(10, 10, 5, 8, 101),
            reference(10, 10, 3, 7, 101),
            elsewhere,
            reference(40, 40, 3, 7, 101),
            reference(50, 50, 3, 7, 501),
        ];
        let holders = holders_of(lock(LockKind::Posix, 101, 0), references);
        assert_eq!(holders, [(10, Some(3)), (40, Some(3))]);
    }

    #[test]
    fn a_lock_without_a_known_owner_has_no_holder() {
        let mut unknown = lock(LockKind::Flock, 7, 0);
        unknown.owner = None;
        assert_eq!(holders_of(unknown, vec![reference(10, 10, 3, 7, 101)]), []);
    }
}
