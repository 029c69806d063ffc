//! The contract's metrics, one family after the other.
//!
//! Knows names, help and labels; how they are written is the format's matter.

use super::Sheet;
use super::activity::{ActivityKind, OfKind};
use super::text::{Format, Kind, Text};

/// Writes everything.
pub fn write(sheet: &Sheet<'_>, format: Format) -> String {
    let mut text = Text::new(format);
    daemon(&mut text, sheet);
    if let Some(counts) = sheet.counts {
        view(&mut text, counts);
    }
    if let Some(activity) = sheet.activity {
        kernel(&mut text, &activity.kinds);
    }
    events(&mut text, sheet);
    text.end()
}

fn daemon(text: &mut Text, sheet: &Sheet<'_>) {
    text.family("lockwatch_build", Kind::Info, "Version of lockwatch and release of the kernel.")
        .number(&[("version", sheet.version), ("kernel", sheet.kernel)], 1);
    let help = "When the daemon began, in seconds since 1970.";
    text.family("lockwatch_start_time_seconds", Kind::Gauge, help).seconds(&[], sheet.started);
    let help = "When the engine last took a step, in seconds since 1970.";
    let mut family = text.family("lockwatch_heartbeat_timestamp_seconds", Kind::Gauge, help);
    if let Some(heartbeat) = sheet.heartbeat {
        family.seconds(&[], heartbeat);
    }
    text.family("lockwatch_gc_runs", Kind::Counter, "Full reconciliations with the kernel.")
        .number(&[], sheet.tally.gc_runs());
}

fn view(text: &mut Text, counts: &super::Counts) {
    let mut family = text.family("lockwatch_locks", Kind::Gauge, "Locks that are there now.");
    for (kind, access, state, count) in counts.locks() {
        let labels = [("type", kind.name()), ("access", access.name()), ("state", state.name())];
        family.number(&labels, count);
    }
    let mut family = text.family("lockwatch_waiters", Kind::Gauge, "Requests that wait now.");
    for (kind, count) in counts.waiters() {
        family.number(&[("type", kind.name())], count);
    }
    let help = "Locks that are there now though nothing that is left was meant to hold them.";
    let mut family = text.family("lockwatch_orphaned_locks", Kind::Gauge, help);
    for (reason, count) in counts.orphaned() {
        family.number(&[("reason", reason.name())], count);
    }
    let help = "1 where a watched file has an orphaned lock. Absent where that cannot be told.";
    let mut family = text.family("lockwatch_watched_lock_hot", Kind::Gauge, help);
    for watch in counts.watches() {
        if let Some(hot) = watch.hot {
            family.number(&[("name", &watch.name)], hot.into());
        }
    }
    let help = "1 where a watched file is locked. Absent where that cannot be told.";
    let mut family = text.family("lockwatch_watched_lock_held", Kind::Gauge, help);
    for watch in counts.watches() {
        if let Some(held) = watch.held {
            family.number(&[("name", &watch.name)], held.into());
        }
    }
    let help = "When the oldest lock on a watched file was taken, in seconds since 1970. Absent \
                where there is none, or where that is not known.";
    let mut family = text.family("lockwatch_watched_lock_held_since_seconds", Kind::Gauge, help);
    for watch in counts.watches() {
        if let Some(since) = watch.since {
            family.seconds(&[("name", &watch.name)], since);
        }
    }
}

fn kernel(text: &mut Text, kinds: &[OfKind; 4]) {
    type Member = fn(&OfKind) -> Option<u64>;
    let counters: [(&'static str, &str, Member); 3] = [
        ("lockwatch_acquisitions", "Locks taken.", |of| of.acquisitions),
        ("lockwatch_releases", "Locks given up.", |of| of.releases),
        ("lockwatch_refusals", "Non-blocking attempts that met a lock.", |of| of.refusals),
    ];
    for (name, help, member) in counters {
        let mut family = text.family(name, Kind::Counter, help);
        for (kind, of) in ActivityKind::ALL.into_iter().zip(kinds) {
            if let Some(count) = member(of) {
                family.number(&[("type", kind.name())], count);
            }
        }
    }
    type Spans = fn(&OfKind) -> Option<&super::Buckets>;
    let histograms: [(&'static str, &str, Spans); 2] = [
        ("lockwatch_wait_seconds", "How long granted requests had waited.", |of| of.wait.as_ref()),
        ("lockwatch_hold_seconds", "How long locks were held when they were given up.", |of| {
            of.hold.as_ref()
        }),
    ];
    for (name, help, member) in histograms {
        let mut family = text.family(name, Kind::Histogram, help);
        for (kind, of) in ActivityKind::ALL.into_iter().zip(kinds) {
            if let Some(buckets) = member(of) {
                family.histogram(&[("type", kind.name())], buckets);
            }
        }
    }
}

fn events(text: &mut Text, sheet: &Sheet<'_>) {
    let tally = sheet.tally;
    let help = "From an owner's death to telling that its lock is orphaned.";
    text.family("lockwatch_orphan_detection_seconds", Kind::Histogram, help)
        .histogram(&[], tally.detection());
    let help = "Exclusive locks that ended by their owner's crash and were taken again at once.";
    text.family("lockwatch_crash_handoffs", Kind::Counter, help)
        .number(&[], tally.crash_handoffs());
    let help = "Races, deadlocks and long waits that were seen.";
    let mut family = text.family("lockwatch_races", Kind::Counter, help);
    for (race, count) in tally.races() {
        family.number(&[("kind", race.name())], count);
    }
    let help = "Reclaims, by how they were done and how they ended.";
    let mut family = text.family("lockwatch_reclaims", Kind::Counter, help);
    for (method, result, count) in tally.reclaims() {
        family.number(&[("method", method), ("result", result.name())], count);
    }
    let help = "Records of what happened that were lost; the next reading mends it.";
    text.family("lockwatch_events_lost", Kind::Counter, help).number(&[], tally.lost());
    text.family("lockwatch_resyncs", Kind::Counter, "Readings that mended a loss.")
        .number(&[], tally.resyncs());
}
