//! A holder is made to unlock by itself: halted, led through one system call, and let go on exactly
//! where it was.
//!
//! Refuses whatever it cannot put back: processes that somebody else traces, 32-bit ones, threads
//! inside a restartable sequence, and every machine but x86-64.

#[cfg(target_arch = "x86_64")]
mod call;
#[cfg(target_arch = "x86_64")]
mod halt;
#[cfg(target_arch = "x86_64")]
mod registers;

use super::ActError;
use super::description::{Description, locks_behind, unlock_request};
use super::process::Handle;
use super::release::{Record, Stop, checked, reach, still_runs};
use super::sight::{Sight, Sighting};
use crate::engine::identity::LockKind;
use crate::engine::reclaim::{Holder, Plan, Race};

/// The one system call that a holder is led through.
#[derive(Clone, Copy)]
enum Unlock {
    /// flock(2) with `LOCK_UN`.
    Flock,
    /// fcntl(2) with this command and this request.
    Range(libc::c_int, libc::flock),
    /// fcntl(2) with `F_SETLEASE`.
    Lease,
}

impl Unlock {
    fn of(plan: &Plan) -> Result<Self, ActError> {
        Ok(match plan.lock.kind {
            LockKind::Flock => Self::Flock,
            LockKind::Posix => Self::Range(libc::F_SETLK, unlock_request(plan.lock.range)?),
            LockKind::Ofd => Self::Range(libc::F_OFD_SETLK, unlock_request(plan.lock.range)?),
            LockKind::Lease => Self::Lease,
            LockKind::Deleg | LockKind::Layout => {
                return Err(ActError::Impossible("the NFS server alone can unlock it".into()));
            }
        })
    }
}

/// Has the plan's holder unlock.
pub(super) fn through_holder(
    plan: &Plan,
    sight: &mut dyn Sight,
    record: &mut Record<'_>,
) -> Result<Sighting, Stop> {
    let unlock = Unlock::of(plan)?;
    // Everybody who could close, reuse or relock the descriptor meanwhile: whoever shares its
    // table.
    let shares = |holder: &&Holder| {
        plan.lock.kind.belongs_to_fd_table() || holder.process == plan.through.process
    };
    let party: Vec<&Holder> =
        plan.holders.iter().filter(|holder| holder.runs).filter(shares).collect();
    let handles = party.iter().map(|holder| Handle::open(holder)).collect::<Result<Vec<_>, _>>()?;
    let (handle, fd) = reach(&plan.through, record)?;
    // The same descriptor again once all stand still, and the same locks behind it, or nothing is
    // done. No table need be read while they do.
    let description = Description::new(handle.fetch(fd)?);
    let before = of_holder(&plan.through, fd)?;
    record.step("fetched", format!("descriptor {fd} of pid {}", plan.through.reader_pid));
    record.note();
    let seen = checked(plan, sight, Some(&description))?;
    record.step("rechecked", "lock, owner, file and holders are those of the plan");
    record.is_wanted()?;
    let call = Call { plan, unlock, fd, description: &description, before: &before };
    let what = std::thread::scope(|scope| {
        // What a thread traces goes on when the thread ends, however it ends.
        let tracer = std::thread::Builder::new()
            .spawn_scoped(scope, || perform(&call, &party, &handles))
            .map_err(|error| ActError::call("start the tracing thread", error))?;
        tracer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    record.step("unlocked", what);
    still_runs(&handle, &plan.through)?;
    record.step("let go", "every thread goes on where it was");
    Ok(seen)
}

/// What is to be done while everybody stands still.
struct Call<'a> {
    plan: &'a Plan,
    unlock: Unlock,
    fd: u32,
    description: &'a Description,
    before: &'a str,
}

impl Call<'_> {
    /// Finds that nothing changed before everybody stood still.
    fn is_as_rechecked(&self) -> Result<(), ActError> {
        self.description.is_that_of(self.plan.through.tid, self.fd)?;
        if of_holder(&self.plan.through, self.fd)? != self.before {
            return Err(ActError::Race(Race::Another { what: "it changed at the last moment" }));
        }
        Ok(())
    }
}

/// The locks behind a holder's descriptor.
fn of_holder(holder: &Holder, fd: u32) -> Result<String, ActError> {
    locks_behind(&format!("{}/task/{}", holder.reader_pid, holder.tid), fd)
}

#[cfg(target_arch = "x86_64")]
fn perform(call: &Call<'_>, party: &[&Holder], handles: &[Handle]) -> Result<String, ActError> {
    let mut halted = halt::Halted::default();
    for (holder, handle) in party.iter().zip(handles) {
        halted.halt(holder.reader_pid, handle)?;
    }
    call.is_as_rechecked()?;
    let thread = call::perform(call, &mut halted)?;
    Ok(format!("by thread {thread} of pid {} itself", call.plan.through.reader_pid))
}

#[cfg(not(target_arch = "x86_64"))]
fn perform(_: &Call<'_>, _: &[&Holder], _: &[Handle]) -> Result<String, ActError> {
    Err(ActError::Impossible(
        "only on x86-64 can a process be put back exactly where it was; `--method signal` ends it"
            .into(),
    ))
}
