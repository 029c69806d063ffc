//! Carries a release out that was written into the tree: as a run of `lockwatch reclaim`.
//!
//! Refuses to do it in this process: what is fetched for a release would be held by the daemon for
//! that moment, and a stuck hook would be a stuck daemon. The run plans with its own eyes, and is on
//! record like any other.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::look::STATE_DIR;
use crate::sink::tree::command::Refusal;

/// This program, also where its file has been replaced since.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What every run needs to know.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    /// The configuration, where it is not the default one.
    pub(super) config: Option<PathBuf>,
    /// Where the history is.
    pub(super) state_dir: PathBuf,
}

/// What of a run's account matters here.
#[derive(Debug, Deserialize)]
struct Account {
    refusals: Vec<serde_json::Value>,
    hooks: Vec<Hook>,
}

#[derive(Debug, Deserialize)]
struct Hook {
    hook: String,
    ok: bool,
}

/// Releases what each subject names, a path or the id of a lock, and waits for it.
pub(super) fn release(
    subjects: &[OsString],
    force: bool,
    surroundings: &Surroundings,
) -> Result<(), Refusal> {
    // Of nothing at all nothing can be verified.
    if subjects.is_empty() {
        return Err(Refusal::Unverified);
    }
    subjects.iter().try_for_each(|subject| one(subject, force, surroundings))
}

fn one(subject: &OsString, force: bool, surroundings: &Surroundings) -> Result<(), Refusal> {
    let mut command = Command::new(OWN_PROGRAM);
    command.args(["reclaim", "--execute", "--json"]).stdin(Stdio::null());
    if force {
        command.arg("--force");
    }
    if let Some(config) = &surroundings.config {
        command.arg("--config").arg(Path::new(config));
    }
    command.env(STATE_DIR, &surroundings.state_dir).arg("--").arg(subject);
    match command.output() {
        Ok(output) if output.status.code() == Some(0) => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            log::error!("a release asked for in the tree: {}: {}", output.status, said.trim_end());
            Err(refusal(&output.stdout))
        }
        Err(error) => {
            log::error!("a release asked for in the tree: running `lockwatch reclaim`: {error}");
            Err(Refusal::Unverified)
        }
    }
}

/// Why it was not done, from the run's account.
fn refusal(account: &[u8]) -> Refusal {
    match serde_json::from_slice::<Account>(account) {
        Ok(Account { hooks, .. }) if hooks.iter().any(|hook| hook.hook == "drain" && !hook.ok) => {
            Refusal::Cancelled
        }
        // What was planned for is not so any more: somebody holds it by right.
        Ok(Account { refusals, .. }) if !refusals.is_empty() => Refusal::Busy,
        _ => Refusal::Unverified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_it_was_not_done_is_told_by_the_account() {
        let failed = br#"{"refusals":[],"hooks":[{"hook":"drain","ok":false}],"plans":[]}"#;
        assert_eq!(refusal(failed), Refusal::Cancelled);
        let refused = br#"{"refusals":[{"lock":"x"}],"hooks":[]}"#;
        assert_eq!(refusal(refused), Refusal::Busy);
        let canary =
            br#"{"refusals":[],"hooks":[{"hook":"drain","ok":true},{"hook":"canary","ok":false}]}"#;
        assert_eq!(refusal(canary), Refusal::Unverified);
        assert_eq!(refusal(b"no account"), Refusal::Unverified);
    }
}
