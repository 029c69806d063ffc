//! `lockwatch check FILE`: is FILE free, held or HOT? One line.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::engine::classify::State;
use crate::engine::identity::RecordedPid;
use crate::engine::view::{LockView, View};
use crate::failure::{EXIT_CLEAR, EXIT_FINDINGS, EXIT_HELD};
use crate::look::{Choice, look};
use crate::sink::clock::Clock;
use crate::sink::escape::Escaped;
use crate::sink::labels;
use crate::target::Targets;

/// Runs the verb.
///
/// # Errors
/// Where the file is not there, or the source cannot be read.
pub fn run(file: &OsString, source: Choice) -> anyhow::Result<u8> {
    let targets = Targets::file(file)?;
    let seen = look(source, &targets.handles)?;
    let locks: Vec<&LockView> = targets
        .select(&seen.view, &seen.files)?
        .into_iter()
        .map(|place| &seen.view.locks[place as usize])
        .collect();
    let name = Escaped(Path::new(file).file_name().unwrap_or(OsStr::new(file)).as_bytes());
    let (line, code) = answer(&seen.view, seen.clock, &name, &locks);
    writeln!(io::stdout(), "{line}")?;
    for limit in seen.view.gaps() {
        crate::failure::tell(format_args!("not complete: {limit}"));
    }
    Ok(code)
}

fn answer(
    view: &View,
    clock: Clock,
    name: &impl fmt::Display,
    locks: &[&LockView],
) -> (String, u8) {
    if let Some(hot) = locks.iter().find(|lock| labels::is_finding(lock)) {
        let reason = hot.verdict.reason.map_or("", |reason| reason.name());
        let acquirer = labels::acquirer(view, hot);
        return (format!("ERROR: {name}: HOT ({reason}; acquirer {acquirer})"), EXIT_FINDINGS);
    }
    let Some(first) = locks.first() else {
        // That nothing was seen is no answer where something may have been hidden.
        return if view.has_every_lock() {
            (format!("{name}: free"), EXIT_CLEAR)
        } else {
            (format!("{name}: free, as far as could be seen"), EXIT_CLEAR)
        };
    };
    let more = match locks.len() - 1 {
        0 => String::new(),
        1 => " and one other lock".into(),
        many => format!(" and {many} other locks"),
    };
    let since = match &view.lock(first).taken {
        Some(taken) => clock.moment(taken.at).to_string(),
        None => "an unknown time".into(),
    };
    let line = match first.verdict.state {
        State::Unknown => {
            let why = first.verdict.evidence.first().map(|fact| format!(": {fact}"));
            format!(
                "{name}: held by {}{more} since {since} (unknown{})",
                holder(view, first),
                why.unwrap_or_default()
            )
        }
        _ => format!("{name}: held by {}{more} since {since}", holder(view, first)),
    };
    (line, EXIT_HELD)
}

/// Who holds a lock by right: its acquirer while it lives, else who goes on with it.
fn holder(view: &View, lock: &LockView) -> String {
    match view.lock(lock).acquirer {
        RecordedPid::Local(pid) if lock.verdict.state == State::Held => labels::process(view, pid),
        RecordedPid::Remote(_) => "another machine".into(),
        _ => match view.holdings(lock).find_map(|holding| holding.pid) {
            Some(pid) => labels::process(view, pid),
            None => format!("nobody that was found (acquirer {})", labels::acquirer(view, lock)),
        },
    }
}
