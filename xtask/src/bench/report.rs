//! The figures as tables, and as JSON.
//!
//! Measures and judges nothing.

use serde_json::{Value, json};

use super::contender::Source;
use super::goals::{self, Goal, Ratio};
use super::machine::Machine;
use super::measure::Stats;
use super::scenario::{
    AROUND, Beside, Cell, IN_FLIGHT, Idle, LSLOCKS_BOUND, MANY, MAPPINGS, OneFile, Pairs, Peer,
    SOCKETS, Scans, Unseen,
};
use super::table::{Style, Table, count, megabytes, time, times};

/// All of one run.
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) load_after: String,
    pub(super) cells: Vec<Cell>,
    pub(super) one_file: Vec<OneFile>,
    pub(super) idle: Idle,
    pub(super) unseen: Unseen,
    pub(super) pairs: Vec<Pairs>,
    pub(super) goals: Vec<Goal>,
}

impl Results {
    /// Everything, as a human reads it.
    pub(super) fn text(&self, style: Style) -> String {
        let tables = [
            self.cells(),
            self.memory(),
            self.one_file(),
            self.idle(),
            self.unseen(),
            self.pairs(),
            self.goals(),
        ];
        let tables = tables.iter().map(|table| table.text(style));
        std::iter::once(self.conditions(style)).chain(tables).collect()
    }

    /// Everything, as a program reads it: seconds, bytes, shares.
    pub(super) fn json(&self) -> Value {
        let machine = &self.machine;
        json!({
            "schema": 1,
            "machine": {
                "kernel": machine.kernel, "processors": machine.processors,
                "memory": machine.memory, "lslocks": machine.lslocks, "commit": machine.commit,
                "load_before": machine.load, "load_after": self.load_after,
                "others": self.most_others(),
            },
            "cells": self.cells.iter().map(cell_json).collect::<Vec<_>>(),
            "one_file": self.one_file.iter().map(one_file_json).collect::<Vec<_>>(),
            "idle": {"bpf": scans_json(&self.idle.bpf), "procfs": scans_json(&self.idle.procfs)},
            "unseen": {
                "idle": scans_json(&self.unseen.idle),
                "many": self.unseen.many.as_ref().map(scans_json),
                "alone": scans_json(&self.unseen.alone),
                "around": scans_json(&self.unseen.around),
                "in_flight": scans_json(&self.unseen.in_flight),
            },
            "pairs": self.pairs.iter().map(pairs_json).collect::<Vec<_>>(),
            "goals": self.goals.iter().map(|goal| json!({
                "goal": goal.what, "measured": goal.measured, "verdict": goal.verdict.word(),
            })).collect::<Vec<_>>(),
        })
    }

    fn conditions(&self, style: Style) -> String {
        let machine = &self.machine;
        let lslocks = machine.lslocks.as_deref().unwrap_or("not installed");
        let lines = [
            format!(
                "lockwatch {}, Linux {}, {} processors, {} of memory, lslocks {lslocks}",
                machine.commit,
                machine.kernel,
                machine.processors,
                megabytes(machine.memory)
            ),
            format!(
                "load averages {} before and {} after (the benchmark's own work included); other \
                 work before each step took at most {:.0} % of the processors",
                machine.load,
                self.load_after,
                self.most_others() * 100.0
            ),
            "medians of whole processes from start to end, output to /dev/null; cpu is their processor \
             time, the kernel's included".to_owned(),
        ];
        let bullet = if style == Style::Markdown { "- " } else { "" };
        lines.iter().map(|line| format!("{bullet}{line}\n")).collect::<String>() + "\n"
    }

    fn most_others(&self) -> f64 {
        let cells = self.cells.iter().map(|cell| cell.others);
        let one_file = self.one_file.iter().map(|one| one.others);
        cells.chain(one_file).chain([self.idle.others, self.unseen.others]).fold(0.0, f64::max)
    }

    fn cells(&self) -> Table {
        let mut table = Table::new(
            "A scan of many locks",
            &[
                "locks",
                "processes",
                "bpf",
                "min",
                "cpu",
                "procfs",
                "min",
                "cpu",
                "lslocks",
                "read /proc/locks",
                "procfs/bpf",
                "lslocks/bpf",
                "lslocks/procfs",
                "read/bpf",
            ],
        );
        for cell in &self.cells {
            let (bpf, procfs) = (cell.bpf.seconds, cell.procfs.seconds);
            let ratio =
                |seconds| Ratio::of(cell.lslocks, seconds).map_or_else(String::new, Ratio::text);
            table.row([
                count(cell.locks),
                count(cell.processes),
                time(bpf.median),
                time(bpf.least),
                time(cell.bpf.cpu),
                time(procfs.median),
                time(procfs.least),
                time(cell.procfs.cpu),
                peer(cell.lslocks),
                time(cell.read.median),
                times(procfs.median / bpf.median),
                ratio(bpf.median),
                ratio(procfs.median),
                times(cell.read.median / bpf.median),
            ]);
        }
        table.note(
            "Each lock is an exclusive flock on a file of its own; where a process may not have as \
             many descriptors, each file has one flock and up to seven OFD byte ranges instead.",
        );
        table.note(
            "In each row, with each source, the JSON was checked to list every lock once, with a \
             holder.",
        );
        if self.cells.iter().any(|cell| matches!(cell.lslocks, Peer::Cut(_))) {
            table.note(format!("lslocks is killed after {} s.", LSLOCKS_BOUND.as_secs()));
        }
        table
    }

    fn memory(&self) -> Table {
        let mut table = Table::new("Peak memory", &["locks", "processes", "bpf", "procfs"]);
        for cell in &self.cells {
            table.row([
                count(cell.locks),
                count(cell.processes),
                megabytes(cell.bpf.peak),
                megabytes(cell.procfs.peak),
            ]);
        }
        table
    }

    fn one_file(&self) -> Table {
        let mut table = Table::new(
            "Locks of one file beside as many on separate files",
            &["locks", "processes", "source", "one file", "separate", "ratio", "without idle"],
        );
        for one in &self.one_file {
            for (source, (together, apart), idle) in [
                (Source::Bpf, one.bpf, &self.idle.bpf),
                (Source::Procfs, one.procfs, &self.idle.procfs),
            ] {
                let cost = goals::cost_ratio(together.median, apart.median, idle.seconds.median);
                table.row([
                    format!("{} {}", count(one.locks), one.what),
                    count(one.processes),
                    source.name().to_owned(),
                    time(together.median),
                    time(apart.median),
                    times(together.median / apart.median),
                    times(cost),
                ]);
            }
        }
        table.note(
            "The last column, which the goals take, leaves out what a scan of the idle machine \
             costs, unless the locks add less than a quarter to that.",
        );
        table
    }

    fn unseen(&self) -> Table {
        let mut table = Table::new(
            "What no fd table shows (bpf)",
            &["locks", "beside them", "median", "min", "cpu", "peak memory"],
        );
        let sockets = format!("{} sockets, {} mappings", count(SOCKETS), count(MAPPINGS));
        let orphans = format!("{sockets}, {} orphans in flight", count(IN_FLIGHT));
        let Unseen { idle, alone, around, in_flight, many, .. } = &self.unseen;
        let rows = [
            (0, sockets.as_str(), Some(idle)),
            (AROUND.locks, "nothing", Some(alone)),
            (AROUND.locks, &sockets, Some(around)),
            (AROUND.locks, &orphans, Some(in_flight)),
            (MANY, &sockets, many.as_ref()),
        ];
        for (locks, what, scans) in rows {
            let Some(scans) = scans else { continue };
            table.row([
                count(locks),
                what.to_owned(),
                time(scans.seconds.median),
                time(scans.seconds.least),
                time(scans.cpu),
                megabytes(scans.peak),
            ]);
        }
        table.note(format!(
            "What is in flight must be seen twice: the row with orphans holds a wait of {}.",
            time(goals::GRACE)
        ));
        table
    }

    fn idle(&self) -> Table {
        let mut table = Table::new(
            "The machine as it is",
            &["source", "median", "min", "cpu", "runs", "peak memory"],
        );
        for (source, scans) in [(Source::Bpf, &self.idle.bpf), (Source::Procfs, &self.idle.procfs)]
        {
            table.row([
                source.name().to_owned(),
                time(scans.seconds.median),
                time(scans.seconds.least),
                time(scans.cpu),
                count(scans.seconds.runs),
                megabytes(scans.peak),
            ]);
        }
        table
    }

    fn pairs(&self) -> Table {
        let mut table = Table::new(
            "A process that does flock/unlock pairs, 10,000 locks around it",
            &["beside it, in a loop", "pairs/s", "relative", "loops/s"],
        );
        for pairs in &self.pairs {
            let beside = match pairs.beside {
                Beside::Nothing => "nothing".to_owned(),
                Beside::Scan(source) => format!("scan --source {}", source.name()),
                Beside::Read => "reading /proc/locks".to_owned(),
            };
            let loops = match pairs.beside {
                Beside::Nothing => String::new(),
                _ => format!("{:.1}", pairs.loops),
            };
            table.row([
                beside,
                count(pairs.rate.median as usize),
                format!("{:.2}", pairs.relative),
                loops,
            ]);
        }
        table
    }

    fn goals(&self) -> Table {
        let mut table = Table::new("Goals", &["goal", "measured", "verdict"]);
        for goal in &self.goals {
            table.row([goal.what.clone(), goal.measured.clone(), goal.verdict.word().to_owned()]);
        }
        table
    }
}

fn peer(peer: Peer) -> String {
    match peer {
        Peer::Ran(stats) => time(stats.median),
        Peer::Cut(bound) => format!("> {bound:.0} s"),
        Peer::Failed => "failed".to_owned(),
        Peer::Absent => "not installed".to_owned(),
    }
}

fn cell_json(cell: &Cell) -> Value {
    let lslocks = match cell.lslocks {
        Peer::Ran(stats) => stats_json(stats),
        Peer::Cut(bound) => json!({"more_than": bound}),
        Peer::Failed | Peer::Absent => Value::Null,
    };
    json!({
        "locks": cell.locks, "processes": cell.processes,
        "bpf": scans_json(&cell.bpf), "procfs": scans_json(&cell.procfs),
        "lslocks": lslocks, "read_proc_locks": stats_json(cell.read), "others": cell.others,
    })
}

fn one_file_json(one: &OneFile) -> Value {
    let pair = |(together, apart)| json!({"one_file": stats_json(together), "separate": stats_json(apart)});
    json!({
        "what": one.what, "locks": one.locks, "processes": one.processes,
        "bpf": pair(one.bpf), "procfs": pair(one.procfs), "others": one.others,
    })
}

fn pairs_json(pairs: &Pairs) -> Value {
    let beside = match pairs.beside {
        Beside::Nothing => Value::Null,
        Beside::Scan(source) => json!(format!("scan --source {}", source.name())),
        Beside::Read => json!("read /proc/locks"),
    };
    json!({
        "beside": beside, "pairs_per_second": pairs.rate.median, "relative": pairs.relative,
        "loops_per_second": pairs.loops,
    })
}

fn scans_json(scans: &Scans) -> Value {
    json!({"seconds": stats_json(scans.seconds), "cpu_seconds": scans.cpu, "peak_bytes": scans.peak})
}

fn stats_json(stats: Stats) -> Value {
    json!({"median": stats.median, "min": stats.least, "runs": stats.runs})
}
