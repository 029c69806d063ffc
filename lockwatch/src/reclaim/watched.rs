//! The watch of a file, its hooks, and what they are told.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use rustix::fs::{Mode, OFlags};
use serde_json::json;

use crate::act::hook::{Hook, Told};
use crate::act::procedure::Hooks;
use crate::config::trust::{self, TrustError};
use crate::config::{Config, Watch};
use crate::engine::input::FileId;
use crate::engine::reclaim::{Outcome, Plan};
use crate::look::Look;
use crate::machine;
use crate::sink::json::SCHEMA;
use crate::sink::reclaim as sink;

/// The watches of a configuration, with a handle on each file that is there.
pub(super) struct Watched<'a> {
    watches: Vec<(&'a Watch, Option<usize>)>,
}

impl<'a> Watched<'a> {
    /// Opens their files; `handles` are those that the source identifies.
    pub(super) fn open(config: &'a Config, handles: &mut Vec<OwnedFd>) -> Self {
        let watches = config.watch.iter().map(|watch| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let handle = rustix::fs::open(watch.path.get_ref(), flags, Mode::empty()).ok();
            let place = handle.map(|handle| {
                handles.push(handle);
                handles.len() - 1
            });
            (watch, place)
        });
        Self { watches: watches.collect() }
    }

    /// The watch of the plans' file.
    pub(super) fn of(&self, seen: &Look, plans: &[Plan]) -> Option<&'a Watch> {
        let plan = plans.first()?;
        let is = |(watch, place): &&(&Watch, Option<usize>)| {
            let file = place.and_then(|place| *seen.files.get(place)?);
            match file {
                Some((dev, ino)) => FileId { dev, ino } == plan.lock.file,
                // Its name is gone, or it is another file's: the lock may still be on what it named.
                None => plan.path.as_deref() == Some(watch.path.get_ref().as_os_str().as_bytes()),
            }
        };
        self.watches.iter().find(is).map(|(watch, _)| *watch)
    }
}

/// Opens every hook: one that cannot be run later must be known before anything is done.
pub(super) fn hooks(watch: Option<&Watch>) -> Result<Hooks, TrustError> {
    let mut hooks = Hooks::default();
    let Some(watch) = watch else { return Ok(hooks) };
    for (name, configured) in watch.hooks() {
        let what = format!("{name} of {}", watch.name.get_ref());
        let hook = Hook {
            name,
            program: configured.program().to_owned(),
            args: configured.run.get_ref().iter().skip(1).cloned().collect(),
            file: trust::open_program(&what, configured.program())?,
            timeout: configured.timeout,
        };
        match name {
            "drain" => hooks.drain = Some(hook),
            "canary" => hooks.canary = Some(hook),
            _ => hooks.resume = Some(hook),
        }
    }
    Ok(hooks)
}

/// What a hook is told.
pub(super) fn told(
    hook: &str,
    watch: Option<&Watch>,
    plans: &[Plan],
    outcomes: &[Outcome],
) -> Told {
    let name = watch.map(|watch| watch.name.get_ref().clone());
    let (host, kernel) = machine::names();
    let first = plans.first();
    let finding = json!({
        "schema": SCHEMA,
        "host": host,
        "kernel": kernel,
        "kind": "orphaned_lock",
        "lock": first.map(|plan| plan.lock.id.to_string()),
        "message": first.map(sink::message),
        "hook": hook,
        "watch": name,
        "plans": plans.iter().map(sink::plan).collect::<Vec<_>>(),
        "outcomes": outcomes.iter().map(sink::outcome).collect::<Vec<_>>(),
    });
    let mut environment: Vec<(&'static str, OsString)> = vec![("LOCKWATCH_HOOK", hook.into())];
    if let Some(name) = name {
        environment.push(("LOCKWATCH_WATCH", name.into()));
    }
    if let Some(plan) = first {
        environment.extend([
            ("LOCKWATCH_LOCK", plan.lock.id.to_string().into()),
            ("LOCKWATCH_TYPE", plan.lock.kind.name().into()),
            ("LOCKWATCH_STATE", plan.state.name().into()),
            ("LOCKWATCH_METHOD", plan.method.name().into()),
            ("LOCKWATCH_HOLDER_PID", plan.through.reader_pid.to_string().into()),
        ]);
        if let Some(path) = &plan.path {
            environment.push(("LOCKWATCH_PATH", OsString::from_vec(path.to_vec())));
        }
        if let Some(reason) = plan.reason {
            environment.push(("LOCKWATCH_REASON", reason.name().into()));
        }
    }
    if let Some(outcome) = outcomes.first() {
        environment.push(("LOCKWATCH_RESULT", outcome.end.name().into()));
    }
    Told { finding: finding.to_string().into_bytes(), environment }
}
