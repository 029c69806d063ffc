//! What is kept of the entries of the table of locks, of which there may be very many.
//!
//! Refuses to keep for each what many have in common.

use std::hash::BuildHasher as _;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};
use lockwatch_common::history::{Entry, Key, Party};

/// A lock by what a snapshot tells of it: device, inode number, owner, class, first byte.
pub(super) type Place = (u32, u64, u64, u32, i64);

/// Where a snapshot has the lock of an entry.
pub(super) fn place(key: &Key, dev: u32, ino: u64) -> Place {
    (dev, ino, key.owner, key.class, key.start)
}

/// Entries, by their place.
#[derive(Debug, Default)]
pub(super) struct Kept {
    locks: Vec<Lock>,
    /// Places in `locks`.
    by_place: HashTable<u32>,
    hasher: DefaultHashBuilder,
    common: Vec<Common>,
    /// Places in `common`.
    by_common: HashMap<Common, u32>,
    /// First and last byte, of those that are not on all bytes.
    ranges: Vec<(i64, i64)>,
}

/// What is of one lock alone.
#[derive(Debug)]
struct Lock {
    ino: u64,
    owner: u64,
    taken_at: u64,
    common: u32,
    /// Its place in the list of ranges, or [`WHOLE`].
    range: u32,
}

/// From the first byte to the last that there can be.
const WHOLE: u32 = u32::MAX;
const ALL_BYTES: (i64, i64) = (0, i64::MAX);

/// What the locks of one process mostly have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Common {
    dev: u32,
    class: u32,
    access: u32,
    recorded: i32,
    by: Party,
}

/// What is known of one lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) taken_at: u64,
    pub(super) end: i64,
    pub(super) recorded: i32,
    pub(super) access: u32,
    pub(super) by: Party,
}

impl Known {
    /// What an entry tells.
    pub(super) fn of(entry: &Entry) -> Self {
        let &Entry { taken_at, end, recorded, access, by, .. } = entry;
        Self { taken_at, end, recorded, access, by }
    }
}

impl Kept {
    /// Keeps an entry; the last one of a place counts.
    pub(super) fn keep(&mut self, key: &Key, entry: &Entry) {
        let &Entry { dev, ino, access, recorded, by, taken_at, end, .. } = entry;
        let common = Common { dev, class: key.class, access, recorded, by };
        let common = *self.by_common.entry(common).or_insert_with(|| {
            self.common.push(common);
            self.common.len() as u32 - 1
        });
        let range = if (key.start, end) == ALL_BYTES {
            WHOLE
        } else {
            self.ranges.push((key.start, end));
            self.ranges.len() as u32 - 1
        };
        let lock = Lock { ino, owner: key.owner, taken_at, common, range };
        let place = place(key, dev, ino);
        match self.at(&place) {
            Some(at) => self.locks[at] = lock,
            None => {
                let at = self.locks.len() as u32;
                self.locks.push(lock);
                let hash = |place: &Place| self.hasher.hash_one(place);
                let places = (&self.locks, &self.common, &self.ranges);
                self.by_place.insert_unique(hash(&place), at, |&at| {
                    hash(&place_of(&places.0[at as usize], places.1, places.2))
                });
            }
        }
    }

    /// What is known of the lock at a place.
    pub(super) fn find(&self, place: &Place) -> Option<Known> {
        let lock = &self.locks[self.at(place)?];
        let common = self.common[lock.common as usize];
        let (_, end) = range_of(lock, &self.ranges);
        let Common { access, recorded, by, .. } = common;
        Some(Known { taken_at: lock.taken_at, end, recorded, access, by })
    }

    /// Who took the locks; somebody may be told more than once.
    pub(super) fn takers(&self) -> impl Iterator<Item = &Party> {
        self.common.iter().map(|common| &common.by)
    }

    fn at(&self, place: &Place) -> Option<usize> {
        let is_it =
            |&at: &u32| place_of(&self.locks[at as usize], &self.common, &self.ranges) == *place;
        let found = self.by_place.find(self.hasher.hash_one(place), is_it);
        found.map(|&at| at as usize)
    }
}

fn place_of(lock: &Lock, common: &[Common], ranges: &[(i64, i64)]) -> Place {
    let common = &common[lock.common as usize];
    let (start, _) = range_of(lock, ranges);
    (common.dev, lock.ino, lock.owner, common.class, start)
}

fn range_of(lock: &Lock, ranges: &[(i64, i64)]) -> (i64, i64) {
    ranges.get(lock.range as usize).copied().unwrap_or(ALL_BYTES)
}
