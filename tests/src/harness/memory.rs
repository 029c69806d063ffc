//! The memory of a daemon while it works: looked at all the time, and judged in the end.
//!
//! Refuses to judge by one moment: a reading takes memory and gives it back, and what is left over
//! when nothing is under way is seen only where it is looked at often.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// From one look to the next.
const PAUSE: Duration = Duration::from_millis(100);
/// Parts of a run: the first is for warming up, and not judged.
const PARTS: u32 = 4;
/// What the lowest and the highest of a part may be above those of an earlier one, kB: what the
/// allocator keeps of one piece that lies badly.
const GROWTH: u64 = 4 * 1024;
/// What each lock more may take, kB: others on the machine may have taken some meanwhile.
const OF_A_LOCK: u64 = 2;
/// Looks that a part must have.
const LOOKS: usize = 5;

/// One look.
#[derive(Clone, Copy)]
pub struct Look {
    /// Since when it is looked.
    pub at: Duration,
    /// Resident memory, kB.
    pub resident: u64,
    /// What of it belongs to no file, kB.
    pub anonymous: u64,
    /// Open descriptors.
    pub descriptors: usize,
    /// Locks that the daemon had to know of, as far as anybody said so.
    pub locks: u64,
}

impl Look {
    /// Looks at a process now.
    pub fn at(process: i32) -> Result<Self> {
        let process = PathBuf::from(format!("/proc/{process}"));
        let status = fs::read_to_string(process.join("status")).context("the daemon's memory")?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.with_context(|| name.to_owned())?.parse().with_context(|| name.to_owned())
        };
        let descriptors = fs::read_dir(process.join("fd")).context("its descriptors")?.count();
        Ok(Self {
            at: Duration::ZERO,
            resident: field("VmRSS:")?,
            anonymous: field("RssAnon:")?,
            descriptors,
            locks: 0,
        })
    }
}

impl fmt::Debug for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} kB, {} descriptors", self.resident, self.descriptors)
    }
}

/// What was seen over a time.
pub struct Curve(Vec<Look>);

impl Curve {
    /// Looks at a process until it is told to stop; `locks` has how many locks there are.
    pub fn of(process: i32, locks: &AtomicU64, stop: &AtomicBool) -> Result<Self> {
        let (begun, mut looks) = (Instant::now(), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let look = Look::at(process)?;
            looks.push(Look { at: begun.elapsed(), locks: locks.load(Ordering::Relaxed), ..look });
            std::thread::sleep(PAUSE);
        }
        Ok(Self(looks))
    }

    fn parts(&self) -> Vec<Part> {
        let whole = self.0.last().map_or(Duration::ZERO, |look| look.at) + PAUSE;
        (0..PARTS)
            .filter_map(|number| {
                let (from, to) = (whole * number / PARTS, whole * (number + 1) / PARTS);
                let looks = self.0.iter().filter(|look| (from..to).contains(&look.at));
                Part::of(looks.copied().collect())
            })
            .collect()
    }

    /// Fails where it grew: where either the lowest or the highest of the second half lies above that
    /// of the second quarter. A leak lifts the lowest, a queue that is worked off too late the highest.
    pub fn ensure_it_is_flat(&self, descriptors: usize) -> Result<()> {
        let parts = self.parts();
        let [_, before, third, fourth] = &parts[..] else {
            anyhow::bail!("only {} of {PARTS} parts were looked at", parts.len());
        };
        let (highest, locks) = (third.highest.max(fourth.highest), third.locks.max(fourth.locks));
        let growth = GROWTH + OF_A_LOCK * locks.saturating_sub(before.locks);
        ensure!(highest <= before.highest + growth, "its highest grew: {self:?}");
        ensure!(fourth.lowest <= before.lowest + growth, "its lowest grew: {self:?}");
        ensure!(
            fourth.descriptors <= before.descriptors + descriptors,
            "it keeps descriptors: {self:?}"
        );
        Ok(())
    }
}

/// A part of the time.
struct Part {
    lowest: u64,
    median: u64,
    highest: u64,
    anonymous: u64,
    /// The fewest at a time.
    descriptors: usize,
    locks: u64,
}

impl Part {
    /// `None` where it was looked too seldom to say anything.
    fn of(looks: Vec<Look>) -> Option<Self> {
        if looks.len() < LOOKS {
            return None;
        }
        let mut resident: Vec<u64> = looks.iter().map(|look| look.resident).collect();
        resident.sort_unstable();
        Some(Self {
            lowest: *resident.first()?,
            median: resident[resident.len() / 2],
            highest: *resident.last()?,
            anonymous: looks.iter().map(|look| look.anonymous).max()?,
            descriptors: looks.iter().map(|look| look.descriptors).min()?,
            locks: looks.iter().map(|look| look.locks).max()?,
        })
    }
}

impl fmt::Debug for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.parts()).finish()
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lowest, median, highest, anonymous, descriptors, locks } = self;
        write!(
            f,
            "{lowest} to {highest} kB, median {median} (at most {anonymous} of no file), \
             {descriptors} descriptors, at most {locks} locks"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of 40 s of so much memory, kB, at each tenth of a second.
    fn run(resident: impl Fn(u64) -> u64) -> Curve {
        let look = |number| Look {
            at: PAUSE * u32::try_from(number).unwrap(),
            resident: resident(number),
            anonymous: 0,
            descriptors: 40,
            locks: 0,
        };
        Curve((0..400).map(look).collect())
    }

    /// What a reading takes for a moment.
    fn peaks(number: u64) -> u64 {
        if number.is_multiple_of(7) { 9_000 } else { 0 }
    }

    #[test]
    fn peaks_and_warming_up_are_no_growth() {
        let warm = |number: u64| 30_000 + 200 * number.min(90);
        run(|number| warm(number) + peaks(number)).ensure_it_is_flat(0).unwrap();
    }

    #[test]
    fn a_leak_below_the_peaks_is_growth() {
        let leaked = run(|number| 40_000 + 25 * number + peaks(number));
        let error = leaked.ensure_it_is_flat(0).unwrap_err().to_string();
        assert!(error.contains("grew"), "{error}");
    }

    #[test]
    fn peaks_that_grow_are_growth() {
        let piled = run(|number| 40_000 + peaks(number) * (1 + number / 200));
        let error = piled.ensure_it_is_flat(0).unwrap_err().to_string();
        assert!(error.contains("its highest grew"), "{error}");
    }

    #[test]
    fn what_others_locks_take_is_no_growth_and_what_comes_on_top_is() {
        let locked = |kilobytes: u64| {
            let mut curve = run(|number| if number < 250 { 40_000 } else { 40_000 + kilobytes });
            curve.0.iter_mut().skip(250).for_each(|look| look.locks = 10_000);
            curve.ensure_it_is_flat(0)
        };
        locked(16_000).unwrap();
        assert!(locked(25_000).is_err());
    }

    #[test]
    fn descriptors_that_are_kept_are_growth() {
        let mut kept = run(|_| 40_000);
        kept.0.iter_mut().skip(250).for_each(|look| look.descriptors += 3);
        kept.ensure_it_is_flat(3).unwrap();
        let error = kept.ensure_it_is_flat(2).unwrap_err().to_string();
        assert!(error.contains("descriptors"), "{error}");
    }

    #[test]
    fn what_was_hardly_looked_at_is_not_called_flat() {
        let few = Curve(run(|_| 40_000).0[..12].to_vec());
        assert!(few.ensure_it_is_flat(0).is_err());
    }
}
