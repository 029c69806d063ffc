//! The sixty-four at the tree: readers and writers that go on until they are told to stop, and
//! write down whatever the contract does not name.
//!
//! Refuses to touch an orphan of others: what is released is a folder that was opened, whose path
//! was read through it, and whose number is never another's.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lockwatch::sink::clock::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::tree_events::{self, Following};

/// The folder of the watched file.
const GUARDED: &str = "locks/guarded";
/// How far apart the clocks of the wall may be read, nanoseconds.
const SLACK: u64 = 20_000_000;

/// One of the sixty-four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Reads what only ever goes up, and holds it against what anybody has read before.
    Ordered,
    /// Reads a value in pieces.
    Pieces,
    /// Reads what has few values.
    Plain,
    /// Walks through `locks/`, whosever.
    Walker,
    /// Waits for changes.
    Poller,
    /// Follows `events`.
    Follower,
    /// Writes what is documented.
    Writer,
    /// Writes what is not.
    Nonsense,
    /// Releases what is held by right.
    Impatient,
    /// Releases the test's own orphans.
    Releaser,
    /// Takes and gives up the watched lock, and looks each time whether the tree says so.
    Changer,
}

/// How many there are of each.
const CAST: [(Role, usize); 11] = [
    (Role::Ordered, 12),
    (Role::Pieces, 6),
    (Role::Plain, 6),
    (Role::Walker, 10),
    (Role::Poller, 6),
    (Role::Follower, 4),
    (Role::Writer, 7),
    (Role::Nonsense, 6),
    (Role::Impatient, 4),
    (Role::Releaser, 2),
    (Role::Changer, 1),
];

/// What they share.
pub(super) struct Hammer {
    tree: PathBuf,
    /// The watched file.
    watched: PathBuf,
    /// The path with which those of the test's own orphans begin.
    own: String,
    stop: AtomicBool,
    /// The highest `generation` that anybody has read, and the latest `last_touched`.
    generation: AtomicU64,
    touched: Mutex<String>,
    /// What went wrong, and how often.
    errors: Mutex<BTreeMap<String, u64>>,
    /// How writes to `locked` of orphans ended.
    releases: Mutex<BTreeMap<String, u64>>,
    pub(super) counts: Counts,
}

/// What was done.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    /// Reads of what was gone meanwhile.
    pub(super) gone: AtomicU64,
    pub(super) woken: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) skipped: AtomicU64,
    /// Changes of the watched lock after which the tree said what was.
    pub(super) exact: AtomicU64,
    /// The same after which it said that it could not tell.
    pub(super) unknown: AtomicU64,
}

impl Hammer {
    pub(super) fn new(tree: PathBuf, watched: PathBuf, own: String) -> Self {
        Self {
            tree,
            watched,
            own,
            stop: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            touched: Mutex::default(),
            errors: Mutex::default(),
            releases: Mutex::default(),
            counts: Counts::default(),
        }
    }

    /// Lets them all loose, does something meanwhile, and stops them.
    pub(super) fn around<T>(&self, act: impl FnOnce() -> T) -> T {
        self.stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let cast = CAST.iter().flat_map(|&(role, count)| (0..count).map(move |n| (role, n)));
            for (role, number) in cast {
                scope.spawn(move || self.play(role, number));
            }
            let done = act();
            self.stop.store(true, Ordering::Relaxed);
            done
        })
    }

    /// What went wrong.
    pub(super) fn errors(&self) -> BTreeMap<String, u64> {
        held(&self.errors).clone()
    }

    /// How the releases of orphans ended.
    pub(super) fn releases(&self) -> BTreeMap<String, u64> {
        held(&self.releases).clone()
    }

    fn play(&self, role: Role, number: usize) {
        match role {
            Role::Follower => return self.follow(),
            Role::Changer => return self.change(),
            _ => {}
        }
        let mut turn = number;
        while !self.stop.load(Ordering::Relaxed) {
            match role {
                Role::Ordered if number.is_multiple_of(2) => self.read_generation(),
                Role::Ordered => self.read_last_touched(),
                Role::Pieces => self.read_in_pieces(1 + turn % 3),
                Role::Plain => self.read_plain(turn),
                Role::Walker => self.walk(turn),
                Role::Poller => self.poll(turn),
                Role::Writer => self.write(WRITES[turn % WRITES.len()], &[]),
                Role::Nonsense => self.write(NONSENSE[turn % NONSENSE.len()], &[libc::EINVAL]),
                Role::Impatient => {
                    // Where a list changed too fast to be read, what is locked is not known.
                    let refusals = [libc::EBUSY, libc::EIO];
                    self.write(("locks/guarded/conf_locked", "0\n"), &refusals);
                }
                Role::Releaser => self.release(),
                Role::Follower | Role::Changer => {}
            }
            turn += 1;
        }
    }

    fn failed(&self, what: String) {
        *held(&self.errors).entry(what).or_default() += 1;
    }

    /// Reads a value of the watched file, which is always there.
    fn value(&self, name: &str) -> Option<String> {
        Counts::add(&self.counts.reads);
        match fs::read_to_string(self.tree.join(GUARDED).join(name)) {
            Ok(text) if text.ends_with('\n') => Some(text.trim_end().to_owned()),
            Ok(text) => {
                self.failed(format!("{name} is {text:?}"));
                None
            }
            Err(error) => {
                self.failed(format!("reading {name}: {error}"));
                None
            }
        }
    }

    /// A read that is begun when another has ended shows nothing older.
    fn read_generation(&self) {
        let floor = self.generation.load(Ordering::SeqCst);
        let Some(text) = self.value("generation") else { return };
        match text.parse() {
            Ok(generation) if generation >= floor => {
                self.generation.fetch_max(generation, Ordering::SeqCst);
            }
            Ok(_) => self.failed("a generation older than one that was read before".into()),
            Err(_) => self.failed(format!("generation says {text:?}")),
        }
    }

    /// The same of a value: it tells when the lock was taken last, and that only ever goes up.
    fn read_last_touched(&self) {
        let floor = held(&self.touched).clone();
        let Some(text) = self.value("last_touched") else { return };
        // Before the first lock it is the time at which the file was written.
        let Some((_, at)) = text.split_once(" at ") else {
            return self.failed(format!("last_touched says {text:?}"));
        };
        if text.starts_with("unknown") {
            return;
        }
        if at < floor.as_str() {
            self.failed("a last_touched older than one that was read before".into());
        }
        let mut latest = held(&self.touched);
        if latest.as_str() < at {
            at.clone_into(&mut latest);
        }
    }

    /// However small the pieces are, they are of one generation.
    fn read_in_pieces(&self, size: usize) {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.tree.join(GUARDED).join("since"))?;
            let (mut bytes, mut piece) = (Vec::new(), vec![0; size]);
            loop {
                Counts::add(&self.counts.reads);
                match file.read(&mut piece)? {
                    0 => break,
                    length => bytes.extend_from_slice(&piece[..length]),
                }
            }
            String::from_utf8(bytes).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
        };
        match read() {
            Ok(text) if ["-\n", "unknown\n"].contains(&text.as_str()) => {}
            // As `2026-11-25T10:41:24.196750631Z` is.
            Ok(text) if text.len() == 31 && text.ends_with("Z\n") => {}
            Ok(text) => self.failed(format!("since, in pieces, is {text:?}")),
            Err(error) => self.failed(format!("reading since in pieces: {error}")),
        }
    }

    fn read_plain(&self, turn: usize) {
        match turn % 4 {
            0 => self.one_of("locked", &["0", "1", "unknown"]),
            1 => self.one_of("conf_locked", &["0", "1", "unknown"]),
            // Who takes it lives all the time: it is never an orphan.
            2 => self.one_of("state", &["free", "held", "unknown"]),
            _ => self.one_of("reason", &["-"]),
        }
    }

    fn one_of(&self, name: &str, values: &[&str]) {
        if let Some(value) = self.value(name)
            && !values.contains(&value.as_str())
        {
            self.failed(format!("{name} says {value:?}"));
        }
    }

    /// Reads a value of each folder of `locks/`; what is not watched may go at any time.
    fn walk(&self, turn: usize) {
        const NAMES: [&str; 6] = ["state", "path", "reason", "holders", "locked", "generation"];
        let name = NAMES[turn % NAMES.len()];
        let folders = match fs::read_dir(self.tree.join("locks")) {
            Ok(folders) => folders,
            Err(error) => return self.failed(format!("listing locks: {error}")),
        };
        for folder in folders {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let path = match folder {
                Ok(folder) => folder.path(),
                Err(error) => return self.failed(format!("listing locks: {error}")),
            };
            Counts::add(&self.counts.reads);
            match fs::read(path.join(name)) {
                Ok(bytes) if name == "holders" || bytes.ends_with(b"\n") => {}
                Ok(bytes) => self.failed(format!("{name} of an orphan is {bytes:?}")),
                Err(error) if is_gone(&error) && !path.ends_with("guarded") => {
                    Counts::add(&self.counts.gone);
                }
                Err(error) => self.failed(format!("reading {name} of an orphan: {error}")),
            }
        }
    }

    fn poll(&self, turn: usize) {
        const NAMES: [&str; 3] = ["status", "locks/guarded/state", "locks/guarded/locked"];
        let name = NAMES[turn % NAMES.len()];
        let wait = || -> io::Result<()> {
            let mut file = File::open(self.tree.join(name))?;
            file.read_to_string(&mut String::new())?;
            if is_ready(&file, Duration::from_millis(100))? {
                Counts::add(&self.counts.woken);
            }
            Ok(())
        };
        if let Err(error) = wait() {
            self.failed(format!("polling {name}: {error}"));
        }
    }

    fn follow(&self) {
        let read = || -> anyhow::Result<()> {
            let mut events = tree_events::open(&self.tree.join("events"))?;
            let mut following = Following::default();
            while !self.stop.load(Ordering::Relaxed) {
                if !following.read(&mut events)? {
                    is_ready(&events, Duration::from_millis(100))?;
                }
            }
            self.counts.events.fetch_add(following.count, Ordering::Relaxed);
            self.counts.skipped.fetch_add(following.skipped, Ordering::Relaxed);
            Ok(())
        };
        if let Err(error) = read() {
            self.failed(format!("following events: {error:#}"));
        }
    }

    fn write(&self, (name, value): (&str, &str), allowed: &[i32]) {
        Counts::add(&self.counts.writes);
        let file = OpenOptions::new().write(true).truncate(true).open(self.tree.join(name));
        let written = file.and_then(|mut file| file.write_all(value.as_bytes()));
        match written {
            Ok(()) if allowed == [libc::EINVAL] => {
                self.failed(format!("{value:?} was taken by {name}"));
            }
            Ok(()) => {}
            Err(error) if error.raw_os_error().is_some_and(|errno| allowed.contains(&errno)) => {}
            Err(error) => self.failed(format!("writing {value:?} to {name}: {error}")),
        }
    }

    /// Releases one of the test's own orphans, where there is one.
    fn release(&self) {
        let folder = fs::read_dir(self.tree.join("locks"))
            .ok()
            .and_then(|folders| folders.flatten().find_map(|folder| self.open_own(&folder.path())));
        let Some(folder) = folder else {
            return std::thread::sleep(Duration::from_millis(20));
        };
        Counts::add(&self.counts.writes);
        let written = rustix::fs::openat(&folder, "locked", OFlags::WRONLY, Mode::empty())
            .and_then(|locked| rustix::io::write(&locked, b"0\n"));
        let outcome = match written {
            Ok(_) => "released".to_owned(),
            Err(error) => {
                let error = io::Error::from(error);
                match error.raw_os_error() {
                    // The contract's, where it ended by itself meanwhile or could not be verified.
                    Some(libc::EBUSY | libc::EIO) => error.to_string(),
                    _ if is_gone(&error) => "gone before".to_owned(),
                    _ => return self.failed(format!("releasing an orphan: {error}")),
                }
            }
        };
        *held(&self.releases).entry(outcome).or_default() += 1;
    }

    /// The folder, where it is of one of the test's own orphans.
    fn open_own(&self, folder: &Path) -> Option<OwnedFd> {
        if folder.ends_with("guarded") {
            return None;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let folder = rustix::fs::open(folder, flags, Mode::empty()).ok()?;
        let path =
            rustix::fs::openat(folder.as_fd(), "path", OFlags::RDONLY, Mode::empty()).ok()?;
        let mut text = String::new();
        File::from(path).read_to_string(&mut text).ok()?;
        text.starts_with(&self.own).then_some(folder)
    }

    /// What was changed before a `gc` is in the tree when that is answered, and nothing older.
    fn change(&self) {
        let file = match File::open(&self.watched) {
            Ok(file) => file,
            Err(error) => return self.failed(format!("opening the watched file: {error}")),
        };
        while !self.stop.load(Ordering::Relaxed) {
            let before = unix_now();
            if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                return self.failed(format!("locking: {error}"));
            }
            let after = unix_now();
            self.expect(&[("locked", "1"), ("conf_locked", "1"), ("state", "held")]);
            if let Some(since) = self.value("since") {
                let from = Timestamp(before - SLACK).to_string();
                let to = Timestamp(after + SLACK).to_string();
                if since != "unknown" && !(from..to).contains(&since) {
                    self.failed("since is of another lock than the one that was just taken".into());
                }
            }
            if let Err(error) = rustix::fs::flock(&file, FlockOperation::Unlock) {
                return self.failed(format!("unlocking: {error}"));
            }
            self.expect(&[("locked", "0"), ("state", "free"), ("since", "-")]);
        }
    }

    fn expect(&self, expected: &[(&str, &str)]) {
        self.write(("gc", "1\n"), &[]);
        for &(name, value) in expected {
            match self.value(name) {
                Some(said) if said == value => Counts::add(&self.counts.exact),
                // Where something was hidden from the reading, it must not be called free.
                Some(said) if said == "unknown" => Counts::add(&self.counts.unknown),
                Some(said) => {
                    self.failed(format!("after a gc {name} says {said:?}, not {value:?}"))
                }
                None => {}
            }
        }
    }
}

const WRITES: [(&str, &str); 3] =
    [("gc", "1\n"), ("gc_interval_ms", "200\n"), ("reclaim_enabled", "1\n")];
const NONSENSE: [(&str, &str); 5] = [
    ("locks/guarded/conf_locked", "2\n"),
    ("locks/guarded/force_unlock", "0\n"),
    ("gc", "now\n"),
    ("gc_interval_ms", "1\n"),
    ("reclaim_enabled", "yes\n"),
];

impl Counts {
    fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What docs/tree.md has for a folder that is no longer there.
fn is_gone(error: &io::Error) -> bool {
    [Some(libc::ENOENT), Some(libc::ENODEV)].contains(&error.raw_os_error())
}

fn is_ready(file: &File, wait: Duration) -> io::Result<bool> {
    let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
    let mut polled = [PollFd::new(file, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&wait)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or_default()
}
