//! Carrying out a plan: recheck, act, verify, and write every step down.
//!
//! Refuses to act on anything that is not what was planned, down to the description, and to call a
//! lock released before the kernel's tables were read again.
//!
//! Architecture invariant: this room decides nothing. Whether a lock is an orphan, whether a plan
//! still holds and what a reading after the act means are the engine's functions.

pub mod audit;
mod capture;
pub mod description;
pub mod hook;
mod inject;
pub mod procedure;
pub mod process;
mod queue;
pub mod release;
pub mod sight;
mod signal;
pub mod turn;
pub mod warden;

use std::io;

use crate::engine::reclaim::Race;

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// Something is not as planned any more.
    #[error("{0}")]
    Race(Race),
    /// A system call failed.
    #[error("{what}: {error}")]
    Call {
        /// What it was for, and which object it was about.
        what: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// This kernel or this process does not allow it.
    #[error("{0}")]
    Impossible(String),
}

impl ActError {
    fn call(what: impl Into<String>, error: impl Into<io::Error>) -> Self {
        Self::Call { what: what.into(), error: error.into() }
    }

    fn last(what: impl Into<String>) -> Self {
        Self::call(what, io::Error::last_os_error())
    }
}
