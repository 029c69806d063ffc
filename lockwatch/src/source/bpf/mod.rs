//! The snapshot that BPF iterators take of the kernel's own tables.
//!
//! Refuses to run where it would have to guess: every failure to load is one error that says which
//! step failed and what that means.

pub mod btf;
pub mod layout;
pub mod record;
mod window;

use std::fs::File;
use std::io::{self, Read};

use aya::programs::Iter;
use aya::{Btf, EbpfLoader, VerifierLogLevel};
use lockwatch_common::offsets;
use lockwatch_common::snapshot::{State, WALKED_MAP, WINDOW_MAP};
use record::{Record, RecordError, Records};
use window::MappedWindow;

/// Why no snapshot can be taken with BPF.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel does not show its type information.
    #[error("read /sys/kernel/btf/vmlinux: {0}")]
    NoBtf(#[source] io::Error),
    /// The type information cannot be read.
    #[error("/sys/kernel/btf/vmlinux: {0}")]
    Btf(#[from] btf::BtfError),
    /// The type information lacks what is needed.
    #[error("{0}")]
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
    Read(#[source] io::Error),
    /// The iterator makes no progress.
    #[error("read the iterator: it stands still at descriptor {visited}")]
    Stuck {
        /// Descriptors visited before.
        visited: u64,
    },
    /// The program wrote what it should not.
    #[error("{0}")]
    Record(#[from] RecordError),
}

const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lockwatch.bpf.o"));
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Reads that may pass without a record or a visited descriptor before the iterator is taken for
/// stuck; each stands for a million descriptors without locks.
const IDLE_READS: u32 = 1_000;

/// The loaded iterator over all descriptors.
pub struct TaskFileIterator {
    iterator: File,
    window: MappedWindow,
    // The maps live as long as this does.
    _object: aya::Ebpf,
}

impl TaskFileIterator {
    /// Loads the program; it can be read once.
    ///
    /// # Errors
    /// Where the kernel or the privileges do not allow it.
    pub fn load() -> Result<Self, BpfError> {
        let bytes = std::fs::read(BTF_PATH).map_err(BpfError::NoBtf)?;
        let own = btf::Btf::parse(&bytes)?;
        let offsets = layout::offsets(&own, has_d_path())?;
        let failed =
            |what| move |why: &dyn std::fmt::Display| BpfError::Load { what, why: why.to_string() };
        let kernel = Btf::parse(&bytes, aya::Endianness::default())
            .map_err(|error| failed("type information")(&error))?;
        let words = offsets.words();
        let mut object = EbpfLoader::new()
            .btf(None)
            .override_global(offsets::GLOBAL, &words, true)
            .map_max_entries(WALKED_MAP, walked_entries())
            .verifier_log_level(VerifierLogLevel::DISABLE)
            .load(OBJECT)
            .map_err(|error| failed("object")(&error))?;
        let window = object
            .map(WINDOW_MAP)
            .and_then(|map| aya::maps::Array::<_, u8>::try_from(map).ok().map(|_| map));
        let _ = window;
        let fd = match object.map(WINDOW_MAP) {
            Some(aya::maps::Map::Array(data)) => MappedWindow::new(data.fd()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
        .map_err(|error| failed("window")(&error))?;
        let program: &mut Iter = object
            .program_mut("task_file")
            .ok_or_else(|| failed("iter/task_file")(&"not in the object"))?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| failed("iter/task_file")(&error))?;
        program
            .load("task_file", &kernel)
            .map_err(|error| failed("iter/task_file")(&format!("{error:?}")))?;
        let iterator = program
            .attach()
            .and_then(|link| program.take_link(link))
            .map_err(|error| failed("iter/task_file")(&error))?
            .into_file()
            .map_err(|error| failed("iter/task_file")(&error))?;
        Ok(Self { iterator, window: fd, _object: object })
    }

    /// Reads to the end and hands every record to `take`.
    pub fn read(mut self, mut take: impl FnMut(Record<'_>)) -> Result<State, BpfError> {
        let mut idle = 0;
        loop {
            let visited = self.window.state().visited;
            let read = self.iterator.read(&mut [0u8; 64]);
            let drained = self.window.drain(|bytes| {
                for record in Records::new(bytes) {
                    take(record?);
                }
                Ok::<_, RecordError>(!bytes.is_empty())
            })?;
            match read {
                Ok(0) => return Ok(self.window.state()),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    _ => return Err(BpfError::Read(error)),
                },
            }
            let state = self.window.state();
            if drained || state.visited != visited {
                idle = 0
            } else {
                idle += 1
            }
            if idle > IDLE_READS {
                return Err(BpfError::Stuck { visited });
            }
        }
    }
}

fn walked_entries() -> u32 {
    let allocated = std::fs::read_to_string("/proc/sys/fs/file-nr")
        .ok()
        .and_then(|text| text.split_ascii_whitespace().next()?.parse::<u32>().ok())
        .unwrap_or(1 << 20);
    allocated.saturating_mul(2).clamp(4096, 1 << 23).next_power_of_two()
}

fn has_d_path() -> bool {
    true
}
