//! Which ranges an owner had that ended all at once.
//!
//! Refuses to guess: of an owner of whom something was lost, or who has begun anew since, nothing is
//! said, and the next reading shows what there is.

use lockwatch_common::history::{CLASS_POSIX, Entry, Key, MomentRecord};

use super::collect::restored;
use super::moments::{Told, generation, lock, written};
use super::{HistoryError, Tables, join};
use crate::engine::identity::BootTime;
use crate::engine::input::{Ended, Input};

/// Ranges of one owner that are told; more are counted as lost.
const MOST: usize = 1 << 10;

/// The ends that a record of [`lockwatch_common::history::KIND_CLEARED`] stands for: those of ranges
/// whose takers are dead.
///
/// # Errors
/// Where a table cannot be read.
pub(super) fn ends(
    record: &MomentRecord,
    tables: &Tables,
    told: &mut Told<'_>,
) -> Result<Vec<Input>, HistoryError> {
    let mut inputs = Vec::new();
    for (start, entry) in had(tables, &record.key, record.header.at)? {
        let Some(ending) = tables.ending(&entry.by.process())? else { continue };
        if inputs.len() == MOST {
            inputs.push(Input::Lost(1));
            break;
        }
        let record = &MomentRecord { entry, ..*record };
        inputs.push(Input::Ended(Ended {
            lock: lock(&Key { start, ..record.key }, &entry, told.key),
            by: told.names.remembered(&entry.by),
            taken_at: BootTime(entry.taken_at),
            at: BootTime(record.header.at),
            ended_by: told.names.remembered(told.looker.closer(record)),
            death: join::death(&entry.by.process(), &ending),
            written: written(record, told.boot_unix),
            generation: generation(record),
        }));
    }
    Ok(inputs)
}

/// The ranges that an owner had when it gave up everything at `at`, by their first bytes.
fn had(tables: &Tables, key: &Key, at: u64) -> Result<Vec<(i64, Entry)>, HistoryError> {
    let of = key.of_owner();
    let owner = tables.owner(&of)?;
    let after = match owner {
        Some(owner) if owner.cleared_at > at => return Ok(Vec::new()),
        Some(owner) if owner.cleared_at == at => owner.cleared_before,
        // The record came before what it tells of was written down.
        Some(owner) => owner.cleared_at,
        None => 0,
    };
    if owner.is_some_and(|owner| owner.lost_at > after) || tables.slot_lost_at(&of) > after {
        return Ok(Vec::new());
    }
    let then = |moment: u64| after < moment && moment < at;
    let mut base = tables.locks()?;
    base.retain(|(key, entry)| {
        key.class == CLASS_POSIX && key.of_owner() == of && then(entry.written_at)
    });
    let mut done = tables.operations()?;
    done.retain(|(key, _)| (key.inode, key.owner) == (of.inode, of.owner) && then(key.at));
    Ok(joined(restored(&of, &base, &done).into_iter().map(|(key, entry)| (key.start, entry))))
}

/// Neighbours of one access are one lock to the kernel, as old as the oldest of them.
fn joined(pieces: impl Iterator<Item = (i64, Entry)>) -> Vec<(i64, Entry)> {
    let mut joined: Vec<(i64, Entry)> = Vec::new();
    for (start, entry) in pieces {
        match joined.last_mut() {
            Some((_, before))
                if before.access == entry.access && before.end.checked_add(1) == Some(start) =>
            {
                let older = if entry.taken_at < before.taken_at { entry } else { *before };
                *before = Entry { end: entry.end, ..older };
            }
            _ => joined.push((start, entry)),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(start: i64, end: i64, access: u32, taken_at: u64) -> (i64, Entry) {
        (start, Entry { end, access, taken_at, ..Entry::EMPTY })
    }

    #[test]
    fn neighbours_of_one_access_are_one_lock_as_old_as_the_oldest() {
        let pieces = [piece(0, 9, 1, 7), piece(10, 19, 1, 5), piece(20, 29, 0, 3)];
        let told: Vec<_> = joined(pieces.into_iter())
            .into_iter()
            .map(|(start, entry)| (start, entry.end, entry.access, entry.taken_at))
            .collect();
        assert_eq!(told, [(0, 19, 1, 5), (20, 29, 0, 3)]);
    }
}
