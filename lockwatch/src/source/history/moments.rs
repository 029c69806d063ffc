//! The records of the moment, out of the ring and into the engine's terms.
//!
//! Total: any bytes in, inputs or an error that names the offending record out.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use aya::maps::{MapData, RingBuf};
use lockwatch_common::history::{
    CLASS_FLOCK, CLASS_POSIX, DiedRecord, Ending, Entry, F_WRLCK, FL_OFDLCK, Header, KIND_ACQUIRED,
    KIND_BLOCKED, KIND_CLEARED, KIND_DIED, KIND_ENDED, KIND_REFUSED, KIND_RELEASED, KIND_REUSED,
    Key, MomentRecord, ReusedRecord,
};
use lockwatch_common::wire::{self, Wire};

use super::join::death;
use super::looker::Looker;
use super::names::Names;
use super::{Tables, cleared};
use crate::engine::id::{self, IdKey, LockId};
use crate::engine::identity::{
    Access, BootTime, Dev, LockKind, Owner, ProcessId, Range, RecordedPid, StartTime,
};
use crate::engine::input::{
    Acquired, Attempt, Ended, FileId, Input, LockName, Outcome, PidReused, Released,
};
use crate::engine::snapshot::Death;
use crate::source::bpf;

/// Bytes that are not a record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("record of the moment, kind {kind}, {length} bytes: {what}")]
pub struct RecordError {
    /// Its kind, or 0 where it has none.
    pub kind: u32,
    /// Its length, bytes.
    pub length: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// The ring of records.
pub struct Moments {
    ring: RingBuf<MapData>,
    /// They have what a record does not say itself.
    tables: Arc<Tables>,
    /// The takings that were told last: after a crash both the taker and the end of the crash may
    /// tell of one.
    told: VecDeque<(LockId, BootTime)>,
}

/// Takings that are remembered.
const REMEMBERED: usize = 64;

/// Nanoseconds by which a record may be older than one that stands before it: a program looks at the
/// clock first and asks for its place in the ring then.
const OUT_OF_ORDER: u64 = 1_000_000_000;

/// What turns a record into an input.
pub struct Told<'a> {
    /// The secret of lock ids.
    pub key: &'a IdKey,
    /// Names for numbers.
    pub names: &'a mut Names,
    /// Nanoseconds since 1970 at the boot clock's 0.
    pub boot_unix: u64,
    /// Who looks.
    pub looker: Looker,
}

impl Moments {
    pub(super) fn new(ring: RingBuf<MapData>, tables: Arc<Tables>) -> Self {
        Self { ring, tables, told: VecDeque::new() }
    }

    /// Takes the records that are there, in the order in which they were written, but no more than
    /// `most`: what is written faster than it is taken would have no end. True where none is left.
    ///
    /// # Errors
    /// A record that is none: it is passed over, and the next call goes on behind it.
    pub fn drain(
        &mut self,
        most: usize,
        told: &mut Told<'_>,
        mut take: impl FnMut(Input),
    ) -> Result<bool, RecordError> {
        let begun = bpf::now();
        for _ in 0..most {
            let Some(record) = self.ring.next() else {
                self.tables.set_drained(begun);
                return Ok(true);
            };
            // Of a ring that is filled faster than it is emptied there is no end.
            if let Some(header) = wire::read::<Header>(&record) {
                self.tables.set_drained(BootTime(header.at.saturating_sub(OUT_OF_ORDER)));
            }
            match parse(&record, told)? {
                Parsed::Input(input) => {
                    if let Input::Acquired(acquired) = &input {
                        let taking = (acquired.lock.id, acquired.at);
                        if self.told.contains(&taking) {
                            continue;
                        }
                        self.told.truncate(REMEMBERED - 1);
                        self.told.push_front(taking);
                    }
                    take(input);
                }
                Parsed::Cleared(record) => match cleared::ends(&record, &self.tables, told) {
                    Ok(ends) => ends.into_iter().for_each(&mut take),
                    Err(error) => {
                        log::error!("what an owner had when it ended: {error}");
                        take(Input::Lost(1));
                    }
                },
            }
        }
        Ok(false)
    }
}

impl AsRawFd for Moments {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsFd for Moments {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// What a record comes to.
#[derive(Debug)]
enum Parsed {
    /// All that there is to say.
    Input(Input),
    /// What it says only together with the tables.
    Cleared(MomentRecord),
}

/// What a record says.
///
/// # Errors
/// Where the bytes are not one.
fn parse(bytes: &[u8], told: &mut Told<'_>) -> Result<Parsed, RecordError> {
    let length = bytes.len();
    let broken = |kind, what| RecordError { kind, length, what };
    let header: Header = wire::read(bytes).ok_or(broken(0, "cut off in its header"))?;
    let kind = header.kind;
    if header.len as usize != length {
        return Err(broken(kind, "not as long as it says"));
    }
    fn exact<T: Wire>(bytes: &[u8]) -> Option<T> {
        (bytes.len() == size_of::<T>()).then(|| wire::read(bytes)).flatten()
    }
    let wrong = broken(kind, "wrong length for its kind");
    match kind {
        KIND_DIED => {
            let record: DiedRecord = exact(bytes).ok_or(wrong)?;
            Ok(Parsed::Input(Input::Died(death(&record.process, &record.ending))))
        }
        KIND_REUSED => {
            let record: ReusedRecord = exact(bytes).ok_or(wrong)?;
            let process =
                ProcessId { pid: record.process.tgid, start: StartTime(record.process.start) };
            Ok(Parsed::Input(Input::PidReused(PidReused { process, at: BootTime(header.at) })))
        }
        KIND_ENDED | KIND_ACQUIRED | KIND_RELEASED | KIND_REFUSED | KIND_BLOCKED => {
            let record: MomentRecord = exact(bytes).ok_or(wrong)?;
            let input = moment(&record, told);
            let input = input.ok_or(broken(kind, "a lock that ended with nobody's death"))?;
            Ok(Parsed::Input(input))
        }
        KIND_CLEARED => Ok(Parsed::Cleared(exact(bytes).ok_or(wrong)?)),
        _ => Err(broken(kind, "unknown kind")),
    }
}

fn moment(record: &MomentRecord, told: &mut Told<'_>) -> Option<Input> {
    let at = BootTime(record.header.at);
    let lock = lock(&record.key, &record.entry, told.key);
    Some(match record.header.kind {
        KIND_ENDED => Input::Ended(Ended {
            lock,
            by: told.names.remembered(&record.entry.by),
            taken_at: BootTime(record.entry.taken_at),
            at,
            ended_by: told.names.remembered(told.looker.closer(record)),
            death: ending(&record.entry, &record.ending)?,
            written: written(record, told.boot_unix),
            generation: generation(record),
        }),
        KIND_ACQUIRED => {
            // Of a lock that a crash's end found taken already, its taker and not who tells.
            let (by, generation) = (told.names.remembered(&record.entry.by), generation(record));
            Input::Acquired(Acquired { lock, by, at, generation })
        }
        KIND_RELEASED => {
            // Who reclaims gives back by name: that was no look.
            Input::Released(Released { lock, by: told.names.remembered(&record.by), at })
        }
        kind => Input::Attempt(Attempt {
            met: lock,
            by: told.names.remembered(&record.by),
            access: access(record.access),
            range: range(record.start, record.end),
            at,
            outcome: if kind == KIND_BLOCKED { Outcome::Blocked } else { Outcome::Refused },
            exiting: ending(&record.entry, &record.ending),
        }),
    })
}

fn ending(entry: &Entry, ending: &Ending) -> Option<Death> {
    (ending.dead != 0).then(|| death(&entry.by.process(), ending))
}

/// The name of a lock, with the id that it has in every snapshot.
pub(super) fn lock(key: &Key, entry: &Entry, secret: &IdKey) -> LockName {
    let file = FileId { dev: Dev::from_kernel(entry.dev), ino: entry.ino };
    let kind = kind(key.class, entry.flags);
    let range = range(key.start, entry.end);
    let recorded = match entry.recorded {
        0 => RecordedPid::Zero,
        pid if pid < 0 => RecordedPid::Remote(pid),
        pid => RecordedPid::Local(pid),
    };
    let id = id::of_lock(secret, file.dev, file.ino, kind, range, recorded, Owner::new(key.owner));
    LockName { id, file, kind, access: access(entry.access), range }
}

/// `FL_*` of `include/linux/filelock.h`.
const FL_DELEG: u32 = 4;
const FL_LAYOUT: u32 = 2048;

fn kind(class: u32, flags: u32) -> LockKind {
    match class {
        CLASS_FLOCK => LockKind::Flock,
        CLASS_POSIX if flags & FL_OFDLCK != 0 => LockKind::Ofd,
        CLASS_POSIX => LockKind::Posix,
        _ if flags & FL_DELEG != 0 => LockKind::Deleg,
        _ if flags & FL_LAYOUT != 0 => LockKind::Layout,
        _ => LockKind::Lease,
    }
}

fn access(kernel: u32) -> Access {
    match kernel {
        F_WRLCK => Access::Write,
        0 => Access::Read,
        _ => Access::Unlock,
    }
}

fn range(start: i64, end: i64) -> Range {
    let byte = |at: i64| u64::try_from(at).unwrap_or(0);
    Range::new(byte(start), (end != i64::MAX).then(|| byte(end)))
}

/// Which of the files it is that have or had its inode number; a file system that does not tell
/// has 0 for all.
pub(super) fn generation(record: &MomentRecord) -> Option<u32> {
    Some(record.generation).filter(|&generation| generation != 0)
}

/// The kernel stamps files with a clock that goes by ticks: a write within the tick of the stamp
/// before leaves no trace. No kernel has ticks longer than this.
const LONGEST_TICK: u64 = 10_000_000;

/// Whether the file was written between the taking and the end; `None` where the stamps cannot tell.
pub(super) fn written(record: &MomentRecord, boot_unix: u64) -> Option<bool> {
    let before = (record.entry.mtime_sec, record.entry.mtime_nsec);
    let after = (record.mtime_sec, record.mtime_nsec);
    if record.entry.taken_at == 0 || before == (0, 0) {
        return None;
    }
    if before != after {
        return Some(true);
    }
    let stamp = u64::try_from(before.0)
        .ok()?
        .checked_mul(1_000_000_000)?
        .checked_add(u64::from(before.1))?;
    let taken = boot_unix.checked_add(record.entry.taken_at)?;
    (taken > stamp.checked_add(LONGEST_TICK)?).then_some(false)
}

#[cfg(test)]
pub(super) mod tests;
