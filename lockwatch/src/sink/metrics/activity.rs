//! What the kernel side counted since it was attached: it goes on while no daemon runs.
//!
//! Refuses to make a 0 of what is not counted: such a member is `None`, and not shown.

use super::buckets::Buckets;

/// The kinds that the kernel side counts apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivityKind {
    /// flock(2).
    Flock,
    /// fcntl(2) `F_SETLK`.
    Posix,
    /// fcntl(2) `F_OFD_SETLK`.
    Ofd,
    /// Leases, delegations and layouts.
    Lease,
}

impl ActivityKind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Flock, Self::Posix, Self::Ofd, Self::Lease];

    /// The value of the label `type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flock => "FLOCK",
            Self::Posix => "POSIX",
            Self::Ofd => "OFDLCK",
            Self::Lease => "LEASE",
        }
    }
}

/// What was counted of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfKind {
    /// Locks taken.
    pub acquisitions: Option<u64>,
    /// Locks given up.
    pub releases: Option<u64>,
    /// Attempts that did not want to wait and met a lock.
    pub refusals: Option<u64>,
    /// How long those waited that were granted.
    pub wait: Option<Buckets>,
    /// How long those were held that were given up.
    pub hold: Option<Buckets>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// By kind, in the order of [`ActivityKind::ALL`].
    pub kinds: [OfKind; 4],
}
