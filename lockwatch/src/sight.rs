//! The tables as the actuator sees them: read anew each time, without this process's own part in
//! them.

use crate::act::sight::{Sight, Sighting};
use crate::engine::identity::Owner;
use crate::engine::snapshot::{Reference, Snapshot};
use crate::look::{explained, read_bpf, view};
use crate::source::procfs;

/// Reads the whole machine's tables for every look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whole {
    /// The kernel's own.
    Bpf,
    /// What `/proc` shows.
    Procfs,
}

impl Whole {
    /// The source that a look was taken with: plans are rechecked with the eyes that they were made
    /// with.
    pub fn like(source: &str) -> Self {
        if source == "bpf" { Self::Bpf } else { Self::Procfs }
    }
}

impl Sight for Whole {
    fn look(&mut self) -> anyhow::Result<Sighting> {
        Ok(match self {
            Self::Bpf => {
                let mut snapshot = read_bpf()?.snapshot;
                let own = take_own(&mut snapshot);
                let (mut seen, _) = explained(view(snapshot));
                // The search finds once more what this process has.
                let again = take_own(&mut seen.snapshot);
                if !again.is_empty() || !seen.snapshot.places.is_empty() {
                    seen = view(seen.snapshot);
                }
                Sighting { view: seen, own }
            }
            Self::Procfs => {
                let root = procfs::ProcRoot::live();
                let mut snapshot = procfs::read(&root, procfs::Options::default())?;
                let own = take_own(&mut snapshot);
                Sighting { view: view(snapshot), own }
            }
        })
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
    snapshot.references = others;
    for place in &mut snapshot.places {
        place.owners.retain(|owner| reader_pid(owner.pid) != own_pid);
    }
    own.iter().filter_map(|of| Some((of.fd?, of.description?))).collect()
}
