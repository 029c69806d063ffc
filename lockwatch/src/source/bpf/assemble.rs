//! From the program's records to the engine's snapshot.
//!
//! Refuses to look anything up: records in, facts out. What a record does not say stays `None`.

use std::hash::BuildHasher as _;

use hashbrown::{DefaultHashBuilder, HashMap, HashSet, HashTable};

use lockwatch_common::snapshot::{
    InodeRecord, LockRecord, PF_EXITING, PF_FORKNOEXEC, ReferenceRecord, TargetRecord, TaskRecord,
};

use super::anew::Anew;
use super::record::Record;
use crate::engine::identity::{Access, Dev, LockKind, Owner, Range, RecordedPid, Size, StartTime};
use crate::engine::shared::Shared;
use crate::engine::snapshot::{File, FileIx, Lock, Process, Reference, Snapshot, Via, Waiter};

/// `FL_*` of `include/linux/filelock.h`.
mod flag {
    pub(super) const DELEG: u32 = 4;
    pub(super) const DOWNGRADE_PENDING: u32 = 256;
    pub(super) const UNLOCK_PENDING: u32 = 512;
    pub(super) const OFDLCK: u32 = 1024;
    pub(super) const LAYOUT: u32 = 2048;
}

const LIST_FLOCK: u32 = 0;
const LIST_POSIX: u32 = 1;
/// `F_RDLCK` and `F_WRLCK` of `include/uapi/asm-generic/fcntl.h`.
const F_RDLCK: u32 = 0;
const F_WRLCK: u32 = 1;
/// `FMODE_WRITE` of `include/linux/fs.h`.
const FMODE_WRITE: u32 = 2;
const DELETED: &[u8] = b" (deleted)";

/// A file whose path was given up by it and may name another by now.
pub(super) struct Unlinked {
    pub(super) file: FileIx,
    /// A reference through which the file itself can be looked at: pid and descriptor.
    pub(super) reference: Option<(i32, u32)>,
}

/// What is to be looked up of files.
pub(super) struct Loose {
    /// Files whose path may name another by now.
    pub(super) unlinked: Vec<Unlinked>,
    /// Paths from the root of their file system, of files that no descriptor leads to.
    pub(super) names: HashMap<FileIx, Vec<u8>>,
    /// The kernel's inode of each file.
    pub(super) inodes: Vec<u64>,
}

/// The lists of the snapshot before.
#[derive(Default)]
pub(super) struct Before {
    files: Shared<File>,
    locks: Shared<Lock>,
    references: Shared<Reference>,
}

impl Before {
    /// Those of a snapshot.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let Snapshot { files, locks, references, .. } = snapshot;
        Self { files: files.clone(), locks: locks.clone(), references: references.clone() }
    }
}

/// Takes records in the program's order.
#[derive(Default)]
pub(super) struct Assembler {
    snapshot: Snapshot,
    files: Anew<File>,
    locks: Anew<Lock>,
    references: Anew<Reference>,
    /// The kernel's inode of each file, and where each is among them.
    inodes: Vec<u64>,
    by_inode: HashTable<u32>,
    last_inode: Option<(u64, FileIx)>,
    /// Where each lock is: an owner has no two that begin at one byte, so one that is met twice
    /// was taken anew while the lists were being read.
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
    requests: HashMap<u64, u32>,
    /// The granted lock under which a request queues, through others where need be.
    roots: HashMap<u64, u64>,
    unlinked: Vec<Unlinked>,
    /// Paths that came name by name, the last one first.
    names: HashMap<FileIx, Vec<u8>>,
    /// The descriptor of lockwatch's own seeds, and their inode.
    seeds: u32,
    /// Files of lockwatch's own descriptors.
    targets: HashMap<u32, (Dev, u64)>,
}

impl Assembler {
    /// `seeds` is the descriptor of lockwatch's own locks, which are not told. What is as it was
    /// `before` shares its memory.
    pub(super) fn new(seeds: u32, before: &Before) -> Self {
        let Before { files, locks, references } = before;
        Self {
            files: Anew::after(files.clone()),
            locks: Anew::after(locks.clone()),
            references: Anew::after(references.clone()),
            inodes: Vec::with_capacity(files.len()),
            by_inode: HashTable::with_capacity(files.len()),
            places: HashTable::with_capacity(locks.len()),
            seeds,
            ..Self::default()
        }
    }

    pub(super) fn take(&mut self, record: Record<'_>) {
        match record {
            Record::Target(target) => self.target(&target),
            Record::Inode(inode, path) => self.inode(&inode, path),
            Record::Name(inode, name) => self.name(inode, name),
            Record::Lock(lock) => self.lock(&lock),
            Record::Waiter(lock) => self.request(&lock),
            Record::Task(task) => self.task(&task),
            Record::Reference(reference) => self.reference(&reference),
        }
    }

    fn target(&mut self, target: &TargetRecord) {
        self.targets.insert(target.fd, (Dev::from_kernel(target.dev), target.ino));
    }

    fn inode(&mut self, inode: &InodeRecord, path: &[u8]) {
        let (dev, ino) = (Dev::from_kernel(inode.dev), inode.ino);
        // A descriptor of lockwatch's own is told before what it leads to.
        let is_seed = self.targets.get(&self.seeds) == Some(&(dev, ino));
        if is_seed || self.place_of(inode.inode).is_some() {
            return;
        }
        let file = FileIx(self.files.len() as u32);
        let unlinked = inode.unlinked != 0;
        let path = if unlinked { path.strip_suffix(DELETED).unwrap_or(path) } else { path };
        let size = Size::of_kernel(inode.size);
        let deleted = Some(inode.nlink == 0);
        // A name that is still in its folder cannot name another inode.
        let replaced = if unlinked { None } else { Some(false) };
        let has_path = |file: &File| file.path.as_deref() == Some(path);
        let is_next = self.files.is_next(|file| {
            // Whether another is in the place of one that was unlinked is looked up each time.
            (file.dev, file.ino, file.size, file.deleted) == (dev, ino, size, deleted)
                && (unlinked || file.replaced == replaced)
                && has_path(file)
        });
        if !is_next {
            let known =
                self.files.near(|file| (file.dev, file.ino) == (dev, ino) && has_path(file));
            let known = known.and_then(|file| file.path.clone());
            let path = known.or_else(|| (!path.is_empty()).then(|| path.into()));
            self.files.push(File { dev, ino, size, path, deleted, replaced });
        }
        if unlinked {
            self.unlinked.push(Unlinked { file, reference: None });
        }
        let (hasher, inodes) = (&self.hasher, &mut self.inodes);
        inodes.push(inode.inode);
        self.by_inode.insert_unique(hasher.hash_one(inode.inode), file.0, |&place| {
            hasher.hash_one(inodes[place as usize])
        });
    }

    fn place_of(&self, inode: u64) -> Option<FileIx> {
        let is_it = |&place: &u32| self.inodes[place as usize] == inode;
        self.by_inode.find(self.hasher.hash_one(inode), is_it).copied().map(FileIx)
    }

    fn name(&mut self, inode: u64, name: &[u8]) {
        let Some(file) = self.file(inode) else { return };
        if self.files.get(file.0 as usize).path.is_none() {
            let path = self.names.entry(file).or_default();
            path.splice(..0, name.iter().copied());
            path.insert(0, b'/');
        }
    }

    fn file(&mut self, inode: u64) -> Option<FileIx> {
        if let Some((last, file)) = self.last_inode
            && last == inode
        {
            return Some(file);
        }
        let file = self.place_of(inode)?;
        self.last_inode = Some((inode, file));
        Some(file)
    }

    fn lock(&mut self, record: &LockRecord) {
        let Some(file) = self.file(record.inode) else { return };
        let lock = Lock {
            entry: record.entry,
            file,
            kind: kind(record),
            access: access(record.access),
            range: range(record),
            owner: Some(Owner::new(record.owner)),
            acquirer: recorded(record.pid),
            taken: None,
            breaking_to: if record.flags & flag::UNLOCK_PENDING != 0 {
                Some(Access::Unlock)
            } else if record.flags & flag::DOWNGRADE_PENDING != 0 {
                Some(Access::Read)
            } else {
                None
            },
        };
        let key = |lock: &Lock| (lock.file, lock.kind, lock.owner, lock.range.start);
        let hash = |lock: &Lock| self.hasher.hash_one(key(lock));
        let locks = &mut self.locks;
        let hashed = hash(&lock);
        let seen = self.places.find(hashed, |&at| key(locks.get(at as usize)) == key(&lock));
        match seen.map(|&place| place as usize) {
            // The later sight counts.
            Some(place) if !locks.get(place).is_same(&lock) => *locks.get_mut(place) = lock,
            Some(_) => {}
            None => {
                let place = locks.len() as u32;
                if !locks.is_next(|next| next.is_same(&lock)) {
                    locks.push(lock);
                }
                self.places.insert_unique(hashed, place, |&at| hash(locks.get(at as usize)));
            }
        }
    }

    fn request(&mut self, record: &LockRecord) {
        let Some(file) = self.file(record.inode) else { return };
        // The program comes by what a request waits behind before it comes by the request.
        let root = self.roots.get(&record.blocker).copied().unwrap_or(record.blocker);
        self.roots.insert(record.entry, root);
        let waiter = Waiter {
            behind: Some(root),
            file,
            kind: kind(record),
            access: access(record.access),
            range: range(record),
            owner: (record.owner != 0).then_some(Owner::new(record.owner)),
            requester: recorded(record.pid),
            since: None,
        };
        let place =
            *self.requests.entry(record.entry).or_insert(self.snapshot.waiters.len() as u32);
        match self.snapshot.waiters.get_mut(place as usize) {
            Some(seen) => *seen = waiter,
            None => self.snapshot.waiters.push(waiter),
        }
    }

    fn task(&mut self, record: &TaskRecord) {
        let exiting = record.flags & PF_EXITING != 0;
        let entry = self.snapshot.processes.entry(record.tgid);
        let process = entry.or_insert_with(|| process(record));
        // One thread that stays is enough for the process to stay.
        process.exiting &= exiting;
        if record.tid == record.tgid {
            process.comm = comm(&record.comm);
        }
    }

    fn reference(&mut self, record: &ReferenceRecord) {
        let Some(file) = self.file(record.inode) else { return };
        let reference = Reference {
            pid: record.tgid,
            tid: record.tid,
            via: Via::Fd,
            fd: Some(record.fd),
            file,
            description: Some(Owner::new(record.file)),
            table: (record.files != 0).then_some(Owner::new(record.files)),
            opener: Some(record.opener != 0),
            writes: Some(record.mode & FMODE_WRITE != 0),
        };
        if !self.references.is_next(|next| *next == reference) {
            self.references.push(reference);
        }
    }

    /// The snapshot, what is to be looked up of its files, and the targets.
    pub(super) fn finish(mut self) -> (Snapshot, Loose, HashMap<u32, (Dev, u64)>) {
        self.snapshot.files = self.files.finish();
        self.snapshot.locks = self.locks.finish();
        self.snapshot.references = self.references.finish();
        if let Some(&seeds) = self.targets.get(&self.seeds) {
            forget_seeds(&mut self.snapshot, seeds);
        }
        forget_what_is_not_there(&mut self.snapshot);
        if !self.unlinked.is_empty() {
            for reference in &self.snapshot.references {
                if let Ok(place) =
                    self.unlinked.binary_search_by_key(&reference.file, |unlinked| unlinked.file)
                    && let Some(fd) = reference.fd
                {
                    self.unlinked[place].reference.get_or_insert((reference.pid, fd));
                }
            }
        }
        self.snapshot.stable_owners = true;
        self.inodes.shrink_to_fit();
        let loose = Loose { unlinked: self.unlinked, names: self.names, inodes: self.inodes };
        (self.snapshot, loose, self.targets)
    }
}

/// Takes out what led to lockwatch's own locks before its own descriptor was met: a child between
/// fork and exec has that, too.
fn forget_seeds(snapshot: &mut Snapshot, seeds: (Dev, u64)) {
    let place = snapshot.files.iter().position(|file| (file.dev, file.ino) == seeds);
    let Some(seeds) = place.map(|place| FileIx(place as u32)) else { return };
    snapshot.locks.retain(|lock| lock.file != seeds);
    snapshot.references.retain(|reference| reference.file != seeds);
}

/// Has no request wait behind a lock that was not met.
fn forget_what_is_not_there(snapshot: &mut Snapshot) {
    if snapshot.waiters.is_empty() {
        return;
    }
    let mut roots: HashSet<u64> =
        snapshot.waiters.iter().filter_map(|waiter| waiter.behind).collect();
    let met: HashSet<u64> =
        snapshot.locks.iter().map(|lock| lock.entry).filter(|entry| roots.remove(entry)).collect();
    for waiter in &mut snapshot.waiters {
        waiter.behind = waiter.behind.filter(|root| met.contains(root));
    }
}

/// The process that a task belongs to, as far as the task tells.
pub(super) fn process(record: &TaskRecord) -> Process {
    Process {
        start: Some(StartTime(record.start)),
        reader_pid: (record.reader_pid > 0 && record.reader_pid != record.tgid)
            .then_some(record.reader_pid),
        ns_pid: (record.ns_pid > 0).then_some(record.ns_pid),
        pid_ns: (record.pid_ns > 0).then_some(u64::from(record.pid_ns)),
        ns_level: Some(record.ns_level),
        comm: comm(&record.comm),
        parent: (record.parent > 0).then_some(record.parent),
        forked_no_exec: Some(record.flags & PF_FORKNOEXEC != 0),
        exiting: record.flags & PF_EXITING != 0,
        ..Process::default()
    }
}

fn kind(record: &LockRecord) -> LockKind {
    match record.list {
        LIST_FLOCK => LockKind::Flock,
        LIST_POSIX if record.flags & flag::OFDLCK != 0 => LockKind::Ofd,
        LIST_POSIX => LockKind::Posix,
        _ if record.flags & flag::DELEG != 0 => LockKind::Deleg,
        _ if record.flags & flag::LAYOUT != 0 => LockKind::Layout,
        _ => LockKind::Lease,
    }
}

fn access(kernel: u32) -> Access {
    match kernel {
        F_RDLCK => Access::Read,
        F_WRLCK => Access::Write,
        _ => Access::Unlock,
    }
}

fn range(record: &LockRecord) -> Range {
    let byte = |at: i64| u64::try_from(at).unwrap_or(0);
    Range::new(byte(record.start), (record.end != i64::MAX).then(|| byte(record.end)))
}

fn recorded(pid: i32) -> RecordedPid {
    match pid {
        0 => RecordedPid::Zero,
        pid if pid < 0 => RecordedPid::Remote(pid),
        pid => RecordedPid::Local(pid),
    }
}

fn comm(raw: &[u8; 16]) -> Box<[u8]> {
    let end = raw.iter().position(|&byte| byte == 0).unwrap_or(raw.len());
    raw[..end].into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lockwatch_common::snapshot::Header;

    use super::*;

    const HEADER: Header = Header { kind: 0, len: 0 };
    const SEEDS: u32 = 9;

    fn inode(inode: u64) -> InodeRecord {
        InodeRecord {
            header: HEADER,
            inode,
            ino: inode + 100,
            size: 12,
            dev: (0xfe << 20) | 1,
            nlink: 1,
            unlinked: 0,
            path_len: 0,
        }
    }

    fn flock(entry: u64, owner: u64) -> LockRecord {
        LockRecord {
            header: HEADER,
            entry,
            inode: 1,
            owner,
            file: owner,
            blocker: 0,
            start: 0,
            end: i64::MAX,
            flags: 2,
            access: F_WRLCK,
            pid: 7,
            list: LIST_FLOCK,
        }
    }

    fn assembled<'a>(records: impl IntoIterator<Item = Record<'a>>) -> (Snapshot, Loose) {
        let mut assembler = Assembler::new(SEEDS, &Before::default());
        records.into_iter().for_each(|record| assembler.take(record));
        let (snapshot, loose, _) = assembler.finish();
        (snapshot, loose)
    }

    #[test]
    fn a_lock_that_is_met_twice_is_one_and_its_later_sight_counts() {
        let again = LockRecord { access: F_RDLCK, ..flock(11, 5) };
        let (snapshot, _) = assembled([
            Record::Inode(inode(1), b"/a"),
            Record::Lock(flock(10, 5)),
            Record::Lock(again),
            Record::Lock(flock(12, 6)),
        ]);
        assert_eq!(snapshot.locks.len(), 2);
        assert_eq!(snapshot.locks[0].access, Access::Read);
        assert_eq!(snapshot.files[0].path.as_deref(), Some(&b"/a"[..]));
        assert_eq!(snapshot.files[0].replaced, Some(false), "its name is in its folder");
    }

    #[test]
    fn a_request_behind_a_request_waits_behind_the_lock_at_the_root() {
        let request = |entry, blocker| LockRecord { blocker, ..flock(entry, entry) };
        let (snapshot, _) = assembled([
            Record::Inode(inode(1), b"/a"),
            Record::Lock(flock(10, 5)),
            Record::Waiter(request(20, 10)),
            Record::Waiter(request(21, 20)),
            Record::Waiter(request(22, 21)),
            Record::Waiter(request(30, 99)),
        ]);
        let behind: Vec<_> = snapshot.waiters.iter().map(|waiter| waiter.behind).collect();
        assert_eq!(behind, [Some(10), Some(10), Some(10), None]);
    }

    #[test]
    fn kinds_ranges_and_pids_are_the_kernels() {
        let posix = |flags, pid, end| LockRecord {
            list: LIST_POSIX,
            flags,
            pid,
            end,
            ..flock(u64::from(flags) + 50, u64::from(flags))
        };
        let lease = LockRecord { list: 2, flags: 32 | flag::UNLOCK_PENDING, ..flock(40, 4) };
        let (snapshot, _) = assembled([
            Record::Inode(inode(1), b"/a"),
            Record::Lock(posix(1, -3, 9)),
            Record::Lock(posix(1 | flag::OFDLCK, 8, i64::MAX)),
            Record::Lock(lease),
        ]);
        let [posix, ofd, lease] = &snapshot.locks[..] else { panic!("{snapshot:?}") };
        assert_eq!((posix.kind, posix.acquirer), (LockKind::Posix, RecordedPid::Remote(-3)));
        assert_eq!(posix.range, Range::new(0, Some(9)));
        assert_eq!((ofd.kind, ofd.acquirer), (LockKind::Ofd, RecordedPid::Local(8)));
        assert_eq!(ofd.range, Range::WHOLE);
        assert_eq!((lease.kind, lease.breaking_to), (LockKind::Lease, Some(Access::Unlock)));
    }

    #[test]
    fn a_path_that_comes_name_by_name_is_put_together_from_its_end() {
        let (snapshot, loose) = assembled([
            Record::Inode(inode(1), b""),
            Record::Name(1, b"lock"),
            Record::Name(1, b"aim"),
            Record::Name(1, b"srv"),
            Record::Inode(inode(2), b"/known"),
            Record::Name(2, b"other"),
        ]);
        assert_eq!(loose.names.len(), 1);
        assert_eq!(loose.names[&FileIx(0)], b"/srv/aim/lock");
        assert_eq!(snapshot.files[0].path, None, "where it is mounted is not known here");
    }

    #[test]
    fn an_unlinked_file_loses_the_kernels_mark_and_nobody_elses() {
        let unlinked = InodeRecord { unlinked: 1, nlink: 0, ..inode(1) };
        let (snapshot, loose) = assembled([
            Record::Inode(unlinked, b"/a (deleted) (deleted)"),
            Record::Inode(inode(2), b"/b (deleted)"),
        ]);
        assert_eq!(snapshot.files[0].path.as_deref(), Some(&b"/a (deleted)"[..]));
        assert_eq!((snapshot.files[0].deleted, snapshot.files[0].replaced), (Some(true), None));
        assert_eq!(snapshot.files[1].path.as_deref(), Some(&b"/b (deleted)"[..]));
        assert_eq!(loose.unlinked.len(), 1);
    }

    #[test]
    fn the_seeds_are_not_told_whoever_is_met_first_with_them() {
        let seeds = inode(3);
        let target = TargetRecord { header: HEADER, ino: seeds.ino, dev: seeds.dev, fd: SEEDS };
        let lock = LockRecord { inode: 3, ..flock(10, 5) };
        let [before, after] =
            [[Record::Target(target), Record::Inode(seeds, b"/memfd:lockwatch")]; 2];
        for [first, second] in [before, [after[1], after[0]]] {
            let (snapshot, _) = assembled([
                first,
                second,
                Record::Lock(lock),
                Record::Inode(inode(1), b"/a"),
                Record::Lock(flock(11, 6)),
            ]);
            assert_eq!(snapshot.locks.len(), 1);
            assert_eq!(snapshot.locks[0].entry, 11);
        }
    }

    #[test]
    fn what_is_as_before_is_shared_and_says_the_same() {
        let records = |size| {
            [
                Record::Inode(inode(1), b"/a"),
                Record::Lock(flock(10, 5)),
                Record::Inode(InodeRecord { size, ..inode(2) }, b"/b"),
                Record::Lock(LockRecord { inode: 2, ..flock(11, 6) }),
            ]
        };
        let after = |before: &Snapshot, size| {
            let mut assembler = Assembler::new(SEEDS, &Before::of(before));
            records(size).into_iter().for_each(|record| assembler.take(record));
            assembler.finish().0
        };
        let (before, _) = assembled(records(12));
        let same = after(&before, 12);
        assert!(same.files.is(&before.files) && same.locks.is(&before.locks));
        let grown = after(&before, 13);
        assert_eq!(grown.files, assembled(records(13)).0.files);
        assert!(!grown.files.is(&before.files) && grown.locks.is(&before.locks));
        let (path, known) = (grown.files[1].path.as_ref(), before.files[1].path.as_ref());
        assert!(path.zip(known).is_some_and(|(path, known)| Arc::ptr_eq(path, known)));
    }
}
