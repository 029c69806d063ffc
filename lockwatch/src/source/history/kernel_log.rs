//! What the programs say of themselves, for who looks for a mistake in them.
//!
//! Off unless the logger is asked for it by the name [`TARGET`]: then the programs are loaded with
//! their words in them, which the verifier otherwise leaves out.
//!
//! Refuses to change programs that run already: those that a daemon before left say what that one
//! asked for.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

use aya_log::EbpfLogger;
use log::{Level, Log};

use super::{HistoryError, pins};

/// The target of the programs' words, as in `RUST_LOG=lockwatch_ebpf=debug`.
pub(super) const TARGET: &str = "lockwatch_ebpf";

/// Name of the ring of words, which aya-log-ebpf makes.
pub(super) const RING: &str = "AYA_LOGS";

/// The words of the programs.
pub struct KernelLog(EbpfLogger<&'static dyn Log>);

impl KernelLog {
    /// Opens the ring of the history that is pinned in the folder; `None` where nobody asks for it.
    ///
    /// # Errors
    /// Where the ring cannot be opened.
    pub fn open(folder: &Path) -> Result<Option<Self>, HistoryError> {
        if wanted() == 0 {
            return Ok(None);
        }
        let program = pins::speaker(folder)?;
        let logger = EbpfLogger::init_from_id(program).map_err(|error| HistoryError::Pin {
            what: "open the words of the programs of",
            path: folder.to_owned(),
            why: error.to_string(),
        })?;
        Ok(Some(Self(logger)))
    }

    /// Hands what was said on to the logger.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}

impl AsRawFd for KernelLog {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for KernelLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The most detailed level that is asked for, as aya-log numbers it; 0 for none.
pub(super) fn wanted() -> u8 {
    // Only by name: whoever wants to hear more of the daemon does not want the kernel slower.
    named().map_or(0, |level| level as u8)
}

/// The level that the environment names for [`TARGET`], in the syntax of env_logger(1).
fn named() -> Option<Level> {
    let words = std::env::var(env_logger::DEFAULT_FILTER_ENV).ok()?;
    let of_target = |word: &str| -> Option<Level> {
        match word.trim().split_once('=') {
            Some((TARGET, level)) => level.trim().parse().ok(),
            None if word.trim() == TARGET => Some(Level::Trace),
            _ => None,
        }
    };
    words.split('/').next()?.split(',').rev().find_map(of_target)
}
