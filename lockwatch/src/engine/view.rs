//! The immutable view: every lock of a snapshot with its verdict, holders and waiters.
//!
//! Refuses to format: sinks write it down.

use std::collections::BTreeMap;
use std::fmt;

use super::classify::{Reason, State, Survivor, Verdict};
use super::conclude::{self, Conclusions, Lists, Span};
use super::id::{self, LockId};
use super::identity::{BootTime, Dev, Owner, Pid, ProcessId, RecordedPid};
use super::input::{FileId, LockName};
use super::snapshot::{File, Hides, Limit, Lock, Place, Process, Reference, Snapshot, Via};
use super::waits;

/// Flags of a lock, independent of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flag {
    /// The recorded pid now belongs to another process.
    PidRecycled,
    /// The acquirer lives but no longer refers to the description.
    AcquirerDetached,
    /// A reader in the pid namespace concerned is shown pid 0.
    PidZero,
    /// The file has no name left.
    Deleted,
    /// The file's path now names another inode.
    Replaced,
    /// It has waiters.
    Contended,
}

impl Flag {
    const ALL: [Self; 6] = [
        Self::PidRecycled,
        Self::AcquirerDetached,
        Self::PidZero,
        Self::Deleted,
        Self::Replaced,
        Self::Contended,
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::PidRecycled => "pid_recycled",
            Self::AcquirerDetached => "acquirer_detached",
            Self::PidZero => "pid_zero",
            Self::Deleted => "deleted",
            Self::Replaced => "replaced",
            Self::Contended => "contended",
        }
    }
}

/// Some flags.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// True where it is one of them.
    pub fn contains(self, flag: Flag) -> bool {
        self.0 & (1 << flag as u8) != 0
    }

    /// They, in the order of [`Flag`].
    pub fn iter(self) -> impl Iterator<Item = Flag> {
        Flag::ALL.into_iter().filter(move |&flag| self.contains(flag))
    }

    fn set(&mut self, flag: Flag) {
        self.0 |= 1 << flag as u8;
    }
}

impl fmt::Debug for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// One lock with all that follows.
#[derive(Clone, Debug)]
pub struct LockView {
    /// Its id.
    pub id: LockId,
    /// Its place in [`Snapshot::locks`].
    pub lock: u32,
    /// What it is in, and why.
    pub verdict: Verdict,
    /// Its flags.
    pub flags: Flags,
    /// Its holders. Locks of one owner on one file share them.
    holders: Span,
}

/// One way in which a lock is held: a descriptor, or a place without one.
#[derive(Clone, Copy, Debug)]
pub struct Holding<'a> {
    /// Who, where it is anybody's.
    pub pid: Option<Pid>,
    /// The thread through which it was found.
    pub tid: Option<Pid>,
    /// How the description or fd table is referred to.
    pub via: Via,
    /// The descriptor of the file, or of the socket or ring that it is in.
    pub fd: Option<u32>,
    /// The place, where it is one.
    pub place: Option<&'a Place>,
}

/// What the engine makes of a snapshot.
#[derive(Clone, Debug)]
pub struct View {
    /// The facts.
    pub snapshot: Snapshot,
    /// Every lock, by device, inode, kind, first byte and id.
    pub locks: Vec<LockView>,
    /// For each waiter of the snapshot, the places in `locks` of what blocks it, in rising order.
    pub blockers: Vec<Vec<u32>>,
    /// The waiters of each lock that has any, by its place in the snapshot: few have.
    waiters: BTreeMap<u32, Vec<u32>>,
    /// Where else the description of a lock lives on, by its place in the snapshot, as far as it does.
    places: BTreeMap<u32, Span>,
    lists: Lists,
}

impl View {
    /// Concludes. `ids` are those of the snapshot's locks, in their order ([`id::assign`]).
    pub fn new(snapshot: Snapshot, ids: &[LockId]) -> Self {
        Self::with_patience(snapshot, ids, None)
    }

    /// As [`Self::new`]; who died at `overdue` or before should long have come to the end of its
    /// exit.
    pub fn with_patience(snapshot: Snapshot, ids: &[LockId], overdue: Option<BootTime>) -> Self {
        debug_assert_eq!(snapshot.locks.len(), ids.len());
        let waits = waits::relate(&snapshot);
        let mut conclusions = Conclusions::of(&snapshot, overdue);
        let mut order: Vec<u32> = (0..ids.len() as u32).collect();
        order.sort_unstable_by_key(|&index| {
            let (lock, id) = (&snapshot.locks[index as usize], &ids[index as usize]);
            (id.dev, id.ino, lock.kind, lock.range.start, id.hash)
        });
        let mut place = vec![0u32; ids.len()];
        let mut locks = Vec::with_capacity(ids.len());
        let mut kept_in = BTreeMap::new();
        for (at, &index) in order.iter().enumerate() {
            place[index as usize] = at as u32;
            let (lock, id) = (&snapshot.locks[index as usize], ids[index as usize]);
            let concluded = conclusions.on(lock);
            let contended = waits.waiters.contains_key(&index);
            if concluded.places != Span::default() {
                kept_in.insert(index, concluded.places);
            }
            let file = &snapshot.files[lock.file.0 as usize];
            let (verdict, survivors) = (concluded.verdict, concluded.survivors);
            let flags = flags(lock, file, &verdict, survivors, contended);
            let holders = concluded.holders;
            locks.push(LockView { id, lock: index, verdict, flags, holders });
        }
        let lists = conclusions.into_lists();
        for of_file in locks.chunk_by_mut(|a, b| (a.id.dev, a.id.ino) == (b.id.dev, b.id.ino)) {
            if of_file.len() > 1 {
                id::lengthen_where_ambiguous(of_file.iter_mut().map(|lock| &mut lock.id));
            }
        }
        let places = |blockers: Vec<u32>| {
            let mut places: Vec<u32> =
                blockers.into_iter().map(|lock| place[lock as usize]).collect();
            places.sort_unstable();
            places
        };
        let blockers = waits.blockers.into_iter().map(places).collect();
        Self { snapshot, locks, blockers, waiters: waits.waiters, places: kept_in, lists }
    }

    /// The lock with an id.
    pub fn find(&self, id: LockId) -> Option<&LockView> {
        let mut of_file = self.on_file(id.dev, id.ino).iter();
        of_file.find(|lock| lock.id.key() == id.key())
    }

    /// The locks on a file.
    pub fn on_file(&self, dev: Dev, ino: u64) -> &[LockView] {
        let file = |lock: &LockView| (lock.id.dev, lock.id.ino);
        let from = self.locks.partition_point(|lock| file(lock) < (dev, ino));
        let to = self.locks.partition_point(|lock| file(lock) <= (dev, ino));
        self.locks.get(from..to).unwrap_or_default()
    }

    /// The facts of a lock.
    pub fn lock(&self, view: &LockView) -> &Lock {
        &self.snapshot.locks[view.lock as usize]
    }

    /// The file of a lock.
    pub fn file(&self, view: &LockView) -> &File {
        &self.snapshot.files[self.lock(view).file.0 as usize]
    }

    /// A lock, as events and plans name it.
    pub fn name(&self, view: &LockView) -> LockName {
        let facts = self.lock(view);
        LockName {
            id: view.id,
            file: FileId { dev: view.id.dev, ino: view.id.ino },
            kind: facts.kind,
            access: facts.access,
            range: facts.range,
        }
    }

    /// The holders of a lock.
    pub fn holders(&self, view: &LockView) -> impl ExactSizeIterator<Item = &Reference> {
        let holders = view.holders.of(&self.lists.holders).iter();
        holders.map(|&reference| &self.snapshot.references[reference as usize])
    }

    /// The waiters of a lock: places in [`Snapshot::waiters`], in rising order.
    pub fn waiters(&self, view: &LockView) -> &[u32] {
        self.waiters.get(&view.lock).map_or(&[], Vec::as_slice)
    }

    /// The places in which the description of a lock lives on without a descriptor.
    pub fn places(&self, view: &LockView) -> impl ExactSizeIterator<Item = &Place> {
        let span = self.places.get(&view.lock).copied().unwrap_or_default();
        let places = span.of(&self.lists.places).iter();
        places.map(|&place| &self.snapshot.places[place as usize])
    }

    /// Every way in which a lock is held: its descriptors, then its places, one entry for each
    /// process that has a place.
    pub fn holdings(&self, view: &LockView) -> impl Iterator<Item = Holding<'_>> {
        let of_table = self.lock(view).kind.belongs_to_fd_table();
        let descriptors = self.holders(view).map(move |reference| Holding {
            pid: Some(reference.pid),
            tid: Some(reference.tid),
            via: if of_table { Via::Files } else { reference.via },
            fd: reference.fd,
            place: None,
        });
        descriptors.chain(self.places(view).flat_map(|place| {
            let nobody =
                Holding { pid: None, tid: None, via: place.via(), fd: None, place: Some(place) };
            let owners = place.owners.iter().map(move |owner| Holding {
                pid: Some(owner.pid),
                tid: Some(owner.tid),
                fd: owner.fd,
                ..nobody
            });
            owners.chain(place.owners.is_empty().then_some(nobody))
        }))
    }

    /// The process with a pid of the snapshot's own count.
    pub fn process(&self, pid: Pid) -> Option<&Process> {
        self.snapshot.processes.get(&pid)
    }

    /// The acquirer, where it is that process that has the recorded pid.
    pub fn acquirer(&self, view: &LockView) -> Option<&Process> {
        match self.lock(view).acquirer {
            RecordedPid::Local(pid) if !view.verdict.recycled => self.process(pid),
            _ => None,
        }
    }

    /// True where nothing that could hide a lock or a holder was left unread.
    pub fn is_complete(&self) -> bool {
        self.gaps().next().is_none()
    }

    /// What was left unread and may hide something.
    pub fn gaps(&self) -> impl Iterator<Item = &Limit> {
        self.snapshot.limits.iter().filter(|limit| limit.hides != Hides::Nothing)
    }

    /// True where every lock is here, though perhaps not every holder.
    pub fn has_every_lock(&self) -> bool {
        self.gaps().all(|limit| limit.hides != Hides::Locks)
    }

    /// Descriptions of which nobody was found who holds them by right: worth a search for what no
    /// fd table shows.
    pub fn unexplained(&self) -> Vec<Owner> {
        conclude::sorted(self.locks.iter().filter_map(|view| {
            let is_held = self.holders(view).len() > 0;
            conclude::unexplained_owner(&self.snapshot, self.lock(view), &view.verdict, is_held)
        }))
    }

    /// The acquirer, where nothing more is known than that it is on its way out.
    pub fn dying(&self, view: &LockView) -> Option<ProcessId> {
        conclude::dying(&self.snapshot, &view.verdict)
    }

    /// True of an orphan that may be gone, or somebody's by right, in a moment: a dying process is
    /// still giving things back, or what is in flight is about to be received.
    pub fn is_fleeting(&self, lock: &LockView) -> bool {
        lock.verdict.state == State::Orphaned
            && (lock.verdict.reason != Some(Reason::Inherited)
                || self.places(lock).any(|place| place.via() == Via::ScmRights))
    }

    /// Orphaned locks.
    pub fn orphaned(&self) -> impl Iterator<Item = &LockView> {
        self.locks.iter().filter(|view| view.verdict.state == State::Orphaned)
    }
}

fn flags(
    lock: &Lock,
    file: &File,
    verdict: &Verdict,
    survivors: &[Survivor<'_>],
    contended: bool,
) -> Flags {
    let mut flags = Flags::default();
    let mut set = |flag, on| {
        if on {
            flags.set(flag);
        }
    };
    set(Flag::PidRecycled, verdict.recycled);
    set(Flag::AcquirerDetached, verdict.detached);
    set(Flag::PidZero, is_shown_as_zero(lock, verdict, survivors));
    set(Flag::Deleted, file.deleted == Some(true));
    set(Flag::Replaced, file.replaced == Some(true));
    set(Flag::Contended, contended);
    flags
}

/// The kernel translates the recorded pid into the namespace of whoever reads: in any but the
/// initial one a dead or foreign pid becomes 0 (`locks_translate_pid`). OFD locks are shown as -1.
fn is_shown_as_zero(lock: &Lock, verdict: &Verdict, survivors: &[Survivor<'_>]) -> bool {
    match lock.acquirer {
        RecordedPid::Zero => true,
        RecordedPid::Local(_) => {
            lock.kind != super::identity::LockKind::Ofd
                && verdict.acquirer_alive != Some(true)
                && survivors
                    .iter()
                    .filter_map(|survivor| survivor.process?.ns_level)
                    .any(|level| level > 0)
        }
        RecordedPid::Withheld | RecordedPid::Remote(_) => false,
    }
}

/// Counts by state, for summaries.
pub fn count_by_state(view: &View) -> BTreeMap<State, usize> {
    let mut counts = BTreeMap::new();
    for lock in &view.locks {
        *counts.entry(lock.verdict.state).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::id::IdKey;
    use crate::engine::identity::{Access, LockKind, Range};
    use crate::engine::snapshot::{FileIx, Waiter};

    const KEY: IdKey = IdKey([7; 16]);
    const KINDS: [LockKind; 3] = [LockKind::Flock, LockKind::Posix, LockKind::Ofd];

    /// (file, kind, owner, first byte, acquirer)
    type Seed = (u32, usize, u64, u64, i32);

    fn snapshot(seeds: &[Seed], waiters: &[(u32, usize, u64)]) -> Snapshot {
        let file = |ino| File {
            dev: Dev::new(1, 2),
            ino,
            size: None,
            path: None,
            deleted: None,
            replaced: None,
        };
        let mut snapshot = Snapshot {
            files: (0..4).map(file).collect(),
            stable_owners: true,
            ..Snapshot::default()
        };
        for &(file, kind, owner, start, pid) in seeds {
            let (file, kind) = (FileIx(file % 4), KINDS[kind % 3]);
            let owner = Owner::new(owner * 8 + u64::from(file.0) * 2 + u64::from(kind as u8 % 2));
            let taken = snapshot.locks.iter().any(|lock| {
                (lock.file, lock.kind, lock.owner, lock.range.start)
                    == (file, kind, Some(owner), start)
            });
            if taken {
                continue;
            }
            let entry = snapshot.locks.len() as u64;
            snapshot.locks.push(Lock {
                entry,
                file,
                kind,
                access: if start % 2 == 0 { Access::Read } else { Access::Write },
                range: Range::new(start, Some(start + 3)),
                owner: Some(owner),
                acquirer: RecordedPid::Local(pid),
                breaking_to: None,
                taken: None,
            });
            snapshot.references.push(Reference {
                pid: pid % 5,
                tid: pid % 5,
                via: Via::Fd,
                fd: Some(pid.unsigned_abs()),
                file,
                description: Some(owner),
                table: Some(owner),
                opener: None,
                writes: None,
            });
            snapshot.processes.insert(pid % 5, Process::default());
        }
        for &(file, kind, start) in waiters {
            snapshot.waiters.push(Waiter {
                behind: None,
                file: FileIx(file % 4),
                kind: KINDS[kind % 3],
                access: Access::Write,
                range: Range::new(start, None),
                owner: Some(Owner::new(u64::MAX)),
                requester: RecordedPid::Local(start as i32),
                since: None,
            });
        }
        snapshot
    }

    fn concluded(snapshot: Snapshot) -> View {
        let ids = id::assign(&snapshot, &KEY);
        View::new(snapshot, &ids)
    }

    /// All that a reader of the view can tell, with waiters by what they ask for.
    fn told(view: &View) -> Vec<String> {
        let lock = |lock: &LockView| {
            let holders: Vec<_> = view.holders(lock).map(|of| (of.pid, of.fd)).collect();
            let mut waiters: Vec<_> = view
                .waiters(lock)
                .iter()
                .map(|&waiter| {
                    let range = view.snapshot.waiters[waiter as usize].range;
                    let by = &view.blockers[waiter as usize];
                    let by: Vec<_> = by.iter().map(|&by| view.locks[by as usize].id).collect();
                    format!("{range:?} {by:?}")
                })
                .collect();
            waiters.sort();
            format!("{} {:?} {:?} {holders:?} {waiters:?}", lock.id, lock.verdict, lock.flags)
        };
        view.locks.iter().map(lock).collect()
    }

    proptest! {
        #[test]
        fn the_view_does_not_depend_on_the_order_in_which_the_source_met_things(
            seeds in proptest::collection::vec((0u32..4, 0usize..3, 0u64..6, 0u64..40, 1i32..30), 0..40),
            waiters in proptest::collection::vec((0u32..4, 0usize..3, 0u64..40), 0..6),
            turn in 0usize..40,
        ) {
            let one = snapshot(&seeds, &waiters);
            let mut other = one.clone();
            if !other.locks.is_empty() {
                let turn = turn % other.locks.len();
                other.locks.rotate_left(turn);
                other.references.reverse();
            }
            other.waiters.reverse();
            let [one, other] = [one, other].map(concluded);
            prop_assert_eq!(told(&one), told(&other));
        }

        #[test]
        fn what_is_unexplained_is_the_same_with_and_without_a_view(
            seeds in proptest::collection::vec((0u32..4, 0usize..3, 0u64..6, 0u64..40, 1i32..30), 0..40),
        ) {
            let facts = snapshot(&seeds, &[]);
            prop_assert_eq!(conclude::unexplained(&facts), concluded(facts).unexplained());
        }

        #[test]
        fn who_is_blocked_and_who_blocks_are_one_relation(
            seeds in proptest::collection::vec((0u32..4, 0usize..3, 0u64..6, 0u64..40, 1i32..30), 0..40),
            waiters in proptest::collection::vec((0u32..4, 0usize..3, 0u64..40), 0..6),
        ) {
            let view = concluded(snapshot(&seeds, &waiters));
            for (place, lock) in view.locks.iter().enumerate() {
                for &waiter in view.waiters(lock) {
                    prop_assert!(view.blockers[waiter as usize].contains(&(place as u32)));
                }
                prop_assert_eq!(lock.flags.contains(Flag::Contended), !view.waiters(lock).is_empty());
            }
            let blocked: usize = view.blockers.iter().map(Vec::len).sum();
            let blocking: usize = view.locks.iter().map(|lock| view.waiters(lock).len()).sum();
            prop_assert_eq!(blocked, blocking);
        }
    }
}
