//! Spans of time, counted by the power of two of their nanoseconds, as the kernel side counts them.
//!
//! Refuses bounds that the counting cannot tell exactly: every bound of the exposition is a power
//! of two of nanoseconds, and so no count is an estimate.

/// Powers of two that are counted apart. The last counts all that is longer.
pub const BUCKETS: usize = 40;

/// The upper bounds that are shown, as powers of two of nanoseconds: 1.02 µs, 4.1 µs, 16 µs … 4.6
/// minutes. What is exactly as long as a bound, to the nanosecond, counts as longer.
pub(super) const BOUNDS: [u32; 15] = [10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38];

/// A histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// How many took at least 2^i and less than 2^(i+1) nanoseconds; the first also none at all,
    /// the last also longer ones.
    pub counts: [u64; BUCKETS],
    /// The sum of all, nanoseconds.
    pub sum: u64,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum: 0 }
    }
}

impl Buckets {
    /// Counts one.
    pub fn observe(&mut self, nanos: u64) {
        let power = nanos.checked_ilog2().unwrap_or(0) as usize;
        self.counts[power.min(BUCKETS - 1)] += 1;
        self.sum = self.sum.saturating_add(nanos);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many took less than 2^power nanoseconds.
    pub(super) fn below(&self, power: u32) -> u64 {
        self.counts.iter().take(power as usize).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bound_counts_what_is_shorter_and_nothing_else(
            spans in proptest::collection::vec(0u64..1 << 45, 0..50),
        ) {
            let mut buckets = Buckets::default();
            for &span in &spans {
                buckets.observe(span);
            }
            for power in BOUNDS {
                let shorter = spans.iter().filter(|&&span| span < 1 << power).count();
                prop_assert_eq!(buckets.below(power), shorter as u64);
            }
            prop_assert_eq!(buckets.count(), spans.len() as u64);
            prop_assert_eq!(buckets.sum, spans.iter().sum::<u64>());
        }
    }
}
