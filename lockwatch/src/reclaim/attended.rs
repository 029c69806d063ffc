//! A reclaim that the daemon has done: it is told line by line, and may stop it.
//!
//! Refuses to release anything more once the daemon has ended or wants no more of it.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::act::procedure::Report;
use crate::engine::id::LockId;
use crate::engine::reclaim::progress::{Asker, Done, Planned, Progress};
use crate::engine::reclaim::recheck::is_same;
use crate::engine::reclaim::{Plan, Refusal};
use crate::engine::view::View;

/// Sets `interrupted` when standard input ends, which the daemon keeps open.
pub(super) fn follow(interrupted: &Arc<AtomicBool>) -> io::Result<()> {
    let interrupted = Arc::clone(interrupted);
    std::thread::Builder::new().name("attended".into()).spawn(move || {
        let mut byte = [0; 64];
        // Nothing is ever written; an error is an end as well.
        while let Ok(1..) = io::stdin().lock().read(&mut byte) {}
        interrupted.store(true, Ordering::Relaxed);
    })?;
    Ok(())
}

/// Tells what is about to be done. A daemon that is gone hears nothing, and has already stopped it.
pub(super) fn planned(by: Asker, plans: &[Plan]) {
    let _ = say(&Progress::Planned(Planned::of(by, plans)));
}

/// Tells what came of it.
pub(super) fn done(
    view: &View,
    plans: &[Plan],
    refusals: &[(LockId, Refusal)],
    report: &Report,
) -> io::Result<()> {
    let refused = refusals.iter().filter_map(|(id, refusal)| {
        let lock = view.locks.iter().find(|lock| is_same(lock.id, *id))?;
        Some((view.name(lock), view.file(lock).path.as_deref().map(Box::from), refusal))
    });
    say(&Progress::Done(Done::of(plans, &report.outcomes, &report.hooks, refused)))
}

fn say(progress: &Progress) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, progress)?;
    out.write_all(b"\n")?;
    out.flush()
}
