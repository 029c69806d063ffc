//! Who was born first: an acquirer of which only the pid is left, or a holder that lives.
//!
//! Refuses to answer where pids may have gone round in between.

use super::identity::{Pid, StartTime};
use super::snapshot::Births;

/// How an order of births is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Both start times are known.
    StartTimes,
    /// Pids are given out in rising order, and cannot have gone round since boot.
    PidOrder,
    /// As `PidOrder`, and at the machine's rate of forks pids have not gone round since the holder
    /// was born.
    RecentPidOrder,
}

/// The holder's birth seen from the acquirer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The holder is older.
    HolderFirst(Basis),
    /// The holder is younger.
    AcquirerFirst(Basis),
    /// Cannot be told.
    Unknown,
}

/// Pids must need at least this many times a holder's age to go round, or their order since its
/// birth is not trusted.
const MARGIN: u128 = 4;

/// Compares the births of a dead acquirer and a living holder.
pub fn order(
    births: &Births,
    acquirer: (Pid, Option<StartTime>),
    holder: (Pid, Option<StartTime>),
) -> Order {
    if let (Some(acquirer), Some(holder)) = (acquirer.1, holder.1)
        && acquirer.ticks() != holder.ticks()
    {
        return if holder < acquirer {
            Order::HolderFirst(Basis::StartTimes)
        } else {
            Order::AcquirerFirst(Basis::StartTimes)
        };
    }
    let Some(basis) = trust(births, holder.1) else { return Order::Unknown };
    let (Some(pid_max), Some(last)) = (births.pid_max, births.last_pid) else {
        return Order::Unknown;
    };
    let ahead = |pid: Pid| (i64::from(pid) - i64::from(holder.0)).rem_euclid(pid_max as i64);
    // From the holder's birth on, pids went from its own to the last one.
    if ahead(acquirer.0) <= ahead(last) {
        Order::HolderFirst(basis)
    } else {
        Order::AcquirerFirst(basis)
    }
}

fn trust(births: &Births, holder: Option<StartTime>) -> Option<Basis> {
    let (forks, pid_max) = (births.forks?, births.pid_max?);
    if pid_max == 0 || i64::try_from(pid_max).is_err() {
        return None;
    }
    if forks < pid_max {
        return Some(Basis::PidOrder);
    }
    let (now, born) = (births.now?.0, holder?.0);
    let age = u128::from(now.saturating_sub(born));
    // Time for one round at the mean rate since boot.
    let round = u128::from(now) * u128::from(pid_max) / u128::from(forks);
    (age * MARGIN < round).then_some(Basis::RecentPidOrder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn births(forks: u64) -> Births {
        Births {
            forks: Some(forks),
            pid_max: Some(1000),
            last_pid: Some(500),
            now: Some(StartTime(1000 * SECOND)),
        }
    }

    fn born(second: u64) -> Option<StartTime> {
        Some(StartTime(second * SECOND))
    }

    #[test]
    fn start_times_decide_where_both_are_known() {
        let order = |a, h| order(&births(1_000_000), (900, born(a)), (100, born(h)));
        assert_eq!(order(5, 6), Order::AcquirerFirst(Basis::StartTimes));
        assert_eq!(order(6, 5), Order::HolderFirst(Basis::StartTimes));
    }

    #[test]
    fn pids_are_in_order_of_birth_until_they_go_round() {
        let order = |a, h| order(&births(500), (a, None), (h, born(1)));
        assert_eq!(order(100, 200), Order::AcquirerFirst(Basis::PidOrder));
        assert_eq!(order(200, 100), Order::HolderFirst(Basis::PidOrder));
    }

    #[test]
    fn after_a_round_only_a_young_holder_can_be_placed() {
        let order = |a, h, second| order(&births(10_000), (a, None), (h, born(second)));
        // One round takes 100 s here.
        assert_eq!(order(100, 200, 990), Order::AcquirerFirst(Basis::RecentPidOrder));
        assert_eq!(order(450, 400, 990), Order::HolderFirst(Basis::RecentPidOrder));
        assert_eq!(order(100, 200, 900), Order::Unknown);
    }

    #[test]
    fn a_round_between_the_two_births_is_seen_through() {
        let order = |a, h| order(&births(10_000), (a, None), (h, born(990)));
        // The holder has a high pid, then pids began anew and the last is 500.
        assert_eq!(order(20, 980), Order::HolderFirst(Basis::RecentPidOrder));
        assert_eq!(order(970, 980), Order::AcquirerFirst(Basis::RecentPidOrder));
        assert_eq!(order(700, 980), Order::AcquirerFirst(Basis::RecentPidOrder));
    }

    #[test]
    fn missing_numbers_are_not_taken_for_zero() {
        let nothing = Births::default();
        assert_eq!(order(&nothing, (1, None), (2, born(5))), Order::Unknown);
        let mut no_last = births(500);
        no_last.last_pid = None;
        assert_eq!(order(&no_last, (1, None), (2, born(5))), Order::Unknown);
        assert_eq!(order(&births(10_000), (1, None), (2, None)), Order::Unknown);
    }
}
