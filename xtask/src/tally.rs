//! What came of some tests, as numbers and as the line that a run closes with.
//!
//! Runs nothing.

use anyhow::Result;

/// What came of some tests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// The lines that say what was skipped, and why.
    pub(crate) skips: Vec<String>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, skipped, .. } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// A part of a run, by its name: its tests, or why it could not be run.
pub(crate) type Part = (&'static str, Result<Tally>);

/// A line for each part, its skips below, and at the end the sum in the form of a closing line.
pub(crate) fn summary(parts: &[Part]) -> (String, Tally) {
    let mut text = String::from("\n");
    let mut total = Tally::default();
    for (name, outcome) in parts {
        match outcome {
            Ok(tally) => {
                text += &format!("{name}: {tally}\n");
                for line in &tally.skips {
                    text += &format!("  {line}\n");
                }
                total.passed += tally.passed;
                total.failed += tally.failed;
                total.skipped += tally.skipped;
            }
            Err(error) => {
                text += &format!("{name}: {error:#}\n");
                // A part that could not run must not read as one without failures.
                total.failed += 1;
            }
        }
    }
    text += &format!("{total}\n");
    (text, total)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Tally {
        Tally { passed, failed, skipped, skips: Vec::new() }
    }

    #[test]
    fn skips_are_told_again() {
        let skips = vec!["test a ... skipped: why".to_owned()];
        let (text, _) = summary(&[("live tests", Ok(Tally { skips, ..tally(1, 0, 1) }))]);
        assert!(text.contains("  test a ... skipped: why\n"), "{text}");
    }

    #[test]
    fn a_part_that_could_not_run_is_a_failure() {
        let parts = [("first", Ok(tally(3, 0, 0))), ("second", Err(anyhow!("did not start")))];
        let (text, total) = summary(&parts);
        assert_eq!(total, tally(3, 1, 0));
        assert!(text.contains("second: did not start"));
        assert!(text.ends_with("\n3 passed, 1 failed, 0 skipped\n"), "{text}");
    }
}
