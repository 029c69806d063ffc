//! The configuration of the daemon: what `/etc/lockwatch/lockwatch.toml` may say.
//!
//! Refuses what it does not know: an unknown key, a value out of range or a name that is given
//! twice is an error that names its line.

mod duration;
mod listen;
pub mod reference;
pub mod trust;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

pub use listen::Listen;
use reference::Section;

/// Reclaims in a minute where nothing else is said.
const PER_MINUTE: NonZeroU32 = NonZeroU32::new(6).unwrap();

/// Where the configuration is unless another file is named. It may be absent.
pub const DEFAULT_PATH: &str = "/etc/lockwatch/lockwatch.toml";

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {error}", path = .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The text says what it must not.
    #[error("{path}: line {line}: {what}", path = .path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line of it, from 1 on.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody but root could change what root would do.
    #[error(transparent)]
    Trust(#[from] trust::TrustError),
}

/// The configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Between two full reconciliations with the kernel: 100 ms to 1 h.
    #[serde(with = "duration")]
    pub gc_interval: Duration,
    /// From an owner's death to calling its lock orphaned: 10 ms to 1 min.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// From one owner's crash to another's acquisition, for a crash hand-off: 10 ms to 10 min.
    #[serde(with = "duration")]
    pub handoff_window: Duration,
    /// From when on a wait is a long one: 10 ms to 1 day.
    #[serde(with = "duration")]
    pub long_wait: Duration,
    /// Where the tree is mounted. The daemon's socket is beside it, with `.sock` at its end.
    pub mount: PathBuf,
    /// Whether there must be a tree.
    pub tree: TreeWanted,
    /// Whether others than root may come near the tree at all (FUSE's `allow_other`).
    pub tree_allow_other: bool,
    /// Where the metrics are served.
    pub metrics_listen: Listen,
    /// Where the kernel side is pinned: a folder of a BPF file system.
    pub state_dir: PathBuf,
    /// When to reclaim.
    pub reclaim: Reclaim,
    /// Which files to watch.
    pub watch: Vec<Watch>,
}

/// Whether there must be a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TreeWanted {
    /// Without it the daemon does not start.
    Required,
    /// Without it the daemon says so, and goes on.
    Optional,
    /// It is not mounted.
    Off,
}

/// What to do about orphans.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reclaim {
    /// Report them, or reclaim them.
    pub mode: Mode,
    /// Sweep before saying ready.
    pub on_boot: bool,
    /// Leave those alone that no watch names.
    pub only_watched: bool,
    /// Reclaims in a minute after which orphans are told only.
    pub per_minute: NonZeroU32,
    /// From a failed reclaim to the next attempt on the same file: 100 ms to 1 h.
    #[serde(with = "duration")]
    pub retry: Duration,
    /// Where every reclaim that is carried out is recorded.
    pub audit: PathBuf,
}

/// Whether orphans are only told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Tell them.
    Report,
    /// Release them, too.
    Reclaim,
}

/// A file that is watched.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Watch {
    /// Its name in the tree, in events and in metrics.
    pub name: Spanned<String>,
    /// Its path.
    pub path: Spanned<PathBuf>,
    /// Whether its orphaned locks may be reclaimed.
    #[serde(default)]
    pub reclaim: bool,
    /// Whether also those that are only likely orphaned.
    #[serde(default)]
    pub reclaim_likely: bool,
    /// Must succeed before a lock is released.
    pub drain: Option<Hook>,
    /// Must succeed after.
    pub canary: Option<Hook>,
    /// Comes last in any case.
    pub resume: Option<Hook>,
}

/// A program that is run around a reclaim, without a shell.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// The program and its arguments.
    pub run: Spanned<Vec<String>>,
    /// How long it may take: 100 ms to 1 h.
    #[serde(with = "duration", default = "Hook::default_timeout")]
    pub timeout: Duration,
}

impl Hook {
    fn default_timeout() -> Duration {
        Duration::from_secs(30)
    }

    /// The program, which [`Config`] has found to be an absolute path.
    pub fn program(&self) -> &Path {
        Path::new(self.run.get_ref().first().map_or("", String::as_str))
    }
}

impl Watch {
    /// Its hooks that there are, with their names.
    pub fn hooks(&self) -> impl Iterator<Item = (&'static str, &Hook)> {
        [("drain", &self.drain), ("canary", &self.canary), ("resume", &self.resume)]
            .into_iter()
            .filter_map(|(name, hook)| Some((name, hook.as_ref()?)))
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gc_interval: Duration::from_secs(2),
            grace: Duration::from_millis(250),
            handoff_window: Duration::from_secs(5),
            long_wait: Duration::from_secs(30),
            mount: PathBuf::from("/run/lockwatch"),
            tree: TreeWanted::Optional,
            tree_allow_other: true,
            metrics_listen: Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9965))),
            state_dir: PathBuf::from("/sys/fs/bpf/lockwatch"),
            reclaim: Reclaim::default(),
            watch: Vec::new(),
        }
    }
}

impl Default for Reclaim {
    fn default() -> Self {
        Self {
            mode: Mode::Report,
            on_boot: true,
            only_watched: true,
            per_minute: PER_MINUTE,
            retry: Duration::from_secs(30),
            audit: PathBuf::from("/var/log/lockwatch/reclaim.jsonl"),
        }
    }
}

impl Config {
    /// The configuration of a file that is named, or of the default one, which may be absent.
    ///
    /// # Errors
    /// Where a file cannot be read or says what it must not.
    pub fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(ConfigError::Read { path: path.to_owned(), error }),
        }
    }

    /// Like [`Self::read`], and finds that nobody but root could have written it or what it has
    /// run.
    ///
    /// # Errors
    /// As for [`Self::read`], and where somebody else could.
    pub fn read_trusted(named: Option<&Path>) -> Result<Self, ConfigError> {
        let config = Self::read(named)?;
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        if named.is_some() || path.exists() {
            trust::check("the configuration", path)?;
        }
        for watch in &config.watch {
            for (name, hook) in watch.hooks() {
                trust::check(&format!("{name} of {}", watch.name.get_ref()), hook.program())?;
            }
        }
        Ok(config)
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        let mut path = self.mount.clone().into_os_string();
        path.push(".sock");
        path.into()
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |at: usize, what: String| ConfigError::Line {
            path: path.to_owned(),
            line: text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count() + 1,
            what,
        };
        let config: Self = toml::from_str(text).map_err(|error| {
            let what = error.message().trim().replace('\n', " ");
            wrong(error.span().map_or(0, |span| span.start), what)
        })?;
        config.validate().map_err(|(key, what)| {
            let at = match key {
                Key::At(at) => at,
                Key::Named(key) => line_of(text, key),
            };
            wrong(at, what)
        })?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), (Key, String)> {
        for (key, value) in [
            ("gc_interval", self.gc_interval),
            ("grace", self.grace),
            ("handoff_window", self.handoff_window),
            ("long_wait", self.long_wait),
        ] {
            duration::within(key, value, reference::range(Section::Top, key))
                .map_err(|what| (Key::Named(key), what))?;
        }
        duration::within("retry", self.reclaim.retry, reference::range(Section::Reclaim, "retry"))
            .map_err(|what| (Key::Named("retry"), what))?;
        for (key, path) in
            [("mount", &self.mount), ("state_dir", &self.state_dir), ("audit", &self.reclaim.audit)]
        {
            if !path.is_absolute() || path.parent().is_none() {
                let what = format!("{key}: {}: not an absolute path", path.display());
                return Err((Key::Named(key), what));
            }
        }
        let mut names = BTreeSet::new();
        for watch in &self.watch {
            let name = watch.name.get_ref();
            let at = Key::At(watch.name.span().start);
            if !is_name(name) {
                return Err((
                    at,
                    format!("name: {name:?}: letters, digits, `-`, `_` and `.` only"),
                ));
            }
            if !names.insert(name) {
                return Err((at, format!("name: {name:?} is there twice")));
            }
            if !watch.path.get_ref().is_absolute() {
                let at = Key::At(watch.path.span().start);
                let path = watch.path.get_ref().display();
                return Err((at, format!("path: {path}: not an absolute path")));
            }
            if watch.reclaim_likely && !watch.reclaim {
                let what = format!("{name}: reclaim_likely is for watches with reclaim = true");
                return Err((at, what));
            }
            for (kind, hook) in watch.hooks() {
                let at = hook.run.span().start;
                if !hook.program().is_absolute() {
                    let what = format!("{kind}: run begins with the absolute path of a program");
                    return Err((Key::At(at), what));
                }
                duration::within(
                    "timeout",
                    hook.timeout,
                    reference::range(Section::Hook, "timeout"),
                )
                .map_err(|what| (Key::At(at), format!("{kind}: {what}")))?;
            }
        }
        Ok(())
    }
}

/// Where an error is: a byte of the text, or a key of its top level.
enum Key {
    At(usize),
    Named(&'static str),
}

/// The first byte of the line that sets a key of the top level.
fn line_of(text: &str, key: &str) -> usize {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let sets = line.trim_start().strip_prefix(key);
        if sets.is_some_and(|rest| rest.trim_start().starts_with('=')) {
            return at;
        }
        at += line.len();
    }
    0
}

/// A watch's name becomes a folder of the tree and the value of a label.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("lockwatch.toml"), text).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(text: &str, words: &str) {
        let error = parse(text).expect_err("it was taken");
        assert!(error.contains(words), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    const WHOLE: &str = r#"
gc_interval = "2s"
grace = "250ms"
mount = "/run/lockwatch"
metrics_listen = "127.0.0.1:9965"
state_dir = "/sys/fs/bpf/lockwatch"

[reclaim]
mode = "reclaim"
on_boot = true
only_watched = true

[[watch]]
name = "aim_lock_config"
path = "/srv/aim/aim_lock_config.conf"
reclaim = true
drain  = { run = ["/usr/local/bin/drain", "fleet"], timeout = "30s" }
canary = { run = ["/usr/local/bin/canary"], timeout = "30s" }
resume = { run = ["/usr/local/bin/resume"] }
"#;

    #[test]
    fn the_contracts_example_is_understood() {
        let config = parse(WHOLE).unwrap();
        assert_eq!(config.reclaim.mode, Mode::Reclaim);
        assert_eq!(config.socket(), Path::new("/run/lockwatch.sock"));
        let watch = &config.watch[0];
        assert_eq!(watch.name.get_ref(), "aim_lock_config");
        let names: Vec<_> = watch.hooks().map(|(name, hook)| (name, hook.timeout)).collect();
        assert_eq!(names.len(), 3);
        assert!(names.iter().all(|(_, timeout)| *timeout == Duration::from_secs(30)));
        assert_eq!(watch.drain.as_ref().unwrap().program(), Path::new("/usr/local/bin/drain"));
    }

    #[test]
    fn an_empty_text_is_the_default() {
        let config = parse("").unwrap();
        assert_eq!(config.gc_interval, Duration::from_secs(2));
        assert_eq!(config.reclaim, Reclaim::default());
        assert_eq!(config.metrics_listen.to_string(), "127.0.0.1:9965");
    }

    #[test]
    fn what_is_not_known_is_refused_with_its_line() {
        refused("\n\ngrase = \"1s\"\n", "lockwatch.toml: line 3: unknown field `grase`");
        refused("[reclaim]\nmood = 1\n", "line 2: unknown field `mood`");
        refused("[reclaim]\nmode = \"perhaps\"\n", "line 2: unknown variant `perhaps`");
        refused("[[watch]]\nname = \"a\"\npath = \"/a\"\ndrian = 1\n", "line 4: unknown field");
        refused("a = = b", "line 1: ");
    }

    #[test]
    fn values_out_of_range_are_refused_with_their_line() {
        refused("\ngrace = \"1ms\"\n", "line 2: grace: 1ms: between 10ms and 1m");
        refused("gc_interval = \"0s\"", "line 1: gc_interval: 0s: between 100ms and 1h");
        refused("grace = \"soon\"", "line 1: ");
        refused("\n\nmount = \"run\"", "line 3: mount: run: not an absolute path");
        refused("mount = \"/\"", "not an absolute path");
        refused("[reclaim]\naudit = \"log\"", "line 2: audit: log: not an absolute path");
        refused("metrics_listen = \"everywhere\"", "line 1: metrics_listen: \"everywhere\": ");
        refused("\nmetrics_listen = \"unix:m.sock\"", "line 2: metrics_listen: ");
    }

    #[test]
    fn watches_have_names_paths_and_programs_that_can_be_used() {
        let watch = |name: &str, more: &str| {
            format!("[[watch]]\nname = \"{name}\"\npath = \"/a\"\n{more}\n")
        };
        refused(&watch("../etc", ""), "line 2: name: \"../etc\"");
        refused(&watch("", ""), "line 2: name: \"\"");
        refused(&(watch("a", "") + &watch("a", "")), "line 6: name: \"a\" is there twice");
        refused("[[watch]]\nname = \"a\"\npath = \"a\"\n", "line 3: path: a: not an absolute path");
        refused(&watch("a", "drain = { run = [] }"), "line 4: drain: run begins with");
        refused(&watch("a", "reclaim_likely = true"), "line 2: a: reclaim_likely is for watches");
        refused(&watch("a", "drain = { run = [\"sh\"] }"), "line 4: drain: run begins with");
        refused(&watch("a", "drain = { run = [\"/a\"], timeout = \"2h\" }"), "line 4: drain: ");
    }

    #[test]
    fn an_absent_file_is_fine_only_where_nobody_named_it() {
        let folder = tempfile::tempdir().unwrap();
        let absent = folder.path().join("absent.toml");
        let error = Config::read(Some(&absent)).unwrap_err();
        assert!(error.to_string().contains("absent.toml: No such file"), "{error}");
    }
}
