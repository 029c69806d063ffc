//! The races, each provoked on purpose again and again.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result, ensure};

use super::child::{self, CRASHES, Word};
use super::{Crowds, Set, Story, inode, open};
use crate::rig::files;
use crate::rig::language::{Access, Asked, Birth, Range, Record};
use crate::rig::locking::{self, Patience};

/// The exclusive locks that a race can be about, whole files and ranges.
const LOCKS: [Asked; 3] = [
    Asked::Flock(Access::Exclusive),
    Asked::Record(Record::Posix, Access::Exclusive, Range { start: 7, end: Some(19) }),
    Asked::Record(Record::Ofd, Access::Exclusive, Range { start: 0, end: None }),
];

/// Those of a description, which outlive who took them.
const OF_DESCRIPTIONS: [Asked; 2] = [LOCKS[0], LOCKS[2]];

/// Tries that may fail to provoke a race, for each that is asked for.
const TRIES: u32 = 10;

pub(super) fn handoffs(set: &mut Set, count: u32, story: &mut Story) -> Result<()> {
    for round in 0..count {
        let path = set.path("handoff", round);
        let lock = LOCKS[round as usize % LOCKS.len()];
        let crash = CRASHES[round as usize / LOCKS.len() % CRASHES.len()];
        let (has_it, go) = (Word::new()?, Word::new()?);
        let owner = child::fork(|| {
            let file = open(&path)?;
            locking::take(file.as_fd(), lock, Patience::None)?;
            if round % 2 == 0 {
                rustix::io::write(&file, b"half").context("write")?;
            }
            has_it.say(1)?;
            go.hear()?;
            child::end(crash)
        })?;
        has_it.hear()?;
        let next = child::fork(|| {
            let file = open(&path)?;
            has_it.say(1)?;
            locking::take(file.as_fd(), lock, Patience::Endless)
        })?;
        has_it.hear()?;
        // In one of two rounds the next one waits already, in the other it may come at any moment.
        if round % 2 == 0 {
            std::thread::sleep(std::time::Duration::from_micros(300));
        }
        go.say(1)?;
        child::wait(owner);
        child::wait(next);
        story.line(&[&inode(&path)?, &owner, &next]);
    }
    Ok(())
}

/// Descriptors that an owner closes before it comes to its lock, and ranges that the kernel looks
/// through for each of them: some milliseconds.
const SLOW: (u32, u32) = (400, 200);

pub(super) fn exits(set: &mut Set, count: u32, story: &mut Story) -> Result<()> {
    let slow = set.path("slow", 0);
    let first = open(&slow)?;
    for number in 0..u64::from(SLOW.1) {
        let range = Range { start: 2 * number, end: Some(2 * number) };
        let asked = Asked::Record(Record::Posix, Access::Exclusive, range);
        locking::take(first.as_fd(), asked, Patience::None)?;
    }
    let copies: Result<Vec<_>> =
        (0..SLOW.0).map(|_| rustix::io::dup(&first).context("dup")).collect();
    let _copies = copies?;
    let (mut provoked, mut tries) = (0, 0);
    while provoked < count {
        ensure!(tries < count.saturating_mul(TRIES), "{provoked} of {count} were provoked");
        let path = set.path("exit", tries);
        let lock = LOCKS[tries as usize % LOCKS.len()];
        let crash = CRASHES[tries as usize / LOCKS.len() % CRASHES.len()];
        tries += 1;
        let (has_it, go) = (Word::new()?, Word::new()?);
        let owner = child::fork(|| {
            // It has the higher number, and is closed after the others.
            let file = open(&path)?;
            locking::take(file.as_fd(), lock, Patience::None)?;
            child::give_way()?;
            has_it.say(1)?;
            go.hear()?;
            child::end(crash)
        })?;
        has_it.hear()?;
        let file = open(&path)?;
        let table = format!("/proc/{owner}/fd/0");
        go.say(1)?;
        // A process has lost its table before what is in it is closed, but after its exit is told.
        while fs::read_link(&table).is_ok() {
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
        // Refused twice: the lock was still there when the kernel told of the first attempt.
        let is_refused = || locking::take(file.as_fd(), lock, Patience::None).is_err();
        if is_refused() && is_refused() {
            story.line(&[&inode(&path)?, &owner]);
            provoked += 1;
        }
        child::wait(owner);
    }
    Ok(())
}

pub(super) fn deadlocks(
    crowds: &mut Crowds,
    set: &mut Set,
    count: u32,
    story: &mut Story,
) -> Result<()> {
    for round in 0..count {
        let paths = [set.path("first", round), set.path("second", round)];
        let lock = OF_DESCRIPTIONS[round as usize % OF_DESCRIPTIONS.len()];
        let (has_it, go) = (Word::new()?, Word::new()?);
        let mut members = [0; 2];
        for (place, member) in members.iter_mut().enumerate() {
            let (own, other) = (&paths[place], &paths[1 - place]);
            *member = child::fork(|| {
                let (own, other) = (open(own)?, open(other)?);
                locking::take(own.as_fd(), lock, Patience::None)?;
                has_it.say(1)?;
                go.hear()?;
                locking::take(other.as_fd(), lock, Patience::Endless)
            })?;
            has_it.hear()?;
        }
        go.say(1)?;
        go.say(1)?;
        crowds.children.extend(members);
        story.line(&[&inode(&paths[0])?, &members[0], &members[1]]);
    }
    Ok(())
}

pub(super) fn recycled(
    crowds: &mut Crowds,
    set: &mut Set,
    count: u32,
    story: &mut Story,
) -> Result<()> {
    let (mut provoked, mut tries) = (0, 0);
    while provoked < count {
        ensure!(tries < count.saturating_mul(TRIES), "{provoked} of {count} were provoked");
        let path = set.path("recycled", tries);
        let lock = OF_DESCRIPTIONS[tries as usize % OF_DESCRIPTIONS.len()];
        tries += 1;
        let file = open(&path)?;
        let taker = child::fork(|| locking::take(file.as_fd(), lock, Patience::None))?;
        child::wait(taker);
        let birth = Birth { pid: Some(taker), ..Birth::default() };
        // Somebody else on this machine may have got the pid.
        if let Ok(other) = child::fork_as(&birth, || child::rest()) {
            crowds.children.push(other);
            crowds.open.push(file);
            story.line(&[&inode(&path)?, &taker]);
            provoked += 1;
        }
    }
    Ok(())
}

pub(super) fn replaced(
    crowds: &mut Crowds,
    set: &mut Set,
    count: u32,
    story: &mut Story,
) -> Result<()> {
    for round in 0..count {
        let path = set.path("replaced", round);
        let lock = LOCKS[round as usize % LOCKS.len()];
        let mut inodes = [0; 2];
        for (place, inode_of) in inodes.iter_mut().enumerate() {
            if place == 1 {
                files::replace(path.as_os_str().as_bytes())?;
            }
            let file = open(&path)?;
            locking::take(file.as_fd(), lock, Patience::None)?;
            *inode_of = inode(&path)?;
            crowds.open.push(file);
        }
        story.line(&[&inodes[0], &inodes[1]]);
    }
    Ok(())
}

pub(super) fn orphans(
    crowds: &mut Crowds,
    set: &mut Set,
    count: u32,
    story: &mut Story,
) -> Result<()> {
    for round in 0..count {
        let path = set.path("orphan", round);
        let lock = OF_DESCRIPTIONS[round as usize % OF_DESCRIPTIONS.len()];
        let crash = CRASHES[round as usize % CRASHES.len()];
        let (heirs, go) = (Word::new()?, Word::new()?);
        let owner = child::fork(|| {
            let file = open(&path)?;
            locking::take(file.as_fd(), lock, Patience::None)?;
            child::fork(|| {
                // Its parent's end is not to be its own.
                // SAFETY: takes numbers only.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, 0) };
                heirs.say(std::process::id().cast_signed())?;
                child::rest()
            })?;
            go.hear()?;
            child::end(crash)
        })?;
        let heir = heirs.hear()?;
        go.say(1)?;
        crowds.children.push(heir);
        child::wait(owner);
        story.line(&[&inode(&path)?, &owner, &heir]);
    }
    Ok(())
}
