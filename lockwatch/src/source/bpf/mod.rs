//! The snapshot that BPF iterators take of the kernel's own tables.
//!
//! Refuses to run where it would have to guess: every failure to load is one error that says which
//! step failed and what that means.

mod acquaintance;
mod anew;
mod assemble;
pub mod btf;
mod enrich;
mod kernel_types;
mod kernel_users;
pub mod layout;
mod loader;
pub mod probe;
pub mod record;
mod refusal;
mod search;
pub mod search_layout;
pub mod search_record;
mod seeds;
mod sightings;
mod unseen;
mod window;

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::mpsc::sync_channel;

use acquaintance::Acquaintance;
use assemble::{Assembler, Before};
use aya::maps::Map;
use aya::programs::{Iter, ProgramError};
use aya::{Btf, Ebpf, Endianness};
use hashbrown::HashMap;
pub(super) use kernel_types::{BTF_PATH, KernelTypes};
pub(super) use loader::loader;
use lockwatch_common::offsets::{self, Offsets};
use lockwatch_common::snapshot::{
    MODE_ALL_LOCKS, MODE_DESCRIPTORS, SEED_FD, State, WALKED_MAP, WALKED_MASK, WALKED_WAYS,
    WINDOW_BYTES, WINDOW_MAP,
};
use record::{Record, RecordError, Records};
pub(super) use refusal::in_one_line;
use rustix::time::{ClockId, clock_gettime};
pub use search::Hunt;
use seeds::Seeds;
pub use unseen::{Loading, again, explain, prepare};
use window::{MappedWalked, MappedWindow};

use crate::engine::identity::{BootTime, Dev, RecordedPid};
use crate::engine::snapshot::{Hides, Limit, Lock, Snapshot};

/// Why no snapshot can be taken with BPF.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel does not show its type information.
    #[error("read {path}: {0}{why}", path = BTF_PATH, why = refusal::no_types(.0))]
    NoBtf(io::Error),
    /// The type information cannot be read.
    #[error("read {path}: {0}", path = BTF_PATH)]
    Btf(btf::BtfError),
    /// The type information lacks what is needed.
    #[error(transparent)]
    Layout(#[from] layout::LayoutError),
    /// The kernel did not take the object or a program.
    #[error("load BPF {what}: {why}")]
    Load {
        /// Which part.
        what: &'static str,
        /// The kernel's answer.
        why: String,
    },
    /// lockwatch's own locks, from which it finds the others, could not be taken.
    #[error("take a lock of one's own on each CPU: {0}")]
    Seeds(io::Error),
    /// The iterator failed.
    #[error("read the iterator: {0}")]
    Read(io::Error),
    /// The iterator makes no progress.
    #[error("read the iterator: it stands still at descriptor {visited}")]
    Stuck {
        /// Descriptors visited before.
        visited: u64,
    },
    /// What BPF does not tell could not be asked of `/proc`.
    #[error("read /proc: {0}")]
    Proc(io::Error),
    /// The program wrote what it should not.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The program and its maps, embedded.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snapshot.bpf.o"));
const PROGRAM: &str = "task_file";

/// Windows that may wait to be put in order before the reader waits.
const WINDOWS_AHEAD: usize = 4;

/// Bytes of records from which a window is drained; what is left has room for any record.
const DRAINED_FROM: usize = WINDOW_BYTES - 32 * 1024;

/// Descriptors from which on the next reading gets a thread of its own.
const LARGE: u64 = 20_000;

/// Reads in a row that may pass without a record or a descriptor of a locked file before the
/// iterator is taken for stuck; each stands for a million descriptors.
const IDLE_READS: u32 = 1_000;

/// What one reading found.
pub struct Reading {
    /// The facts.
    pub snapshot: Snapshot,
    /// The kernel's identity of the files behind this process's own descriptors.
    pub own_files: HashMap<u32, (Dev, u64)>,
    /// The kernel's inode of each file of the snapshot. Never to be shown.
    pub(super) inodes: Vec<u64>,
    /// When the reading was begun: what happened later it may or may not show.
    pub begun: BootTime,
    /// When it had ended.
    pub ended: BootTime,
    /// The search for what no fd table shows, being loaded already because there will be use for it.
    pub hunt: Option<Loading>,
}

impl Reading {
    /// The same once more, for who asks for locks alone.
    pub(super) fn of_locks(&self) -> Self {
        Self {
            snapshot: self.snapshot.clone(),
            own_files: HashMap::new(),
            inodes: self.inodes.clone(),
            begun: self.begun,
            ended: self.ended,
            hunt: None,
        }
    }
}

/// Takes one snapshot.
///
/// # Errors
/// Where the kernel or the privileges do not allow it, or the iterator fails.
pub fn read() -> Result<Reading, BpfError> {
    let begun = now();
    let seeds = Seeds::take().map_err(BpfError::Seeds)?;
    let iterator = TaskFileIterator::load(seeds.descriptor())?;
    let known = Acquaintance::default();
    let before = Before::default();
    let mut snapshots = Snapshots { iterator, seeds, large: true, known, before };
    log::debug!("loaded");
    let reading = snapshots.take(begun, unseen::prepare_early);
    snapshots.seeds.give_up().map_err(BpfError::Seeds)?;
    let mut reading = reading?;
    enrich::births(&mut reading.snapshot).map_err(BpfError::Proc)?;
    Ok(reading)
}

/// Finds out how births can be ordered by pid, for a snapshot of [`Snapshots`]; only what history
/// does not know takes it.
///
/// # Errors
/// Where `/proc` cannot be read.
pub fn order_births(snapshot: &mut Snapshot) -> Result<(), BpfError> {
    let is_known = |lock: &Lock| {
        let here = matches!(lock.acquirer,
            RecordedPid::Local(pid) if snapshot.processes.contains_key(&pid));
        here || lock.taken.is_some()
    };
    if snapshot.locks.iter().all(is_known) {
        return Ok(());
    }
    enrich::births(snapshot).map_err(BpfError::Proc)
}

/// The loaded program, for one snapshot after the other.
pub struct Snapshots {
    iterator: TaskFileIterator,
    seeds: Seeds,
    /// Whether there is so much to read that it is worth a thread.
    large: bool,
    known: Acquaintance,
    before: Before,
}

impl Snapshots {
    /// Loads the program.
    ///
    /// # Errors
    /// Where the kernel or the privileges do not allow it.
    pub fn load() -> Result<Self, BpfError> {
        let mut seeds = Seeds::take().map_err(BpfError::Seeds)?;
        let iterator = TaskFileIterator::load(seeds.descriptor())?;
        // Between two snapshots nobody is to see them.
        seeds.give_up().map_err(BpfError::Seeds)?;
        let (known, before) = (Acquaintance::default(), Before::default());
        Ok(Self { iterator, seeds, large: false, known, before })
    }

    /// Takes one snapshot, without [`Snapshot::births`].
    ///
    /// # Errors
    /// Where the iterator fails.
    pub fn read(&mut self) -> Result<Reading, BpfError> {
        let begun = now();
        self.seeds.take_anew().map_err(BpfError::Seeds)?;
        self.iterator.begin_anew();
        let reading = self.take(begun, |_| None);
        self.seeds.give_up().map_err(BpfError::Seeds)?;
        reading
    }

    /// Has the next snapshot share with this one, as it was completed, what will be the same.
    pub fn expect(&mut self, snapshot: &Snapshot) {
        self.before = Before::of(snapshot);
    }

    /// `early` is asked as soon as the facts are there, before they are completed.
    fn take(
        &mut self,
        begun: BootTime,
        early: impl FnOnce(&Snapshot) -> Option<Loading>,
    ) -> Result<Reading, BpfError> {
        let seeds = &self.seeds;
        let mut assembler = Assembler::new(seeds.descriptor(), &self.before);
        let take = |record: Record<'_>| assembler.take(record);
        let state = if self.large {
            self.iterator.read_beside(take)?
        } else {
            self.iterator.read_in_turn(take)?
        };
        self.large = state.visited > LARGE;
        log_reading(&state);
        let ended = now();
        let (mut snapshot, loose, own_files) = assembler.finish();
        let hunt = early(&snapshot);
        snapshot.limits.extend(limits(&state, seeds));
        enrich::enrich(&mut snapshot, &loose, &mut self.known).map_err(BpfError::Proc)?;
        Ok(Reading { snapshot, own_files, inodes: loose.inodes, begun, ended, hunt })
    }
}

fn log_reading(state: &State) {
    log::debug!(
        "read: {} descriptors, {} lists, {} begun anew, {} cut",
        state.visited,
        state.chains,
        state.restarted,
        state.cut
    );
}

/// `CLOCK_BOOTTIME`.
pub(super) fn now() -> BootTime {
    let time = clock_gettime(ClockId::Boottime);
    BootTime(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// What the program had to leave out.
fn limits(state: &State, seeds: &Seeds) -> Vec<Limit> {
    let mut limits = Vec::new();
    let mut hides_locks = |what| limits.push(Limit { what, hides: Hides::Locks });
    if state.cut > 0 {
        hides_locks(format!("{} lists of locks changed too fast to be read whole", state.cut));
    }
    if !seeds.missing.is_empty() {
        hides_locks(format!(
            "locks that no descriptor leads to are not found where they were taken on {} CPUs \
             that this process may not run on",
            seeds.missing.len()
        ));
    }
    limits
}

/// The loaded program.
struct TaskFileIterator {
    window: MappedWindow,
    walked: MappedWalked,
    object: Ebpf,
}

pub(super) fn failed<E: std::error::Error + 'static>(what: &'static str) -> impl Fn(E) -> BpfError {
    move |error| BpfError::Load { what, why: in_one_line(&error) }
}

impl TaskFileIterator {
    fn load(seed: u32) -> Result<Self, BpfError> {
        let Types { offsets, targets } = Types::read()?;
        let mut loader = loader();
        let walked = walked_buckets();
        let mask = walked - 1;
        let mut object = loader
            .btf(None)
            .override_global(offsets::GLOBAL, &offsets, true)
            .override_global(WALKED_MASK, &mask, true)
            .override_global(SEED_FD, &seed, true)
            .map_max_entries(WALKED_MAP, walked)
            .load(OBJECT)
            .map_err(failed("object"))?;
        let window = match object.map(WINDOW_MAP) {
            Some(Map::Array(map)) => MappedWindow::new(map.fd()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
        .map_err(failed("window"))?;
        let walked = match object.map(WALKED_MAP) {
            Some(Map::Array(map)) => MappedWalked::new(map.fd(), walked),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
        .map_err(failed("table of inodes"))?;
        Self::program(&mut object)?.load(PROGRAM, &targets).map_err(failed(PROGRAM))?;
        Ok(Self { window, walked, object })
    }

    /// Forgets the snapshot before.
    fn begin_anew(&mut self) {
        self.window.reset();
        self.walked.clear();
    }

    fn program(object: &mut Ebpf) -> Result<&mut Iter, BpfError> {
        object
            .program_mut(PROGRAM)
            .ok_or(BpfError::Load { what: PROGRAM, why: "not in the object".into() })?
            .try_into()
            .map_err(failed::<ProgramError>(PROGRAM))
    }

    fn open(&mut self) -> Result<File, BpfError> {
        let program = Self::program(&mut self.object)?;
        let link = program.attach().and_then(|link| program.take_link(link));
        link.map_err(failed(PROGRAM))?.into_file().map_err(failed(PROGRAM))
    }

    /// Reads to the end and hands every record to `take` in between: where there is little to read,
    /// another thread costs more than it saves, above all on a machine without an idle processor.
    fn read_in_turn(&mut self, mut take: impl FnMut(Record<'_>)) -> Result<State, BpfError> {
        let mut taken = Ok(());
        let state = self.read(|bytes| {
            taken = Records::new(bytes).try_for_each(|record| {
                take(record?);
                Ok::<_, RecordError>(())
            });
            taken.is_ok()
        })?;
        Ok(taken.map(|()| state)?)
    }

    /// Reads to the end on a thread of its own, and hands every record to `take` on this one: the
    /// kernel goes on while what it told is being put in order.
    fn read_beside(&mut self, mut take: impl FnMut(Record<'_>)) -> Result<State, BpfError> {
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel::<Vec<u8>>(WINDOWS_AHEAD);
            let reader = std::thread::Builder::new()
                .spawn_scoped(scope, move || {
                    self.read(|bytes| bytes.is_empty() || send.send(bytes.to_vec()).is_ok())
                })
                .map_err(BpfError::Read)?;
            for bytes in &receive {
                Records::new(&bytes).try_for_each(|record| {
                    take(record?);
                    Ok::<_, RecordError>(())
                })?;
            }
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Reads every descriptor, then every lock that none led to; hands every window to `take`,
    /// until it wants no more.
    fn read(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> Result<State, BpfError> {
        for mode in [MODE_DESCRIPTORS, MODE_ALL_LOCKS] {
            self.window.set_mode(mode);
            let iterator = self.open()?;
            if !self.read_to_end(iterator, &mut take)? {
                break;
            }
            log::debug!("mode {mode} done");
        }
        Ok(self.window.state())
    }

    /// False where no more is wanted.
    fn read_to_end(
        &mut self,
        mut iterator: File,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<bool, BpfError> {
        let mut idle = 0;
        loop {
            let before = self.window.state();
            let read = iterator.read(&mut [0u8; 64]);
            let after = self.window.state();
            let ended = match read {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => false,
                    _ => return Err(BpfError::Read(error)),
                },
            };
            // The program also comes back when it has gone far enough for one run: handing over
            // each of those few records apart would cost more than reading them.
            if (ended || after.used > DRAINED_FROM as u64) && !self.window.drain(&mut take) {
                return Ok(false);
            }
            if ended {
                return Ok(true);
            }
            idle = if after == before { idle + 1 } else { 0 };
            if idle > IDLE_READS {
                return Err(BpfError::Stuck { visited: after.visited });
            }
        }
    }
}

/// What is needed of the kernel's type information.
struct Types {
    offsets: [u32; Offsets::WORDS],
    /// The function that the program is attached to, and nothing else.
    targets: Btf,
}

impl Types {
    fn read() -> Result<Self, BpfError> {
        let bytes = KernelTypes::open().map_err(BpfError::NoBtf)?;
        let kernel = btf::Btf::parse(&bytes).map_err(BpfError::Btf)?;
        Ok(Self {
            offsets: layout::offsets(&kernel, kernel.allows_d_path())?.words(),
            targets: targets(&kernel, [PROGRAM])?,
        })
    }
}

/// The functions that programs on these iterators are attached to, and nothing else.
fn targets<'a>(
    kernel: &btf::Btf<'_>,
    iterators: impl IntoIterator<Item = &'a str>,
) -> Result<Btf, BpfError> {
    let functions = iterators.into_iter().map(|iterator| format!("bpf_iter_{iterator}"));
    let table = kernel.only_functions(functions);
    Btf::parse(&table, Endianness::default()).map_err(failed("type information"))
}

/// Buckets for every inode that can be open, going by the kernel's count of open files: half full
/// on average, so that hardly any overflows.
fn walked_buckets() -> u32 {
    let allocated = std::fs::read_to_string("/proc/sys/fs/file-nr")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().next()?.parse::<u32>().ok())
        .unwrap_or(1 << 20);
    (allocated / (WALKED_WAYS as u32 / 2)).clamp(512, 1 << 20).next_power_of_two()
}
