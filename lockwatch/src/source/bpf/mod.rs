//! The snapshot that BPF iterators take of the kernel's own tables.
//!
//! Refuses to run where it would have to guess: every failure to load is one error that says which
//! step failed and what that means.

mod assemble;
pub mod btf;
mod enrich;
pub mod layout;
pub mod probe;
pub mod record;
mod refusal;
mod window;

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::mpsc::sync_channel;

use assemble::Assembler;
use aya::maps::Map;
use aya::programs::{Iter, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use hashbrown::HashMap;
use lockwatch_common::offsets::{self, Offsets};
use lockwatch_common::snapshot::{State, WALKED_MAP, WALKED_MASK, WINDOW_MAP};
use record::{Record, RecordError, Records};
use window::MappedWindow;

use crate::engine::identity::Dev;
use crate::engine::snapshot::{Hides, Limit, Snapshot};

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
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lockwatch.bpf.o"));
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const PROGRAM: &str = "task_file";

/// Windows that may wait to be put in order before the reader waits.
const WINDOWS_AHEAD: usize = 4;

/// Reads in a row that may pass without a record or a descriptor of a locked file before the
/// iterator is taken for stuck; each stands for a million descriptors.
const IDLE_READS: u32 = 1_000;

/// What one reading found.
pub struct Reading {
    /// The facts.
    pub snapshot: Snapshot,
    /// The kernel's identity of the files behind this process's own descriptors.
    pub own_files: HashMap<u32, (Dev, u64)>,
}

/// Takes one snapshot.
///
/// # Errors
/// Where the kernel or the privileges do not allow it, or the iterator fails.
pub fn read() -> Result<Reading, BpfError> {
    let mut assembler = Assembler::default();
    let iterator = TaskFileIterator::load()?;
    log::debug!("loaded");
    let state = iterator.read_beside(|record| assembler.take(record))?;
    log::debug!(
        "read: {} descriptors of locked files, {} walks begun anew",
        state.visited,
        state.restarted
    );
    let (mut snapshot, unlinked, own_files) = assembler.finish();
    if state.cut > 0 {
        snapshot.limits.push(Limit {
            what: format!(
                "the lock lists of {} files changed too fast to be read whole",
                state.cut
            ),
            hides: Hides::Locks,
        });
    }
    enrich::enrich(&mut snapshot, &unlinked).map_err(BpfError::Proc)?;
    Ok(Reading { snapshot, own_files })
}

/// The loaded iterator over all descriptors. It can be read once.
struct TaskFileIterator {
    iterator: File,
    window: MappedWindow,
    /// Keeps the maps.
    _object: Ebpf,
}

fn failed<E: std::error::Error + 'static>(what: &'static str) -> impl Fn(E) -> BpfError {
    move |error| BpfError::Load { what, why: refusal::in_one_line(&error) }
}

impl TaskFileIterator {
    fn load() -> Result<Self, BpfError> {
        // The loader reads the kernel's whole type information when it is made, wanted or not;
        // meanwhile what is needed of it is found here.
        let (loader, types) = std::thread::scope(|scope| {
            let loader = std::thread::Builder::new().spawn_scoped(scope, EbpfLoader::new);
            let types = Types::read();
            let loader = loader.ok().and_then(|loader| loader.join().ok());
            (loader.unwrap_or_default(), types)
        });
        let Types { offsets, targets } = types?;
        let mut loader = loader;
        let walked = walked_entries();
        let mask = walked - 1;
        let mut object = loader
            .btf(None)
            .override_global(offsets::GLOBAL, &offsets, true)
            .override_global(WALKED_MASK, &mask, true)
            .map_max_entries(WALKED_MAP, walked)
            .load(OBJECT)
            .map_err(failed("object"))?;
        let window = match object.map(WINDOW_MAP) {
            Some(Map::Array(map)) => MappedWindow::new(map.fd()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
        .map_err(failed("window"))?;
        let program: &mut Iter = object
            .program_mut(PROGRAM)
            .ok_or(BpfError::Load { what: PROGRAM, why: "not in the object".into() })?
            .try_into()
            .map_err(failed::<ProgramError>(PROGRAM))?;
        program.load(PROGRAM, &targets).map_err(failed(PROGRAM))?;
        let link = program.attach().and_then(|link| program.take_link(link));
        let iterator = link.map_err(failed(PROGRAM))?.into_file().map_err(failed(PROGRAM))?;
        Ok(Self { iterator, window, _object: object })
    }

    /// Reads to the end on a thread of its own, and hands every record to `take` on this one: the
    /// kernel goes on while what it told is being put in order.
    fn read_beside(self, mut take: impl FnMut(Record<'_>)) -> Result<State, BpfError> {
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel::<Vec<u8>>(WINDOWS_AHEAD);
            let reader = std::thread::Builder::new()
                .spawn_scoped(scope, move || self.read(|bytes| send.send(bytes.to_vec()).is_ok()))
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

    /// Reads to the end and hands every window to `take`, until it wants no more.
    fn read(mut self, mut take: impl FnMut(&[u8]) -> bool) -> Result<State, BpfError> {
        let mut idle = 0;
        loop {
            let before = self.window.state();
            let read = self.iterator.read(&mut [0u8; 64]);
            let after = self.window.state();
            let wanted = self.window.drain(&mut take);
            match read {
                Ok(0) => return Ok(after),
                _ if !wanted => return Ok(after),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    _ => return Err(BpfError::Read(error)),
                },
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
        let bytes = std::fs::read(BTF_PATH).map_err(BpfError::NoBtf)?;
        let kernel = btf::Btf::parse(&bytes).map_err(BpfError::Btf)?;
        let targets =
            kernel.only_function(&format!("bpf_iter_{PROGRAM}")).map_err(BpfError::Btf)?;
        Ok(Self {
            offsets: layout::offsets(&kernel, kernel.allows_d_path())?.words(),
            targets: Btf::parse(&targets, Endianness::default())
                .map_err(failed("type information"))?,
        })
    }
}

/// Room for every inode that can be open, going by the kernel's count of open files.
fn walked_entries() -> u32 {
    let allocated = std::fs::read_to_string("/proc/sys/fs/file-nr")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().next()?.parse::<u32>().ok())
        .unwrap_or(1 << 20);
    allocated.saturating_mul(2).clamp(4096, 1 << 23).next_power_of_two()
}
