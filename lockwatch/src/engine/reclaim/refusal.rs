//! Why no lock is released.

use std::fmt;

use crate::engine::classify::{Reason, State};
use crate::engine::evidence::Evidence;
use crate::engine::identity::{LockKind, Pid};
use crate::engine::snapshot::Via;

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is held by right, as far as is known.
    NotOrphaned {
        /// What it is in.
        state: State,
        /// The first fact of the verdict.
        because: Option<Evidence>,
    },
    /// The verdict was inferred, and only what is proven may be released.
    OnlyLikely {
        /// The first fact of the verdict.
        because: Option<Evidence>,
    },
    /// Somebody may be about to receive it, and only what is proven may be released.
    InFlight,
    /// The other side alone can release it.
    Remote {
        /// What its administrator runs.
        advice: &'static str,
    },
    /// The kernel's NFS server handed it out.
    NfsServer {
        /// A delegation or a layout.
        kind: LockKind,
        /// What the administrator runs.
        advice: &'static str,
    },
    /// Nothing was found that refers to the description, so there is no way to it.
    NoWay {
        /// Why it is orphaned, where it is.
        reason: Option<Reason>,
    },
    /// The way that was asked for does not lead to this lock.
    MethodDoesNotFit {
        /// Why not, and what does.
        why: &'static str,
    },
    /// To which description or fd table the lock belongs is not known.
    OwnerUnknown,
    /// A process that would have to be touched cannot be told from one that gets its pid next.
    ProcessUnknown {
        /// Its pid.
        pid: Pid,
    },
    /// A process that must not be touched.
    Untouchable {
        /// Its pid.
        pid: Pid,
    },
    /// `--force` is for one named lock.
    ForceNeedsOne {
        /// How many were named.
        named: usize,
    },
    /// The path was that of several files, one after the other, and locks live on on them.
    SeveralFiles {
        /// How many.
        files: usize,
    },
}

/// What an administrator of an NFS server can do.
const NFS: &str = "see /proc/fs/nfsd/clients/*/info; `echo expire > /proc/fs/nfsd/clients/N/ctl` \
                   ends one client, /proc/fs/nfsd/unlock_ip and unlock_filesystem release what \
                   lockd holds for an address or a file system";

impl Refusal {
    /// Of a lock of another machine.
    pub(super) fn remote() -> Self {
        Self::Remote { advice: NFS }
    }

    /// Of what the NFS server handed out.
    pub(super) fn nfs_server(kind: LockKind) -> Self {
        Self::NfsServer { kind, advice: NFS }
    }

    /// A POSIX lock and a way that leads to a description.
    pub(super) fn posix_by_descriptor() -> Self {
        Self::MethodDoesNotFit {
            why: "a POSIX lock belongs to an fd table: unlocked through a descriptor elsewhere the \
                  kernel says success and the lock stays. `--method inject` has its process unlock \
                  it and go on, `--method signal` ends its process",
        }
    }

    /// A description that no fd table shows.
    pub(super) fn without_descriptor(via: Via) -> Self {
        let why = match via {
            Via::Mmap => {
                "only a mapping is left, through which nobody reaches the description: \
                          `--method signal` ends the process that has it mapped"
            }
            Via::IoUring => {
                "only a registration with io_uring is left, which no other process can fetch: \
                 `--method signal` ends the process that has the ring"
            }
            Via::Kernel => {
                "only the kernel itself has it: detach the loop device (losetup -d), the swap \
                 file (swapoff) or the mount that uses it"
            }
            Via::ScmRights => {
                "it is in flight in a unix socket that is in no fd table itself (not accepted yet, or \
                 in flight, too), so nobody can fetch it: it ends when that socket is received, \
                 accepted or closed. `--method signal` ends the processes that could do that"
            }
            Via::Fd | Via::Files => "no descriptor of it is in reach",
        };
        Self::MethodDoesNotFit { why }
    }

    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotOrphaned { .. } => "not_orphaned",
            Self::OnlyLikely { .. } => "only_likely",
            Self::InFlight => "in_flight",
            Self::Remote { .. } => "remote",
            Self::NfsServer { .. } => "nfs_server",
            Self::NoWay { .. } => "no_way",
            Self::MethodDoesNotFit { .. } => "method_does_not_fit",
            Self::OwnerUnknown => "owner_unknown",
            Self::ProcessUnknown { .. } => "process_unknown",
            Self::Untouchable { .. } => "untouchable",
            Self::ForceNeedsOne { .. } => "force_needs_one",
            Self::SeveralFiles { .. } => "several_files",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOrphaned { state, because } => {
                match state {
                    State::Unknown => f.write_str("whether it is held by right is not known")?,
                    state => write!(f, "it is {}, not orphaned", state.name())?,
                }
                if let Some(because) = because {
                    write!(f, ": {because}")?;
                }
                Ok(())
            }
            Self::OnlyLikely { because } => {
                f.write_str(
                    "that it is orphaned is likely, not certain, and its watch does not say \
                     reclaim_likely = true",
                )?;
                if let Some(because) = because {
                    write!(f, ": {because}")?;
                }
                f.write_str("; `lockwatch reclaim` shows what else speaks for it")
            }
            Self::InFlight => f.write_str(
                "it is in flight in a unix socket, and whoever has that may be about to receive it \
                 and rely on the lock; its watch does not say reclaim_likely = true",
            ),
            Self::Remote { advice } => {
                write!(f, "another machine or a file system server holds it: {advice}")
            }
            Self::NfsServer { kind, advice } => {
                write!(f, "the NFS server handed this {} out: {advice}", kind.name())
            }
            Self::NoWay { reason: Some(Reason::Exiting) } => f.write_str(
                "its owner is stuck in exit, where nothing reaches it: it ends when the kernel \
                 lets go (see /proc/PID/stack for what it waits for)",
            ),
            Self::NoWay { .. } => f.write_str(
                "nothing was found that refers to it, so nothing leads to it; see `lockwatch \
                 explain` for where nobody could look",
            ),
            Self::MethodDoesNotFit { why } => f.write_str(why),
            Self::OwnerUnknown => {
                f.write_str("to which open file description it belongs could not be read")
            }
            Self::ProcessUnknown { pid } => write!(
                f,
                "when pid {pid} was started is not known, so it cannot be told from a process \
                 that gets its pid next"
            ),
            Self::Untouchable { pid: 1 } => f.write_str("pid 1 is not signalled or halted"),
            Self::Untouchable { pid } => write!(f, "pid {pid} is not signalled or halted"),
            Self::SeveralFiles { files } => {
                write!(
                    f,
                    "{files} files had that path, one after the other: give the id of one lock"
                )
            }
            Self::ForceNeedsOne { named } => {
                write!(f, "--force is for one lock, and {named} were named: give the id of one")
            }
        }
    }
}
