//! The id of a lock: the same while it lives, in every verb, and telling nothing of the kernel.
//!
//! Refuses to contain a kernel pointer: what is hashed is keyed with a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use super::identity::{Dev, LockKind, Owner, Range, RecordedPid};
use super::snapshot::Snapshot;

/// The secret that ids are made with; the same for every lockwatch on a machine since its boot.
#[derive(Clone, Copy)]
pub struct IdKey(pub [u8; 16]);

/// The id of one lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockId {
    /// Device of the file.
    pub dev: Dev,
    /// Inode number of the file.
    pub ino: u64,
    /// Keyed hash of what else tells the lock from others.
    pub hash: u64,
    /// Whether the short form of the hash would name two locks of one file.
    pub long: bool,
}

impl LockId {
    /// The id without regard to how it is written: what makes two ids the same.
    pub fn key(self) -> Self {
        Self { long: false, ..self }
    }
}

impl fmt::Display for LockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}-", self.dev, self.ino)?;
        if self.long {
            write!(f, "{:016x}", self.hash)
        } else {
            write!(f, "{:08x}", self.hash >> 32)
        }
    }
}

/// The ids of the snapshot's locks, in their order.
pub fn assign(snapshot: &Snapshot, key: &IdKey) -> Vec<LockId> {
    // Locks that nothing but their place in the list tells apart; only a source that cannot tell
    // descriptions apart has any.
    let mut twins: BTreeMap<(Dev, u64, u64), u32> = BTreeMap::new();
    let mut ids: Vec<LockId> = Vec::with_capacity(snapshot.locks.len());
    for lock in &snapshot.locks {
        let file = &snapshot.files[lock.file.0 as usize];
        let (kind, range) = (lock.kind, lock.range);
        if snapshot.stable_owners
            && let Some(owner) = lock.owner
        {
            ids.push(of_lock(key, file.dev, file.ino, kind, range, lock.acquirer, owner));
            continue;
        }
        let mut hash = hashed(key, file.dev, file.ino, kind, range, lock.acquirer);
        let twin = twins.entry((file.dev, file.ino, hash.finish())).or_insert(0);
        hash.write_u32(*twin);
        *twin += 1;
        ids.push(LockId { dev: file.dev, ino: file.ino, hash: hash.finish(), long: false });
    }
    ids
}

/// The id of a lock whose owner's token stays the same while the lock lives.
pub fn of_lock(
    key: &IdKey,
    dev: Dev,
    ino: u64,
    kind: LockKind,
    range: Range,
    acquirer: RecordedPid,
    owner: Owner,
) -> LockId {
    let mut hash = hashed(key, dev, ino, kind, range, acquirer);
    hash.write_u64(owner.token());
    LockId { dev, ino, hash: hash.finish(), long: false }
}

fn hashed(
    key: &IdKey,
    dev: Dev,
    ino: u64,
    kind: LockKind,
    range: Range,
    acquirer: RecordedPid,
) -> SipHasher24 {
    let mut hash = SipHasher24::new_with_key(&key.0);
    hash.write_u32(dev.major());
    hash.write_u32(dev.minor());
    hash.write_u64(ino);
    hash.write(kind.name().as_bytes());
    // The first byte tells the ranges of one owner apart: they never overlap.
    hash.write_u64(range.start);
    hash.write_i64(match acquirer {
        RecordedPid::Local(pid) => i64::from(pid),
        RecordedPid::Zero => 0,
        RecordedPid::Withheld => i64::MIN,
        RecordedPid::Remote(recorded) => i64::from(recorded) | 1 << 40,
    });
    hash
}

/// Has the ids of one file's locks written in full where their short forms look alike.
pub fn lengthen_where_ambiguous<'a>(ids: impl Iterator<Item = &'a mut LockId>) {
    let mut ids: Vec<&mut LockId> = ids.collect();
    ids.sort_unstable_by_key(|id| id.hash);
    let short = |id: &LockId| id.hash >> 32;
    for index in 1..ids.len() {
        if short(ids[index - 1]) == short(ids[index]) {
            ids[index - 1].long = true;
            ids[index].long = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::identity::Access;
    use crate::engine::snapshot::{File, FileIx, Lock};

    fn snapshot(owners: &[u64], stable_owners: bool) -> Snapshot {
        let file = File {
            dev: Dev::new(0xfe, 0),
            ino: 131,
            size: None,
            path: None,
            deleted: None,
            replaced: None,
        };
        let lock = |&owner: &u64| Lock {
            entry: owner,
            file: FileIx(0),
            kind: LockKind::Flock,
            access: Access::Read,
            range: Range::WHOLE,
            owner: Some(Owner::new(owner)),
            acquirer: RecordedPid::Local(7),
            breaking_to: None,
            taken: None,
        };
        let locks = owners.iter().map(lock).collect();
        Snapshot { files: vec![file].into(), locks, stable_owners, ..Snapshot::default() }
    }

    const KEY: IdKey = IdKey(*b"0123456789abcdef");

    #[test]
    fn an_id_names_device_and_inode_and_stays_when_other_locks_come_and_go() {
        let ids = assign(&snapshot(&[1, 2, 3], true), &KEY);
        let later = assign(&snapshot(&[3, 9], true), &KEY);
        assert_eq!(ids[2], later[0]);
        assert_ne!(ids[0], ids[1]);
        assert!(ids[0].to_string().starts_with("fe:00:131-"), "{}", ids[0]);
        assert_eq!(ids[0].to_string().len(), "fe:00:131-".len() + 8);
    }

    #[test]
    fn another_secret_gives_another_id() {
        let other = assign(&snapshot(&[1], true), &IdKey([0; 16]));
        assert_ne!(other, assign(&snapshot(&[1], true), &KEY));
    }

    #[test]
    fn twins_of_a_source_without_descriptions_still_differ() {
        let ids = assign(&snapshot(&[1, 2], false), &KEY);
        assert_ne!(ids[0], ids[1]);
        assert_eq!(ids, assign(&snapshot(&[8, 5], false), &KEY), "tokens do not matter then");
    }

    #[test]
    fn ids_that_would_look_alike_are_written_in_full() {
        let id = |hash| LockId { dev: Dev::new(0, 1), ino: 5, hash, long: false };
        let mut ids =
            [id(0x1111_1111_0000_0001), id(0x1111_1111_0000_0002), id(0x2222_2222_0000_0000)];
        lengthen_where_ambiguous(ids.iter_mut());
        assert_eq!(ids[0].to_string(), "00:01:5-1111111100000001");
        assert_eq!(ids[1].to_string(), "00:01:5-1111111100000002");
        assert_eq!(ids[2].to_string(), "00:01:5-22222222");
    }
}
