use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::engine::classify::{Confidence, Reason, State, Verdict};
use crate::engine::event::{Event, Kind, Told};
use crate::engine::grounds::Grounds;
use crate::engine::id::{self, IdKey, LockId};
use crate::engine::identity::{
    Access, BootTime, Dev, LockKind, Owner, ProcessId, Range, RecordedPid, StartTime,
};
use crate::engine::input::{FileId, LockName, Moment, Watched};
use crate::engine::snapshot::{
    Death, File, FileIx, Hides, Limit, Lock, Remembered, Snapshot, Taken, Waiter,
};
use crate::engine::view::View;
use crate::sink::clock::Clock;

const DEV: Dev = Dev::new(0xfe, 0);
/// Booted a thousand seconds after 1970.
const CLOCK: Clock = Clock { unix: 1_500_000_000_000, boot: 500_000_000_000 };

fn lock(file: u32, kind: LockKind, taken_at: Option<u64>) -> Lock {
    Lock {
        entry: 0,
        file: FileIx(file),
        kind,
        access: Access::Write,
        range: Range::WHOLE,
        owner: Some(Owner::new(u64::from(file) * 16 + kind as u64)),
        acquirer: RecordedPid::Local(70),
        breaking_to: None,
        taken: taken_at.map(|at| Taken {
            at: BootTime(at),
            by: Remembered {
                id: ProcessId { pid: 70, start: StartTime(1) },
                comm: (*b"owner").into(),
                ns_pid: None,
                pid_ns: None,
                exe: None,
                cgroup: None,
            }
            .into(),
        }),
    }
}

fn view(locks: Vec<Lock>, limits: Vec<Limit>) -> View {
    let file = |ino| File { dev: DEV, ino, size: None, path: None, deleted: None, replaced: None };
    let waiter = Waiter {
        behind: None,
        file: FileIx(0),
        kind: LockKind::Flock,
        access: Access::Write,
        range: Range::WHOLE,
        owner: Some(Owner::new(1)),
        requester: RecordedPid::Local(71),
        since: None,
    };
    let snapshot = Snapshot {
        files: (1..=3).map(file).collect(),
        locks: locks.into(),
        waiters: vec![waiter],
        stable_owners: true,
        limits,
        ..Snapshot::default()
    };
    let ids = id::assign(&snapshot, &IdKey([1; 16]));
    View::new(snapshot, &ids)
}

fn watch(name: &str, ino: u64) -> Watched {
    let file = Some(FileId { dev: DEV, ino });
    Watched { name: name.into(), path: (*b"/srv/x").into(), file }
}

fn shown(counts: Option<&Counts>, tally: &Tally, activity: Option<&Activity>) -> String {
    let sheet = Sheet {
        version: "0.1.0",
        kernel: "6.18.5",
        started: 1_000_000_000,
        heartbeat: Some(2_500_000_000),
        counts,
        tally,
        activity,
    };
    let text = write(&sheet, Format::Prometheus);
    let open = write(&sheet, Format::OpenMetrics);
    assert_eq!(samples(&text), samples(&open), "the formats differ in their samples");
    text
}

fn samples(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut samples = BTreeMap::new();
    for line in lines {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(samples.insert(name, value).is_none(), "{name} is there twice");
    }
    samples
}

#[track_caller]
fn has(text: &str, name: &str, value: &str) {
    assert_eq!(samples(text).get(name), Some(&value), "{name} in:\n{text}");
}

#[track_caller]
fn lacks(text: &str, name: &str) {
    assert!(!text.lines().any(|line| line.starts_with(name)), "{name} in:\n{text}");
}

/// Every name of the contract, with its labels.
const CONTRACT: &[(&str, &[&str])] = &[
    ("lockwatch_build_info", &["version", "kernel"]),
    ("lockwatch_start_time_seconds", &[]),
    ("lockwatch_locks", &["type", "access", "state"]),
    ("lockwatch_waiters", &["type"]),
    ("lockwatch_orphaned_locks", &["reason"]),
    ("lockwatch_acquisitions_total", &["type"]),
    ("lockwatch_releases_total", &["type"]),
    ("lockwatch_refusals_total", &["type"]),
    ("lockwatch_wait_seconds", &["type", "le"]),
    ("lockwatch_hold_seconds", &["type", "le"]),
    ("lockwatch_orphan_detection_seconds", &["le"]),
    ("lockwatch_crash_handoffs_total", &[]),
    ("lockwatch_races_total", &["kind"]),
    ("lockwatch_reclaims_total", &["method", "result"]),
    ("lockwatch_events_lost_total", &[]),
    ("lockwatch_resyncs_total", &[]),
    ("lockwatch_gc_runs_total", &[]),
    ("lockwatch_heartbeat_timestamp_seconds", &[]),
    ("lockwatch_watched_lock_hot", &["name"]),
    ("lockwatch_watched_lock_held", &["name"]),
    ("lockwatch_watched_lock_held_since_seconds", &["name"]),
];

fn activity() -> Activity {
    let mut activity = Activity::default();
    for kind in &mut activity.kinds[..3] {
        let mut wait = Buckets::default();
        wait.observe(1_000_000);
        *kind = OfKind {
            acquisitions: Some(5),
            releases: Some(4),
            refusals: Some(3),
            wait: Some(wait),
            hold: Some(wait),
        };
    }
    activity.kinds[3].refusals = Some(1);
    activity
}

fn whole() -> String {
    let view = view(vec![lock(0, LockKind::Flock, Some(1_000_000_000))], Vec::new());
    let counts = Counts::of(&view, &[watch("aim", 1)], CLOCK);
    shown(Some(&counts), &Tally::default(), Some(&activity()))
}

#[test]
fn the_metrics_are_those_of_the_contract_with_its_labels_and_no_others() {
    let text = whole();
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for name in samples(&text).keys() {
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let histogram = ["_bucket", "_sum", "_count"]
            .into_iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|name| name.ends_with("_seconds")));
        let labels = labels.trim_end_matches('}').split("\",");
        let labels = labels.filter_map(|label| Some(label.split_once('=')?.0));
        found.entry(histogram.unwrap_or(name)).or_default().extend(labels);
    }
    let contract =
        CONTRACT.iter().map(|(name, labels)| (*name, labels.iter().copied().collect())).collect();
    assert_eq!(found, contract);
}

#[test]
fn locks_waiters_and_orphans_are_counted() {
    let view = view(
        vec![
            lock(0, LockKind::Flock, None),
            lock(1, LockKind::Flock, None),
            lock(2, LockKind::Layout, None),
        ],
        Vec::new(),
    );
    let states: Vec<_> = view.locks.iter().map(|lock| lock.verdict.state).collect();
    // No reference, and nobody has the pid; layouts are the NFS server's.
    assert_eq!(states, [State::Orphaned, State::Orphaned, State::Remote]);
    let counts = Counts::of(&view, &[], CLOCK);
    let text = shown(Some(&counts), &Tally::default(), None);
    let orphaned = "type=\"FLOCK\",access=\"WRITE\",state=\"orphaned\"";
    has(&text, &format!("lockwatch_locks{{{orphaned}}}"), "2");
    let none = "type=\"POSIX\",access=\"READ\",state=\"held\"";
    has(&text, &format!("lockwatch_locks{{{none}}}"), "0");
    let rare = "type=\"LAYOUT\",access=\"WRITE\",state=\"remote\"";
    has(&text, &format!("lockwatch_locks{{{rare}}}"), "1");
    lacks(&text, "lockwatch_locks{type=\"LAYOUT\",access=\"WRITE\",state=\"held\"}");
    has(&text, "lockwatch_orphaned_locks{reason=\"unaccounted\"}", "2");
    has(&text, "lockwatch_orphaned_locks{reason=\"mmap\"}", "0");
    has(&text, "lockwatch_waiters{type=\"FLOCK\"}", "1");
    has(&text, "lockwatch_waiters{type=\"LEASE\"}", "0");
}

#[test]
fn a_watch_is_hot_held_or_free() {
    let view = view(vec![lock(0, LockKind::Flock, Some(1_000_000_000))], Vec::new());
    let absent = Watched { file: None, ..watch("absent", 0) };
    let counts = Counts::of(&view, &[watch("hot", 1), watch("free", 2), absent], CLOCK);
    let text = shown(Some(&counts), &Tally::default(), None);
    has(&text, "lockwatch_watched_lock_hot{name=\"hot\"}", "1");
    has(&text, "lockwatch_watched_lock_held{name=\"hot\"}", "1");
    let since = "lockwatch_watched_lock_held_since_seconds";
    has(&text, &format!("{since}{{name=\"hot\"}}"), "1001.000000000");
    for name in ["free", "absent"] {
        has(&text, &format!("lockwatch_watched_lock_hot{{name=\"{name}\"}}"), "0");
        has(&text, &format!("lockwatch_watched_lock_held{{name=\"{name}\"}}"), "0");
        lacks(&text, &format!("{since}{{name=\"{name}\"}}"));
    }
}

#[test]
fn what_cannot_be_known_is_left_out_and_never_0() {
    let hidden = Limit { what: "a list was cut".into(), hides: Hides::Locks };
    let locks = vec![lock(0, LockKind::Flock, Some(5)), lock(0, LockKind::Posix, None)];
    let view = view(locks, vec![hidden]);
    let counts = Counts::of(&view, &[watch("seen", 1), watch("unseen", 2)], CLOCK);
    let text = shown(Some(&counts), &Tally::default(), None);
    has(&text, "lockwatch_watched_lock_held{name=\"seen\"}", "1");
    lacks(&text, "lockwatch_watched_lock_held{name=\"unseen\"}");
    lacks(&text, "lockwatch_watched_lock_hot{name=\"unseen\"}");
    lacks(&text, "lockwatch_watched_lock_held_since_seconds{name=\"seen\"}");
    lacks(&text, "lockwatch_acquisitions_total");

    let text = shown(None, &Tally::default(), None);
    lacks(&text, "lockwatch_locks");
    lacks(&text, "lockwatch_orphaned_locks");

    let text = shown(None, &Tally::default(), Some(&activity()));
    has(&text, "lockwatch_refusals_total{type=\"LEASE\"}", "1");
    lacks(&text, "lockwatch_acquisitions_total{type=\"LEASE\"}");
    lacks(&text, "lockwatch_hold_seconds_count{type=\"LEASE\"}");
}

#[test]
fn histograms_are_cumulative_and_end_with_everything() {
    let text = whole();
    let of = |le: &str| format!("lockwatch_wait_seconds_bucket{{type=\"FLOCK\",le=\"{le}\"}}");
    has(&text, &of("0.000262144"), "0");
    has(&text, &of("0.001048576"), "1");
    has(&text, &of("274.877906944"), "1");
    has(&text, &of("+Inf"), "1");
    has(&text, "lockwatch_wait_seconds_sum{type=\"FLOCK\"}", "0.001000000");
    has(&text, "lockwatch_wait_seconds_count{type=\"FLOCK\"}", "1");
}

fn event(kind: Kind, death: Option<u64>) -> Event {
    let told = death.map(|at| Told {
        lock: LockName {
            id: LockId { dev: DEV, ino: 1, hash: 1, long: false },
            file: FileId { dev: DEV, ino: 1 },
            kind: LockKind::Flock,
            access: Access::Write,
            range: Range::WHOLE,
        },
        path: None,
        watch: None,
        acquirer: None,
        death: Some(Death {
            process: ProcessId { pid: 70, start: StartTime(1) },
            at: BootTime(at),
            code: None,
            signal: Some(9),
        }),
        taken_at: None,
    });
    let at = Moment { boot: BootTime(10_000_000_000), unix: 0 };
    Event { seq: 1, at, lock: told, kind }
}

fn orphaned() -> Kind {
    let verdict = Verdict {
        state: State::Orphaned,
        reason: Some(Reason::Inherited),
        confidence: Confidence::Certain,
        evidence: Grounds::default(),
        acquirer_alive: Some(false),
        recycled: false,
        detached: false,
    };
    Kind::Orphaned { verdict, holders: Vec::new(), more: 0 }
}

#[test]
fn events_add_up() {
    let mut tally = Tally::default();
    tally.event(&event(orphaned(), Some(9_750_000_000)));
    tally.event(&event(orphaned(), None));
    tally.event(&event(Kind::Deadlock { members: Vec::new() }, None));
    tally.event(&event(Kind::Lost { records: 7 }, None));
    tally.event(&event(Kind::AllClear, None));
    tally.race(Race::ReclaimRace);
    tally.reclaim("fd", ReclaimResult::Released);
    tally.reclaim("new", ReclaimResult::Failed);
    tally.gc_run();
    let text = shown(None, &tally, None);
    has(&text, "lockwatch_orphan_detection_seconds_count", "1");
    has(&text, "lockwatch_orphan_detection_seconds_sum", "0.250000000");
    has(&text, "lockwatch_races_total{kind=\"deadlock\"}", "1");
    has(&text, "lockwatch_races_total{kind=\"reclaim_race\"}", "1");
    has(&text, "lockwatch_races_total{kind=\"crash_handoff\"}", "0");
    has(&text, "lockwatch_crash_handoffs_total", "0");
    has(&text, "lockwatch_events_lost_total", "7");
    has(&text, "lockwatch_resyncs_total", "1");
    has(&text, "lockwatch_gc_runs_total", "1");
    has(&text, "lockwatch_reclaims_total{method=\"fd\",result=\"released\"}", "1");
    has(&text, "lockwatch_reclaims_total{method=\"signal\",result=\"failed\"}", "0");
    has(&text, "lockwatch_reclaims_total{method=\"new\",result=\"failed\"}", "1");
}

#[test]
fn the_size_of_a_scrape_does_not_depend_on_the_number_of_locks() {
    let few = Counts::of(&view(vec![lock(0, LockKind::Flock, None)], Vec::new()), &[], CLOCK);
    let many = (0..3000).map(|at| Lock {
        owner: Some(Owner::new(at * 16)),
        ..lock((at % 3) as u32, LockKind::Flock, None)
    });
    let many = Counts::of(&view(many.collect(), Vec::new()), &[], CLOCK);
    let lines = |counts| shown(Some(counts), &Tally::default(), None).lines().count();
    assert_eq!(lines(&few), lines(&many));
}

#[test]
fn promtool_has_nothing_to_say_against_it() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut check) = check.stderr(Stdio::piped()).spawn() else {
        eprintln!("skipped: promtool is not installed");
        return;
    };
    check.stdin.take().unwrap().write_all(whole().as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
