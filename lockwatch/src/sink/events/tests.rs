//! Every kind of event as it is written, and docs/events.md, which is made of it.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::engine::input::{Input, Started};
use crate::engine::machine::tests::stories;

/// The events of every story, in their order.
fn events() -> Vec<Event> {
    stories::all().into_iter().flat_map(|(_, stage)| stage.events).collect()
}

fn json(event: &Event) -> String {
    let mut line = Vec::new();
    write_json(&mut line, event).unwrap();
    String::from_utf8(line).unwrap()
}

fn sentence(event: &Event) -> String {
    let mut line = Vec::new();
    write_sentence(&mut line, event).unwrap();
    String::from_utf8(line).unwrap()
}

#[test]
fn an_event_is_one_line_that_begins_with_moment_number_and_kind() {
    for event in events() {
        let line = json(&event);
        assert_eq!(line.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["seq"], event.seq);
        assert_eq!(value["kind"], event.kind.name());
        let ts = value["ts"].as_str().unwrap();
        assert_eq!(ts.len(), "2026-11-25T12:00:00.000000000Z".len(), "nanoseconds: {ts}");
        assert!(line.starts_with("{\"ts\":\""), "{line}");
    }
}

#[test]
fn an_orphan_is_told_with_its_lock_its_acquirers_end_and_its_holders() {
    let stage = stories::orphan();
    let value: Value = serde_json::from_str(&json(stage.last("orphaned"))).unwrap();
    let expected = serde_json::json!({
        "ts": "2026-11-25T09:46:52.250000000Z",
        "seq": 2,
        "kind": "orphaned",
        "lock": {
            "id": value["lock"]["id"],
            "type": "FLOCK",
            "access": "WRITE",
            "start": 0,
            "end": null,
            "file": {"path": stories::PATH, "dev": "fe:00", "ino": 131},
            "watch": null,
            "acquirer": {
                "pid": 8123,
                "ns_pid": 8123,
                "comm": "locksmith",
                "exe": "/usr/bin/locksmith",
                "start_time": "2026-11-25T09:46:45.000000001Z",
                "cgroup": null,
                "exit": {"code": null, "signal": 9, "at": "2026-11-25T09:46:52.000000000Z"},
            },
            "acquired_at": "2026-11-25T09:46:46.000000000Z",
        },
        "state": "orphaned",
        "reason": "inherited",
        "confidence": "certain",
        "evidence": [
            "no process has the recorded pid 8123",
            "the acquirer, pid 8123, was ended by signal 9",
            "pid 8130 was born after the lock was taken",
            "pid 8130 carried the descriptor across an exec",
        ],
        "holders": [{
            "pid": 8130,
            "ns_pid": 8130,
            "comm": "sleep",
            "exe": "/usr/bin/sleep",
            "start_time": "2026-11-25T09:46:47.000000001Z",
            "cgroup": null,
            "via": "fd",
            "fd": 3,
        }],
        "more_holders": 0,
    });
    assert_eq!(value, expected);
    assert!(value["lock"]["id"].as_str().unwrap().starts_with("fe:00:131-"));
}

#[test]
fn a_sentence_escapes_every_name_from_outside() {
    let mut stage = stories::refused();
    let mut event = stage.last("refused").clone();
    event.lock.as_mut().unwrap().path = Some(b"/srv/a\nb\x1b[31m".as_slice().into());
    let Kind::Refused { by, .. } = &mut event.kind else { unreachable!() };
    by.comm = Some(b"\x1b]0;x".as_slice().into());
    let line = sentence(&event);
    assert!(line.ends_with('\n') && !line.trim_end().chars().any(char::is_control), "{line:?}");
    assert!(line.contains("/srv/a\\nb\\x1b[31m"), "{line}");
    stage.input(Input::Started(Started {
        last_seq: None,
        told: Vec::new(),
        continued: false,
        version: "0.1.0\n".into(),
        kernel: "6.18\x1b".into(),
    }));
    assert!(!sentence(stage.last("started")).trim_end().chars().any(char::is_control));
}

#[test]
fn a_path_that_is_no_text_is_written_in_base64_too() {
    let mut event = stories::refused().last("refused").clone();
    event.lock.as_mut().unwrap().path = Some(b"/srv/\xff".as_slice().into());
    let value: Value = serde_json::from_str(&json(&event)).unwrap();
    assert_eq!(value["lock"]["file"]["path"], "/srv/\u{fffd}");
    assert_eq!(value["lock"]["file"]["path_b64"], "L3Nydi//");
}

/// What docs/events.md says of each kind, in its order.
const KINDS: [(&str, &str); 19] = [
    (
        "started",
        "The watch began. `continued` is true where the kernel went on recording since another daemon ended; `seq` then goes on, too, and `last_seq` says up to which number the daemon before had counted: an event up to there that nobody has was lost when that daemon was killed. What it told and still lasts is not told again.",
    ),
    (
        "orphaned",
        "A lock outlived everybody who was meant to hold it. Told once for each lock: after a reading of the kernel's tables that was begun at least `grace` after its owner's death, or, where that death was not seen or the reason may pass by itself, after two readings a grace apart. `holders` has the first 16 descriptors, `more_holders` says how many more there are.",
    ),
    (
        "recovered",
        "An orphan is one no longer: `how` is `released` where the lock is gone, `reclassified` where it is there and somebody's by right.",
    ),
    ("all_clear", "The last orphan is gone."),
    (
        "crash_handoff",
        "An exclusive lock ended because its owner died without unlocking it (by a signal, or with a code other than 0), and another process took it within the window, 5 seconds. `lock` is the one that ended, with its owner's end in `acquirer.exit`; `to` has the file now. `written` says whether the file was written between the dead owner's acquisition and its death; `null` where its time of modification cannot tell. A lock that was announced as an orphan did not end by the crash, and makes none.",
    ),
    (
        "exit_race",
        "Another process tried for the lock while its owner was already exiting and had not yet released it. Told once the lock has ended so, or is stuck in its owner's exit: an owner that handed its lock over exits, too. Once for each process that tried.",
    ),
    (
        "pid_recycled",
        "The recorded pid of a live lock was given to a new process, `to`. Whoever looks at the pid alone blames that one.",
    ),
    (
        "lock_replaced",
        "Two inodes that had the same path are exclusively locked at the same time: the lock file was unlinked and made anew. `lock` is on the one that lost the path, `new_lock` on the other. Told once for each pair of files.",
    ),
    (
        "refused",
        "A non-blocking attempt met a lock that is watched or an announced orphan. Of the attempts of one thread on one lock at most one in a tenth of a second is told; `lockwatch_refusals_total` counts them all.",
    ),
    (
        "long_wait",
        "A wait passed its threshold, 30 seconds. Told once for each wait; `since` is `null` where nobody saw it begin. `lock` is the first of those that block it, `blocked_by` names all.",
    ),
    (
        "deadlock",
        "Waiters that wait for each other, over FLOCK, OFDLCK and POSIX locks. Each member waits for a lock that the next one holds, the last for one of the first. Told once for each set of members, and again only after it was gone; it must be there in two readings a grace apart. Nobody outside of the members can release one of the locks, but for a parent that has the same descriptor and waits for its child, as a shell does that runs flock(1). Any thread of a process can release what the process holds, so a member is a process every single one of whose threads waits for the deadlocked ones: one that has a thread to spare is left to `long_wait`, and so is one whose threads could not be counted.",
    ),
    (
        "reclaim_planned",
        "A lock is about to be reclaimed, by the configuration (`by` is `policy`) or because somebody wrote into the tree (`tree`). Its hooks have not begun. `through` is the process whose descriptor it is done with, `warnings` says what could go wrong all the same. A `lockwatch reclaim` that was typed by hand is in the record of reclaims, and not here.",
    ),
    (
        "reclaim_done",
        "It was released, the kernel's tables were read again and did not have it, and every hook succeeded. `took_ns` is the time from the decision to that reading, hooks not counted. `hooks` has each hook that was run, with the end of what it wrote.",
    ),
    (
        "reclaim_failed",
        "It was not released (`result` is `refused`, `not_tried`, `still_held`, `unverified` or `failed`), or it was `released` and a hook failed. The policy tries again after `retry`, each time later. An orphan for which there is no way that leaves every process alone, or that is not certain enough for the policy, is told so once. Where there were more than `per_minute` reclaims it is told here, and `reclaim_enabled` goes to 0.",
    ),
    (
        "reclaim_race",
        "Between the plan and its execution the lock, its owner or its file changed: nothing was done. `race` names what changed, `why` says it. Or, with `race` `written`: `writer`, which had lost the lock by a reclaim, wrote to the file within the minute after it without having taken a lock on it anew. That is told where fanotify can watch the file without opening it (docs/reclaim.md).",
    ),
    (
        "lost",
        "So many records of the moment were lost, because a buffer or table was full. The kernel's tables were read anew before this was told: what locks there are is known again. A race in between may have been missed.",
    ),
    (
        "acquired",
        "Only with `--verbose-events`: a lock was taken on a file to which attention is paid.",
    ),
    ("released", "Only with `--verbose-events`: a lock was given up there by a living process."),
    ("blocked", "Only with `--verbose-events`: an attempt waits there."),
];

/// Text in lines of at most 100 characters.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        if lines.last().unwrap().len() + word.len() >= 100 {
            lines.push(String::new());
        }
        let line = lines.last_mut().unwrap();
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.join("\n")
}

fn documentation() -> String {
    let mut examples: BTreeMap<&str, Event> = BTreeMap::new();
    for event in events() {
        examples.entry(event.kind.name()).or_insert(event);
    }
    assert_eq!(examples.len(), KINDS.len(), "a story and a text for each kind");
    let mut text = String::from(
        "# Events\n\n\
         `lockwatch events`, the tree's `events` file, `--log` and `lockwatch replay --json` write one\n\
         JSON object a line. Every one has `ts`, when it was told (RFC 3339, nanoseconds, UTC), `seq`,\n\
         which counts without a gap, and `kind`. `lock`, where an event is about one, names the lock as\n\
         `scan --json` does, with who took it, when, and how that process ended (`exit` is `null` while\n\
         it lives, and where its end was not seen). What is not known is `null`.\n\n\
         A record of the moment waits 5 ms for such as come late, so races are told that much after\n\
         they happened; the moments of what happened are in the event.\n\n\
         This file is written by a test from the engine's own stories:\n\
         `LOCKWATCH_RENEW=1 cargo test -p lockwatch events` renews it.\n",
    );
    for (kind, meaning) in KINDS {
        let event = &examples[kind];
        let whole = serde_json::to_string_pretty(&Line(event)).unwrap();
        let meaning = wrapped(meaning);
        text += &format!(
            "\n## {kind}\n\n{meaning}\n\n```json\n{whole}\n```\n\nOn a terminal:\n\n```text\n{}```\n",
            sentence(event)
        );
    }
    text
}

#[test]
fn the_documentation_of_events_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md");
    let text = documentation();
    if std::env::var_os("LOCKWATCH_RENEW").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(text.lines()).find(|(written, now)| written != now);
    assert!(
        written == text,
        "docs/events.md is out of date ({differs:?}); \
         LOCKWATCH_RENEW=1 cargo test -p lockwatch events"
    );
}
