//! The history: programs that note in the kernel who takes each lock and who waits for one, pinned
//! so that they go on when lockwatch ends.
//!
//! Refuses to make up a past: what was taken before the programs ran, or while a table was full, has
//! no acquirer and no time here.

mod array;
mod cleared;
mod collect;
mod join;
mod kept;
mod kernel_log;
mod load;
mod looker;
mod moments;
mod names;
mod pins;
mod present;
mod ranges;
mod reader;
mod sys;
mod tables;
mod told;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use join::{Contents, join};
pub use kernel_log::KernelLog;
pub use load::Sizes;
pub use looker::Looker;
pub use moments::{Moments, RecordError, Told};
pub use names::Names;
pub use reader::{Reader, Taken};
pub use tables::{Tables, Totals};

use crate::source::bpf::BpfError;

/// Why there is no history.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The programs could not be loaded.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The kernel lacks what the programs need.
    #[error("this kernel's BTF has no {0}, which the history needs")]
    Absent(&'static str),
    /// A pin could not be made, opened or removed.
    #[error("{what} {path}: {why}", path = path.display())]
    Pin {
        /// What was tried.
        what: &'static str,
        /// The pin.
        path: PathBuf,
        /// The answer.
        why: String,
    },
    /// The folder is not on a file system for pins.
    #[error("{path} is not on a BPF file system: mount one there (mount -t bpf bpf {mount})",
        path = path.display(), mount = path.parent().unwrap_or(path).display())]
    NotBpffs {
        /// The folder.
        path: PathBuf,
    },
    /// A table cannot be read or written.
    #[error("{what} the table {table}: {why}")]
    Table {
        /// What was tried.
        what: &'static str,
        /// Which table.
        table: &'static str,
        /// The answer.
        why: io::Error,
    },
    /// `/proc` cannot be read.
    #[error("read /proc: {0}")]
    Proc(io::Error),
}

/// How the history that was opened goes on from before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// There was none: everything from now on is known.
    New,
    /// It was there and went on.
    Continued,
    /// It was there and could not be taken over; says why.
    Replaced(String),
}

/// How the history is to be opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder for pins, on a BPF file system.
    pub folder: PathBuf,
    /// Sizes of the tables, where they are made anew.
    pub sizes: Sizes,
    /// How long attention lasts after a crash, nanoseconds.
    pub handoff_window: u64,
}

/// The history, open for watching.
pub struct History {
    /// The tables.
    pub tables: Arc<Tables>,
    /// The records of the moment.
    pub moments: Moments,
}

impl History {
    /// Takes over the history that is pinned in the folder, or begins one.
    ///
    /// # Errors
    /// Where the kernel or the privileges do not allow it.
    pub fn open(options: &Options) -> Result<(Self, Continuity), HistoryError> {
        let (tables, continuity) = pins::open(options)?;
        tables.set_handoff_window(options.handoff_window);
        if tables.begun().is_none() {
            collect::begin(&tables)?;
        }
        let tables = Arc::new(tables);
        let moments = Moments::new(pins::moments(&options.folder)?, Arc::clone(&tables));
        Ok((Self { tables, moments }, continuity))
    }

    /// Opens the tables of the history that is pinned in the folder, for reading alone; `None` where
    /// there is none, or none of this layout.
    ///
    /// # Errors
    /// Where there is one that cannot be read.
    pub fn read_only(folder: &Path) -> Result<Option<Tables>, HistoryError> {
        pins::read_only(folder)
    }

    /// Ends the history that is pinned in the folder; false where there is none.
    ///
    /// # Errors
    /// Where a pin cannot be removed.
    pub fn detach(folder: &Path) -> Result<bool, HistoryError> {
        pins::detach(folder)
    }
}
