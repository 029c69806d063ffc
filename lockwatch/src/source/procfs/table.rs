//! The listing `/proc/locks`: granted locks, and behind each the requests that wait for it.
//!
//! Refuses to read it a second time: each read(2) of it stalls every locker of the machine.

use std::io;

use rustix::fs::{Mode, OFlags};

use super::ProcfsError;
use super::fault::BadLine;
use super::locks_line::{Body, LockLine};
use super::root::ProcRoot;

/// A granted lock of the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub body: Body,
    /// True where it may be the same entry as one listed just before. The kernel hands out a page
    /// at a time and finds its place again by counting, so when a lock is inserted meanwhile, the
    /// last ones of a page are handed out again.
    pub maybe_repeated: bool,
}

/// A request of the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub body: Body,
    /// Index into [`Table::locks`] of the lock at the root of its queue.
    pub root: Option<usize>,
}

/// The listing.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub locks: Vec<Listed>,
    pub waiters: Vec<Queued>,
}

/// More repeated entries than this at one page's edge are not looked for.
const MOST_REPEATED: usize = 16;

impl Table {
    /// Reads the listing, in as few read(2) calls as the kernel lets us: it hands out at most a
    /// page (about 70 locks) each, however large the buffer.
    pub(super) fn read(root: &ProcRoot, fault: impl FnMut(BadLine)) -> Result<Self, ProcfsError> {
        let failed =
            |source: io::Error| ProcfsError::Read { path: root.path().join("locks"), source };
        let folder = root.open().map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, "locks", flags, Mode::empty())
            .map_err(|error| failed(error.into()))?;

        let mut text = Vec::new();
        let mut edges = Vec::new();
        let mut filled = 0;
        loop {
            if text.len() - filled < PAGE {
                let larger = (text.len() * 2).max(16 * PAGE);
                text.resize(larger, 0);
            }
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut text[filled..]));
            match read.map_err(|error| failed(error.into()))? {
                0 => break,
                count => filled += count,
            }
            edges.push(filled);
        }
        Ok(Self::parse(&text[..filled], &edges, fault))
    }

    /// `edges` are the places in the text where a read(2) ended.
    fn parse(text: &[u8], edges: &[usize], mut fault: impl FnMut(BadLine)) -> Self {
        let mut table = Self::default();
        let mut edges = edges.iter().copied().peekable();
        let mut starts_of_pages = Vec::new();
        let mut root = None;
        let mut at = 0;
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if edges.peek().is_some_and(|&edge| edge <= at) {
                while edges.next_if(|&edge| edge <= at).is_some() {}
                starts_of_pages.push(table.locks.len());
            }
            at += line.len() + 1;
            if line.is_empty() {
                continue;
            }
            match LockLine::parse(line) {
                Ok(LockLine { depth: 0, body, .. }) => {
                    root = Some(table.locks.len());
                    table.locks.push(Listed { body, maybe_repeated: false });
                }
                Ok(LockLine { body, .. }) => table.waiters.push(Queued { body, root }),
                Err(part) => {
                    // What follows must not be taken for waiters of the lock before.
                    if !line.windows(2).any(|pair| pair == b"->") {
                        root = None;
                    }
                    fault(BadLine { file: "locks".to_owned(), line: index + 1, part });
                }
            }
        }
        for start in starts_of_pages {
            table.mark_repeated(start);
        }
        table
    }

    fn mark_repeated(&mut self, start: usize) {
        let most = MOST_REPEATED.min(start).min(self.locks.len() - start);
        let bodies = |range: std::ops::Range<usize>| self.locks[range].iter().map(|lock| lock.body);
        let repeated =
            (1..=most).rev().find(|&n| bodies(start - n..start).eq(bodies(start..start + n)));
        for lock in &mut self.locks[start..start + repeated.unwrap_or(0)] {
            lock.maybe_repeated = true;
        }
    }
}

/// The least room to offer to a read(2).
const PAGE: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str, edges: &[usize]) -> (Table, Vec<String>) {
        let mut faults = Vec::new();
        let table = Table::parse(text.as_bytes(), edges, |fault| faults.push(fault.to_string()));
        (table, faults)
    }

    fn lock(id: u32, pid: i32) -> String {
        format!("{id}: FLOCK  ADVISORY  WRITE {pid} fe:00:131 0 EOF\n")
    }

    #[test]
    fn waiters_hang_below_the_lock_above_them() {
        let text = "1: FLOCK  ADVISORY  WRITE 5 fe:00:131 0 EOF\n\
            2: LEASE  BREAKING  UNLCK 6 fe:00:132 0 EOF\n\
            2: -> LEASE  BREAKER   WRITE 7 <none>:0 0 EOF\n\
            2:  -> LEASE  BREAKER   WRITE 8 <none>:0 0 EOF\n\
            3: FLOCK  ADVISORY  READ  9 fe:00:133 0 EOF\n";
        let (table, faults) = parse(text, &[]);
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(table.locks.len(), 3);
        let waiters: Vec<_> = table.waiters.iter().map(|w| (w.root, w.body.pid)).collect();
        assert_eq!(waiters, [(Some(1), 7), (Some(1), 8)]);
    }

    #[test]
    fn a_bad_line_is_named_and_takes_its_waiters_root_along() {
        let text = format!(
            "{}2: UNKNOWN UNKNOWN  READ 3 fe:00:1 0 EOF\n\
            2: -> FLOCK  ADVISORY  WRITE 4 fe:00:1 0 EOF\n{}",
            lock(1, 5),
            lock(3, 6)
        );
        let (table, faults) = parse(&text, &[]);
        assert_eq!(faults, ["locks line 2: kind of lock expected, found \"UNKNOWN\""]);
        assert_eq!(table.locks.len(), 2);
        assert_eq!(table.waiters[0].root, None);
    }

    #[test]
    fn entries_handed_out_twice_at_the_edge_of_a_page_are_marked() {
        let first = format!("{}{}{}", lock(1, 5), lock(2, 6), lock(3, 7));
        let text = format!("{first}{}{}{}", lock(4, 6), lock(5, 7), lock(6, 8));
        let marks = |edges: &[usize]| {
            let (table, _) = parse(&text, edges);
            table.locks.iter().map(|lock| lock.maybe_repeated).collect::<Vec<_>>()
        };
        assert_eq!(marks(&[first.len(), text.len()]), [false, false, false, true, true, false]);
        assert_eq!(marks(&[text.len()]), [false; 6]);
        assert_eq!(marks(&[]), [false; 6]);
    }

    proptest! {
        #[test]
        fn every_fault_names_its_line(lines in prop::collection::vec((any::<bool>(), 1..99_i32), 0..40)) {
            let text: String = lines
                .iter()
                .map(|&(good, pid)| if good { lock(1, pid) } else { format!("{pid} bad\n") })
                .collect();
            let (table, faults) = parse(&text, &[text.len() / 3, text.len()]);
            let bad: Vec<_> = (1..).zip(&lines).filter(|(_, line)| !line.0).map(|(n, _)| n).collect();
            prop_assert_eq!(table.locks.len() + bad.len(), lines.len());
            for (fault, line) in faults.iter().zip(bad) {
                let start = format!("locks line {line}: ");
                prop_assert!(fault.starts_with(&start));
            }
        }

        #[test]
        fn any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            edges in prop::collection::vec(0..600_usize, 0..9),
        ) {
            Table::parse(&bytes, &edges, |_| ());
        }
    }
}
