//! The goals of a scan's speed, each held against what was measured.
//!
//! Measures nothing, and forgives nothing: a miss is called one.

use super::contender::Source;
use super::scenario::{Beside, Cell, FEWER, Idle, MANY, OneFile, Pairs, Peer, Unseen, in_words};
use super::table;

/// What a scan waits before it believes that what is in flight stays there, seconds.
pub(super) const GRACE: f64 = 0.25;

/// Whether a goal was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Reached,
    NotReached,
    /// This run had not what it takes to tell.
    NotMeasured,
}

impl Verdict {
    /// The word in the report.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::NotReached => "NOT reached",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A goal, and what came of it.
#[derive(Debug)]
pub(super) struct Goal {
    pub(super) what: String,
    pub(super) measured: String,
    pub(super) verdict: Verdict,
}

/// Everything that the goals are about.
pub(super) struct Measured<'a> {
    pub(super) cells: &'a [Cell],
    pub(super) one_file: &'a [OneFile],
    pub(super) idle: &'a Idle,
    pub(super) unseen: &'a Unseen,
    pub(super) pairs: &'a [Pairs],
}

/// A ratio; where lslocks was cut, it is larger than that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    pub(super) value: f64,
    pub(super) at_least: bool,
}

impl Ratio {
    /// How many times as long as `seconds` lslocks took, where that is known.
    pub(super) fn of(peer: Peer, seconds: f64) -> Option<Self> {
        match peer {
            Peer::Ran(stats) => Some(Self { value: stats.median / seconds, at_least: false }),
            Peer::Cut(bound) => Some(Self { value: bound / seconds, at_least: true }),
            Peer::Failed | Peer::Absent => None,
        }
    }

    /// As in a table's cell.
    pub(super) fn text(self) -> String {
        let prefix = if self.at_least { "at least " } else { "" };
        format!("{prefix}{}", table::times(self.value))
    }
}

/// Every goal, in the order of the report.
pub(super) fn all(measured: &Measured<'_>) -> Vec<Goal> {
    let many: Vec<&Cell> = measured.cells.iter().filter(|cell| cell.locks == MANY).collect();
    let mut goals = vec![at_most(
        "bpf: 100,000 locks, whole process, at most 0.3 s",
        largest(many.iter().map(|cell| cell.bpf.seconds.median)),
        0.3,
        table::time,
    )];
    goals.push(faster("bpf", 200.0, &many, |cell| cell.bpf.seconds.median));
    goals.push(faster("procfs", 20.0, &many, |cell| cell.procfs.seconds.median));
    goals.push(at_most(
        "bpf: a lock at 100,000 costs at most 1.5 times one at 10,000",
        growth(measured.cells, measured.idle.bpf.seconds.median, |cell| cell.bpf.seconds.median),
        1.5,
        table::times,
    ));
    for one in measured.one_file {
        for (source, (together, apart), idle) in [
            ("bpf", one.bpf, measured.idle.bpf.seconds.median),
            ("procfs", one.procfs, measured.idle.procfs.seconds.median),
        ] {
            goals.push(at_most(
                &format!(
                    "{source}: {} {} of one file in {}, at most twice the cost of separate files",
                    table::count(one.locks),
                    one.what,
                    in_words(one.processes)
                ),
                Some(cost_ratio(together.median, apart.median, idle)),
                2.0,
                table::times,
            ));
        }
    }
    goals.push(at_most(
        "bpf: peak memory at 100,000 locks at most 150 MB",
        largest(many.iter().map(|cell| cell.bpf.peak as f64)),
        150e6,
        |bytes| table::megabytes(bytes as u64),
    ));
    goals.push(at_most(
        "procfs: peak memory at 100,000 locks at most 150 MB",
        largest(many.iter().map(|cell| cell.procfs.peak as f64)),
        150e6,
        |bytes| table::megabytes(bytes as u64),
    ));
    goals.push(at_most(
        "bpf: an idle machine, at most 60 ms",
        Some(measured.idle.bpf.seconds.median),
        0.06,
        table::time,
    ));
    let Unseen { idle, around, in_flight, many, .. } = measured.unseen;
    goals.push(at_most(
        "bpf: 10,000 unix sockets and 1,000 mappings around, an idle machine, at most 60 ms",
        Some(idle.seconds.median),
        0.06,
        table::time,
    ));
    goals.push(at_most(
        "bpf: 10,000 unix sockets and 1,000 mappings around, 100,000 locks, at most 0.3 s",
        many.as_ref().map(|many| many.seconds.median),
        0.3,
        table::time,
    ));
    goals.push(at_most(
        "bpf: 1,000 orphans in flight, at most twice as slow as without, but for the grace that it \
         waits",
        Some((in_flight.seconds.median - GRACE).max(0.0) / around.seconds.median),
        2.0,
        table::times,
    ));
    let beside_bpf = measured.pairs.iter().find(|pairs| pairs.beside == Beside::Scan(Source::Bpf));
    goals.push(at_least(
        "bpf: with a scan in a loop beside it, flock/unlock at no less than 0.8 of its rate",
        beside_bpf.map(|pairs| Ratio { value: pairs.relative, at_least: false }),
        0.8,
    ));
    goals
}

/// One file's cost beside separate files': without what a scan of nothing costs, or with it where
/// the locks add too little to that to be told from noise.
pub(super) fn cost_ratio(together: f64, apart: f64, idle: f64) -> f64 {
    const TOLD_FROM_NOISE: f64 = 1.25;
    if apart < idle * TOLD_FROM_NOISE {
        return together / apart;
    }
    (together - idle).max(0.0) / (apart - idle)
}

/// The worst, over the numbers of processes, of the cost a lock among many beside among fewer,
/// without what a scan of nothing costs.
pub(super) fn growth(cells: &[Cell], idle: f64, seconds: impl Fn(&Cell) -> f64) -> Option<f64> {
    let each = |cell: &Cell| (seconds(cell) - idle) / cell.locks as f64;
    largest(cells.iter().filter(|cell| cell.locks == MANY).filter_map(|many| {
        let same = |cell: &&Cell| cell.locks == FEWER && cell.processes == many.processes;
        let fewer = each(cells.iter().find(same)?);
        (fewer > 0.0).then(|| each(many) / fewer)
    }))
}

fn faster(source: &str, wanted: f64, many: &[&Cell], seconds: impl Fn(&Cell) -> f64) -> Goal {
    let ratios: Vec<Ratio> =
        many.iter().filter_map(|cell| Ratio::of(cell.lslocks, seconds(cell))).collect();
    // With a cell missing, the least of the others would claim too much.
    let least = (ratios.len() == many.len())
        .then(|| ratios.into_iter().min_by(|a, b| a.value.total_cmp(&b.value)))
        .flatten();
    let what = format!("{source}: 100,000 locks at least {wanted} times faster than lslocks");
    at_least(&what, least, wanted)
}

fn largest(values: impl Iterator<Item = f64>) -> Option<f64> {
    values.reduce(f64::max)
}

/// A goal that is reached where the value is not above `limit`.
pub(super) fn at_most(
    what: &str,
    value: Option<f64>,
    limit: f64,
    show: impl Fn(f64) -> String,
) -> Goal {
    let verdict = match value {
        None => Verdict::NotMeasured,
        Some(value) if value <= limit => Verdict::Reached,
        Some(_) => Verdict::NotReached,
    };
    Goal { what: what.to_owned(), measured: value.map_or_else(String::new, show), verdict }
}

fn at_least(what: &str, ratio: Option<Ratio>, wanted: f64) -> Goal {
    let verdict = match ratio {
        None => Verdict::NotMeasured,
        Some(ratio) if ratio.value >= wanted => Verdict::Reached,
        // Cut at its bound, lslocks did not run long enough to show it.
        Some(ratio) if ratio.at_least => Verdict::NotMeasured,
        Some(_) => Verdict::NotReached,
    };
    let measured = ratio.map_or_else(String::new, Ratio::text);
    Goal { what: what.to_owned(), measured, verdict }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Stats;
    use super::super::scenario::Scans;
    use super::*;

    fn stats(median: f64) -> Stats {
        Stats { median, least: median, runs: 3 }
    }

    fn scans(median: f64, peak: u64) -> Scans {
        Scans { seconds: stats(median), cpu: median, peak }
    }

    fn cell(locks: usize, bpf: f64, lslocks: Peer) -> Cell {
        Cell {
            locks,
            processes: 20,
            bpf: scans(bpf, 100_000_000),
            procfs: scans(bpf * 10.0, 160_000_000),
            lslocks,
            read: stats(1.0),
            others: 0.0,
        }
    }

    fn goals(cells: &[Cell]) -> Vec<Goal> {
        let idle = Idle { bpf: scans(0.05, 1), procfs: scans(0.01, 1), others: 0.0 };
        let unseen = Unseen {
            idle: scans(0.05, 1),
            alone: scans(0.05, 1),
            around: scans(0.05, 1),
            in_flight: scans(0.36, 1),
            many: None,
            others: 0.0,
        };
        let pairs = [Pairs {
            beside: Beside::Scan(Source::Bpf),
            rate: stats(1e6),
            relative: 0.9,
            loops: 10.0,
        }];
        all(&Measured { cells, one_file: &[], idle: &idle, unseen: &unseen, pairs: &pairs })
    }

    #[track_caller]
    fn verdict(goals: &[Goal], what: &str) -> (Verdict, String) {
        let goal = goals.iter().find(|goal| goal.what.contains(what)).unwrap();
        (goal.verdict, goal.measured.clone())
    }

    #[test]
    fn a_goal_is_reached_at_its_limit() {
        let goals = goals(&[cell(FEWER, 0.075, Peer::Absent), cell(MANY, 0.3, Peer::Cut(60.0))]);
        assert_eq!(verdict(&goals, "0.3 s"), (Verdict::Reached, "300 ms".to_owned()));
        assert_eq!(verdict(&goals, "1.5 times"), (Verdict::Reached, "1.00×".to_owned()));
        assert_eq!(verdict(&goals, "200 times").1, "at least 200×");
        assert_eq!(verdict(&goals, "procfs: peak").0, Verdict::NotReached);
        assert_eq!(verdict(&goals, "flock/unlock").0, Verdict::Reached);
    }

    #[test]
    fn a_miss_is_one() {
        let lslocks = Peer::Ran(stats(31.0));
        let goals = goals(&[cell(FEWER, 0.06, Peer::Absent), cell(MANY, 0.31, lslocks)]);
        assert_eq!(verdict(&goals, "0.3 s").0, Verdict::NotReached);
        assert_eq!(verdict(&goals, "1.5 times").0, Verdict::NotReached);
        assert_eq!(verdict(&goals, "200 times").0, Verdict::NotReached);
    }

    #[test]
    fn the_grace_is_no_part_of_what_orphans_in_flight_cost() {
        let goals = goals(&[]);
        assert_eq!(verdict(&goals, "in flight"), (Verdict::NotReached, "2.20×".to_owned()));
        assert_eq!(verdict(&goals, "around, an idle").0, Verdict::Reached);
        assert_eq!(verdict(&goals, "around, 100,000").0, Verdict::NotMeasured);
    }

    #[test]
    fn a_lower_limit_below_the_goal_says_nothing() {
        let goals = goals(&[cell(MANY, 0.5, Peer::Cut(60.0))]);
        assert_eq!(
            verdict(&goals, "200 times"),
            (Verdict::NotMeasured, "at least 120×".to_owned())
        );
    }

    #[test]
    fn without_the_large_cells_their_goals_stay_open() {
        let goals = goals(&[cell(FEWER, 0.06, Peer::Absent)]);
        for what in ["0.3 s", "200 times", "20 times", "1.5 times", "bpf: peak"] {
            assert_eq!(verdict(&goals, what), (Verdict::NotMeasured, String::new()), "{what}");
        }
    }

    #[test]
    fn one_file_is_compared_without_the_cost_of_nothing() {
        assert_eq!(cost_ratio(0.5, 0.25, 0.125), 3.0);
        assert_eq!(cost_ratio(0.04, 0.07, 0.05), 0.0);
        assert_eq!(cost_ratio(0.5, 0.25, 0.25), 2.0);
    }
}
