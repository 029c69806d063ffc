//! The end of those who hold a lock that only they can let go.
//!
//! Refuses to end more of them than it takes: the tables are read after each.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::process::Handle;
use super::release::{Record, Stop, checked};
use super::sight::{Sight, Sighting};
use crate::engine::reclaim::recheck::find;
use crate::engine::reclaim::{Holder, Plan};

/// How long a process has to end itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the kernel has to take a killed one apart.
const KILLED: Duration = Duration::from_secs(5);
/// How long the kernel has to give back what the last of them had.
const GIVEN_BACK: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// Ends the plan's holders, one after the other, until the lock is gone.
pub(super) fn end_holders(
    plan: &Plan,
    sight: &mut dyn Sight,
    record: &mut Record<'_>,
) -> Result<Sighting, Stop> {
    let holders = || plan.holders.iter().filter(|holder| holder.runs);
    let handles =
        holders().map(Handle::open).collect::<Result<Vec<Handle>, _>>().map_err(Stop::Before)?;
    record.step("opened", "handles on all holders: they are those processes");
    record.note();
    let before = checked(plan, sight, None)?;
    record.step("rechecked", "lock, owner, file and holders are those of the plan");
    record.is_wanted()?;
    let last = handles.len().saturating_sub(1);
    for (at, (holder, handle)) in holders().zip(&handles).enumerate() {
        // Who was ended before stays ended: then the tables say whether that was enough.
        if at > 0 && record.is_wanted().is_err() {
            break;
        }
        end(holder, handle, record)?;
        record.note();
        let patience = if at == last { GIVEN_BACK } else { Duration::ZERO };
        if is_gone_within(plan, sight, patience)? {
            break;
        }
    }
    Ok(before)
}

/// What an ended process had is given back by deferred work of the kernel's, an io_uring above all.
fn is_gone_within(plan: &Plan, sight: &mut dyn Sight, time: Duration) -> Result<bool, Stop> {
    let begun = Instant::now();
    loop {
        let now = sight.look(false).map_err(Stop::Looking)?;
        if find(plan, &now.view).is_none() {
            return Ok(true);
        }
        if begun.elapsed() >= time {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

fn end(holder: &Holder, handle: &Handle, record: &mut Record<'_>) -> Result<(), Stop> {
    let pid = holder.reader_pid;
    // One that has ended since was to be ended.
    if !handle.runs()? {
        record.step("ended", format!("pid {pid} had ended by itself"));
        return Ok(());
    }
    handle.send(Signal::TERM)?;
    record.step("signalled", format!("SIGTERM to pid {pid}"));
    if handle.ends_within(PATIENCE)? {
        record.step("ended", format!("pid {pid}"));
        return Ok(());
    }
    handle.send(Signal::KILL)?;
    record.step("signalled", format!("SIGKILL to pid {pid}"));
    let ended = handle.ends_within(KILLED)?;
    record.step("ended", format!("pid {pid}{}", if ended { "" } else { ": not yet" }));
    Ok(())
}
