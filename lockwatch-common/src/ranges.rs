//! What an operation on a range means for a table that has one entry for each first byte.
//!
//! Here, because the programs decide by it and a test does the same in user space. As long as only
//! what is simple happens, the table is the kernel's own list of the owner's ranges.

/// An entry under the first byte of an operation, compared with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// They end at the same byte.
    pub same_end: bool,
    /// Both are shared or both are exclusive.
    pub same_access: bool,
}

/// What a range that was set means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Nothing changes.
    Nothing,
    /// It takes its place in the table, instead of what is there.
    Simple,
    /// It may have merged, cut or split others.
    Other,
}

/// What a range that was given up means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsetting {
    /// The table has nothing of the owner.
    Nothing,
    /// The entry under its first byte is no more.
    Simple,
    /// The one entry that the owner can have is no more, if it is his.
    Only,
    /// Everything of the owner is no more.
    Cleared,
    /// It may have cut or split others.
    Other,
}

/// A range was set. `linked`: the kernel shows its own entry, not the request, so the request became
/// one with an entry, or took one's place. `others`: how many entries of the other access the owner
/// may have.
#[inline(always)]
pub const fn set(linked: bool, known: Option<Known>, others: i64) -> Setting {
    match (linked, known) {
        // It lies within what the owner has already.
        (true, Some(Known { same_end: true, same_access: true })) => Setting::Nothing,
        // What the owner had changed its access, from the first byte to the last.
        (true, Some(Known { same_end: true, same_access: false })) => Setting::Simple,
        // Nothing touched it, so an entry that says otherwise is of the past.
        (false, Some(Known { same_end: true, same_access: true })) if others == 0 => {
            Setting::Simple
        }
        (false, None) if others == 0 => Setting::Simple,
        _ => Setting::Other,
    }
}

/// A range was given up; `whole` where it was the whole file. `all`: how many entries the owner may
/// have.
#[inline(always)]
pub const fn unset(whole: bool, known: Option<Known>, all: i64) -> Unsetting {
    match (known, all, whole) {
        (Some(Known { same_end: true, .. }), _, _) => Unsetting::Simple,
        (_, 0, _) => Unsetting::Nothing,
        (_, 1, true) => Unsetting::Only,
        (_, _, true) => Unsetting::Cleared,
        _ => Unsetting::Other,
    }
}
