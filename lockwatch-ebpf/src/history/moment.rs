//! Records of the moment, into the ring.
//!
//! Refuses to wait: what does not fit is counted, and user space reads the tables anew.

use lockwatch_common::history::{
    Ending, Entry, Header, KIND_ACQUIRED, KIND_BLOCKED, KIND_REFUSED, KIND_RELEASED, Key,
    MomentRecord,
};

use crate::attempt::Attempt;
use crate::tables::MOMENTS;
use crate::{counters, party, words};

/// What is told.
pub(crate) struct Moment<'a> {
    /// One of the `KIND_` constants.
    pub(crate) kind: u32,
    /// When, ns of `CLOCK_BOOTTIME`.
    pub(crate) at: u64,
    /// Which lock.
    pub(crate) key: &'a Key,
    /// Its entry.
    pub(crate) entry: &'a Entry,
    /// How its acquirer ended, where it did.
    pub(crate) ending: Option<&'a Ending>,
    /// How much of the ring it may fill.
    pub(crate) room: Room,
}

/// How much of the ring a record may fill: what there can be a flood of leaves room for what there
/// is one of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Attempts: a half.
    Half,
    /// What else happens to files with attention: three quarters.
    Most,
    /// Ends that come with a death: all of it.
    Reserved,
}

impl Room {
    /// That of a kind.
    #[inline(always)]
    pub(crate) fn of(kind: u32) -> Self {
        match kind {
            KIND_REFUSED | KIND_BLOCKED => Self::Half,
            KIND_ACQUIRED | KIND_RELEASED => Self::Most,
            _ => Self::Reserved,
        }
    }

    /// True where the ring has that much room.
    #[inline(always)]
    fn is_there(self) -> bool {
        if self == Self::Reserved {
            return true;
        }
        let (used, size) = (MOMENTS.query(BPF_RB_AVAIL_DATA), MOMENTS.query(BPF_RB_RING_SIZE));
        match self {
            Self::Half => used < size / 2,
            _ => used < size / 4 * 3,
        }
    }
}

/// `BPF_RB_AVAIL_DATA` of `include/uapi/linux/bpf.h`.
const BPF_RB_AVAIL_DATA: u64 = 0;
/// `BPF_RB_RING_SIZE`.
const BPF_RB_RING_SIZE: u64 = 1;

/// Tells what the current task did to a lock.
#[inline(always)]
pub(crate) fn tell(attempt: &Attempt, moment: &Moment<'_>) {
    // What has no room is counted.
    let _ = told(attempt, moment);
}

/// Tells what the current task did to a lock; false where there is no room.
#[inline(never)]
pub(crate) fn told(attempt: &Attempt, moment: &Moment<'_>) -> bool {
    if !moment.room.is_there() {
        counters::lost_record(attempt.seat);
        return false;
    }
    let Some(mut room) = MOMENTS.reserve::<MomentRecord>(0) else {
        counters::lost_record(attempt.seat);
        return false;
    };
    let to = room.as_mut_ptr();
    let (mtime_sec, mtime_nsec) = attempt.modified();
    // SAFETY: the ring gave as many bytes as the record has; each member is written.
    unsafe {
        (*to).header =
            Header { kind: moment.kind, len: size_of::<MomentRecord>() as u32, at: moment.at };
        words::copy(&raw mut (*to).key, moment.key);
        words::copy(&raw mut (*to).entry, moment.entry);
        match moment.ending {
            Some(ending) => words::copy(&raw mut (*to).ending, ending),
            None => words::clear(&raw mut (*to).ending),
        }
        (*to).mtime_sec = mtime_sec;
        (*to).mtime_nsec = mtime_nsec;
        (*to).access = attempt.access;
        (*to).start = attempt.key.start;
        (*to).end = attempt.end;
        (*to).generation = attempt.generation();
        (*to).reserved = 0;
        party::current(&raw mut (*to).by);
    }
    room.submit(0);
    true
}
