//! The short facts on which a verdict rests.
//!
//! Refuses to be prose in memory: a fact is a value, and becomes a sentence only when written.

use std::fmt;

use super::births::Basis;
use super::identity::{Access, Pid};
use super::snapshot::{Place, PlaceKind, PlaceOwner, Via};

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The acquirer lives and refers to the description or fd table.
    AcquirerHolds {
        /// The acquirer.
        pid: Pid,
        /// The first of its descriptors, where it has one.
        fd: Option<u32>,
        /// How many descriptors of the description it has.
        descriptors: u32,
    },
    /// The acquirer lives, has no descriptor of it, and has a place in which it lives on.
    AcquirerKeeps {
        /// The acquirer.
        pid: Pid,
        /// What kind of place.
        via: Via,
    },
    /// No process has the recorded pid.
    AcquirerGone {
        /// The recorded pid.
        pid: Pid,
    },
    /// The recorded process is a zombie: nothing of it but its exit status is left.
    AcquirerZombie {
        /// The recorded pid.
        pid: Pid,
    },
    /// The recorded process is on its way out.
    AcquirerExiting {
        /// The recorded pid.
        pid: Pid,
    },
    /// The recorded process is on its way out for longer than the grace period.
    AcquirerStuck {
        /// The recorded pid.
        pid: Pid,
    },
    /// A living process has the recorded pid, but is younger than every holder and no child of one.
    PidRecycled {
        /// The recorded pid.
        pid: Pid,
    },
    /// The process that has the recorded pid started at another time than the acquirer.
    PidRecycledProven {
        /// The recorded pid.
        pid: Pid,
    },
    /// How the acquirer ended.
    AcquirerEnded {
        /// The acquirer.
        pid: Pid,
        /// The code that it exited with.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// The acquirer lives but has no descriptor of the description.
    AcquirerDetached {
        /// The acquirer.
        pid: Pid,
    },
    /// The recorded pid is not in the reader's pid namespace: dead, or alive outside.
    AcquirerOutside,
    /// procfs shows every OFD lock without its acquirer.
    AcquirerWithheld,
    /// The acquirer is a thread of the kernel's own.
    KernelThread {
        /// The recorded pid.
        pid: Pid,
    },
    /// A delegation or layout that nothing here refers to.
    Delegated,
    /// A POSIX lock of which no process has the fd table.
    NoTable,
    /// The recorded pid is negative.
    Remote {
        /// The number that the kernel recorded.
        recorded: i32,
    },
    /// A holder opened the description itself and has not exec'd since.
    HolderOpened {
        /// The holder.
        pid: Pid,
    },
    /// A holder was born before the acquirer.
    HolderOlder {
        /// The holder.
        pid: Pid,
        /// How the order is known.
        basis: Basis,
    },
    /// A holder was born after the acquirer.
    HolderYounger {
        /// The holder.
        pid: Pid,
        /// How the order is known.
        basis: Basis,
    },
    /// A holder was born before the lock was taken.
    HolderBefore {
        /// The holder.
        pid: Pid,
    },
    /// A holder was born after the lock was taken.
    HolderAfter {
        /// The holder.
        pid: Pid,
    },
    /// When a holder was born was not read, or is too near to the taking of the lock.
    HolderBirthUnknown {
        /// The holder.
        pid: Pid,
    },
    /// Whether a holder has exec'd since its fork was not read.
    HolderExecUnknown {
        /// The holder.
        pid: Pid,
    },
    /// Whether a holder is older than the acquirer cannot be told.
    HolderAgeUnknown {
        /// The holder.
        pid: Pid,
    },
    /// A holder has not exec'd since it was forked.
    HolderForked {
        /// The holder.
        pid: Pid,
    },
    /// A holder carried the descriptor across an exec.
    HolderExeced {
        /// The holder.
        pid: Pid,
    },
    /// The acquirer's exit status is not known without history.
    ExitUnknown,
    /// A holder shares the fd table of the acquirer (`CLONE_FILES`).
    SharesTable {
        /// The holder.
        pid: Pid,
    },
    /// No reference was found in any fd table.
    NoReference,
    /// Where the description lives on without a descriptor, and who has the place.
    Kept(Box<(PlaceKind, Vec<PlaceOwner>)>),
    /// Whether the owner of a place had the description before the lock was taken is not known.
    HadBeforeUnknown {
        /// The owner.
        pid: Pid,
    },
    /// Places that were searched for a reference.
    Searched {
        /// The places.
        places: Box<[Via]>,
    },
    /// Places that were not searched for a reference, and why.
    NotSearched {
        /// The places.
        places: Box<[(Via, String)]>,
    },
    /// The source could not tell to which description the lock belongs.
    OwnerUnknown,
    /// Only the second of two readings saw it so.
    SeenOnce,
    /// Something could not be read, which may hide a holder.
    Hidden,
    /// It looks orphaned, but was seen so too short a time to call it that.
    Unconfirmed,
    /// The holder of a lease was asked to come down.
    LeaseBreaking {
        /// To what.
        to: Access,
    },
}

impl Evidence {
    /// What is known of a place.
    pub(super) fn kept(place: &Place) -> Self {
        Self::Kept(Box::new((place.kind.clone(), place.owners.clone())))
    }
}

/// A list with commas.
fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut fmt::Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        write(f, item)?;
    }
    Ok(())
}

/// The place without names from outside: those are told where they can be escaped.
fn kept(f: &mut fmt::Formatter<'_>, kind: &PlaceKind, owners: &[PlaceOwner]) -> fmt::Result {
    let outer = match kind {
        PlaceKind::Queue { socket, depth, .. } => {
            f.write_str("it is in flight in the queue of ")?;
            match socket {
                Some(inode) => write!(f, "the unix socket {inode}")?,
                None => f.write_str("a unix socket that nobody accepted yet")?,
            }
            *depth
        }
        PlaceKind::Ring { slot, depth } => {
            write!(f, "it is file {slot} of those registered with an io_uring")?;
            *depth
        }
        PlaceKind::Mapping { start, end, protection } => {
            let protection = String::from_utf8_lossy(protection);
            write!(f, "it is mapped at {start:x}-{end:x} ({protection})")?;
            0
        }
        PlaceKind::Kernel { what } => {
            write!(f, "the kernel uses the file: {what}")?;
            0
        }
    };
    if outer > 0 {
        write!(f, ", which is itself in flight or registered, {outer} deep")?;
    }
    match owners {
        [] if matches!(kind, PlaceKind::Kernel { .. }) => Ok(()),
        [] => f.write_str(", and no process was found that has it"),
        owners => {
            f.write_str(", which is of ")?;
            list(f, owners.iter().take(4), |f, owner| match owner.fd {
                Some(fd) => write!(f, "pid {} (descriptor {fd})", owner.pid),
                None => write!(f, "pid {}", owner.pid),
            })?;
            match owners.len().saturating_sub(4) {
                0 => Ok(()),
                more => write!(f, " and {more} more"),
            }
        }
    }
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StartTimes => "by their start times",
            Self::PidOrder => "by the order of pids, which have not gone round since boot",
            Self::RecentPidOrder => {
                "by the order of pids, which at this machine's rate have not gone round since"
            }
        })
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AcquirerHolds { pid, fd: Some(fd), descriptors: 1 } => {
                write!(f, "the acquirer, pid {pid}, lives and has it as descriptor {fd}")
            }
            Self::AcquirerHolds { pid, fd: Some(fd), descriptors } => write!(
                f,
                "the acquirer, pid {pid}, lives and has it as descriptor {fd} and {} more",
                descriptors - 1
            ),
            Self::AcquirerHolds { pid, fd: None, .. } => {
                write!(f, "the acquirer, pid {pid}, lives and holds it")
            }
            Self::AcquirerGone { pid } => write!(f, "no process has the recorded pid {pid}"),
            Self::AcquirerZombie { pid } => {
                write!(f, "the acquirer, pid {pid}, is dead and waits to be reaped")
            }
            Self::AcquirerExiting { pid } => {
                write!(f, "the acquirer, pid {pid}, is on its way out")
            }
            Self::AcquirerStuck { pid } => write!(
                f,
                "the acquirer, pid {pid}, is on its way out for longer than the grace period and \
                 has not given it back"
            ),
            Self::PidRecycled { pid } => write!(
                f,
                "pid {pid} now belongs to another process: it is younger than every holder and \
                 no child of one"
            ),
            Self::PidRecycledProven { pid } => write!(
                f,
                "pid {pid} now belongs to another process: the acquirer started at another time"
            ),
            Self::AcquirerEnded { pid, code, signal } => match (signal, code) {
                (Some(signal), _) => {
                    write!(f, "the acquirer, pid {pid}, was ended by signal {signal}")
                }
                (None, Some(code)) => {
                    write!(f, "the acquirer, pid {pid}, exited with code {code}")
                }
                (None, None) => write!(f, "the acquirer, pid {pid}, ended"),
            },
            Self::AcquirerDetached { pid } => {
                write!(f, "the acquirer, pid {pid}, lives but has closed it")
            }
            Self::AcquirerOutside => f.write_str(
                "the acquirer is not in this pid namespace, where the kernel shows it as PID 0: it \
                 is dead, or lives outside",
            ),
            Self::AcquirerWithheld => {
                f.write_str("/proc does not tell who took an OFD lock (it prints pid -1)")
            }
            Self::KernelThread { pid } => write!(
                f,
                "the acquirer, pid {pid}, is a thread of the kernel's, which takes locks for others: \
                 the clients of a file server"
            ),
            Self::Delegated => f.write_str(
                "delegations and layouts are given to the clients of an NFS server, whose own \
                 descriptions are in no fd table",
            ),
            Self::NoTable => f.write_str(
                "a process's POSIX locks end with its fd table, and no process has this one's: a \
                 lock manager in the kernel (an NFS server's) may have taken it for a client, or a \
                 dying process keeps it",
            ),
            Self::Remote { recorded } => write!(
                f,
                "the kernel recorded {recorded}: a negative pid stands for another machine or a \
                 file system server"
            ),
            Self::HolderOpened { pid } => write!(
                f,
                "pid {pid} opened the file itself and has not exec'd since, so it had the \
                 description before it was locked"
            ),
            Self::HolderOlder { pid, basis } => {
                write!(f, "pid {pid} is older than the acquirer, {basis}")
            }
            Self::HolderYounger { pid, basis } => {
                write!(f, "pid {pid} is younger than the acquirer, {basis}")
            }
            Self::HolderBefore { pid } => {
                write!(f, "pid {pid} was there before the lock was taken")
            }
            Self::HolderAfter { pid } => {
                write!(f, "pid {pid} was born after the lock was taken")
            }
            Self::HolderBirthUnknown { pid } => write!(
                f,
                "whether pid {pid} was there before the lock was taken cannot be told: its start \
                 was not read, or is too near to that moment"
            ),
            Self::HolderExecUnknown { pid } => {
                write!(f, "whether pid {pid} has exec'd since it was forked was not read")
            }
            Self::HolderAgeUnknown { pid } => write!(
                f,
                "whether pid {pid} is older than the acquirer cannot be told: pids may have gone \
                 round since, and nobody watched"
            ),
            Self::HolderForked { pid } => {
                write!(f, "pid {pid} has not exec'd since it was forked")
            }
            Self::HolderExeced { pid } => {
                write!(f, "pid {pid} carried the descriptor across an exec")
            }
            Self::ExitUnknown => {
                f.write_str("how the acquirer ended is not known: nobody watched it")
            }
            Self::SharesTable { pid } => write!(f, "pid {pid} shares the acquirer's fd table"),
            Self::NoReference => f.write_str("no fd table refers to it"),
            Self::AcquirerKeeps { pid, via } => write!(
                f,
                "the acquirer, pid {pid}, lives and still has what it is in ({})",
                via.name()
            ),
            Self::Kept(place) => kept(f, &place.0, &place.1),
            Self::HadBeforeUnknown { pid } => write!(
                f,
                "whether pid {pid} had the description before it was locked cannot be told"
            ),
            Self::Searched { places } => {
                f.write_str("searched and not found: ")?;
                list(f, places, |f, place| f.write_str(place.name()))
            }
            Self::NotSearched { places } => {
                f.write_str("not searched: ")?;
                list(f, places, |f, (place, why)| write!(f, "{} ({why})", place.name()))
            }
            Self::OwnerUnknown => {
                f.write_str("to which open file description it belongs could not be read")
            }
            Self::SeenOnce => f.write_str(
                "only the second of two readings saw it so: it may be gone, or somebody's, in a \
                 moment",
            ),
            Self::Hidden => f.write_str("what could not be read may hide a holder (see limits)"),
            Self::Unconfirmed => f.write_str(
                "it looks orphaned, but not for longer than the grace period by what was read",
            ),
            Self::LeaseBreaking { to } => {
                write!(f, "the lease is being broken: its holder was asked for {}", to.name())
            }
        }
    }
}
