//! An event as a sentence.
//!
//! Refuses to leave out what the JSON has but for what would not fit a line: identities of
//! executables, control groups and evidence.

use std::fmt;
use std::time::Duration;

use super::{outcome, recovery};
use crate::engine::event::{Event, Kind, Party, Told};
use crate::engine::identity::BootTime;
use crate::engine::snapshot::Death;
use crate::sink::escape::Escaped;

/// The sentence, without the moment and the number.
pub(super) struct Sentence<'a>(pub(super) &'a Event);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(event) = self;
        write!(f, "{}", event.kind.name())?;
        if let Some(told) = &event.lock {
            write!(f, " {}", Lock(told))?;
        }
        write!(f, ": ")?;
        let now = event.at.boot;
        match &event.kind {
            Kind::Started { continued, last_seq: _, version, kernel } => {
                let (version, kernel) = (Escaped(version.as_bytes()), Escaped(kernel.as_bytes()));
                write!(f, "lockwatch {version} watches kernel {kernel}")?;
                let since = if *continued { ", where another daemon left off" } else { "" };
                f.write_str(since)
            }
            Kind::Orphaned { verdict, holders, more } => {
                let reason = verdict.reason.map_or("", |reason| reason.name());
                write!(f, "{reason}, {}; taken by {}", verdict.confidence.name(), taker(event))?;
                match holders.as_slice() {
                    [] => f.write_str("; nothing was found that refers to it"),
                    [first, rest @ ..] => {
                        match &first.by {
                            Some(by) => write!(f, "; kept by {}", Name(by))?,
                            None => write!(f, "; kept by nobody's {}", first.via.name())?,
                        }
                        match rest.len() + more {
                            0 => Ok(()),
                            more => write!(f, " and {more} more"),
                        }
                    }
                }
            }
            Kind::Recovered { how } => write!(f, "no orphan any more: {}", recovery(*how)),
            Kind::CrashHandoff { death, released_at: _, to, acquired_at, written } => {
                write!(
                    f,
                    "{} had it and crashed; {} got it {} later; the file was {}",
                    taker(event),
                    Name(to),
                    Span(death.at, *acquired_at),
                    match written {
                        Some(true) => "written in between",
                        Some(false) => "not written in between",
                        None => "perhaps written in between",
                    }
                )
            }
            Kind::ExitRace { death, by, at, outcome: how } => write!(
                f,
                "{} tried for it {} after {} began to exit: {}",
                Name(by),
                Span(death.at, *at),
                taker(event),
                outcome(*how)
            ),
            Kind::PidRecycled { to } => {
                write!(f, "the pid of {} belongs to {} now", taker(event), Name(to))
            }
            Kind::LockReplaced { new } => {
                write!(f, "its path was given to another file, which is locked, too: {}", Lock(new))
            }
            Kind::Refused { by, at: _ } => write!(f, "{} was refused", Name(by)),
            Kind::LongWait { by, since, blocked_by } => {
                match by {
                    Some(by) => write!(f, "{} waits", Name(by))?,
                    None => f.write_str("a process of another machine waits")?,
                }
                if let Some(since) = since {
                    write!(f, " for {}", Span(*since, now))?;
                }
                match blocked_by.len() {
                    0 | 1 => Ok(()),
                    count => write!(f, ", blocked by {count} locks"),
                }
            }
            Kind::Deadlock { members } => {
                for (index, member) in members.iter().enumerate() {
                    if index > 0 {
                        f.write_str("; ")?;
                    }
                    write!(f, "{} waits for {}", Name(&member.process), Lock(&member.waits_for))?;
                }
                Ok(())
            }
            Kind::ReclaimPlanned { by, method, forced, through, warnings } => {
                let forced = if *forced { "; forced" } else { "" };
                let (by, method) = (by.name(), method.name());
                write!(
                    f,
                    "to be released by {method} through {}, as the {by} asks{forced}",
                    Name(through)
                )?;
                warnings
                    .iter()
                    .try_for_each(|warning| write!(f, "; {}", Escaped(warning.as_bytes())))
            }
            Kind::ReclaimDone { by: _, method, taken_by, took, hooks: _ } => {
                write!(f, "released by {}, and seen to be gone", method.name())?;
                if let Some(took) = took {
                    write!(f, " after {}", Span(BootTime(0), BootTime(*took)))?;
                }
                taken_by.iter().try_for_each(|by| write!(f, "; {} has it now", Name(by)))
            }
            Kind::ReclaimFailed { by: _, method: _, result, why, hooks: _ } => {
                write!(f, "{result}: {}", Escaped(why.as_bytes()))
            }
            Kind::ReclaimRace { writer: Some(writer), .. } => {
                write!(f, "{}, which had lost it, wrote to the file", Name(writer))
            }
            Kind::ReclaimRace { by: _, method: _, race: _, why, writer: None, hooks: _ } => {
                write!(f, "nothing was done: {}", Escaped(why.as_bytes()))
            }
            Kind::Lost { records } => {
                write!(f, "{records} records of the moment were lost; all was read anew")
            }
            Kind::AllClear => f.write_str("no lock is orphaned any more"),
            Kind::Acquired { by, at: _ } => write!(f, "{} took it", Name(by)),
            Kind::Released { by, at: _ } => write!(f, "{} gave it up", Name(by)),
            Kind::Blocked { by, at: _ } => write!(f, "{} waits", Name(by)),
        }
    }
}

/// Who took the lock of the event, and how that ended.
fn taker(event: &Event) -> Taker<'_> {
    let told = event.lock.as_ref();
    Taker(told.and_then(|told| told.acquirer.as_ref()), told.and_then(|told| told.death.as_ref()))
}

struct Taker<'a>(Option<&'a Party>, Option<&'a Death>);

impl fmt::Display for Taker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(party, death) = self;
        let Some(party) = party else { return f.write_str("somebody unknown") };
        let ending = match death.map(|death| (death.signal, death.code)) {
            Some((Some(signal), _)) => format!("ended by signal {signal}"),
            Some((None, Some(code))) => format!("exited with {code}"),
            Some((None, None)) => "ended".into(),
            None => return Name(party).fmt(f),
        };
        match &party.comm {
            Some(comm) => write!(f, "{} (pid {}, {ending})", Escaped(comm), party.pid),
            None => write!(f, "pid {} ({ending})", party.pid),
        }
    }
}

struct Name<'a>(&'a Party);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.comm {
            Some(comm) => write!(f, "{} (pid {})", Escaped(comm), self.0.pid),
            None => write!(f, "pid {}", self.0.pid),
        }
    }
}

/// A lock: its file and its id, or the id alone, which names the file's numbers.
struct Lock<'a>(&'a Told);

impl fmt::Display for Lock<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told { lock, path, .. } = self.0;
        if let Some(path) = path {
            write!(f, "{} ", Escaped(path))?;
        }
        write!(f, "({} {} {})", lock.kind.name(), lock.access.name(), lock.id)
    }
}

/// The time between two moments.
struct Span(BootTime, BootTime);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(Duration::from_nanos(self.1.since(self.0))).fmt(f)
    }
}
