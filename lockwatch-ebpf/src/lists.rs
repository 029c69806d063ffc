//! The walk over an inode's three lists of locks, and the trees of requests that wait there.
//!
//! The lists are walked without their lock: an entry counts only where it points back to the inode
//! and the link that it was reached from (one that was given up and taken anew meanwhile stands at
//! the list's end, and what was before it would be missed), a list that changed underfoot is begun anew, and a walk that cannot be
//! finished is counted as cut.

use lockwatch_common::snapshot::{
    KIND_LOCK, KIND_WAITER, LOCK_SPAN, LockRecord, RESTARTS_PER_INODE, STEPS_PER_INODE, State,
    Window,
};

use crate::kernel::{offset, read_into, read_u64};
use crate::window::{append, header, state};

#[inline(always)]
fn list_offset(list: u32) -> u64 {
    let offset = match list {
        0 => offset!(ctx_flock),
        1 => offset!(ctx_posix),
        _ => offset!(ctx_lease),
    };
    offset as u64
}

#[inline(always)]
pub(crate) fn begin(place: &mut State, inode: u64, locks: u64) {
    place.inode = inode;
    place.steps = 0;
    place.restarts = 0;
    to_list(place, locks, 0);
}

#[inline(always)]
fn to_list(place: &mut State, locks: u64, list: u32) {
    place.list = list;
    place.head = locks + list_offset(list);
    // 0 is "take the first entry of the list".
    place.cursor = 0;
    place.depth = 0;
    place.ascending = 0;
}

#[inline(always)]
pub(crate) fn abandon(place: &mut State) {
    place.cut += 1;
    place.inode = 0;
}

/// How a step of the walk went.
pub(crate) enum Step {
    More,
    Done,
    Full,
}

/// One step of the walk over an inode's lists and the trees of requests that wait there.
///
/// The trees are walked without a stack: each request knows what it waits behind, so the way up is
/// found in the entry itself.
#[inline(always)]
pub(crate) unsafe fn step(window: *mut Window, inode: u64, locks: u64) -> Step {
    // SAFETY: the caller's promise: the map's value.
    unsafe {
        let place = state(window);
        place.steps += 1;
        if place.steps > STEPS_PER_INODE {
            place.cut += 1;
            return Step::Done;
        }
        if place.cursor == 0 {
            let first = read_u64(place.head);
            if first == place.head || first == 0 {
                return next_list(place, locks);
            }
            place.cursor = first - offset!(lock_list) as u64;
            place.behind = place.head;
        }

        let entry = place.cursor;
        let scratch = (&raw mut place.scratch).cast::<u8>();
        if !read_into(scratch, LOCK_SPAN as u32, entry) {
            return stale(place, locks);
        }
        let file: u64 = field(scratch, offset!(lock_file));
        let blocker: u64 = field(scratch, offset!(lock_blocker));
        // A lease breaker is the only request without a file; a granted lock has no blocker.
        let back = if file == 0 { inode } else { read_u64(file + offset!(file_inode) as u64) };
        if back != inode || (place.depth == 0) != (blocker == 0) || (file == 0 && place.depth == 0)
        {
            return stale(place, locks);
        }
        let link = offset!(lock_list);
        if place.depth == 0
            && place.ascending == 0
            && field::<u64>(scratch, link + 8) != place.behind
        {
            return stale(place, locks);
        }

        if place.ascending == 0 {
            if !lock_record(window, scratch, entry, inode, file, blocker) {
                return Step::Full;
            }
            let first: u64 = field(scratch, offset!(lock_blocked_requests));
            if first != entry + offset!(lock_blocked_requests) as u64 && first != 0 {
                place.cursor = first - offset!(lock_blocked_member) as u64;
                place.depth += 1;
                return Step::More;
            }
        }

        if place.depth == 0 {
            let next: u64 = field(scratch, link);
            if next == place.head {
                return next_list(place, locks);
            }
            if next == entry + link as u64 || next == 0 {
                // Taken off the list while it was being read.
                return stale(place, locks);
            }
            place.cursor = next - link as u64;
            place.behind = entry + link as u64;
            place.ascending = 0;
            return Step::More;
        }
        let sibling: u64 = field(scratch, offset!(lock_blocked_member));
        if sibling == blocker + offset!(lock_blocked_requests) as u64 {
            place.cursor = blocker;
            place.depth -= 1;
            place.ascending = 1;
        } else if sibling == entry + offset!(lock_blocked_member) as u64 || sibling == 0 {
            return stale(place, locks);
        } else {
            place.cursor = sibling - offset!(lock_blocked_member) as u64;
            place.ascending = 0;
        }
        Step::More
    }
}

#[inline(always)]
fn next_list(place: &mut State, locks: u64) -> Step {
    if place.list >= 2 {
        return Step::Done;
    }
    let list = place.list + 1;
    to_list(place, locks, list);
    Step::More
}

/// The list changed underfoot: begin anew. Entries that are written twice are one to user space.
#[inline(always)]
fn stale(place: &mut State, locks: u64) -> Step {
    place.restarts += 1;
    if place.restarts > RESTARTS_PER_INODE {
        place.cut += 1;
        return Step::Done;
    }
    place.restarted += 1;
    to_list(place, locks, 0);
    Step::More
}

/// A member of the copied entry.
#[inline(always)]
pub(crate) unsafe fn field<T: Copy>(scratch: *const u8, offset: u32) -> T {
    // SAFETY: user space checked that every offset of an entry lies within `LOCK_SPAN`, and the
    // verifier does so again.
    unsafe { core::ptr::read_volatile(scratch.add(offset as usize).cast::<T>()) }
}

#[inline(always)]
unsafe fn lock_record(
    window: *mut Window,
    scratch: *const u8,
    entry: u64,
    inode: u64,
    file: u64,
    blocker: u64,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let place = state(window);
        let kind = if place.depth == 0 { KIND_LOCK } else { KIND_WAITER };
        // A `file_lease` of 6.9 and later ends before a range would begin.
        let (start, end) = if place.list == 2 {
            (0, i64::MAX)
        } else {
            (field(scratch, offset!(lock_start)), field(scratch, offset!(lock_end)))
        };
        append(
            window,
            LockRecord {
                header: header::<LockRecord>(kind),
                entry,
                inode,
                owner: field(scratch, offset!(lock_owner)),
                file,
                blocker,
                start,
                end,
                flags: field(scratch, offset!(lock_flags)),
                access: field::<u8>(scratch, offset!(lock_type)) as u32,
                pid: field(scratch, offset!(lock_pid)),
                list: place.list,
            },
        )
    }
}
