//! What a test is: a function, its name, and what it needs.

use std::time::Duration;

use anyhow::Result;

use super::scene::Scene;

/// Where `lockwatch` gets its facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The BPF iterators.
    Bpf,
    /// /proc.
    Procfs,
}

impl Source {
    /// As `--source` takes it and the report shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Procfs => "procfs",
        }
    }
}

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    pub(super) name: &'static str,
    pub(super) body: fn(&mut Scene) -> Result<()>,
    pub(super) needs: &'static [&'static str],
    pub(super) procfs_needs: &'static [&'static str],
    pub(super) each_source: bool,
    pub(super) binary: bool,
    pub(super) limit: Duration,
}

impl Test {
    /// A test that runs once, needs nothing but the binary, and takes half a minute at most.
    pub const fn new(name: &'static str, body: fn(&mut Scene) -> Result<()>) -> Self {
        Self {
            name,
            body,
            needs: &[],
            procfs_needs: &[],
            each_source: false,
            binary: true,
            limit: Duration::from_secs(30),
        }
    }

    /// Runs it once for each source, as root.
    #[must_use]
    pub const fn on_each_source(mut self) -> Self {
        self.each_source = true;
        self
    }

    /// Names the capabilities without which it is skipped; see [`super::capability`].
    #[must_use]
    pub const fn needs(mut self, needs: &'static [&'static str]) -> Self {
        self.needs = needs;
        self
    }

    /// Names what its run on /proc needs besides.
    #[must_use]
    pub const fn procfs_needs(mut self, needs: &'static [&'static str]) -> Self {
        self.procfs_needs = needs;
        self
    }

    /// Says that it does not run `lockwatch`: a test of the rig itself.
    #[must_use]
    pub const fn without_lockwatch(mut self) -> Self {
        self.binary = false;
        self
    }

    /// Gives it another time limit.
    #[must_use]
    pub const fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// A test with the source that it runs on this time.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) theme: &'static str,
    pub(super) test: Test,
    pub(super) source: Option<Source>,
}

impl Case {
    /// The name that reports and filters use: `theme::test[source]`.
    pub(super) fn name(&self) -> String {
        let source = self.source.map_or_else(String::new, |source| format!("[{}]", source.name()));
        format!("{}::{}{source}", self.theme, self.test.name)
    }

    /// Everything that it needs.
    pub(super) fn needs(&self) -> Vec<&'static str> {
        let (of_source, more): (&[_], &[_]) = match self.source {
            None => (&[], &[]),
            Some(Source::Bpf) => (&["root", "iter/task_file"], &[]),
            Some(Source::Procfs) => (&["root", "procfs"], self.test.procfs_needs),
        };
        of_source.iter().chain(self.test.needs).chain(more).copied().collect()
    }
}

/// All cases of all themes, in order, for the sources that were chosen.
pub(super) fn cases(themes: &[(&'static str, &[Test])], sources: &[Source]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(theme, tests) in themes {
        for &test in tests {
            if test.each_source {
                let source = |&source| Case { theme, test, source: Some(source) };
                cases.extend(sources.iter().map(source));
            } else {
                cases.push(Case { theme, test, source: None });
            }
        }
    }
    cases
}
