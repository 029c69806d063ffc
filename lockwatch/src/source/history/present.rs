//! The locks of a reading, to be found by the key under which the tables have them.
//!
//! Refuses to copy any: of very many locks only their places are put in order.

use std::hash::BuildHasher as _;

use hashbrown::{DefaultHashBuilder, HashTable};
use lockwatch_common::history::Key;

use super::join;
use crate::source::bpf::Reading;

/// The locks of a reading.
pub(super) struct Present {
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Present {
    /// Those whose owners are known.
    pub(super) fn of(reading: &Reading) -> Self {
        let locks = &reading.snapshot.locks;
        let hasher = DefaultHashBuilder::default();
        let mut places = HashTable::with_capacity(locks.len());
        let hash = |key: &Key| hasher.hash_one(fields(key));
        let keyed = |&place: &u32| join::key(reading, &locks[place as usize]);
        for place in 0..locks.len() as u32 {
            if let Some(key) = keyed(&place) {
                places.insert_unique(hash(&key), place, |of| keyed(of).as_ref().map_or(0, hash));
            }
        }
        Self { places, hasher }
    }

    /// The place of the lock with a key in the list of that reading's locks.
    pub(super) fn find(&self, reading: &Reading, key: &Key) -> Option<usize> {
        let lock = |place: u32| reading.snapshot.locks.get(place as usize);
        let key_of = |place| lock(place).and_then(|lock| join::key(reading, lock));
        let is_it = |&place: &u32| key_of(place) == Some(*key);
        let found = self.places.find(self.hasher.hash_one(fields(key)), is_it);
        found.map(|&place| place as usize)
    }
}

fn fields(key: &Key) -> (u64, u64, i64, u32) {
    (key.inode, key.owner, key.start, key.class)
}
