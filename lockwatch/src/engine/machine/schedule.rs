//! When the next reading is due.
//!
//! Refuses to ask for a second reading while one is under way, and for readings without a rest in
//! between that is as long as the last one took.

use std::collections::BTreeSet;

use crate::engine::identity::BootTime;

/// One that is due so many nanoseconds before another, or fewer, waits for that.
const GRAIN: u64 = 1_000_000;
/// So many moments are remembered at which a reading is due; later ones are left to the
/// reconciliation.
const MOST: usize = 1 << 12;
/// A reading that has not come after this many nanoseconds is asked for again.
const PATIENCE: u64 = 10_000_000_000;

/// The readings that are due.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    interval: u64,
    next: BootTime,
    /// A reading that must begin at this moment or later, and at once.
    urgent: Option<BootTime>,
    due: BTreeSet<BootTime>,
    asked: Option<BootTime>,
    rest_until: BootTime,
}

impl Schedule {
    pub(super) fn new(interval: u64) -> Self {
        Self {
            interval: interval.max(GRAIN),
            next: BootTime(0),
            urgent: None,
            due: BTreeSet::new(),
            asked: None,
            rest_until: BootTime(0),
        }
    }

    /// Reconciles every `interval` nanoseconds from now on.
    pub(super) fn reconcile_every(&mut self, interval: u64, now: BootTime) {
        self.interval = interval.max(GRAIN);
        self.next = self.next.min(now.after(self.interval));
    }

    /// How many entries it has.
    pub(super) fn remembered(&self) -> usize {
        self.due.len()
    }

    /// Wants a reading now.
    pub(super) fn at_once(&mut self, now: BootTime) {
        self.urgent = Some(now);
    }

    /// Wants a reading that begins at `at` or later.
    pub(super) fn at(&mut self, at: BootTime) {
        if self.due.range(at..=at.after(GRAIN)).next().is_some() {
            return;
        }
        self.due.insert(at);
        if self.due.len() > MOST {
            self.due.pop_last();
        }
    }

    /// True where a reading is to be asked for now; it then counts as asked for.
    pub(super) fn poll(&mut self, now: BootTime) -> bool {
        let due = self.deadline() <= now;
        if due {
            self.asked = Some(now);
        }
        due
    }

    /// When [`Self::poll`] will say yes.
    pub(super) fn deadline(&self) -> BootTime {
        if let Some(asked) = self.asked {
            return asked.after(PATIENCE);
        }
        let rested = |due: BootTime| due.max(self.rest_until);
        let due = self.due.first().copied().map(rested);
        [self.urgent, due].into_iter().flatten().fold(self.next, BootTime::min)
    }

    /// A reading that was begun at `begun` has come in.
    pub(super) fn read(&mut self, begun: BootTime, now: BootTime) {
        let took = self.asked.map_or(0, |asked| now.since(asked)).min(self.interval);
        self.asked = None;
        self.rest_until = now.after(took);
        self.due.retain(|&due| due > begun);
        self.urgent = self.urgent.filter(|&urgent| urgent > begun);
        self.next = begun.after(self.interval).max(self.rest_until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const INTERVAL: u64 = 2_000 * MS;

    fn at(ms: u64) -> BootTime {
        BootTime(ms * MS)
    }

    fn begun() -> Schedule {
        let mut schedule = Schedule::new(INTERVAL);
        assert!(schedule.poll(at(0)), "the first reading is due at once");
        schedule.read(at(0), at(0));
        schedule
    }

    #[test]
    fn the_tables_are_reconciled_every_interval() {
        let mut schedule = begun();
        assert_eq!(schedule.deadline(), at(2_000));
        assert!(!schedule.poll(at(1_999)));
        assert!(schedule.poll(at(2_000)));
        schedule.read(at(2_000), at(2_001));
        assert_eq!(schedule.deadline(), at(4_000));
        schedule.reconcile_every(500 * MS, at(2_100));
        assert_eq!(schedule.deadline(), at(2_600));
    }

    #[test]
    fn a_reading_serves_only_what_was_due_when_it_was_begun() {
        let mut schedule = begun();
        schedule.at(at(250));
        schedule.at(at(260));
        assert!(schedule.poll(at(250)));
        schedule.read(at(250), at(251));
        assert_eq!(schedule.deadline(), at(260));
        assert!(schedule.poll(at(260)));
        schedule.read(at(259), at(261));
        assert_eq!(schedule.deadline(), at(262), "begun too early: once more, after a rest");
    }

    #[test]
    fn a_reading_is_due_at_the_very_moment_and_one_just_before_another_waits_for_that() {
        let mut schedule = begun();
        schedule.at(BootTime(250 * MS + 7));
        assert_eq!(schedule.deadline(), BootTime(250 * MS + 7));
        schedule.at(at(250));
        assert_eq!(schedule.deadline(), BootTime(250 * MS + 7));
        schedule.at(at(249));
        assert_eq!(schedule.deadline(), at(249), "more than a grain before");
    }

    #[test]
    fn no_second_reading_is_asked_for_while_one_is_under_way() {
        let mut schedule = begun();
        schedule.at_once(at(10));
        assert!(schedule.poll(at(10)));
        schedule.at_once(at(11));
        assert!(!schedule.poll(at(12)));
        schedule.read(at(10), at(13));
        assert!(schedule.poll(at(13)), "what was wanted later was not served");
        schedule.read(at(13), at(14));
        assert_eq!(schedule.deadline(), at(2_013));
    }

    #[test]
    fn a_reading_that_never_comes_is_asked_for_again() {
        let mut schedule = begun();
        assert!(schedule.poll(at(2_000)));
        assert!(!schedule.poll(at(11_999)));
        assert!(schedule.poll(at(12_000)));
    }

    #[test]
    fn long_readings_leave_the_machine_as_much_rest_as_they_took() {
        let mut schedule = begun();
        schedule.at(at(100));
        assert!(schedule.poll(at(100)));
        schedule.at(at(110));
        schedule.read(at(100), at(400));
        assert_eq!(schedule.deadline(), at(700));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut schedule = begun();
        for ms in 0..2 * MOST as u64 {
            schedule.at(at(ms));
        }
        assert_eq!(schedule.due.len(), MOST);
        assert_eq!(schedule.due.first(), Some(&at(0)));
    }
}
