//! Owners of several ranges that end all at once, without having been asked for: by the owner's exit,
//! or with the last descriptor.
//!
//! Refuses to say which ranges these were: the tables have them, and user space works them out.

use lockwatch_common::history::{FL_OFDLCK, FileKey, KIND_CLEARED, ProcessKey, TO_BE_TOLD, TOLD};
use lockwatch_common::snapshot::PF_EXITING;

use crate::attempt::Attempt;
use crate::moment::{Moment, Room};
use crate::tables::{DEAD, OWNERS, globals};
use crate::{attention, counters, moment, owners, party, words};

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x20_0000;

/// Tells of it where the attempt ended several ranges of an owner, and came with a death.
#[inline(never)]
pub(crate) fn tell(attempt: &Attempt) {
    let Some(globals) = globals() else { return };
    // SAFETY: the maps' values; an ending is written once, before it is found.
    unsafe {
        if (*globals).owners == 0 {
            return;
        }
        let Some(owner) = OWNERS.get_ptr_mut(attempt.key.of_owner()) else { return };
        if (*owner).told != TO_BE_TOLD {
            return;
        }
        let (flags, start) = party::flags_and_start();
        let process = if flags & PF_EXITING != 0 {
            ProcessKey { start, tgid: party::ids().0, reserved: 0 }
        } else {
            ProcessKey { start: (*owner).start, tgid: (*owner).tgid, reserved: 0 }
        };
        // What is closed too late for the dying task's own list of work, a worker closes.
        let by_worker = flags & PF_KTHREAD != 0 && attempt.flags & FL_OFDLCK != 0;
        let ending = DEAD.get(process);
        if ending.is_none() && !by_worker {
            (*owner).told = 0;
            owners::forget(attempt, owner);
            return;
        }
        let now = (*owner).cleared_at;
        if !matches!(ending, Some(ending) if ending.status == 0) {
            attention::after_crash(attempt, now);
        }
        let Some(draft) = counters::draft(attempt.seat) else { return };
        words::clear(draft);
        let FileKey { ino, dev, .. } = attempt.file();
        ((*draft).ino, (*draft).dev, (*draft).flags) = (ino, dev, attempt.flags);
        ((*draft).by.start, (*draft).by.tgid) = (process.start, process.tgid);
        let (kind, entry, room) = (KIND_CLEARED, &*draft, Room::Reserved);
        if moment::told(attempt, &Moment { kind, at: now, key: &attempt.key, entry, ending, room })
        {
            (*owner).count = 0;
            (*owner).told = TOLD;
        } else {
            owners::forget(attempt, owner);
            (*owner).told = 0;
        }
    }
}
