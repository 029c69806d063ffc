//! The tables as the actuator sees them: read anew each time, without this process's own part in
//! them.

use crate::act::sight::{Sight, Sighting};
use crate::engine::snapshot::Reference;
use crate::engine::view::View;
use crate::look::{self, Choice, Look};

/// Reads the whole machine's tables for every look.
pub struct Whole {
    /// From where.
    pub source: Choice,
}

impl Sight for Whole {
    fn look(&mut self) -> anyhow::Result<Sighting> {
        let Look { view, .. } = look::once(self.source, &[])?;
        Ok(without_own(view))
    }
}

/// Takes this process's own descriptors out, and concludes again where it had any.
fn without_own(view: View) -> Sighting {
    let own_pid = rustix::process::getpid().as_raw_nonzero().get();
    let mut snapshot = view.snapshot;
    let process = |pid| snapshot.processes.get(&pid);
    let is_own = |of: &Reference| {
        process(of.pid).and_then(|process| process.reader_pid).unwrap_or(of.pid) == own_pid
    };
    let (own, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut snapshot.references).into_iter().partition(is_own);
    snapshot.references = others;
    let own = own.iter().filter_map(|of| Some((of.fd?, of.description?))).collect();
    Sighting { view: look::view(snapshot), own }
}
