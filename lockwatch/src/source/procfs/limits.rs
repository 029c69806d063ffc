//! The list of what a reading could not see, in words.
//!
//! Refuses to grow without bound: of many faults of one sort a few are told, the rest counted.

use crate::engine::snapshot::{Hides, Limit};

use super::fault::BadLine;

/// Faults of which the text is told; a thousand broken lines need not be a thousand lines.
const TOLD: usize = 8;

/// What a reading could not see.
#[derive(Debug, Default)]
pub(in crate::source) struct Limits {
    list: Vec<Limit>,
    faults: Vec<BadLine>,
    untold: usize,
}

impl Limits {
    /// Something that may hide a holder, but no lock.
    pub(in crate::source) fn hides_holders(&mut self, what: impl Into<String>) {
        self.list.push(Limit { what: what.into(), hides: Hides::Holders });
    }

    /// Something that may hide a lock.
    pub(in crate::source) fn hides_locks(&mut self, what: impl Into<String>) {
        self.list.push(Limit { what: what.into(), hides: Hides::Locks });
    }

    /// Something that hides no lock and no holder that this source could ever show.
    pub(in crate::source) fn lacks(&mut self, what: impl Into<String>) {
        self.list.push(Limit { what: what.into(), hides: Hides::Nothing });
    }

    /// A line that could not be used.
    pub(in crate::source) fn fault(&mut self, fault: BadLine) {
        if self.faults.len() < TOLD {
            self.faults.push(fault);
        } else {
            self.untold += 1;
        }
    }

    pub(in crate::source) fn into_list(mut self) -> Vec<Limit> {
        for fault in std::mem::take(&mut self.faults) {
            self.hides_locks(format!("{fault}; the line was left out"));
        }
        if self.untold > 0 {
            self.hides_locks(format!("{} more lines could not be understood", self.untold));
        }
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::procfs::fault::BadPart;

    #[test]
    fn many_faults_are_told_in_few_words() {
        let mut limits = Limits::default();
        for line in 1..=100 {
            let part = BadPart { wanted: "pid", found: "x".to_owned() };
            limits.fault(BadLine { file: "locks".to_owned(), line, part });
        }
        let list = limits.into_list();
        assert_eq!(list.len(), TOLD + 1);
        assert!(list.iter().all(|limit| limit.hides == Hides::Locks));
        assert!(list[TOLD].what.starts_with("92 more"));
    }
}
