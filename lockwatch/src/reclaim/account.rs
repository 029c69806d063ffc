//! The records of one reclaim for the audit: one before anything is done, one for each step, one
//! when it is over.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{geteuid, getpid, getuid};
use serde_json::{Value, json};

use crate::act::procedure::Report;
use crate::config::Watch;
use crate::engine::id::LockId;
use crate::engine::reclaim::progress::Asker;
use crate::engine::reclaim::{Plan, Step};
use crate::sink::clock::Timestamp;
use crate::sink::json::SCHEMA;
use crate::sink::reclaim as sink;

/// A reclaim that is under way.
pub(super) struct Begun {
    name: String,
}

impl Begun {
    pub(super) fn now() -> Self {
        Self { name: format!("{}-{}", timestamp(), getpid().as_raw_nonzero()) }
    }

    /// What is about to be done, and who asked for it.
    pub(super) fn record(
        &self,
        plans: &[Plan],
        watch: Option<&Watch>,
        attended: Option<Asker>,
    ) -> Value {
        let hooks: Vec<Value> = watch
            .iter()
            .flat_map(|watch| watch.hooks())
            .map(|(name, hook)| json!({"hook": name, "run": hook.run.get_ref()}))
            .collect();
        json!({
            "schema": SCHEMA,
            "record": "begun",
            "reclaim": self.name,
            "at": timestamp(),
            "who": who(),
            "daemon": attended.map(Asker::name),
            "watch": watch.map(|watch| watch.name.get_ref()),
            "plans": plans.iter().map(sink::plan).collect::<Vec<_>>(),
            "hooks": hooks,
        })
    }

    /// One thing that was done, for whoever finds no end.
    pub(super) fn step(&self, lock: Option<LockId>, step: &Step) -> Value {
        json!({
            "schema": SCHEMA,
            "record": "step",
            "reclaim": self.name,
            "at": timestamp(),
            "lock": lock.map(|lock| lock.to_string()),
            "step": step.name,
            "what": step.what,
        })
    }

    /// What came of it.
    pub(super) fn end(&self, report: &Report) -> Value {
        json!({
            "schema": SCHEMA,
            "record": "ended",
            "reclaim": self.name,
            "at": timestamp(),
            "success": report.is_success(),
            "outcomes": report.outcomes.iter().map(sink::outcome).collect::<Vec<_>>(),
            "hooks": report.hooks.iter().map(sink::hook).collect::<Vec<_>>(),
        })
    }
}

fn timestamp() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(0)).to_string()
}

/// Who asked: also behind sudo, where there is a login.
fn who() -> Value {
    /// What the kernel shows where nobody logged in (`AUDIT_UID_UNSET`).
    const NO_LOGIN: u32 = u32::MAX;
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let login = login.and_then(|text| text.trim().parse::<u32>().ok());
    let terminal = [0, 1, 2]
        .into_iter()
        .filter_map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .find(|link| link.starts_with("/dev/pts") || link.starts_with("/dev/tty"));
    json!({
        "uid": getuid().as_raw(),
        "euid": geteuid().as_raw(),
        "loginuid": login.filter(|&uid| uid != NO_LOGIN),
        "pid": getpid().as_raw_nonzero().get(),
        "parent_pid": rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()),
        "tty": terminal.map(|path| path.display().to_string()),
    })
}
