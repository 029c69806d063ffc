//! Records of the moment, put into the order of what they tell of.
//!
//! Refuses to keep a record for longer than [`WINDOW`], and more of them than [`MOST`].

use std::collections::BTreeSet;

use crate::engine::identity::BootTime;
use crate::engine::input::{Acquired, Attempt, Ended, PidReused, Released, Wrote};

/// How much later than what it tells of a record may come and still be put in order, nanoseconds.
/// A record gets its time before it gets its place in the ring, and may be interrupted in between.
pub const WINDOW: u64 = 5_000_000;

/// Records that are kept at once; beyond that the oldest is taken as it is.
const MOST: usize = 1 << 14;

/// A record of the moment, in the order in which records of one nanosecond are taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Record {
    PidReused(PidReused),
    Ended(Ended),
    Acquired(Acquired),
    Released(Released),
    Attempt(Attempt),
    Wrote(Wrote),
}

impl Record {
    fn at(&self) -> BootTime {
        match self {
            Self::PidReused(record) => record.at,
            Self::Ended(record) => record.at,
            Self::Acquired(record) => record.at,
            Self::Released(record) => record.at,
            Self::Attempt(record) => record.at,
            Self::Wrote(record) => record.at,
        }
    }
}

/// The records that wait for such as come late.
#[derive(Clone, Debug, Default)]
pub(super) struct Reorder {
    waiting: BTreeSet<(BootTime, Record)>,
}

impl Reorder {
    /// Takes a record in. One of the future counts as one of this moment.
    pub(super) fn take(&mut self, now: BootTime, record: Record) {
        self.waiting.insert((record.at().min(now), record));
    }

    /// The next record for which it is time.
    pub(super) fn next(&mut self, now: BootTime) -> Option<Record> {
        let (at, _) = self.waiting.first()?;
        if at.after(WINDOW) > now && self.waiting.len() <= MOST {
            return None;
        }
        self.waiting.pop_first().map(|(_, record)| record)
    }

    /// When the next record is due.
    pub(super) fn deadline(&self) -> Option<BootTime> {
        self.waiting.first().map(|(at, _)| at.after(WINDOW))
    }

    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::identity::{ProcessId, StartTime};

    fn reused(pid: i32, at: u64) -> Record {
        let process = ProcessId { pid, start: StartTime(at) };
        Record::PidReused(PidReused { process, at: BootTime(at) })
    }

    fn all(reorder: &mut Reorder, now: u64) -> Vec<Record> {
        std::iter::from_fn(|| reorder.next(BootTime(now))).collect()
    }

    #[test]
    fn records_come_out_by_their_own_time_once_their_window_has_passed() {
        let mut reorder = Reorder::default();
        for record in [reused(1, 30), reused(2, 10), reused(3, 20)] {
            reorder.take(BootTime(100), record);
        }
        assert_eq!(all(&mut reorder, 9 + WINDOW), []);
        assert_eq!(reorder.deadline(), Some(BootTime(10 + WINDOW)));
        assert_eq!(all(&mut reorder, 20 + WINDOW), [reused(2, 10), reused(3, 20)]);
        assert_eq!(all(&mut reorder, 30 + WINDOW), [reused(1, 30)]);
    }

    #[test]
    fn a_record_of_the_future_does_not_stay_for_ever() {
        let mut reorder = Reorder::default();
        reorder.take(BootTime(100), reused(1, u64::MAX));
        assert_eq!(all(&mut reorder, 100 + WINDOW), [reused(1, u64::MAX)]);
    }

    #[test]
    fn no_more_records_wait_than_there_is_room_for() {
        let mut reorder = Reorder::default();
        for at in 0..MOST as u64 + 3 {
            reorder.take(BootTime(0), reused(at as i32, at));
        }
        assert_eq!(all(&mut reorder, 0).len(), 3);
        assert_eq!(reorder.remembered(), MOST);
    }
}
