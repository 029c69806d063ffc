//! Which references hold which lock: the join of locks and references by owner.
//!
//! Refuses to match by path, range or inode alone: a descriptor of another description of the same
//! file holds nothing.

use std::sync::Arc;

use hashbrown::HashMap; // not iterated

use super::identity::Owner;
use super::snapshot::{FileIx, Lock, Reference, Snapshot};

/// References by what they refer to.
pub struct Holders {
    by_description: HashMap<Owner, Arc<[u32]>>, // not iterated
    by_table: HashMap<(Owner, FileIx), Arc<[u32]>>, // not iterated
    none: Arc<[u32]>,
}

impl Holders {
    /// Sorts the snapshot's references; linearithmic.
    pub fn index(snapshot: &Snapshot) -> Self {
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
            (description, pid, table, fd, via, tid)
        });
        // Threads of an exited leader show one table once each.
        order.dedup_by_key(|index| {
            let Reference { description, pid, table, fd, via, .. } = references[*index as usize];
            (description, pid, table, fd, via)
        });
        let description = |index: &u32| references[*index as usize].description;
        let by_description = groups(&order, description);

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
        let by_table = groups(&order, table);
        Self { by_description, by_table, none: Arc::from([]) }
    }

    /// The references that hold `lock`, by pid and descriptor.
    pub fn of(&mut self, lock: &Lock) -> Arc<[u32]> {
        let found = lock.owner.and_then(|owner| {
            if lock.kind.belongs_to_fd_table() {
                self.by_table.get(&(owner, lock.file))
            } else {
                self.by_description.get(&owner)
            }
        });
        Arc::clone(found.unwrap_or(&self.none))
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
    order: &[u32],
    key: impl Fn(&u32) -> Option<K>,
) -> HashMap<K, Arc<[u32]>> // not iterated
{
    order
        .chunk_by(|a, b| key(a) == key(b))
        .filter_map(|group| Some((key(group.first()?)?, Arc::from(group))))
        .collect()
}
