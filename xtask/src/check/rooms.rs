//! The rooms of the `lockwatch` crate: the engine is pure, and the edges never talk to each other.
//!
//! Judges by the names that the source writes. What hides behind a re-export it does not see.

use std::path::Path;

use super::Breach;
use super::paths::{self, Named};
use super::tree::Source;

/// What the engine must not name: each would make it give different answers to the same inputs,
/// or act.
const IMPURE: [&[&str]; 11] = [
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "env"],
    &["tokio"],
    &["log"],
    &["rustix"],
    &["procfs"],
];
const PRINTING: [&str; 5] = ["println!", "eprintln!", "print!", "eprint!", "dbg!"];
const UNORDERED: [&str; 2] = ["HashMap", "HashSet"];
/// On the line of an unordered container that is only looked up.
const NOT_ITERATED: &str = "// not iterated";

/// Which rooms of the crate each room may name. A room that is not here may name any.
const ARROWS: [(&str, &[&str]); 4] = [
    ("engine", &["engine"]),
    ("source", &["engine", "source"]),
    ("act", &["engine", "act"]),
    ("sink", &["engine", "sink"]),
];

/// Every breach of these rules in one file.
pub(super) fn check(source: &Source) -> Vec<Breach> {
    let Some(room) = room(&source.path) else { return Vec::new() };
    if !source.is_rust() || source.is_test() {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let tests = tests_from(&lines);
    let mut found = Vec::new();
    for named in paths::named(&source.text) {
        if named.line >= tests {
            break;
        }
        let text = lines.get(named.line - 1).copied().unwrap_or_default();
        let mut reasons = vec![arrow(room, &named)];
        if room == "engine" {
            reasons.push(purity(&named, text));
        }
        found.extend(reasons.into_iter().flatten().map(|what| Breach {
            path: source.path.clone(),
            line: named.line,
            what,
        }));
    }
    found
}

/// The first folder or file below `lockwatch/src`.
fn room(path: &Path) -> Option<&str> {
    let room = path.strip_prefix("lockwatch/src").ok()?.iter().next()?.to_str()?;
    Some(room.strip_suffix(".rs").unwrap_or(room))
}

/// The line from which a file holds nothing but tests. They may use what they like.
fn tests_from(lines: &[&str]) -> usize {
    let is_module = |line: &str| line.starts_with("mod ") || line.starts_with("pub(crate) mod ");
    lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && is_module(pair[1]))
        .map_or(usize::MAX, |at| at + 1)
}

fn arrow(room: &str, named: &Named) -> Option<String> {
    let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == room)?;
    let segments = &named.segments;
    // Only a path from the crate's root, or out of the room through `super`, leaves the room.
    let inside = segments.iter().take_while(|s| *s == "crate" || *s == "super").count();
    let absolute = segments.first().is_some_and(|s| s == "crate" || s == "lockwatch");
    let target = segments.get(inside.max(usize::from(absolute)))?;
    let leaves = if absolute {
        !allowed.contains(&target.as_str()) && !target.ends_with('!')
    } else {
        inside > 0 && ARROWS.iter().any(|(name, _)| name == target && !allowed.contains(name))
    };
    leaves.then(|| {
        format!(
            "{room} must not name {}: it may use {} alone; pass the value in, or move the code",
            segments.join("::"),
            allowed.join(" and ")
        )
    })
}

fn purity(named: &Named, text: &str) -> Option<String> {
    let path = named.segments.join("::");
    let segments: Vec<&str> = named.segments.iter().map(String::as_str).collect();
    let single = segments.len() == 1;
    if single {
        let printing = PRINTING.contains(&segments[0]);
        if printing {
            return Some(format!("the engine must not print ({path}): return the value instead"));
        }
    }
    if segments.iter().any(|segment| UNORDERED.contains(segment)) && !text.contains(NOT_ITERATED) {
        return Some(format!(
            "{path} in the engine: its order differs from run to run; use BTreeMap or BTreeSet, \
             or say `{NOT_ITERATED}` on the line where it is only looked up"
        ));
    }
    let named_crate = |name: &str| segments[0] == name && !single;
    let whole_module =
        matches!(segments[..], ["std"] | ["std", "*" | "time"] | ["std", "time", "*" | "self"])
            && !single;
    let impure = whole_module
        || named_crate("aya")
        || IMPURE.iter().any(|banned| match banned {
            [name] => named_crate(name),
            _ => segments.starts_with(banned),
        });
    impure.then(|| {
        format!(
            "the engine must not name {path}: clocks, files, processes and logging belong to the \
             rooms around it; take the value as an argument"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn fails(path: &str, text: &str, line: usize, says: &str) {
        let found = check(&Source::new(path, text));
        assert!(
            found.iter().any(|breach| breach.line == line && breach.what.contains(says)),
            "{text:?} in {path} gave {found:?}"
        );
    }

    #[track_caller]
    fn passes(path: &str, text: &str) {
        assert_eq!(check(&Source::new(path, text)), []);
    }

    const ENGINE: &str = "lockwatch/src/engine/table.rs";

    #[test]
    fn the_engine_names_no_clock_file_process_thread_or_logger() {
        for path in [
            "std::time::Instant::now()",
            "std::time::SystemTime",
            "std::fs::read(x)",
            "std::net::IpAddr",
            "std::process::id()",
            "std::thread::spawn(x)",
            "std::env::var(x)",
            "tokio::spawn(x)",
            "log::warn!(x)",
            "rustix::fs::open(x)",
            "procfs::process::all()",
            "aya::Ebpf",
            "std::time::*",
        ] {
            fails(ENGINE, &format!("\nuse x;\n{path}"), 3, "must not name");
        }
        fails(ENGINE, "use std::{\n  cmp,\n  time::{Duration, Instant},\n};", 3, "Instant");
        passes(ENGINE, "use std::time::Duration;\n// std::fs would be wrong\nlet log = 1; log");
        passes("lockwatch/src/source/proc.rs", "use std::fs;");
    }

    #[test]
    fn the_engine_prints_nothing() {
        fails(ENGINE, "println!(x)", 1, "must not print");
        fails(ENGINE, "\neprintln!(x)", 2, "must not print");
    }

    #[test]
    fn the_engine_has_no_unordered_container_but_for_look_ups() {
        fails(ENGINE, "use std::collections::HashMap;", 1, "BTreeMap");
        fails(ENGINE, "\nlet x: HashSet<u8> = y;", 2, "BTreeSet");
        passes(ENGINE, "let x: HashSet<u8> = y; // not iterated");
    }

    #[test]
    fn the_arrows_go_one_way() {
        fails(ENGINE, "use crate::source::proc;", 1, "engine must not name crate::source");
        fails(ENGINE, "use super::super::sink;", 1, "sink");
        fails(ENGINE, "use crate::{engine::x, act};", 1, "crate::act");
        fails(ENGINE, "use crate::cli::Args;", 1, "crate::cli");
        fails("lockwatch/src/source/proc.rs", "use crate::sink::json;", 1, "source must not");
        fails("lockwatch/src/source/mod.rs", "use crate::act::x;", 1, "source must not");
        fails("lockwatch/src/sink/json.rs", "use crate::source::x;", 1, "sink must not");
        fails("lockwatch/src/sink/json.rs", "use crate::act::x;", 1, "sink must not");
        fails("lockwatch/src/act/mod.rs", "use crate::source::x;", 1, "act must not");
        passes(ENGINE, "use crate::engine::identity::X; use super::snapshot;");
        passes("lockwatch/src/sink/json.rs", "use crate::engine::View;");
        passes("lockwatch/src/scan.rs", "use crate::{sink, source};");
    }

    #[test]
    fn tests_may_use_what_they_like() {
        passes(ENGINE, "fn f() {}\n#[cfg(test)]\nmod tests {\n  use std::fs;\n}");
        passes("lockwatch/src/engine/tests.rs", "use std::fs;");
        fails(ENGINE, "use std::fs;\n#[cfg(test)]\nmod tests {}", 1, "std::fs");
    }
}
