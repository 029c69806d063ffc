//! What is counted, and where programs put what they work with: on each CPU, for each program apart.

use lockwatch_common::history::{
    BUCKETS, CLASS_FLOCK, CLASS_POSIX, Counters, Entry, FL_OFDLCK, KINDS, Key, PARKED, parked_at,
};

use crate::tables::COUNTERS;

/// Index of a kind of lock in [`Counters`].
#[inline(always)]
pub(crate) fn kind(class: u32, flags: u32) -> usize {
    match class {
        CLASS_FLOCK => 0,
        CLASS_POSIX if flags & FL_OFDLCK != 0 => 2,
        CLASS_POSIX => 1,
        _ => 3,
    }
}

/// This CPU's counters, those of the program in this seat.
#[inline(always)]
fn here(seat: u32) -> Option<&'static mut Counters> {
    // SAFETY: the map's value lives as long as the program, which does not interrupt itself.
    COUNTERS.get_ptr_mut(seat).map(|counters| unsafe { &mut *counters })
}

macro_rules! count {
    ($($(#[$doc:meta])* $name:ident => $member:ident;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub(crate) fn $name(seat: u32) {
                if let Some(counters) = here(seat) {
                    counters.$member += 1;
                }
            }
        )*
    };
}

count! {
    /// A record did not fit the ring.
    lost_record => lost_records;
    /// A lock did not fit its table.
    lost_lock => lost_locks;
    /// An operation or owner did not fit its table.
    lost_operation => lost_operations;
    /// A wait or an ending did not fit its table.
    lost_other => lost_others;
    /// A second program sees what the first could not.
    instead => instead;
}

/// A lock was taken.
#[inline(always)]
pub(crate) fn acquisition(seat: u32, kind: usize) {
    if let Some(counters) = here(seat) {
        counters.acquisitions[kind % KINDS] += 1;
    }
}

/// A lock was given up; `held` nanoseconds after it was taken, where that is known.
#[inline(always)]
pub(crate) fn release(seat: u32, kind: usize, held: Option<u64>) {
    if let Some(counters) = here(seat) {
        let kind = kind % KINDS;
        counters.releases[kind] += 1;
        if let Some(held) = held {
            counters.hold[kind][bucket(held)] += 1;
            counters.hold_sum[kind] += held;
        }
    }
}

/// An attempt was answered with `EAGAIN`.
#[inline(always)]
pub(crate) fn refusal(seat: u32, kind: usize) {
    if let Some(counters) = here(seat) {
        counters.refusals[kind % KINDS] += 1;
    }
}

/// An attempt has to wait.
#[inline(always)]
pub(crate) fn wait(seat: u32, kind: usize) {
    if let Some(counters) = here(seat) {
        counters.waits[kind % KINDS] += 1;
    }
}

/// A wait was granted after so many nanoseconds.
#[inline(always)]
pub(crate) fn granted(seat: u32, kind: usize, waited: u64) {
    if let Some(counters) = here(seat) {
        let kind = kind % KINDS;
        counters.wait[kind][bucket(waited)] += 1;
        counters.wait_sum[kind] += waited;
    }
}

/// Room for an entry that is being put together; one at a time.
#[inline(always)]
pub(crate) fn draft(seat: u32) -> Option<*mut Entry> {
    // SAFETY: a place within the map's value.
    COUNTERS.get_ptr_mut(seat).map(|counters| unsafe { &raw mut (*counters).draft })
}

/// Where this CPU notes that a lock's place is kept although the lock was given up.
#[inline(always)]
pub(crate) fn parking(seat: u32, key: &Key) -> Option<*mut Key> {
    let at = parked_at(key.inode, key.owner) % PARKED;
    // SAFETY: a place within the map's value.
    COUNTERS.get_ptr_mut(seat).map(|counters| unsafe { &raw mut (*counters).parked[at] })
}

/// Two addresses as plain numbers. What the verifier knows as a typed pointer it allows no
/// arithmetic with; what comes out of a table is a number.
#[inline(always)]
pub(crate) fn plain(seat: u32, inode: u64, owner: u64) -> Option<(u64, u64)> {
    let counters = COUNTERS.get_ptr_mut(seat)?;
    // SAFETY: the map's value; a program does not interrupt itself. Volatile, so that it is done.
    unsafe {
        let [first, second] =
            [(&raw mut (*counters).scratch).cast::<u64>(), (&raw mut (*counters).scratch[1])];
        first.write_volatile(inode);
        second.write_volatile(owner);
        Some((first.read_volatile(), second.read_volatile()))
    }
}

/// The power of two: 0 for 0 and 1, 1 for 2 and 3, and so on.
#[inline(always)]
fn bucket(nanoseconds: u64) -> usize {
    // By halves: neither a loop nor an instruction that no kernel has.
    let mut rest = nanoseconds;
    let mut power = 0usize;
    if rest >> 32 != 0 {
        rest >>= 32;
        power += 32;
    }
    if rest >> 16 != 0 {
        rest >>= 16;
        power += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        power += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        power += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        power += 2;
    }
    power += (rest >> 1 != 0) as usize;
    if power < BUCKETS { power } else { BUCKETS - 1 }
}
