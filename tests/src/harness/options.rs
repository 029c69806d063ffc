//! The runner's command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::table::Source;

/// What the runner prints when it is asked how it is used.
pub(super) const USAGE: &str = "\
usage: live [FILTER…] [--exact] [--list] [--source both|bpf|procfs] [--jobs N]
            [--json FILE] [--patience N] [--require NEED,…] [--without THEME,…] [--aloud]

  FILTER      tests whose names contain it, as in `waits::` or `[bpf]`
  --exact     tests whose names are it
  --list      names them, and runs nothing
  --source    runs the tests that are about a source for this one only
  --jobs      how many at a time (1)
  --json      writes one JSON object a test, and before them one for each missing capability
  --patience  multiplies every time limit
  --require   fails where one of these is missing, where tests would be skipped
  --without   leaves the tests of these themes out
  --aloud     shows the story that a test tells while it plays";

/// The options.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) filters: Vec<String>,
    pub(super) exact: bool,
    pub(super) list: bool,
    pub(super) help: bool,
    pub(super) sources: Vec<Source>,
    pub(super) jobs: usize,
    pub(super) json: Option<PathBuf>,
    pub(super) patience: Option<u32>,
    pub(super) require: Vec<String>,
    pub(super) without: Vec<String>,
    pub(super) aloud: bool,
    /// Plays one test in this very process, in that folder: what the runner starts itself with.
    pub(super) play: Option<PathBuf>,
}

impl Options {
    pub(super) fn read(args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            filters: Vec::new(),
            exact: false,
            list: false,
            help: false,
            sources: vec![Source::Bpf, Source::Procfs],
            jobs: 1,
            json: None,
            patience: None,
            require: Vec::new(),
            without: Vec::new(),
            aloud: false,
            play: None,
        };
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg}: needs a value"));
            match arg.as_str() {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--aloud" => options.aloud = true,
                "--help" | "-h" => options.help = true,
                "--source" => options.sources = sources(&value()?)?,
                "--jobs" => options.jobs = number(&value()?).context("--jobs")?,
                "--json" => options.json = Some(value()?.into()),
                "--patience" => {
                    let factor = number(&value()?).context("--patience")?;
                    options.patience = Some(u32::try_from(factor).context("--patience")?);
                }
                "--require" => {
                    options.require.extend(value()?.split(',').map(ToOwned::to_owned));
                }
                "--without" => {
                    options.without.extend(value()?.split(',').map(ToOwned::to_owned));
                }
                "--play" => options.play = Some(value()?.into()),
                // `cargo test -- --nocapture` reaches every test program.
                "--nocapture" => {}
                _ if arg.starts_with('-') => bail!("{arg}: no such option"),
                _ => options.filters.push(arg),
            }
        }
        Ok(options)
    }

    /// True for a test that is asked for.
    pub(super) fn wants(&self, name: &str) -> bool {
        let fits = |filter: &String| {
            if self.exact { name == filter } else { name.contains(filter.as_str()) }
        };
        let theme = name.split("::").next().unwrap_or(name);
        let is_left_out = self.without.iter().any(|left_out| left_out == theme);
        !is_left_out && (self.filters.is_empty() || self.filters.iter().any(fits))
    }
}

fn sources(word: &str) -> Result<Vec<Source>> {
    Ok(match word {
        "both" => vec![Source::Bpf, Source::Procfs],
        "bpf" => vec![Source::Bpf],
        "procfs" => vec![Source::Procfs],
        _ => bail!("--source: {word:?} is neither both nor bpf nor procfs"),
    })
}

fn number(word: &str) -> Result<usize> {
    match word.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("{word:?} is no number above 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options> {
        Options::read(line.split_ascii_whitespace().map(ToOwned::to_owned))
    }

    #[test]
    fn without_filters_every_test_is_wanted() {
        let options = read("").unwrap();
        assert!(options.wants("waits::any[bpf]"));
        assert_eq!(options.sources, [Source::Bpf, Source::Procfs]);
        assert_eq!(options.jobs, 1);
    }

    #[test]
    fn a_filter_is_a_part_of_the_name_unless_it_is_exact() {
        let options = read("waits:: --source procfs").unwrap();
        assert!(options.wants("waits::any[procfs]"));
        assert!(!options.wants("names::any[procfs]"));
        assert_eq!(options.sources, [Source::Procfs]);
        assert!(!read("waits:: --exact").unwrap().wants("waits::any[procfs]"));
    }

    #[test]
    fn a_theme_can_be_left_out() {
        let options = read("--without daemon,tree").unwrap();
        assert!(!options.wants("daemon::any") && !options.wants("tree::any"));
        assert!(options.wants("tree_shell::any") && options.wants("waits::daemon"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in ["--jobs 0", "--jobs many", "--source neither", "--jobs", "--nonsense"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
