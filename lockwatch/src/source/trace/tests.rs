//! What is written comes back, whole or cut; and whatever else comes is an error with its line.

use proptest::prelude::*;

use super::*;
use crate::engine::event::Event;
use crate::engine::id::LockId;
use crate::engine::identity::{
    Access, BootTime, Dev, LockKind, Owner, ProcessId, Range, StartTime,
};
use crate::engine::input::{
    Acquired, Attempt, Ended, FileId, LockName, Outcome, Output, Permission, PidReused, Policy,
    Reading, Released, Started, Watched,
};
use crate::engine::machine::Engine;
use crate::engine::machine::tests::stage::Stage;
use crate::engine::machine::tests::stories;
use crate::engine::reclaim::progress::Ending;
use crate::engine::snapshot::{Death, Remembered};

const SECRET: &[u8; 16] = b"only in this run";

fn written(settings: &Settings, inputs: &[(Moment, Input)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, SECRET, "0.1.0", settings).unwrap();
    for (at, input) in inputs {
        writer.write(*at, input).unwrap();
    }
    writer.flush().unwrap();
    bytes
}

fn of_story(name: &str, stage: &Stage) -> Vec<u8> {
    let verbose = name == "verbose";
    written(&Settings { verbose, ..Settings::default() }, &stage.inputs)
}

/// The events of a trace, as JSON, and the error with which it ended.
fn replayed(trace: &[u8]) -> (Vec<String>, Option<TraceError>) {
    let reader = match Reader::new(trace) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut engine = Engine::new(reader.settings().clone());
    let mut events = Vec::new();
    for read in reader {
        let (at, input) = match read {
            Ok(read) => read,
            Err(error) => return (events, Some(error)),
        };
        for output in engine.step(at, input) {
            if let Output::Event(event) = output {
                events.push(json(&event));
            }
        }
    }
    (events, None)
}

// Tests may look across rooms; what they compare is what is written.
fn json(event: &Event) -> String {
    let mut line = Vec::new();
    crate::sink::events::write_sentence(&mut Vec::new(), event).unwrap();
    crate::sink::events::write_json(&mut line, event).unwrap();
    String::from_utf8(line).unwrap()
}

#[test]
fn a_replay_tells_the_same_events_byte_for_byte() {
    for (name, stage) in stories::all() {
        let (events, error) = replayed(&of_story(name, &stage));
        assert!(error.is_none(), "{name}: {error:?}");
        let live: Vec<String> = stage.events.iter().map(json).collect();
        assert_eq!(events, live, "{name}");
        assert!(events.len() > 1, "{name}");
    }
}

#[test]
fn every_prefix_of_a_trace_replays_to_a_prefix_of_its_events() {
    for (name, stage) in stories::all() {
        let trace = of_story(name, &stage);
        let (all, _) = replayed(&trace);
        let header = trace.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        // Around every line's end, and here and there in between.
        let is_cut = |&length: &usize| {
            length % 509 == 0 || trace[length.saturating_sub(1)..=length].contains(&b'\n')
        };
        for length in (0..trace.len()).filter(is_cut) {
            let (events, error) = replayed(&trace[..length]);
            assert!(all.starts_with(&events), "{name} cut at {length}");
            let whole_line = length == 0 || trace[length - 1] == b'\n';
            match error {
                None => assert!(
                    whole_line || trace[length] == b'\n',
                    "{name} cut at {length}: half a line passed"
                ),
                Some(TraceError::Cut { .. }) => assert!(!whole_line),
                Some(error) => {
                    assert!(length < header - 1, "{name} cut at {length}: {error}");
                }
            }
        }
    }
}

#[test]
fn no_pointer_is_written_down() {
    let mut stage = stories::deadlock();
    let pointer = 0xffff_8880_1234_5678u64;
    let world = &mut stage.world.facts;
    world.locks[0].owner = Some(Owner::new(pointer));
    world.locks[0].entry = pointer;
    world.waiters[0].owner = Some(Owner::new(pointer));
    world.waiters[0].behind = Some(pointer);
    world.references[0].description = Some(Owner::new(pointer));
    world.references[0].table = Some(Owner::new(pointer));
    stage.input(Input::Reconcile);
    let trace = String::from_utf8(of_story("deadlock", &stage)).unwrap();
    for text in [format!("{pointer}"), format!("{pointer:x}"), format!("{}", pointer as i64)] {
        assert!(!trace.contains(&text));
    }
    let masked = Mask::new(SECRET).masked(&stage.inputs.last().unwrap().1).unwrap();
    let Input::Reading(reading) = masked else { unreachable!() };
    let snapshot = &reading.snapshot;
    assert_eq!(snapshot.locks[0].owner, snapshot.waiters[0].owner, "what was the same stays so");
    assert_eq!(Some(snapshot.locks[0].entry), snapshot.waiters[0].behind);
    assert_eq!(snapshot.locks[0].owner, snapshot.references[0].description);
}

#[track_caller]
fn fails(trace: &str, says: &str) {
    let (_, error) = replayed(trace.as_bytes());
    let error = error.expect("an error").to_string();
    assert!(error.contains(says), "{error:?} instead of {says:?}");
}

#[test]
fn errors_name_the_line_and_what_is_wrong_with_it() {
    let trace = String::from_utf8(of_story("lost", &stories::lost())).unwrap();
    let header = trace.lines().next().unwrap();
    let after_header = |line: &str| format!("{header}\n{line}\n");
    fails("", "line 1: not the beginning of a lockwatch trace: it is empty");
    fails("not json\n", "line 1: not the beginning of a lockwatch trace: column 2: expected");
    fails("{\"a\": 1}\n", "no number `lockwatch_trace`");
    fails("{\"lockwatch_trace\": 2, \"other\": 1}\n", "version 2; this lockwatch reads version 1");
    fails("{\"lockwatch_trace\": 1}\n", "missing field `version`");
    fails(&after_header("{}"), "line 2: column 2: missing field `at`");
    fails(
        &after_header("{\"at\":{\"boot\":1,\"unix\":2},\"input\":\"tock\"}"),
        "line 2: column 40: unknown variant `tock`",
    );
    fails(
        &after_header("{\"at\":{\"boot\":1,\"unix\":2},\"input\":\"tick\",\"more\":1}"),
        "unknown field `more`",
    );
    fails(
        &after_header("{\"at\":{\"boot\":-1,\"unix\":2},\"input\":\"tick\"}"),
        "line 2: column 16: invalid value",
    );
    let good = "{\"at\":{\"boot\":1,\"unix\":2},\"input\":\"tick\"}";
    fails(&after_header(&format!("{good}\n\n{good}")), "line 3: ");
    fails(&format!("{header}\n{good}\n{{\"at\""), "line 3: cut off");
}

#[test]
fn a_reading_that_does_not_fit_together_is_refused() {
    let stage = stories::deadlock();
    let is_reading = |input: &&(Moment, Input)| matches!(input.1, Input::Reading(_));
    let (at, reading) = stage.inputs.iter().rfind(is_reading).unwrap().clone();
    let Input::Reading(reading) = reading else { unreachable!() };
    let broken = |breaks: fn(&mut Reading)| {
        let mut reading = reading.clone();
        breaks(&mut reading);
        let trace = written(&Settings::default(), &[(at, Input::Reading(reading))]);
        replayed(&trace).1.map(|error| error.to_string())
    };
    assert_eq!(broken(|_| {}), None);
    let says = |what: &str| Some(format!("line 2: a reading that does not fit together: {what}"));
    assert_eq!(broken(|of| of.ids.truncate(1)), says("2 locks and 1 ids"));
    assert_eq!(broken(|of| of.snapshot.locks[1].file.0 = 2), says("file 2 of 2"));
    assert_eq!(broken(|of| of.snapshot.waiters[1].file.0 = 3), says("file 3 of 2"));
    assert_eq!(broken(|of| of.snapshot.references[0].file.0 = 4), says("file 4 of 2"));
    assert_eq!(broken(|of| of.ids[1].ino += 1), says("the id of lock 1 is one of another file"));
}

fn name() -> impl Strategy<Value = Box<[u8]>> {
    proptest::collection::vec(1u8.., 0..16).prop_map(Vec::into)
}

prop_compose! {
    fn lock_name()(
        (major, minor, ino) in (0u32..4096, 0u32..1 << 20, any::<u64>()),
        (hash, long) in any::<(u64, bool)>(),
        kind in proptest::sample::select(LockKind::ALL.to_vec()),
        access in proptest::sample::select(vec![Access::Read, Access::Write, Access::Unlock]),
        (start, end) in any::<(u64, Option<u64>)>(),
    ) -> LockName {
        let dev = Dev::new(major, minor);
        LockName {
            id: LockId { dev, ino, hash, long },
            file: FileId { dev, ino },
            kind,
            access,
            range: Range::new(start, end),
        }
    }
}

prop_compose! {
    fn remembered()(
        (pid, start) in any::<(i32, u64)>(),
        (ns_pid, pid_ns) in any::<(Option<i32>, Option<u64>)>(),
        comm in name(),
        exe in proptest::option::of(name()),
        cgroup in proptest::option::of(name()),
    ) -> Remembered {
        let id = ProcessId { pid, start: StartTime(start) };
        Remembered { id, comm, ns_pid, pid_ns, exe, cgroup }
    }
}

fn time() -> impl Strategy<Value = BootTime> {
    any::<u64>().prop_map(BootTime)
}

fn death() -> impl Strategy<Value = Death> {
    (any::<(i32, u64)>(), time(), any::<(Option<i32>, Option<i32>)>()).prop_map(
        |((pid, start), at, (code, signal))| {
            let process = ProcessId { pid, start: StartTime(start) };
            Death { process, at, code, signal }
        },
    )
}

/// Any input but a reading: those come from the stories.
fn input() -> impl Strategy<Value = Input> {
    let outcome = proptest::sample::select(vec![Outcome::Refused, Outcome::Blocked]);
    let attempt = (lock_name(), remembered(), time(), outcome, proptest::option::of(death()));
    let watched = (any::<String>(), name(), proptest::option::of(any::<(u32, u64)>()));
    prop_oneof![
        (any::<(Option<u64>, bool, String, String)>()).prop_map(
            |(last_seq, continued, version, kernel)| Input::Started(Started {
                last_seq,
                told: Vec::new(),
                continued,
                version,
                kernel
            })
        ),
        proptest::collection::vec(watched, 0..3).prop_map(|list| Input::Watch(
            list.into_iter()
                .map(|(name, path, file)| Watched {
                    name,
                    path,
                    file: file.map(|(minor, ino)| FileId { dev: Dev::new(1, minor), ino }),
                })
                .collect()
        )),
        death().prop_map(Input::Died),
        (lock_name(), remembered(), time(), time(), death(), any::<Option<bool>>()).prop_map(
            |(lock, by, taken_at, at, death, written)| Input::Ended(Ended {
                lock,
                ended_by: by.clone(),
                by,
                taken_at,
                at,
                death,
                written,
                generation: None
            })
        ),
        (lock_name(), remembered(), time()).prop_map(|(lock, by, at)| Input::Acquired(Acquired {
            lock,
            by,
            at,
            generation: None
        })),
        (lock_name(), remembered(), time()).prop_map(|(lock, by, at)| Input::Released(Released {
            lock,
            by,
            at
        })),
        attempt.prop_map(|(met, by, at, outcome, exiting)| Input::Attempt(Attempt {
            access: met.access,
            range: met.range,
            met,
            by,
            at,
            outcome,
            exiting
        })),
        (death(), time())
            .prop_map(|(death, at)| { Input::PidReused(PidReused { process: death.process, at }) }),
        any::<u64>().prop_map(Input::Lost),
        Just(Input::Tick),
        Just(Input::Reconcile),
        any::<u64>().prop_map(Input::GcInterval),
        any::<bool>().prop_map(Input::ReclaimEnabled),
        (lock_name(), ending()).prop_map(|(lock, ending)| {
            Input::Reclaimed(stories::ended(&lock, ending, vec![stories::hook("canary", 1)]))
        }),
    ]
}

fn ending() -> impl Strategy<Value = Ending> {
    prop_oneof![
        Just(Ending::Released { taken_by: Vec::new() }),
        any::<(String, String)>().prop_map(|(race, why)| Ending::Race { race, why }),
        any::<(String, String)>().prop_map(|(result, why)| Ending::Failed { result, why }),
    ]
}

fn moments() -> impl Strategy<Value = Moment> {
    any::<(u64, u64)>().prop_map(|(boot, unix)| Moment { boot: BootTime(boot), unix })
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        inputs in proptest::collection::vec((moments(), input()), 0..12),
        numbers in any::<(u64, u64, u64, u64, bool)>(),
        numbers_of_policy in any::<(bool, bool, u32, u64)>(),
    ) {
        let (grace, gc_interval, handoff_window, long_wait, verbose) = numbers;
        let (automatic, only_watched, per_minute, retry) = numbers_of_policy;
        let permission = Permission { path: b"/\xff".as_slice().into(), allowed: automatic, likely: automatic };
        let watches = vec![permission];
        let reclaim = Policy { automatic, only_watched, per_minute, retry, watches };
        let settings = Settings { grace, gc_interval, handoff_window, long_wait, verbose, reclaim };
        let trace = written(&settings, &inputs);
        let reader = Reader::new(&trace[..]).unwrap();
        prop_assert_eq!(reader.settings(), &settings);
        let read: Vec<_> = reader.map(Result::unwrap).collect();
        prop_assert_eq!(format!("{read:?}"), format!("{inputs:?}"));
    }

    #[test]
    fn any_inputs_at_any_time_are_stepped_and_told_without_a_panic(
        inputs in proptest::collection::vec((moments(), input()), 0..40),
        story in 0usize..13,
    ) {
        let (_, stage) = stories::all().swap_remove(story);
        let mut mixed = stage.inputs;
        for (index, input) in inputs.into_iter().enumerate() {
            mixed.insert((index * 7) % mixed.len(), input);
        }
        let settings = Settings { verbose: true, ..Settings::default() };
        let (_, error) = replayed(&written(&settings, &mixed));
        prop_assert!(error.is_none(), "{error:?}");
    }

    #[test]
    fn any_bytes_are_a_trace_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(replayed(&bytes).1.is_some());
    }

    #[test]
    fn a_trace_with_any_bytes_in_it_is_read_or_an_error(
        story in 0usize..10,
        places in proptest::collection::vec((any::<u32>(), any::<u8>()), 1..8),
    ) {
        let (name, stage) = stories::all().swap_remove(story);
        let mut trace = of_story(name, &stage);
        for (place, byte) in places {
            let place = place as usize % trace.len();
            trace[place] = byte;
        }
        // Whatever comes of it comes without a panic.
        let (_, error) = replayed(&trace);
        if let Some(error) = error {
            prop_assert!(error.to_string().starts_with("line "));
        }
    }
}
