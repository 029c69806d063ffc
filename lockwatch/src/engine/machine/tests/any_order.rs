//! Records come in any order within their window, and all is told as if they had come in theirs.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::stage::{End, MS, Stage, ms};
use super::stories;
use crate::engine::event::{Event, Kind, Party};
use crate::engine::identity::{BootTime, Owner, ProcessId};
use crate::engine::input::{Ended, Input, Outcome, PidReused};
use crate::engine::machine::REORDER_WINDOW;
use crate::engine::snapshot::Death;

/// What happens on a few files, one step after the other, a fraction of a millisecond apart.
#[derive(Clone, Copy, Debug)]
enum Act {
    Lock(usize, usize),
    Unlock(usize),
    Crash(usize, bool),
    Try(usize, usize),
    Fork(usize),
    /// A new process gets the pid of a dead one.
    Reborn(usize),
    /// The next lock of a dead process is given back.
    End,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0usize..6, 0usize..3).prop_map(|(who, file)| Act::Lock(who, file)),
        2 => (0usize..3).prop_map(Act::Unlock),
        2 => (0usize..6, any::<bool>()).prop_map(|(who, clean)| Act::Crash(who, clean)),
        3 => (0usize..6, 0usize..3).prop_map(|(who, file)| Act::Try(who, file)),
        1 => (0usize..6).prop_map(Act::Fork),
        1 => (0usize..6).prop_map(Act::Reborn),
        2 => Just(Act::End),
    ];
    proptest::collection::vec(act, 1..60)
}

/// The story and the records of it, each with the moment at which it came in.
struct Script {
    stage: Stage,
    records: Vec<(BootTime, Input)>,
}

fn write(acts: &[Act]) -> Script {
    let mut stage = Stage::new();
    let mut records = Vec::new();
    for file in 0..3 {
        stage.world.file(100 + file, &format!("/srv/{file}"));
    }
    for pid in 0..6 {
        stage.world.born(50 + pid, "player", ms(5_000));
    }
    stage.watch("first", "/srv/0", 100);
    stage.until(11_000);
    // Whoever has each file's lock, who is dead, and whose locks are still to be given back.
    let mut owner: [Option<i32>; 3] = [None; 3];
    let mut dead = [false; 6];
    let mut dying: Vec<(usize, Death)> = Vec::new();
    let mut next = 0u64;
    let begin = stage.now;
    for (step, act) in acts.iter().enumerate() {
        stage.now = BootTime(begin.0 + step as u64 * MS / 20 + 1);
        let mut record = |stage: &Stage, input| records.push((stage.now, input));
        let description = |file: usize| stage_owner(&stage, 100 + file as u64);
        match *act {
            Act::Lock(who, file) if !dead[who] && owner[file].is_none() => {
                next += 1;
                let (pid, ino) = (50 + who as i32, 100 + file as u64);
                stage.world.open(pid, ino, next);
                let acquired = stage.acquired(pid, ino, next);
                record(&stage, Input::Acquired(acquired));
                owner[file] = Some(pid);
            }
            Act::Unlock(file) if dying.iter().any(|(of, _)| *of == file) => {
                // An heir lets it go, if there is one.
                let of = description(file).unwrap();
                let references = &stage.world.facts.references;
                let heir = references.iter().find(|held| held.description == Some(Owner::new(of)));
                let Some(heir) = heir.map(|held| stage.world.who(held.pid)) else { continue };
                let at = dying.iter().position(|(of, _)| *of == file).unwrap();
                let (_, death) = dying.remove(at);
                owner[file] = None;
                let ended = Ended { ended_by: heir, ..stage.ended(of, death, None) };
                record(&stage, Input::Ended(ended));
            }
            Act::Unlock(file) => {
                let Some(pid) = owner[file].take() else { continue };
                let Some(of) = description(file) else { continue };
                let released = stage.released(pid, of);
                record(&stage, Input::Released(released));
            }
            Act::Crash(who, clean) if !dead[who] => {
                let pid = 50 + who as i32;
                let end = if clean { End::Exit(0) } else { End::Signal(9) };
                let death = stage.world.die(pid, stage.now, end);
                dead[who] = true;
                record(&stage, Input::Died(death));
                let left: Vec<usize> = (0..3)
                    .filter(|&file| owner[file] == Some(pid))
                    .filter(|file| !dying.iter().any(|(of, _)| of == file))
                    .collect();
                dying.extend(left.into_iter().map(|file| (file, death)));
            }
            Act::End if !dying.is_empty() => {
                let (file, death) = dying.remove(0);
                let of = description(file).unwrap();
                // An heir keeps it.
                let references = &stage.world.facts.references;
                if references.iter().any(|held| held.description == Some(Owner::new(of))) {
                    continue;
                }
                owner[file] = None;
                let ended = stage.ended(of, death, Some(step % 2 == 0));
                record(&stage, Input::Ended(ended));
            }
            Act::Try(who, file) => {
                let Some(of) = description(file) else { continue };
                let facts = &stage.world.facts;
                let mut locks = facts.locks.iter();
                let lock = locks.find(|lock| lock.owner == Some(Owner::new(of))).unwrap();
                let owner = lock.taken.as_ref().unwrap().by.id;
                let exiting = facts.deaths.iter().find(|death| death.process == owner);
                let outcome = if step % 2 == 0 { Outcome::Refused } else { Outcome::Blocked };
                let attempt = stage.attempt(50 + who as i32, of, outcome, exiting.copied());
                record(&stage, Input::Attempt(attempt));
            }
            Act::Fork(who) if !dead[who] => {
                let (pid, child) = (50 + who as i32, 60 + step as i32);
                stage.world.fork(pid, child, "heir", stage.now);
                let id: ProcessId = stage.world.who(child).id;
                record(&stage, Input::PidReused(PidReused { process: id, at: stage.now }));
            }
            Act::Reborn(who) if dead[who] => {
                let pid = 50 + who as i32;
                stage.world.born(pid, "bystander", stage.now);
                dead[who] = false;
                let process: ProcessId = stage.world.who(pid).id;
                record(&stage, Input::PidReused(PidReused { process, at: stage.now }));
            }
            _ => {}
        }
    }
    stage.now = begin;
    Script { stage, records }
}

/// The description whose lock a file has.
fn stage_owner(stage: &Stage, ino: u64) -> Option<u64> {
    let facts = &stage.world.facts;
    let mut locks = facts.locks.iter();
    let lock = locks.find(|lock| facts.files[lock.file.0 as usize].ino == ino)?;
    lock.owner.map(|owner| owner.token())
}

/// Plays the records in an order given by how long each is held up, then lets time pass.
fn play(script: Script, delays: &[u64]) -> (Vec<Event>, String) {
    let Script { mut stage, records } = script;
    let mut late: Vec<(BootTime, usize, Input)> = records
        .into_iter()
        .enumerate()
        .map(|(place, (at, input))| {
            let delay = delays.get(place % delays.len().max(1)).copied().unwrap_or(0);
            (at.after(delay), place, input)
        })
        .collect();
    late.sort_by_key(|(at, place, _)| (*at, *place));
    for (at, _, input) in late {
        // The daemon wakes for every record, and for nothing else in these few milliseconds.
        stage.now = stage.now.max(at);
        stage.input(input);
    }
    stage.until(20_000);
    let view = stage.engine.view();
    let told = view.locks.iter().map(|lock| format!("{} {:?}", lock.id, lock.verdict));
    (stage.events.clone(), told.collect())
}

/// An event without the moment and the number at which it was told.
fn facts(events: &[Event]) -> Vec<String> {
    let mut told: Vec<String> =
        events.iter().map(|event| format!("{:?} {:?}", event.lock, event.kind)).collect();
    told.sort();
    told
}

/// The races that the records of a script tell of, found by looking at all of them at once.
fn races(records: &[(BootTime, Input)]) -> BTreeSet<String> {
    let mut races = BTreeSet::new();
    for (place, (_, record)) in records.iter().enumerate() {
        let later = || records[place..].iter().map(|(_, record)| record);
        match record {
            Input::Ended(ended) if ended.is_by_death() && !ended.death.is_clean() => {
                let next = later().find_map(|record| match record {
                    Input::Acquired(next) if next.lock.file == ended.lock.file => Some(next),
                    _ => None,
                });
                races.extend(next.map(|next| {
                    format!("crash_handoff {} {:?} {:?}", ended.lock.id, next.by.id, next.at)
                }));
            }
            Input::Attempt(attempt) => {
                let ends = later().any(|record| match record {
                    Input::Ended(ended) => ended.is_by_death() && ended.lock.id == attempt.met.id,
                    _ => false,
                });
                let another = attempt.exiting.is_some_and(|of| of.process != attempt.by.id);
                if ends && another {
                    races.insert(format!("exit_race {} {:?}", attempt.met.id, attempt.by.id));
                }
                if attempt.outcome == Outcome::Refused && attempt.met.file.ino == 100 {
                    races.insert(format!("refused {} {:?}", attempt.met.id, attempt.at));
                }
            }
            _ => {}
        }
    }
    races
}

/// The same of events.
fn told_races(events: &[Event]) -> BTreeSet<String> {
    let party = |party: &Party| ProcessId { pid: party.pid, start: party.start.unwrap() };
    let race = |event: &Event| {
        let id = || event.lock.as_ref().unwrap().lock.id;
        Some(match &event.kind {
            Kind::CrashHandoff { to, acquired_at, .. } => {
                format!("crash_handoff {} {:?} {acquired_at:?}", id(), party(to))
            }
            Kind::ExitRace { by, .. } => format!("exit_race {} {:?}", id(), party(by)),
            Kind::Refused { at, .. } => format!("refused {} {at:?}", id()),
            _ => return None,
        })
    };
    events.iter().filter_map(race).collect()
}

proptest! {
    #[test]
    fn every_race_is_told_and_nothing_that_is_none(acts in acts()) {
        let script = write(&acts);
        let expected = races(&script.records);
        let (events, _) = play(script, &[0]);
        prop_assert_eq!(told_races(&events), expected);
    }

    #[test]
    fn any_order_within_the_window_gives_the_same_view_and_the_same_events(
        acts in acts(),
        delays in proptest::collection::vec(0..REORDER_WINDOW - 3 * MS - 1, 1..40),
    ) {
        let (events, view) = play(write(&acts), &[0]);
        let (late, late_view) = play(write(&acts), &delays);
        prop_assert_eq!(view, late_view);
        prop_assert_eq!(facts(&events), facts(&late));
        let seqs: Vec<u64> = late.iter().map(|event| event.seq).collect();
        prop_assert_eq!(seqs, (1..=late.len() as u64).collect::<Vec<_>>());
    }

    #[test]
    fn records_that_come_later_still_or_make_no_sense_break_nothing(
        acts in acts(),
        delays in proptest::collection::vec(0u64..8_000 * MS, 1..40),
        backwards in any::<bool>(),
    ) {
        let mut script = write(&acts);
        if backwards {
            script.records.reverse();
        }
        let (_, view) = play(write(&acts), &[0]);
        let (events, late_view) = play(script, &delays);
        prop_assert_eq!(view, late_view);
        let orphans = |events: &[Event]| {
            events.iter().filter(|event| event.kind.name() == "orphaned").count()
        };
        prop_assert!(orphans(&events) <= acts.len());
    }
}

#[test]
fn an_acquisition_that_is_told_before_the_crash_that_made_way_for_it_is_a_hand_off() {
    let mut stage = stories::crash_handoff();
    let inputs = std::mem::take(&mut stage.inputs);
    let mut again = Stage::new();
    for (at, input) in inputs.into_iter().skip(1) {
        again.now = again.now.max(at.boot);
        match input {
            // The kernel says so only after another CPU has taken the lock.
            Input::Ended(mut ended) => {
                ended.at = ms(12_011);
                again.input(Input::Ended(ended));
            }
            Input::Acquired(acquired) => again.input(Input::Acquired(acquired)),
            _ => {}
        }
    }
    again.until(13_000);
    assert_eq!(again.kinds(), ["started", "crash_handoff"]);
    assert_eq!(stage.kinds(), ["started", "crash_handoff"]);
}

#[test]
fn an_acquisition_that_became_known_late_is_remembered_as_long_as_any() {
    let inputs = std::mem::take(&mut stories::crash_handoff().inputs);
    let (mut acquired, mut ended) = (None, None);
    for (_, input) in inputs {
        match input {
            Input::Acquired(of) => acquired = Some(of),
            Input::Ended(of) => ended = Some(of),
            _ => {}
        }
    }
    let (acquired, mut ended) = (acquired.unwrap(), ended.unwrap());
    // Who gave it up was preempted before the kernel could say so of either.
    let known = acquired.at.0 / MS + 20;
    ended.at = BootTime(acquired.at.0 - 1);
    let mut stage = Stage::new();
    stage.until(known);
    stage.input(Input::Acquired(acquired));
    stage.until(known + 3);
    stage.input(Input::Ended(ended));
    stage.until(known + 100);
    assert_eq!(stage.kinds(), ["started", "crash_handoff"]);
}
