//! Which of an owner's operations that were written down still matter, so that one that undoes others
//! takes them away instead of being written down beside them.
//!
//! Here, because the programs decide by it and a test does the same in user space. Refuses to decide
//! where an operation concerns a part of what another did: then both stay, and user space works out
//! what they come to.

/// Operations of an owner that are remembered one by one.
pub const STANDING: usize = 16;

/// What an operation that was written down concerns.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// When it was done, as its key says; 0 where this place is free.
    pub at: u64,
    /// First byte.
    pub start: i64,
    /// Last byte.
    pub end: i64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub access: u32,
    /// 0.
    pub reserved: u32,
}

/// How an operation meets those that stand: how many there are of each sort.
///
/// Worked out without a branch: else the verifier would follow every combination of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meeting {
    /// All that stand.
    pub all: u64,
    /// Those that have a byte in common with it.
    pub met: u64,
    /// Of these, those that have other bytes, too.
    pub partly: u64,
    /// Of these, those with the same access.
    pub alike: u64,
    /// Of those that were met, those with the very same bytes and access.
    pub same: u64,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// It changes nothing.
    Nothing,
    /// It undoes those that it met, and is not written down.
    Undoes,
    /// It takes the place of those that it met, and nothing of theirs is left.
    Replaces,
    /// It is written down beside the others.
    Another,
}

/// 1 where the number is less than 0, else 0.
#[inline(always)]
const fn is_negative(number: i64) -> u64 {
    number as u64 >> 63
}

/// 1 where the numbers are the same, else 0.
#[inline(always)]
const fn is_equal(a: u64, b: u64) -> u64 {
    let apart = a ^ b;
    // Of a number and its negative one has the sign, unless both are 0.
    ((apart | apart.wrapping_neg()) >> 63) ^ 1
}

impl Standing {
    /// A free place.
    pub const FREE: Self = Self { at: 0, start: 0, end: 0, access: 0, reserved: 0 };

    /// 1 where this has a byte in common with a range, else 0; bytes are 0 or greater.
    #[inline(always)]
    pub const fn meets(&self, start: i64, end: i64) -> u64 {
        let apart =
            is_negative(self.end.wrapping_sub(start)) | is_negative(end.wrapping_sub(self.start));
        (is_equal(self.at, 0) | apart) ^ 1
    }
}

impl Meeting {
    /// Of an operation with none.
    pub const NONE: Self = Self { all: 0, met: 0, partly: 0, alike: 0, same: 0 };

    /// Adds one of those that stand; a free place adds nothing.
    #[inline(always)]
    pub const fn add(&mut self, standing: &Standing, start: i64, end: i64, access: u32) {
        let met = standing.meets(start, end);
        let partly = is_negative(standing.start.wrapping_sub(start))
            | is_negative(end.wrapping_sub(standing.end));
        let alike = is_equal(standing.access as u64, access as u64);
        let bytes = is_equal(standing.start as u64, start as u64)
            & is_equal(standing.end as u64, end as u64);
        self.all += is_equal(standing.at, 0) ^ 1;
        self.met += met;
        self.partly += met & partly;
        self.alike += met & alike;
        self.same += met & alike & bytes;
    }

    /// What becomes of an operation that met these, and `gives_up` bytes or sets them. `complete`:
    /// nothing else of the owner matters. `linked`: see [`crate::ranges::set`].
    ///
    /// Those that an operation covers touch no others, or these would have been met, too: to take them
    /// away changes nothing for who does the others again.
    #[inline(always)]
    pub const fn becomes(&self, gives_up: bool, complete: bool, linked: bool) -> Becomes {
        if !complete {
            return Becomes::Another;
        }
        match (gives_up, self.partly) {
            (true, 0) if self.met == 0 => Becomes::Nothing,
            (true, 0) => Becomes::Undoes,
            (true, _) => Becomes::Another,
            _ if linked && self.met == 1 && self.same == 1 => Becomes::Nothing,
            // What it was merged with is older than it.
            (_, 0) if self.met != 0 && self.alike == 0 => Becomes::Replaces,
            _ => Becomes::Another,
        }
    }
}
