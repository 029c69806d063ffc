//! What each key of the configuration is: one table for its limits, the manual page, the page of
//! docs/ and the file that a package installs.
//!
//! Refuses to drift: tests hold it against what the parser takes and against the defaults.

mod pages;

use std::time::Duration;

pub use pages::{file, man_page, markdown};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Above all sections.
    Top,
    /// `[reclaim]`
    Reclaim,
    /// `[[watch]]`, any number of times.
    Watch,
    /// `drain`, `canary` and `resume` of a watch.
    Hook,
}

impl Section {
    /// All, in the order in which they are described.
    pub const ALL: [Self; 4] = [Self::Top, Self::Reclaim, Self::Watch, Self::Hook];
}

/// A key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it stands.
    pub section: Section,
    /// Its name.
    pub name: &'static str,
    /// What its value is.
    pub kind: &'static str,
    /// Its default, as TOML; `None` where it must be given or is absent by default.
    pub default: Option<&'static str>,
    /// Whether it must be given.
    pub required: bool,
    /// The least and the most that it may be.
    pub range: Option<(Duration, Duration)>,
    /// What it does.
    pub text: &'static str,
}

const fn key(section: Section, name: &'static str, kind: &'static str) -> Key {
    Key { section, name, kind, default: None, required: false, range: None, text: "" }
}

impl Key {
    const fn default(mut self, toml: &'static str) -> Self {
        self.default = Some(toml);
        self
    }

    const fn required(mut self) -> Self {
        self.required = true;
        self
    }

    const fn within(mut self, least: Duration, most: Duration) -> Self {
        self.range = Some((least, most));
        self
    }

    const fn text(mut self, text: &'static str) -> Self {
        self.text = text;
        self
    }
}

/// Every key, in the order in which they are described.
pub const KEYS: &[Key] = &[
    key(Section::Top, "gc_interval", "span of time")
        .default("\"2s\"")
        .within(Duration::from_millis(100), Duration::from_secs(3600))
        .text(
            "Between two full reconciliations with the kernel's tables. Orphans are found at once, \
             from the kernel's own records; this is for what those missed.",
        ),
    key(Section::Top, "grace", "span of time")
        .default("\"250ms\"")
        .within(Duration::from_millis(10), Duration::from_secs(60))
        .text(
            "From an owner's death to calling its lock orphaned. The kernel releases a dying \
             process's locks after it has said that the process exits, so this must be longer than \
             an exit takes.",
        ),
    key(Section::Top, "handoff_window", "span of time")
        .default("\"5s\"")
        .within(Duration::from_millis(10), Duration::from_secs(600))
        .text(
            "From an owner's crash to another's acquisition of the same lock, within which it is \
             told as a crash hand-off.",
        ),
    key(Section::Top, "long_wait", "span of time")
        .default("\"30s\"")
        .within(Duration::from_millis(10), Duration::from_secs(86_400))
        .text("From when on a wait for a lock is told as a long one."),
    key(Section::Top, "mount", "absolute path").default("\"/run/lockwatch\"").text(
        "Where the tree is mounted. The daemon's socket is beside it, with .sock at its end.",
    ),
    key(Section::Top, "tree", "\"required\", \"optional\" or \"off\"").default("\"optional\"").text(
        "Whether there must be a tree: without one that is required the daemon does not start; one \
         that is optional is told of and done without where it cannot be mounted.",
    ),
    key(Section::Top, "tree_allow_other", "boolean").default("true").text(
        "Whether others than root may come near the tree at all. What they may read there is \
         decided file by file.",
    ),
    key(Section::Top, "metrics_listen", "address:port, unix:PATH or off")
        .default("\"127.0.0.1:9965\"")
        .text(
            "Where GET /metrics, /healthz and /readyz are answered. Whoever can connect can read: \
             the names of the watches and counts, no paths and no pids. A unix socket is readable \
             and writable by its owner and group (0660); its folder must exist.",
        ),
    key(Section::Top, "state_dir", "absolute path").default("\"/sys/fs/bpf/lockwatch\"").text(
        "Where the kernel side is pinned: a folder of a BPF file system. It goes on recording \
         there while no daemon runs.",
    ),
    key(Section::Reclaim, "mode", "\"report\" or \"reclaim\"")
        .default("\"report\"")
        .text("Whether orphaned locks are only told, or released, too, without anybody's asking."),
    key(Section::Reclaim, "on_boot", "boolean")
        .default("true")
        .text("Sweep once before saying ready."),
    key(Section::Reclaim, "only_watched", "boolean")
        .default("true")
        .text("Leave orphans alone on files that no watch with reclaim = true names. With false only those are left alone that a watch names without reclaim = true."),
    key(Section::Reclaim, "per_minute", "number, at least 1").default("6").text(
        "After so many reclaims in a minute orphans are only told, until reclaim_enabled is set in \
         the tree again, or the daemon is started anew.",
    ),
    key(Section::Reclaim, "retry", "span of time")
        .default("\"30s\"")
        .within(Duration::from_millis(100), Duration::from_secs(3600))
        .text(
            "From a reclaim that failed to the next attempt on the same file; twice as long after \
             each further failure, at most an hour.",
        ),
    key(Section::Reclaim, "audit", "absolute path")
        .default("\"/var/log/lockwatch/reclaim.jsonl\"")
        .text("Where every reclaim that is carried out is recorded: a JSON line as it begins, for each step, and as it ends, appended."),
    key(Section::Watch, "name", "letters, digits, -, _ and ., at most 64")
        .required()
        .text("Its name in the tree, in events and in metrics. Each name is given once."),
    key(Section::Watch, "path", "absolute path").required().text("The file. It need not exist."),
    key(Section::Watch, "reclaim", "boolean")
        .default("false")
        .text("Whether orphaned locks on it may be released."),
    key(Section::Watch, "reclaim_likely", "boolean").default("false").text(
        "Whether the daemon may release by itself also what is only likely orphaned: nobody watched \
         it being taken, as before the daemon's first start, or it is in flight in a unix socket, \
         where somebody may be about to receive it. Such a release may make two writers. Needs \
         reclaim = true.",
    ),
    key(Section::Watch, "drain", "hook")
        .text("Run before a lock is released; where it fails nothing is released."),
    key(Section::Watch, "canary", "hook")
        .text("Run after a lock was released; where it fails the reclaim has failed."),
    key(Section::Watch, "resume", "hook").text("Run last, however the rest ended."),
    key(Section::Hook, "run", "list of strings").required().text(
        "The absolute path of a program, and its arguments. It is run without a shell, with the \
         finding as JSON on its standard input and LOCKWATCH_* in an otherwise empty environment.",
    ),
    key(Section::Hook, "timeout", "span of time")
        .default("\"30s\"")
        .within(Duration::from_millis(100), Duration::from_secs(3600))
        .text("How long it may take."),
];

/// The least and the most of a span of time.
pub(super) fn range(section: Section, name: &str) -> (Duration, Duration) {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
        .and_then(|key| key.range)
        // A test asks for the range of every span.
        .unwrap_or((MS, SECOND))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    /// A text with one key that nobody knows, in a section.
    fn with_unknown(section: Section) -> &'static str {
        match section {
            Section::Top => "unknown = 1",
            Section::Reclaim => "[reclaim]\nunknown = 1",
            Section::Watch => "[[watch]]\nname = \"a\"\npath = \"/a\"\nunknown = 1",
            Section::Hook => {
                "[[watch]]\nname = \"a\"\npath = \"/a\"\ndrain = { run = [\"/a\"], unknown = 1 }"
            }
        }
    }

    #[test]
    fn the_table_has_every_key_that_the_parser_takes_and_no_other() {
        for section in Section::ALL {
            let error = Config::parse(Path::new("x"), with_unknown(section)).unwrap_err();
            let error = error.to_string();
            // serde lists what it would have taken, each in backquotes, the unknown one first.
            let mut quoted = error.split('`').skip(1).step_by(2);
            assert_eq!(quoted.next(), Some("unknown"), "{error}");
            let taken: BTreeSet<&str> = quoted
                .filter(|name| !["watch", "reclaim"].contains(name) || section == Section::Watch)
                .collect();
            let table: BTreeSet<&str> =
                KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect();
            assert_eq!(table, taken, "{section:?}: {error}");
        }
    }

    #[test]
    fn the_defaults_of_the_table_are_those_of_the_code() {
        let text: String = file()
            .lines()
            .map(|line| line.strip_prefix("#!").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = Config::parse(Path::new("x"), &text).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
        for key in
            KEYS.iter().filter(|key| key.section == Section::Top || key.section == Section::Reclaim)
        {
            assert!(
                key.default
                    .is_some_and(|default| text.contains(&format!("{} = {default}", key.name))),
                "{}",
                key.name
            );
        }
        let watch = "[[watch]]\nname = \"a\"\npath = \"/a\"\ndrain = { run = [\"/a\"] }";
        let config = Config::parse(Path::new("x"), watch).unwrap();
        let default = |section, name| {
            let found = KEYS.iter().find(|key| key.section == section && key.name == name);
            found.unwrap().default.unwrap().to_owned()
        };
        assert_eq!(config.watch[0].reclaim.to_string(), default(Section::Watch, "reclaim"));
        let likely = config.watch[0].reclaim_likely.to_string();
        assert_eq!(likely, default(Section::Watch, "reclaim_likely"));
        let timeout = config.watch[0].drain.as_ref().unwrap().timeout;
        let timeout = format!("\"{}\"", humantime::format_duration(timeout));
        assert_eq!(timeout, default(Section::Hook, "timeout"));
    }

    #[test]
    fn spans_have_ranges_and_required_keys_are_required() {
        for key in KEYS {
            assert_eq!(key.kind == "span of time", key.range.is_some(), "{}", key.name);
            assert!(!(key.required && key.default.is_some()), "{}", key.name);
        }
        for text in ["[[watch]]\nname = \"a\"", "[[watch]]\npath = \"/a\""] {
            assert!(Config::parse(Path::new("x"), text).is_err(), "{text}");
        }
    }

    /// Run with `LOCKWATCH_WRITE_DOCS=1` to write the files anew.
    #[test]
    fn what_the_repository_says_of_the_configuration_is_what_the_code_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (path, text) in
            [("docs/configuration.md", markdown()), ("deploy/lockwatch.toml", file())]
        {
            let file = root.join(path);
            if std::env::var_os("LOCKWATCH_WRITE_DOCS").is_some() {
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(&file, &text).unwrap();
            }
            let found = fs::read_to_string(&file).unwrap_or_default();
            assert!(
                found == text,
                "{path} is not what the code says: LOCKWATCH_WRITE_DOCS=1 cargo test reference"
            );
        }
    }

    #[test]
    fn the_manual_page_names_every_key() {
        let page = man_page();
        assert!(page.contains(".TH lockwatch.toml 5"), "{page}");
        for key in KEYS {
            assert!(page.contains(&format!("\\fB{}\\fR", key.name)), "{}:\n{page}", key.name);
        }
    }
}
