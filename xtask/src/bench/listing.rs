//! Whether a scan's JSON lists every lock that the benchmark made.
//!
//! Looks at the locked files' folder alone: what else the machine locks is no concern of it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::measure;
use crate::command::shown;

#[derive(Deserialize)]
struct Listing<'a> {
    complete: bool,
    #[serde(borrow)]
    limits: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    locks: Vec<Lock<'a>>,
}

#[derive(Deserialize)]
struct Lock<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    file: File<'a>,
    #[serde(borrow)]
    holders: Vec<Holder<'a>>,
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    path: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Holder<'a> {
    #[serde(borrow)]
    via: Cow<'a, str>,
}

/// The hidden verb.
pub(crate) const VERB: &str = "bench-listing";

/// Scans and checks: BINARY SOURCE FOLDER COUNT.
pub(crate) fn run(args: &[OsString]) -> Result<ExitCode> {
    let [binary, source, folder, count] = args else {
        bail!("{VERB} takes BINARY SOURCE FOLDER COUNT")
    };
    let count =
        count.to_str().and_then(|count| count.parse().ok()).context("COUNT is no number")?;
    let mut command = Command::new(binary);
    command.args(["scan", "--json", "--source"]).arg(source);
    let json = measure::output(&mut command)?;
    check(&json, Path::new(folder), count).with_context(|| shown(&command))?;
    Ok(ExitCode::SUCCESS)
}

/// Fails unless exactly `wanted` locks below `folder` are listed, each once and with a holder.
fn check(json: &[u8], folder: &Path, wanted: usize) -> Result<()> {
    let listing: Listing<'_> = serde_json::from_slice(json).context("reading the scan's JSON")?;
    let ours: Vec<_> = listing
        .locks
        .iter()
        .filter(|lock| {
            lock.file.path.as_deref().is_some_and(|path| Path::new(path).starts_with(folder))
        })
        .collect();
    let ids: HashSet<_> = ours.iter().map(|lock| &lock.id).collect();
    let held = ours.iter().filter(|lock| lock.holders.iter().any(|h| !h.via.is_empty())).count();
    if ours.len() != wanted || ids.len() != wanted || held != wanted {
        bail!(
            "{wanted} locks are held, and the scan lists {} of them, with {} ids, {held} with a \
             holder (complete: {}; {})",
            ours.len(),
            ids.len(),
            listing.complete,
            listing.limits.join("; ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(locks: &[(&str, &str)]) -> Vec<u8> {
        let locks: Vec<_> = locks
            .iter()
            .map(|(id, path)| {
                serde_json::json!({"id": id, "file": {"path": path}, "holders": [{"via": "fd"}]})
            })
            .collect();
        serde_json::json!({"complete": true, "limits": [], "locks": locks}).to_string().into_bytes()
    }

    #[test]
    fn only_our_locks_count() {
        let json = listing(&[("a", "/t/bench/1"), ("b", "/t/bench/2"), ("c", "/t/benches/1")]);
        check(&json, Path::new("/t/bench"), 2).unwrap();
        check(&json, Path::new("/t/bench"), 3).unwrap_err();
    }

    #[test]
    fn a_lock_listed_twice_is_no_second_lock() {
        let json = listing(&[("a", "/t/bench/1"), ("a", "/t/bench/1")]);
        let error = check(&json, Path::new("/t/bench"), 2).unwrap_err().to_string();
        assert!(error.contains("with 1 ids"), "{error}");
    }

    #[test]
    fn a_file_without_a_path_is_not_ours() {
        let json = br#"{"complete":true,"limits":[],
            "locks":[{"id":"a","file":{"path":null},"holders":[]}]}"#;
        check(json, Path::new("/t/bench"), 0).unwrap();
    }
}
