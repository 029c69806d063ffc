//! The kernel side as the loop sees it: records of the moment in, attention out.
//!
//! Refuses to hold records back, and to be held by them: what is in the ring when it is looked at is
//! handed on, in batches, so that a flood leaves time for everything else.

use std::io;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::Config;
use crate::engine::event::Event;
use crate::engine::id::IdKey;
use crate::engine::input::{FileId, Input};
use crate::engine::memory::Memory;
use crate::id_key;
use crate::source::history::{
    Continuity, History, HistoryError, KernelLog, Looker, Moments, Names, Options, Reader, Sizes,
    Tables, Told,
};

/// Records that are handed on at once.
const BATCH: usize = 1024;

/// The kernel side.
pub(super) struct Kernel {
    tables: Arc<Tables>,
    moments: AsyncFd<Moments>,
    names: Names,
    key: IdKey,
    looker: Looker,
    continuity: Continuity,
    /// Records that were lost so far, as counted in the kernel.
    lost: u64,
    /// The files that are to have attention, where there was no room for all of them.
    waiting: Vec<FileId>,
}

/// Why the kernel side does not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum KernelError {
    /// The history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The ring cannot be waited for.
    #[error("waiting for the kernel's records: {0}")]
    Wait(#[from] io::Error),
}

/// What the kernel's programs say of themselves.
pub(super) struct Words(Option<AsyncFd<KernelLog>>);

impl Words {
    /// Opens them, after the kernel side was opened.
    pub(super) fn open(config: &Config) -> Result<Self, KernelError> {
        let Some(log) = KernelLog::open(&config.state_dir)? else { return Ok(Self(None)) };
        // SAFETY: `KernelLog` has one descriptor, the ring's map, and keeps it open while it lives.
        let log = unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) };
        Ok(Self(Some(log.map_err(io::Error::from)?)))
    }

    /// Waits for some, and hands them on to the logger; for ever where nobody asks for them.
    pub(super) async fn heard(&mut self) -> io::Result<()> {
        let Some(log) = &mut self.0 else { return std::future::pending().await };
        let mut ready = log.readable_mut().await?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
        Ok(())
    }
}

impl Kernel {
    /// Opens it, and a reader of its tables.
    pub(super) fn open(config: &Config) -> Result<(Self, Reader), KernelError> {
        let options = Options {
            folder: config.state_dir.clone(),
            sizes: Sizes::default(),
            handoff_window: super::nanos(config.handoff_window),
        };
        let (key, limit) = id_key::machine_key();
        let (History { tables, moments, .. }, continuity) = History::open(&options)?;
        if let Continuity::Replaced(why) = &continuity {
            log::warn!("the history in {} begins anew: {why}", config.state_dir.display());
        }
        let reader = Reader::new(Arc::clone(&tables), key, limit.into_iter().collect());
        let lost = tables.totals()?.lost();
        // SAFETY: `Moments` has one descriptor, the ring's map, and keeps it open while it lives.
        let moments = unsafe { AsyncFd::register_with_interest(moments, Interest::READABLE) }
            .map_err(io::Error::from)?;
        let (names, looker) = (Names::default(), Looker::own());
        let waiting = Vec::new();
        Ok((Self { tables, moments, names, key, looker, continuity, lost, waiting }, reader))
    }

    /// The kernel's tables, for who asks for its counters.
    pub(super) fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables)
    }

    /// Whether the kernel went on recording since a daemon before.
    pub(super) fn is_continued(&self) -> bool {
        self.continuity == Continuity::Continued
    }

    /// The number of the last event of the daemon before.
    pub(super) fn last_seq(&self) -> Option<u64> {
        Some(self.tables.last_seq()).filter(|&seq| seq > 0)
    }

    /// Keeps the number of the last event.
    pub(super) fn set_last_seq(&self, seq: u64) {
        self.tables.set_last_seq(seq);
    }

    /// What the daemon before had told. Where that cannot be read it is told again.
    pub(super) fn told(&self) -> Vec<Memory> {
        self.tables.told().unwrap_or_else(|error| {
            log::warn!("what was told before: {error}");
            Vec::new()
        })
    }

    /// Keeps what must not be told again, also by the next daemon.
    pub(super) fn note(&self, event: &Event) {
        if let Err(error) = self.tables.note(event) {
            log::warn!("an event that a next daemon may tell again: {error}");
        }
    }

    /// Has attention paid to these files and no others. What does not fit is tried again with
    /// [`Self::attend_to_the_rest`].
    pub(super) fn attend(&mut self, files: &[FileId]) -> Result<(), KernelError> {
        let without = self.tables.attend(files)?;
        if without > 0 && self.waiting.is_empty() {
            log::warn!(
                "what happens to locks on {without} of {} files is told by the readings alone for \
                 now: the table of files with attention is full",
                files.len()
            );
        }
        self.waiting = if without > 0 { files.to_vec() } else { Vec::new() };
        Ok(())
    }

    /// Tries again, where there was no room for all.
    pub(super) fn attend_to_the_rest(&mut self) -> Result<(), KernelError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let files = self.waiting.clone();
        self.attend(&files)
    }

    /// Waits for records, and takes a batch of them.
    pub(super) async fn records(&mut self) -> Result<Vec<Input>, KernelError> {
        let mut ready = self.moments.readable_mut().await?;
        let Self { key, names, looker, .. } = self;
        let mut told = Told { key, names, boot_unix: boot_unix(), looker: *looker };
        let (inputs, is_empty) = batch(ready.get_inner_mut(), &mut told);
        if is_empty {
            ready.clear_ready();
        }
        Ok(inputs)
    }

    /// Takes a batch of the records that are there, which may be none.
    pub(super) fn records_so_far(&mut self) -> Vec<Input> {
        let Self { key, names, looker, .. } = self;
        let mut told = Told { key, names, boot_unix: boot_unix(), looker: *looker };
        batch(self.moments.get_mut(), &mut told).0
    }

    /// How many records were lost since this was asked last.
    pub(super) fn lost(&mut self) -> Result<u64, KernelError> {
        let lost = self.tables.totals()?.lost();
        // What one program missed and the next is about to see counts for a moment, and only once.
        let more = lost.saturating_sub(self.lost);
        self.lost += more;
        Ok(more)
    }
}

/// Up to [`BATCH`] records, and whether none is left.
fn batch(moments: &mut Moments, told: &mut Told<'_>) -> (Vec<Input>, bool) {
    let mut inputs = Vec::new();
    while inputs.len() < BATCH {
        let left = BATCH - inputs.len();
        match moments.drain(left, told, |input| inputs.push(input)) {
            Ok(is_empty) => return (inputs, is_empty),
            Err(error) => {
                // It is passed over; what it would have said the next reading shows.
                log::error!("{error}");
                inputs.push(Input::Lost(1));
            }
        }
    }
    (inputs, false)
}

/// Nanoseconds since 1970 at the boot clock's 0.
fn boot_unix() -> u64 {
    let now = super::now();
    now.unix.saturating_sub(now.boot.0)
}
