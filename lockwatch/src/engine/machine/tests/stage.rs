//! A small machine with processes, files and locks, and a daemon that watches it.

use std::collections::BTreeMap;

use crate::engine::event::{Event, Kind};
use crate::engine::id::{self, IdKey, LockId};
use crate::engine::identity::{
    Access, BootTime, Dev, LockKind, Owner, Pid, ProcessId, Range, RecordedPid, StartTime,
};
use crate::engine::input::{
    Acquired, Attempt, Ended, FileId, Input, LockName, Moment, Outcome, Output, Reading, Released,
    Settings, Started, Watched,
};
use crate::engine::machine::Engine;
use crate::engine::reclaim::progress::{Evicted, Order};
use crate::engine::snapshot::{
    Death, File, FileIx, Lock, Process, Reference, Remembered, Snapshot, Taken, Via, Waiter,
};

pub(crate) const MS: u64 = 1_000_000;
/// 2026-11-25, when the machine booted.
const BOOTED: u64 = 1_795_600_000 * 1_000_000_000;
const KEY: IdKey = IdKey(*b"a key for tests!");
pub(crate) const DEV: Dev = Dev::new(0xfe, 0);

pub(crate) fn ms(at: u64) -> BootTime {
    BootTime(at * MS)
}

pub(crate) fn moment(at: BootTime) -> Moment {
    Moment { boot: at, unix: BOOTED + at.0 }
}

pub(crate) fn file(ino: u64) -> FileId {
    FileId { dev: DEV, ino }
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
}

/// The machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct World {
    pub(crate) facts: Snapshot,
    remembered: BTreeMap<Pid, Remembered>,
}

impl World {
    pub(crate) fn file(&mut self, ino: u64, path: &str) {
        self.facts.files.push(File {
            dev: DEV,
            ino,
            size: crate::engine::identity::Size::new(0),
            path: Some(path.as_bytes().into()),
            deleted: Some(false),
            replaced: Some(false),
        });
    }

    /// Gives the path of `old` to a new file.
    pub(crate) fn replace(&mut self, old: u64, new: u64) {
        let at = self.ix(old).0 as usize;
        let path = self.facts.files[at].path.clone().unwrap();
        self.facts.files[at].deleted = Some(true);
        self.facts.files[at].replaced = Some(true);
        self.file(new, std::str::from_utf8(&path).unwrap());
    }

    fn ix(&self, ino: u64) -> FileIx {
        let at = self.facts.files.iter().position(|file| file.ino == ino);
        FileIx(at.expect("a file of the story") as u32)
    }

    pub(crate) fn born(&mut self, pid: Pid, comm: &str, at: BootTime) {
        let start = StartTime(at.0 + 1);
        let process = Process {
            start: Some(start),
            comm: comm.as_bytes().into(),
            parent: Some(1),
            ns_pid: Some(pid),
            pid_ns: Some(4_026_531_836),
            exe: Some(format!("/usr/bin/{comm}").into_bytes().into()),
            forked_no_exec: Some(false),
            threads: Some(1),
            ..Process::default()
        };
        let remembered = Remembered {
            id: ProcessId { pid, start },
            comm: process.comm.clone(),
            ns_pid: process.ns_pid,
            pid_ns: process.pid_ns,
            exe: process.exe.clone(),
            cgroup: None,
        };
        self.facts.processes.insert(pid, process);
        self.remembered.insert(pid, remembered);
    }

    /// Forks `child` off `parent`, with its descriptors, before any exec.
    pub(crate) fn fork(&mut self, parent: Pid, child: Pid, comm: &str, at: BootTime) {
        self.born(child, comm, at);
        let process = self.facts.processes.get_mut(&child).unwrap();
        process.parent = Some(parent);
        process.forked_no_exec = Some(true);
        let inherited: Vec<Reference> = self
            .facts
            .references
            .iter()
            .filter(|reference| reference.pid == parent)
            .map(|reference| Reference {
                pid: child,
                tid: child,
                opener: None,
                ..reference.clone()
            })
            .collect();
        self.facts.references.extend(inherited);
    }

    pub(crate) fn exec(&mut self, pid: Pid) {
        self.facts.processes.get_mut(&pid).unwrap().forked_no_exec = Some(false);
    }

    /// `pid` opens a file; the description gets the number `owner`.
    pub(crate) fn open(&mut self, pid: Pid, ino: u64, owner: u64) {
        let fd = 3 + self.facts.references.iter().filter(|of| of.pid == pid).count() as u32;
        let file = self.ix(ino);
        self.facts.references.push(Reference {
            pid,
            tid: pid,
            via: Via::Fd,
            fd: Some(fd),
            file,
            description: Some(Owner::new(owner)),
            table: Some(Owner::new(0xf000 + pid as u64)),
            opener: Some(false),
            writes: None,
        });
    }

    /// `pid` locks the description `owner` of a file.
    pub(crate) fn lock(&mut self, pid: Pid, ino: u64, owner: u64, access: Access, at: BootTime) {
        let taken = Some(Taken { at, by: self.who(pid).into() });
        let file = self.ix(ino);
        self.facts.locks.push(Lock {
            entry: 0x1000 + owner,
            file,
            kind: LockKind::Flock,
            access,
            range: Range::WHOLE,
            owner: Some(Owner::new(owner)),
            acquirer: RecordedPid::Local(pid),
            breaking_to: None,
            taken,
        });
    }

    /// `pid` waits with the description `owner` for an exclusive lock.
    pub(crate) fn wait(&mut self, pid: Pid, ino: u64, owner: u64, since: Option<BootTime>) {
        self.facts.waiters.push(Waiter {
            behind: None,
            file: self.ix(ino),
            kind: LockKind::Flock,
            access: Access::Write,
            range: Range::WHOLE,
            owner: Some(Owner::new(owner)),
            requester: RecordedPid::Local(pid),
            since,
        });
    }

    /// Ends a process with everything that was its own. Locks on descriptions stay: the story says
    /// which are given back.
    pub(crate) fn die(&mut self, pid: Pid, at: BootTime, end: End) -> Death {
        let process = self.who(pid).id;
        let (code, signal) = match end {
            End::Exit(code) => (Some(code), None),
            End::Signal(signal) => (None, Some(signal)),
        };
        let death = Death { process, at, code, signal };
        self.facts.processes.remove(&pid);
        self.facts.references.retain(|reference| reference.pid != pid);
        self.facts.waiters.retain(|waiter| waiter.requester != RecordedPid::Local(pid));
        self.facts.deaths.push(death);
        death
    }

    /// Takes the lock of a description away.
    pub(crate) fn unlock(&mut self, owner: u64) {
        self.facts.locks.retain(|lock| lock.owner != Some(Owner::new(owner)));
    }

    pub(crate) fn who(&self, pid: Pid) -> Remembered {
        self.remembered[&pid].clone()
    }

    pub(crate) fn ids(&self) -> Vec<LockId> {
        id::assign(&self.snapshot(), &KEY)
    }

    /// The lock of a description.
    pub(crate) fn name(&self, owner: u64) -> LockName {
        let locks = self.facts.locks.iter();
        let at = locks.clone().position(|lock| lock.owner == Some(Owner::new(owner)));
        let at = at.expect("a lock of the story");
        let lock = &self.facts.locks[at];
        let ino = self.facts.files[lock.file.0 as usize].ino;
        LockName {
            id: self.ids()[at],
            file: file(ino),
            kind: lock.kind,
            access: lock.access,
            range: lock.range,
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot { history: true, stable_owners: true, ..self.facts.clone() }
    }
}

/// The machine with its daemon.
pub(crate) struct Stage {
    pub(crate) engine: Engine,
    pub(crate) world: World,
    pub(crate) now: BootTime,
    pub(crate) events: Vec<Event>,
    pub(crate) attended: Vec<FileId>,
    /// What was to be reclaimed.
    pub(crate) orders: Vec<Order>,
    /// Whose writes were to be told.
    pub(crate) guarded: Vec<(FileId, Vec<Evicted>)>,
    /// How often all reclaims were to stop, or the switch went off by itself.
    pub(crate) stops: u32,
    /// When readings were asked for.
    pub(crate) asked: Vec<BootTime>,
    /// Everything that was handed in.
    pub(crate) inputs: Vec<(Moment, Input)>,
    told: usize,
}

impl Stage {
    /// A daemon that has just started, at second 10.
    pub(crate) fn new() -> Self {
        Self::with(Settings::default(), World::default())
    }

    pub(crate) fn with(settings: Settings, world: World) -> Self {
        let mut stage = Self {
            engine: Engine::new(settings),
            world,
            now: ms(10_000),
            events: Vec::new(),
            attended: Vec::new(),
            orders: Vec::new(),
            stops: 0,
            guarded: Vec::new(),
            asked: Vec::new(),
            inputs: Vec::new(),
            told: 0,
        };
        stage.input(Input::Started(Started {
            last_seq: None,
            told: Vec::new(),
            continued: false,
            version: "0.1.0".into(),
            kernel: "6.18.0".into(),
        }));
        stage
    }

    /// Hands an input in; readings that are asked for are taken at once.
    pub(crate) fn input(&mut self, input: Input) {
        self.inputs.push((moment(self.now), input.clone()));
        let mut read = false;
        for output in self.engine.step(moment(self.now), input) {
            match output {
                Output::Event(event) => self.events.push(*event),
                Output::Attend(files) => self.attended = files,
                Output::Read => read = true,
                Output::Reclaim(order) => self.orders.push(order),
                Output::WatchWrites(file, evicted) => self.guarded.push((file, evicted)),
                Output::StopReclaims | Output::SwitchedOff => self.stops += 1,
            }
        }
        if read {
            self.asked.push(self.now);
            let (snapshot, ids) = (self.world.snapshot(), self.world.ids());
            self.input(Input::Reading(Box::new(Reading { begun: self.now, snapshot, ids })));
        }
    }

    /// Lets time pass until so many milliseconds after boot, as a daemon's loop does.
    pub(crate) fn until(&mut self, at: u64) {
        let end = ms(at);
        assert!(end >= self.now, "time goes on");
        while let Some(due) = self.engine.deadline().filter(|&due| due <= end) {
            self.now = self.now.max(due);
            self.input(Input::Tick);
        }
        self.now = end;
    }

    /// Watches the file `ino` at `path`.
    pub(crate) fn watch(&mut self, name: &str, path: &str, ino: u64) {
        let watched =
            Watched { name: name.into(), path: path.as_bytes().into(), file: Some(file(ino)) };
        self.input(Input::Watch(vec![watched]));
    }

    /// `pid` ends, and the daemon hears of it.
    pub(crate) fn dies(&mut self, pid: Pid, end: End) -> Death {
        let death = self.world.die(pid, self.now, end);
        self.input(Input::Died(death));
        death
    }

    /// The lock of a description ends by a death; nothing is handed in.
    pub(crate) fn ended(&mut self, owner: u64, death: Death, written: Option<bool>) -> Ended {
        let lock = self.world.name(owner);
        let facts =
            self.world.facts.locks.iter().find(|lock| lock.owner == Some(Owner::new(owner)));
        let taken =
            facts.and_then(|lock| lock.taken.clone()).expect("taken while somebody watched");
        self.world.unlock(owner);
        let by = Remembered::clone(&taken.by);
        let ended_by = by.clone();
        Ended {
            lock,
            by,
            taken_at: taken.at,
            at: self.now,
            ended_by,
            death,
            written,
            generation: None,
        }
    }

    /// `pid` takes an exclusive lock on a description that it has; nothing is handed in.
    pub(crate) fn acquired(&mut self, pid: Pid, ino: u64, owner: u64) -> Acquired {
        self.world.lock(pid, ino, owner, Access::Write, self.now);
        Acquired {
            lock: self.world.name(owner),
            by: self.world.who(pid),
            at: self.now,
            generation: None,
        }
    }

    /// A living process gives the lock of a description up; nothing is handed in.
    pub(crate) fn released(&mut self, pid: Pid, owner: u64) -> Released {
        let lock = self.world.name(owner);
        self.world.unlock(owner);
        Released { lock, by: self.world.who(pid), at: self.now }
    }

    /// `pid` tries for the lock of a description; nothing is handed in.
    pub(crate) fn attempt(
        &self,
        pid: Pid,
        owner: u64,
        outcome: Outcome,
        exiting: Option<Death>,
    ) -> Attempt {
        Attempt {
            met: self.world.name(owner),
            by: self.world.who(pid),
            access: Access::Write,
            range: Range::WHOLE,
            at: self.now,
            outcome,
            exiting,
        }
    }

    /// The kinds of the events since the last call.
    pub(crate) fn kinds(&mut self) -> Vec<&'static str> {
        let new = self.events[self.told..].iter().map(|event| event.kind.name()).collect();
        self.told = self.events.len();
        new
    }

    /// The last event of a kind.
    pub(crate) fn last(&self, kind: &str) -> &Event {
        let mut of_kind = self.events.iter().rev().filter(|event| event.kind.name() == kind);
        of_kind.next().unwrap_or_else(|| panic!("no event {kind} among {:?}", self.events))
    }

    pub(crate) fn last_kind(&self, kind: &str) -> &Kind {
        &self.last(kind).kind
    }
}
