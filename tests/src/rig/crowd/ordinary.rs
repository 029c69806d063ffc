//! Locks that are taken and end in every way that is neither an orphan nor a race.
//!
//! Each sequence has its file to itself. Where an owner crashes with an exclusive lock, nobody takes
//! another on that file.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::chance::Chance;
use super::child::{self, CRASHES, End, Word};
use super::{Set, open};
use crate::rig::language::{Access, Asked, Range, Record};
use crate::rig::locking::{self, Patience};

/// Files that are used again and again, of each sort.
const FILES: u64 = 16;
/// Descriptions that are kept locked after who locked them is gone.
const KEPT: usize = 8;

/// Plays so many sequences.
pub(super) fn play(set: &Set, count: u32, mut chance: Chance) -> Result<u32> {
    // Each with the place whose file it has.
    let mut kept: VecDeque<(u32, OwnedFd, Asked)> = VecDeque::new();
    let mut places: Vec<u32> = (0..=KEPT as u32).collect();
    for number in 0..count {
        match chance.below(10) {
            0 => in_this_process(set, &mut chance)?,
            1..=3 => in_a_child(set, number, &mut chance)?,
            4 => contended(set, &mut chance)?,
            5 => gives_up_waiting(set, &mut chance)?,
            6 => handed_over(set, number, &mut chance)?,
            7 => pieces(set, number, &mut chance)?,
            8 => leased(set, number, &mut chance)?,
            _ => {
                if kept.len() == KEPT
                    && let Some((place, file, lock)) = kept.pop_front()
                {
                    if chance.one_in(2) {
                        locking::take(file.as_fd(), unlocking(lock), Patience::None)?;
                    }
                    drop(file);
                    places.push(place);
                }
                let place = places.pop().context("a place")?;
                let (file, lock) = shared(set, place, &mut chance)?;
                kept.push_back((place, file, lock));
            }
        }
    }
    Ok(count)
}

fn range(chance: &mut Chance) -> Range {
    let start = chance.below(100);
    let end = (!chance.one_in(4)).then(|| start + chance.below(100));
    Range { start, end }
}

fn any(chance: &mut Chance) -> Asked {
    let access = chance.of(&[Access::Shared, Access::Exclusive]);
    match chance.below(3) {
        0 => Asked::Flock(access),
        1 => Asked::Record(Record::Posix, access, range(chance)),
        _ => Asked::Record(Record::Ofd, access, range(chance)),
    }
}

fn of_a_description(chance: &mut Chance) -> Asked {
    match chance.below(2) {
        0 => Asked::Flock(Access::Exclusive),
        _ => Asked::Record(Record::Ofd, Access::Exclusive, range(chance)),
    }
}

/// What gives it up, and everything else of its kind with it.
fn unlocking(lock: Asked) -> Asked {
    match lock {
        Asked::Flock(_) => Asked::Flock(Access::Unlock),
        Asked::Record(record, ..) => {
            Asked::Record(record, Access::Unlock, Range { start: 0, end: None })
        }
        Asked::Lease(_) => Asked::Lease(Access::Unlock),
    }
}

fn in_this_process(set: &Set, chance: &mut Chance) -> Result<()> {
    let file = open(&set.path("own", chance.below(FILES) as u32))?;
    let lock = any(chance);
    locking::take(file.as_fd(), lock, Patience::None)?;
    // Otherwise it ends with the descriptor.
    if chance.one_in(2) {
        locking::take(file.as_fd(), unlocking(lock), Patience::None)?;
    }
    Ok(())
}

/// A child takes a lock and ends with it, or gives it up and ends then.
fn in_a_child(set: &Set, number: u32, chance: &mut Chance) -> Result<()> {
    let lock = any(chance);
    let (end, unlocks) = (an_end(chance), chance.one_in(3));
    let leaves_no_trace = unlocks || end == End::Exit(0);
    let path = match leaves_no_trace {
        true => set.path("once", chance.below(FILES) as u32),
        false => set.path("crash", number),
    };
    let child = child::fork(|| {
        let file = open(&path)?;
        locking::take(file.as_fd(), lock, Patience::None)?;
        if unlocks {
            locking::take(file.as_fd(), unlocking(lock), Patience::None)?;
        }
        child::end(end)
    })?;
    child::wait(child);
    forget(&path, leaves_no_trace)
}

fn an_end(chance: &mut Chance) -> End {
    match chance.one_in(2) {
        true => End::Exit(0),
        false => chance.of(&CRASHES),
    }
}

/// Files that nobody uses again make room.
fn forget(path: &std::path::Path, is_used_again: bool) -> Result<()> {
    if is_used_again { Ok(()) } else { std::fs::remove_file(path).context("removing a file") }
}

/// A second one waits until the first gives it up, and then that one ends somehow.
fn contended(set: &Set, chance: &mut Chance) -> Result<()> {
    let path = set.path("contended", chance.below(FILES) as u32);
    let lock = of_a_description(chance);
    let end = an_end(chance);
    let (has_it, done) = (Word::new()?, Word::new()?);
    let first = child::fork(|| {
        let file = open(&path)?;
        locking::take(file.as_fd(), lock, Patience::None)?;
        has_it.say(1)?;
        done.hear()?;
        locking::take(file.as_fd(), unlocking(lock), Patience::None)?;
        child::end(end)
    })?;
    has_it.hear()?;
    let second = child::fork(|| {
        let file = open(&path)?;
        done.say(1)?;
        locking::take(file.as_fd(), lock, Patience::Endless)?;
        locking::take(file.as_fd(), unlocking(lock), Patience::None)
    })?;
    child::wait(first);
    child::wait(second);
    Ok(())
}

/// A second one waits and is killed before the first gives it up.
fn gives_up_waiting(set: &Set, chance: &mut Chance) -> Result<()> {
    let path = set.path("waited", chance.below(FILES) as u32);
    let lock = of_a_description(chance);
    let file = open(&path)?;
    locking::take(file.as_fd(), lock, Patience::None)?;
    let tries = Word::new()?;
    let second = child::fork(|| {
        let file = open(&path)?;
        tries.say(1)?;
        locking::take(file.as_fd(), lock, Patience::Endless)
    })?;
    tries.hear()?;
    if chance.one_in(2) {
        std::thread::sleep(Duration::from_micros(100));
    }
    child::kill(second);
    child::wait(second);
    locking::take(file.as_fd(), unlocking(lock), Patience::None)
}

/// The daemon(3) idiom: who took the lock exits well, and its child has it.
fn handed_over(set: &Set, number: u32, chance: &mut Chance) -> Result<()> {
    let path = set.path("handed", number);
    let lock = of_a_description(chance);
    // Some stay longer than a grace.
    let stays = if chance.one_in(50) { 400 } else { 0 };
    let owner = child::fork(|| {
        // What the one who stays keeps of others would outlive them: it never gets any, because who
        // waits for this process closes nothing meanwhile.
        let file = child::keep_only(open(&path)?)?;
        locking::take(file.as_fd(), lock, Patience::None)?;
        child::fork(|| {
            // SAFETY: takes numbers only.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
            let _own = file;
            std::thread::sleep(Duration::from_millis(stays));
            Ok(())
        })?;
        Ok(())
    })?;
    child::wait(owner);
    forget(&path, false)
}

/// Ranges that merge, split and change their access, and end one way or the other.
fn pieces(set: &Set, number: u32, chance: &mut Chance) -> Result<()> {
    let path = set.path("pieces", number);
    let record = chance.of(&[Record::Posix, Record::Ofd]);
    let end = an_end(chance);
    let mut asked = Vec::new();
    for _ in 0..2 + chance.below(6) {
        let access = chance.of(&[Access::Shared, Access::Exclusive, Access::Unlock]);
        asked.push(Asked::Record(record, access, range(chance)));
    }
    let child = child::fork(|| {
        let file = open(&path)?;
        for asked in &asked {
            locking::take(file.as_fd(), *asked, Patience::None)?;
        }
        child::end(end)
    })?;
    child::wait(child);
    forget(&path, false)
}

fn leased(set: &Set, number: u32, chance: &mut Chance) -> Result<()> {
    let path = set.path("leased", number);
    let (end, unlocks) = (an_end(chance), chance.one_in(2));
    let access = chance.of(&[Access::Exclusive, Access::Unlock]);
    let child = child::fork(|| {
        let file = open(&path)?;
        locking::take(file.as_fd(), Asked::Lease(Access::Exclusive), Patience::None)?;
        if unlocks {
            locking::take(file.as_fd(), Asked::Lease(access), Patience::None)?;
        }
        child::end(end)
    })?;
    child::wait(child);
    forget(&path, false)
}

/// The shell's idiom: a short-lived child takes the lock of a description that this process has.
fn shared(set: &Set, place: u32, chance: &mut Chance) -> Result<(OwnedFd, Asked)> {
    let file = open(&set.path("shared", place))?;
    let lock = of_a_description(chance);
    let end = an_end(chance);
    let child = child::fork(|| {
        locking::take(file.as_fd(), lock, Patience::None)?;
        child::end(end)
    })?;
    child::wait(child);
    Ok((file, lock))
}
