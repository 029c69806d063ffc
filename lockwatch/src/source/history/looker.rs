//! What lockwatch itself ends by looking.
//!
//! The kernel's iterator over descriptors has each file for the moment in which it is shown. Where
//! its owner closes it just then, or dies, the iterator is the last to let it go, and what is locked
//! by it ends in the context of whoever looks.
//!
//! Refuses to speak for anybody else who may have been the last.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use lockwatch_common::history::{MomentRecord, Party};

/// This program, by which it is recognized in other processes as well: a scan beside the daemon.
#[derive(Clone, Copy, Debug)]
pub struct Looker {
    /// Its own process.
    pub pid: i32,
    /// Inode number of its executable; 0 where that is not known.
    pub exe_ino: u64,
}

impl Looker {
    /// This process.
    pub fn own() -> Self {
        // Without the number only this process is recognized.
        let exe_ino = fs::metadata("/proc/self/exe").map_or(0, |exe| exe.ino());
        Self { pid: std::process::id().cast_signed(), exe_ino }
    }

    /// In whose context a lock ended, as if nobody had looked: its owner's, where it was a look that
    /// was the last to let go.
    pub(super) fn closer<'a>(&self, record: &'a MomentRecord) -> &'a Party {
        let by = &record.by;
        let looked = by.tgid == self.pid || (self.exe_ino != 0 && by.exe_ino == self.exe_ino);
        if looked { &record.entry.by } else { by }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::history::moments::tests::ended;

    #[test]
    fn what_ends_by_a_look_is_ended_by_its_owner() {
        let looker = Looker { pid: 5, exe_ino: 77 };
        let owner = ended(1, 0).entry.by;
        let by = |tgid, exe_ino| {
            let by = Party { tgid, exe_ino, ..Party::NOBODY };
            looker.closer(&MomentRecord { by, ..ended(1, 0) }).tgid
        };
        assert_eq!(by(5, 0), owner.tgid, "the daemon itself");
        assert_eq!(by(6, 77), owner.tgid, "a scan beside it");
        assert_eq!(by(6, 78), 6, "another program");
        let blind = Looker { pid: 5, exe_ino: 0 };
        let kernel_thread = Party { tgid: 6, ..Party::NOBODY };
        let record = MomentRecord { by: kernel_thread, ..ended(1, 0) };
        assert_eq!(blind.closer(&record).tgid, 6, "nobody without an executable");
    }
}
