//! The tables against a model of the kernel's list: whatever an owner does to its ranges, each range
//! has the taking of its oldest byte, or none where something was lost.

use lockwatch_common::history::{F_UNLCK, MERGED, Party, Written};
use lockwatch_common::ranges::{self, Known, Setting, Unsetting};
use proptest::prelude::*;

use super::super::collect::restored;
use super::*;
use crate::engine::identity::{Dev, Owner as Token};
use crate::engine::snapshot::FileIx;

/// Bytes of the model's file; the last one stands for all to the end.
const BYTES: usize = 20;
const INODE: u64 = 0xffff_8880_0000_1000;
const OWNER: u64 = 0xffff_8880_0000_2000;

#[derive(Clone, Copy, Debug)]
enum Act {
    /// Sets or gives up bytes.
    Do { start: usize, end: usize, access: u32 },
    /// User space replaces what was done by what it came to.
    Shorten,
}

/// The kernel's list and the programs' tables, for one owner.
#[derive(Default)]
struct Model {
    now: u64,
    /// Access and time of each byte; time 0 is before anybody watched.
    bytes: [Option<(u32, u64)>; BYTES],
    locks: BTreeMap<i64, Entry>,
    owner: Option<Owner>,
    operations: BTreeMap<OperationKey, Operation>,
    lost_at: u64,
    full: bool,
    /// Whether anything was ever lost.
    lossy: bool,
}

fn file() -> File {
    File { dev: Dev::new(0, 0), ino: 7, size: None, path: None, deleted: None, replaced: None }
}

fn last(byte: usize) -> i64 {
    if byte == BYTES - 1 { i64::MAX } else { byte as i64 }
}

impl Model {
    /// The neighbours of one access around a byte.
    fn run(&self, at: usize) -> (usize, usize) {
        let access = self.bytes[at].map(|(access, _)| access);
        let same = |byte: &usize| self.bytes[*byte].map(|(access, _)| access) == access;
        let start = (0..=at).rev().take_while(same).last().unwrap_or(at);
        let end = (at..BYTES).take_while(same).last().unwrap_or(at);
        (start, end)
    }

    /// Every range of the kernel's list.
    fn list(&self) -> Vec<(usize, usize, u32)> {
        let mut list = Vec::new();
        let mut at = 0;
        while at < BYTES {
            let (_, end) = self.run(at);
            if let Some((access, _)) = self.bytes[at] {
                list.push((at, end, access));
            }
            at = end + 1;
        }
        list
    }

    /// `posix_lock_inode`, then the program.
    fn act(&mut self, start: usize, end: usize, access: u32) {
        self.now += 1;
        let now = self.now;
        if access == F_UNLCK {
            self.bytes[start..=end].fill(None);
            self.seen(start as i64, last(end), access, false);
            return;
        }
        let touched = start.saturating_sub(1)..=(end + 1).min(BYTES - 1);
        let merges = touched.clone().any(|at| self.bytes[at].is_some_and(|(is, _)| is == access));
        let replaces = self
            .list()
            .iter()
            .any(|&(first, end_of, is)| is != access && first >= start && end_of <= end);
        for byte in &mut self.bytes[start..=end] {
            match byte {
                Some((is, _)) if *is == access => {}
                _ => *byte = Some((access, now)),
            }
        }
        let (first, end) = self.run(start);
        self.seen(first as i64, last(end), access, merges || replaces);
    }

    /// The program.
    fn seen(&mut self, start: i64, end: i64, access: u32, linked: bool) {
        let entry = Entry {
            taken_at: self.now,
            written_at: self.now,
            end,
            ino: 7,
            mtime_sec: 0,
            mtime_nsec: 0,
            access,
            flags: 0,
            recorded: 1,
            dev: 0,
            merged: if linked { MERGED } else { 0 },
            by: Party { start: self.now, tgid: 1, ..Party::NOBODY },
            sealed_at: self.now,
        };
        if self.owner.is_some() {
            return self.write_down(start, entry);
        }
        let count = |of| self.locks.values().filter(|entry| entry.access == of).count() as i64;
        let (reads, writes) = (count(F_RDLCK), count(F_WRLCK));
        let known = self
            .locks
            .get(&start)
            .map(|known| Known { same_end: known.end == end, same_access: known.access == access });
        if access == F_UNLCK {
            match ranges::unset(start == 0 && end == i64::MAX, known, reads + writes) {
                Unsetting::Nothing => {}
                Unsetting::Simple => drop(self.locks.remove(&start)),
                Unsetting::Only => self.locks.clear(),
                Unsetting::Cleared => {
                    self.begin(Owner { cleared_at: self.now, ..self.new_owner() });
                }
                Unsetting::Other => {
                    self.begin(self.new_owner());
                    self.write_down(start, entry);
                }
            }
            return;
        }
        match ranges::set(linked, known, if access == F_WRLCK { reads } else { writes }) {
            Setting::Nothing => {}
            Setting::Simple => {
                let taken_at = if linked && self.lost_at != 0 { 0 } else { self.now };
                self.locks.remove(&start);
                if std::mem::take(&mut self.full) {
                    self.lost_at = self.now;
                    self.lossy = true;
                } else {
                    self.locks.insert(start, Entry { taken_at, ..entry });
                }
            }
            Setting::Other => {
                self.begin(self.new_owner());
                self.write_down(start, entry);
            }
        }
    }

    fn new_owner(&self) -> Owner {
        Owner {
            since: self.now,
            lost_at: self.lost_at,
            last_at: self.now,
            start: 1,
            tgid: 1,
            ..Owner::UNWRITTEN
        }
    }

    fn begin(&mut self, owner: Owner) {
        self.owner = Some(owner);
    }

    fn write_down(&mut self, start: i64, entry: Entry) {
        let full = std::mem::take(&mut self.full);
        let Some(owner) = &mut self.owner else { return };
        owner.last_at = self.now;
        if entry.access == F_UNLCK && start == 0 && entry.end == i64::MAX {
            owner.cleared_at = self.now;
            for Written { at, start } in &owner.written[..owner.count as usize] {
                let key = OperationKey { inode: INODE, owner: OWNER, at: *at, start: *start };
                self.operations.remove(&key);
            }
            owner.count = 0;
        } else if full {
            owner.lost_at = self.now;
            self.lossy = true;
        } else {
            let key = OperationKey { inode: INODE, owner: OWNER, at: self.now, start };
            self.operations.insert(key, entry);
            if let Some(free) = owner.written.get_mut(owner.count as usize) {
                *free = Written { at: key.at, start };
                owner.count += 1;
            }
        }
    }

    fn keyed(&self) -> Vec<(Key, Entry)> {
        let key =
            |start| Key { inode: INODE, owner: OWNER, start, class: CLASS_POSIX, reserved: 0 };
        self.locks.iter().map(|(&start, &entry)| (key(start), entry)).collect()
    }

    fn shorten(&mut self) {
        let Some(owner) = self.owner else { return };
        let base: Vec<_> =
            self.keyed().into_iter().filter(|(_, e)| e.written_at > owner.cleared_at).collect();
        let done: Vec<_> = (self.operations.iter())
            .filter(|(key, _)| key.at > owner.cleared_at)
            .map(|(key, operation)| (*key, *operation))
            .collect();
        let short = restored(&OwnerKey { inode: INODE, owner: OWNER }, &base, &done);
        // A reader may come in between.
        self.operations.extend(short.iter().copied());
        self.check();
        self.operations = short.into_iter().collect();
        self.locks.clear();
    }

    /// Each range of the kernel has the taking of its oldest byte.
    fn check(&self) {
        let owners: Vec<_> = (self.owner.iter())
            .map(|owner| (OwnerKey { inode: INODE, owner: OWNER }, *owner))
            .collect();
        let operations: Vec<_> =
            self.operations.iter().map(|(key, operation)| (*key, *operation)).collect();
        let mut contents = Contents { begun: BootTime(1), ..Contents::default() };
        contents.work_out(&owners, self.keyed(), operations, |_| self.lost_at);
        for (start, end, access) in self.list() {
            let lock = Lock {
                entry: 0,
                file: FileIx(0),
                kind: LockKind::Posix,
                access: if access == F_WRLCK { Access::Write } else { Access::Read },
                range: Range::new(start as u64, (end != BYTES - 1).then_some(end as u64)),
                owner: Some(Token::new(OWNER)),
                acquirer: RecordedPid::Local(1),
                breaking_to: None,
                taken: None,
            };
            let times = self.bytes[start..=end].iter().flatten().map(|&(_, at)| at);
            let oldest = times.min().unwrap_or_default();
            let told = contents.taking(&lock, &file(), BootTime(u64::MAX)).map(|(at, _)| at);
            let truth = (oldest != 0).then_some(oldest);
            if self.lossy {
                assert!(told.is_none() || told == truth, "{start}-{end}: {told:?}, not {truth:?}");
            } else {
                assert_eq!(told, truth, "{start}-{end} of {:?}", self.list());
            }
        }
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let bytes = (0..BYTES, 0..BYTES).prop_map(|(a, b)| (a.min(b), a.max(b)));
    let access = prop_oneof![2 => Just(F_RDLCK), 2 => Just(F_WRLCK), 3 => Just(F_UNLCK)];
    let one = prop_oneof![
        12 => (bytes, access).prop_map(|((start, end), access)| Act::Do { start, end, access }),
        // What simple programs do: the same bytes again and again.
        12 => (0..4usize, prop_oneof![Just(F_RDLCK), Just(F_WRLCK), Just(F_UNLCK)])
            .prop_map(|(at, access)| Act::Do { start: at * 5, end: at * 5 + 2, access }),
        2 => Just(Act::Do { start: 0, end: BYTES - 1, access: F_UNLCK }),
        1 => Just(Act::Shorten),
    ];
    proptest::collection::vec(one, 1..40)
}

#[test]
fn who_gives_up_all_time_and_again_needs_no_more_room() {
    let mut model = Model::default();
    for _ in 0..100 {
        // As a database's connection does with its journal.
        model.act(2, 2, F_RDLCK);
        model.act(5, 9, F_RDLCK);
        model.act(2, 2, F_UNLCK);
        model.act(3, 3, F_WRLCK);
        model.check();
        model.act(2, 2, F_WRLCK);
        model.act(5, 9, F_WRLCK);
        model.check();
        assert!(model.operations.len() <= 6, "{:?}", model.operations.keys());
        model.act(0, BYTES - 1, F_UNLCK);
        assert_eq!(model.operations.len(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn each_range_has_the_taking_of_its_oldest_byte(acts in acts()) {
        let mut model = Model::default();
        for act in acts {
            match act {
                Act::Do { start, end, access } => model.act(start, end, access),
                Act::Shorten => model.shorten(),
            }
            model.check();
        }
    }

    #[test]
    fn a_range_that_was_there_before_stays_of_unknown_age(
        before in proptest::collection::vec((0..BYTES, 0..4usize, 0..2u32), 0..4),
        acts in acts(),
    ) {
        let mut model = Model::default();
        for (start, length, access) in before {
            let end = (start + length).min(BYTES - 1);
            model.bytes[start..=end].fill(Some((access, 0)));
        }
        for (start, end, access) in model.list() {
            let entry = Entry {
                taken_at: 0,
                written_at: 1,
                end: last(end),
                ino: 7,
                mtime_sec: 0,
                mtime_nsec: 0,
                access,
                flags: 0,
                recorded: 1,
                dev: 0,
                merged: 0,
                by: Party { tgid: 1, ..Party::NOBODY },
                sealed_at: 1,
            };
            model.locks.insert(start as i64, entry);
        }
        model.now = 1;
        for act in acts {
            match act {
                Act::Do { start, end, access } => model.act(start, end, access),
                Act::Shorten => model.shorten(),
            }
            model.check();
        }
    }

    #[test]
    fn a_full_table_costs_knowledge_and_never_the_truth(
        acts in acts(),
        full in proptest::collection::vec(0..40usize, 1..5),
    ) {
        let mut model = Model::default();
        for (index, act) in acts.into_iter().enumerate() {
            model.full = full.contains(&index);
            match act {
                Act::Do { start, end, access } => model.act(start, end, access),
                Act::Shorten => model.shorten(),
            }
            model.check();
        }
    }
}
