//! Owners of several ranges that end all at once, without having been asked for: by the owner's exit,
//! or with the last descriptor.
//!
//! Refuses to say which ranges these were: the tables have them, and user space works them out.

use lockwatch_common::history::{
    FL_CLOSE, FL_OFDLCK, FileKey, KIND_CLEARED, Key, Owner, ProcessKey,
};
use lockwatch_common::snapshot::PF_EXITING;

use crate::attempt::Attempt;
use crate::moment::{Moment, Room};
use crate::tables::DEAD;
use crate::{attention, counters, moment, party, words};

/// `PF_KTHREAD` of `include/linux/sched.h`.
const PF_KTHREAD: u32 = 0x20_0000;

/// Tells of it where it came with a death; answers whether it did. `new` where `owner` is only known
/// from this attempt on.
///
/// # Safety
/// `owner` must be valid for reads.
#[inline(never)]
pub(crate) unsafe fn told(attempt: &Attempt, owner: *const Owner, now: u64, new: bool) -> bool {
    if attempt.flags & FL_CLOSE == 0 {
        return false;
    }
    let (flags, start) = party::flags_and_start();
    let (tgid, _) = party::ids();
    let exiting = flags & PF_EXITING != 0;
    // What is closed too late for the dying task's own list of work, a worker closes.
    let by_worker = flags & PF_KTHREAD != 0 && attempt.flags & FL_OFDLCK != 0;
    // SAFETY: the caller's promise; an ending is written once, before it is found.
    unsafe {
        let process = if exiting || new {
            ProcessKey { start, tgid, reserved: 0 }
        } else {
            ProcessKey { start: (*owner).start, tgid: (*owner).tgid, reserved: 0 }
        };
        let ending = DEAD.get(process);
        if ending.is_none() && !by_worker {
            return false;
        }
        let clean = matches!(ending, Some(ending) if ending.status == 0);
        let at = if clean { now } else { attention::after_crash(attempt, now) };
        let Some(draft) = counters::draft() else { return false };
        words::clear(draft);
        let FileKey { ino, dev, .. } = attempt.file();
        ((*draft).ino, (*draft).dev, (*draft).flags) = (ino, dev, attempt.flags);
        ((*draft).by.start, (*draft).by.tgid) = (process.start, process.tgid);
        let key = Key { start: 0, ..attempt.key };
        let (kind, entry, room) = (KIND_CLEARED, &*draft, Room::Reserved);
        moment::tell(attempt, &Moment { kind, at, key: &key, entry, ending, room });
    }
    true
}
