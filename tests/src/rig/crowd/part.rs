//! What a crowd is told to play.

/// What a crowd plays. The races are over when the answer comes, what is left alive for `dismiss`
/// aside; the work goes on in a child, whose pid is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// An owner crashes, and another takes its lock: `INO OWNER NEXT`.
    Handoffs,
    /// An attempt is refused by the lock of an owner that has lost its descriptors already, but not
    /// yet this lock: `INO OWNER`.
    Exits,
    /// Two take two locks in opposite order, and stay: `INO ONE TWO`.
    Deadlocks,
    /// The pid of who took a lock is given to another, who stays: `INO PID`.
    Recycled,
    /// A locked file is made anew and locked again; both locks stay: `OLD NEW`.
    Replaced,
    /// A lock outlives its owner's crash in a child, which stays: `INO OWNER CHILD`.
    Orphans,
    /// Locks are taken and end in every way that is neither an orphan nor a race: `SEQUENCES`.
    Ordinary,
    /// Whatever there is to do to locks, at random, on files that many share: `OPERATIONS`.
    Mixed,
}

impl Part {
    /// Every part by its word.
    pub const ALL: [(&'static str, Self); 8] = [
        ("handoffs", Self::Handoffs),
        ("exits", Self::Exits),
        ("deadlocks", Self::Deadlocks),
        ("recycled", Self::Recycled),
        ("replaced", Self::Replaced),
        ("orphans", Self::Orphans),
        ("ordinary", Self::Ordinary),
        ("mixed", Self::Mixed),
    ];
}

/// What a crowd is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the module's table says it")]
pub struct Crowd {
    pub output: Vec<u8>,
    pub part: Part,
    pub count: u32,
    pub folder: Vec<u8>,
    pub seed: u64,
}
