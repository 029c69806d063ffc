//! The tables as the actuator sees them: read anew each time, without this process's own part in
//! them.

use crate::act::sight::{Sight, Sighting};
use crate::engine::identity::Owner;
use crate::engine::snapshot::{Reference, Snapshot};
use crate::look::{explained, remember, view};
use crate::source::bpf::{self, Snapshots};
use crate::source::procfs;

/// Reads the whole machine's tables for every look.
pub enum Whole {
    /// The kernel's own, with a program that stays loaded.
    Bpf(Box<Snapshots>),
    /// What `/proc` shows.
    Procfs,
}

impl Whole {
    /// The source that a look was taken with: plans are rechecked with the eyes that they were made
    /// with.
    ///
    /// # Errors
    /// Where it cannot be loaded any more.
    pub fn like(source: &str) -> anyhow::Result<Self> {
        Ok(match source {
            "bpf" => Self::Bpf(Box::new(Snapshots::load()?)),
            _ => Self::Procfs,
        })
    }
}

impl Sight for Whole {
    fn look(&mut self, thorough: bool) -> anyhow::Result<Sighting> {
        let mut snapshot = match self {
            Self::Bpf(snapshots) => {
                let mut reading = snapshots.read()?;
                remember(&mut reading);
                bpf::order_births(&mut reading.snapshot)?;
                reading.snapshot
            }
            Self::Procfs => procfs::read(&procfs::ProcRoot::live(), procfs::Options::default())?,
        };
        let own = take_own(&mut snapshot);
        let mut seen = view(snapshot);
        if thorough && matches!(self, Self::Bpf(_)) {
            (seen, _) = explained(seen, None);
            // The search finds once more what this process has.
            let again = take_own(&mut seen.snapshot);
            if !again.is_empty() || !seen.snapshot.places.is_empty() {
                seen = view(seen.snapshot);
            }
        }
        Ok(Sighting { view: seen, own })
    }
}

/// Takes this process's own descriptors out of the facts: what was fetched for a plan holds nothing
/// in its own right.
fn take_own(snapshot: &mut Snapshot) -> Vec<(u32, Owner)> {
    let own_pid = rustix::process::getpid().as_raw_nonzero().get();
    let references = std::mem::take(&mut snapshot.references);
    let reader_pid =
        |pid| snapshot.processes.get(&pid).and_then(|process| process.reader_pid).unwrap_or(pid);
    let (own, others): (Vec<Reference>, Vec<Reference>) =
        references.into_iter().partition(|of| reader_pid(of.pid) == own_pid);
    snapshot.references = others.into();
    for place in &mut snapshot.places {
        place.owners.retain(|owner| reader_pid(owner.pid) != own_pid);
    }
    own.iter().filter_map(|of| Some((of.fd?, of.description?))).collect()
}
