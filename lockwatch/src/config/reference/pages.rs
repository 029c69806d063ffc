//! The table as pages for people: Markdown, a manual page, a commented file.

use std::fmt::Write as _;

use roff::{Roff, bold, italic, roman};

use super::{KEYS, Key, Section};

const PURPOSE: &str = "the configuration of the lockwatch daemon";

const GENERAL: &[&str] = &[
    "The daemon reads /etc/lockwatch/lockwatch.toml, or the file that --config names. Where the \
     default file is absent every key has its default; an absent named file is an error. Unknown \
     keys, values out of range and names that are given twice are errors that name their line. \
     lockwatch daemon --check-config validates and exits.",
    "The file is TOML. A span of time is a string such as 250ms, 2s or 1h 30m.",
    "The file, every hook, and every folder on the way to them must belong to root and be writable \
     by root alone, or the daemon refuses them.",
];

/// What is in the tables before their keys.
fn introduction(section: Section) -> (&'static str, &'static str) {
    match section {
        Section::Top => ("Top level", "These stand before any section."),
        Section::Reclaim => ("[reclaim]", "What is done about orphaned locks."),
        Section::Watch => (
            "[[watch]]",
            "A file that matters, with what may be done about it. The section is repeated for \
             each file.",
        ),
        Section::Hook => (
            "Hooks",
            "drain, canary and resume of a watch are tables of these keys, as in \
             drain = { run = [\"/usr/local/bin/drain\", \"fleet\"], timeout = \"30s\" }.",
        ),
    }
}

fn of(section: Section) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section == section)
}

/// Its kind, range and default in words.
fn facts(key: &Key) -> String {
    let mut facts = key.kind.to_owned();
    if let Some((least, most)) = key.range {
        let [least, most] = [least, most].map(humantime::format_duration);
        let _ = write!(facts, ", {least} to {most}");
    }
    match key.default {
        Some(default) => {
            let _ = write!(facts, "; default {default}");
        }
        None if key.required => facts.push_str("; must be given"),
        None => facts.push_str("; absent by default"),
    }
    facts
}

/// docs/configuration.md.
pub fn markdown() -> String {
    let mut text = String::from("# Configuration\n\n");
    text.push_str(
        "<!-- Written from the code's own definitions (lockwatch/src/config/reference.rs): do not \
         edit. -->\n",
    );
    for paragraph in GENERAL {
        let _ = write!(text, "\n{paragraph}\n");
    }
    for section in Section::ALL {
        let (title, words) = introduction(section);
        let _ = write!(text, "\n## {title}\n\n{words}\n\n");
        text.push_str("| key | value | default | what it does |\n|---|---|---|---|\n");
        for key in of(section) {
            let mut value = key.kind.to_owned();
            if let Some((least, most)) = key.range {
                let [least, most] = [least, most].map(humantime::format_duration);
                let _ = write!(value, ", {least} to {most}");
            }
            let default = match key.default {
                Some(default) => format!("`{default}`"),
                None if key.required => "must be given".into(),
                None => "none".into(),
            };
            let _ = writeln!(text, "| `{}` | {value} | {default} | {} |", key.name, key.text);
        }
    }
    text
}

/// lockwatch.toml(5).
pub fn man_page() -> String {
    let mut page = Roff::new();
    page.control(
        "TH",
        ["lockwatch.toml", "5", "", concat!("lockwatch ", env!("CARGO_PKG_VERSION"))],
    );
    page.control("SH", ["NAME"]);
    page.text([roman(format!("lockwatch.toml - {PURPOSE}"))]);
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in GENERAL {
        page.control("PP", []);
        page.text([roman(*paragraph)]);
    }
    for section in Section::ALL {
        let (title, words) = introduction(section);
        page.control("SH", [title.to_uppercase().as_str()]);
        page.text([roman(words)]);
        for key in of(section) {
            page.control("TP", []);
            page.text([bold(key.name), roman(" ("), italic(facts(key)), roman(")")]);
            page.text([roman(key.text)]);
        }
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("lockwatch"), roman("(1)")]);
    page.render()
}

/// The file that a package installs: every default, commented out with `#!`, and an example.
pub fn file() -> String {
    let mut text = String::from(
        "# The configuration of `lockwatch daemon`; see lockwatch.toml(5).\n\
         # Lines that begin with #! are the defaults.\n",
    );
    for section in [Section::Top, Section::Reclaim] {
        if section == Section::Reclaim {
            text.push_str("\n#![reclaim]\n");
        }
        for key in of(section) {
            let _ = writeln!(text, "\n# {}", wrapped(key.text));
            let _ = writeln!(text, "#!{} = {}", key.name, key.default.unwrap_or_default());
        }
    }
    text.push_str(
        "\n# A file that matters:\n#\n\
         # [[watch]]\n\
         # name = \"aim_lock_config\"\n\
         # path = \"/srv/aim/aim_lock_config.conf\"\n\
         # reclaim = true\n\
         # drain = { run = [\"/usr/local/bin/drain\", \"fleet\"], timeout = \"30s\" }\n\
         # canary = { run = [\"/usr/local/bin/canary\"], timeout = \"30s\" }\n\
         # resume = { run = [\"/usr/local/bin/resume\"], timeout = \"30s\" }\n",
    );
    text
}

/// Words in lines that begin with `# `, but for the first.
fn wrapped(words: &str) -> String {
    let mut text = String::new();
    let mut width = 2;
    for word in words.split(' ') {
        if width > 2 && width + 1 + word.len() > 80 {
            text.push_str("\n# ");
            width = 2;
        } else if width > 2 {
            text.push(' ');
            width += 1;
        }
        text.push_str(word);
        width += word.len();
    }
    text
}
