//! The report of `lockwatch scan --json`, read as its contract has it.
//!
//! Reading is checking: a key that is missing, a type that is wrong, a word that the contract does
//! not know, or figures that contradict each other fail whatever test looked at the report.
//! Refuses to judge what a report says about the world; that is the tests' work.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::scene::FileId;

const TYPES: &[&str] = &["FLOCK", "POSIX", "OFDLCK", "LEASE", "DELEG", "LAYOUT"];
const ACCESS: &[&str] = &["READ", "WRITE", "UNLCK"];
const STATES: &[&str] = &["held", "shared", "handed_over", "orphaned", "remote", "unknown"];
const REASONS: &[&str] = &[
    "inherited",
    "scm_rights",
    "io_uring",
    "mmap",
    "kernel",
    "shared_files",
    "exiting",
    "unaccounted",
];
const FLAGS: &[&str] =
    &["pid_recycled", "acquirer_detached", "pid_zero", "deleted", "replaced", "contended"];
const VIA: &[&str] = &["fd", "files", "scm_rights", "io_uring", "mmap", "kernel"];

/// A value and how it was reached.
#[derive(Clone)]
struct At<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> At<'a> {
    fn get(&self, key: &str) -> Result<At<'a>> {
        let path = format!("{}.{key}", self.path);
        let object = self.value.as_object().with_context(|| format!("{}: no object", self.path))?;
        let value = object.get(key).with_context(|| format!("{path}: missing"))?;
        Ok(At { value, path })
    }

    /// `None` where it is not said at all: of what few processes have.
    fn find(&self, key: &str) -> Option<At<'a>> {
        let value = self.value.as_object()?.get(key)?;
        Some(At { value, path: format!("{}.{key}", self.path) })
    }

    /// `None` for null.
    fn known(self) -> Option<Self> {
        (!self.value.is_null()).then_some(self)
    }

    fn wrong<T>(&self, expected: &str) -> Result<T> {
        bail!("{}: {} instead of {expected}", self.path, self.value)
    }

    fn text(&self) -> Result<String> {
        self.value.as_str().map_or_else(|| self.wrong("a string"), |text| Ok(text.to_owned()))
    }

    fn word(&self, words: &[&str]) -> Result<String> {
        let text = self.text()?;
        if words.contains(&text.as_str()) { Ok(text) } else { self.wrong(&words.join("|")) }
    }

    /// RFC 3339.
    fn moment(&self) -> Result<String> {
        let text = self.text()?;
        let mask: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        let zone = mask.ends_with('Z') || mask.ends_with("+00:00") || mask.ends_with("-00:00");
        if mask.starts_with("0000-00-00T00:00:00") && zone {
            Ok(text)
        } else {
            self.wrong("a moment in RFC 3339")
        }
    }

    fn flag(&self) -> Result<bool> {
        self.value.as_bool().map_or_else(|| self.wrong("true or false"), Ok)
    }

    fn number(&self) -> Result<u64> {
        self.value.as_u64().map_or_else(|| self.wrong("a number"), Ok)
    }

    fn pid(&self) -> Result<i32> {
        let pid = self.number()?;
        match i32::try_from(pid) {
            Ok(pid) if pid > 0 => Ok(pid),
            _ => self.wrong("a pid"),
        }
    }

    fn list(&self) -> Result<Vec<At<'a>>> {
        let Some(values) = self.value.as_array() else { return self.wrong("a list") };
        let item = |(index, value)| At { value, path: format!("{}[{index}]", self.path) };
        Ok(values.iter().enumerate().map(item).collect())
    }

    fn texts(&self) -> Result<Vec<String>> {
        self.list()?.iter().map(At::text).collect()
    }
}

/// The whole report.
#[derive(Debug)]
#[expect(missing_docs, reason = "named as in the contract")]
pub struct Report {
    pub source: String,
    pub kernel: String,
    pub host: String,
    pub history: bool,
    pub complete: bool,
    pub limits: Vec<String>,
    pub locks: Vec<Lock>,
    pub findings: Vec<Finding>,
    pub summary: Summary,
}

/// One finding.
#[derive(Debug)]
#[expect(missing_docs, reason = "named as in the contract")]
pub struct Finding {
    pub kind: String,
    pub lock: String,
    pub message: String,
}

/// The figures at the end.
#[derive(Debug)]
#[expect(missing_docs, reason = "named as in the contract")]
pub struct Summary {
    pub locks: u64,
    pub orphaned: u64,
    pub waiters: u64,
}

/// One lock.
#[derive(Clone)]
#[expect(missing_docs, reason = "named as in the contract")]
pub struct Lock {
    pub id: String,
    pub kind: String,
    pub access: String,
    pub start: u64,
    pub end: Option<u64>,
    pub path: Option<String>,
    pub path_b64: Option<String>,
    pub file: FileId,
    pub size: Option<u64>,
    pub deleted: Option<bool>,
    pub replaced: Option<bool>,
    pub state: String,
    pub reason: Option<String>,
    pub confidence: String,
    pub evidence: Vec<String>,
    pub flags: BTreeSet<String>,
    pub acquirer: Option<Acquirer>,
    pub acquired_at: Option<String>,
    pub holders: Vec<Holder>,
    pub waiters: Vec<Waiter>,
    json: String,
}

/// Who took a lock.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named as in the contract")]
pub struct Acquirer {
    pub pid: Option<i32>,
    pub ns_pid: Option<i32>,
    pub alive: Option<bool>,
    pub recycled: Option<bool>,
    pub comm: Option<String>,
    pub exe: Option<String>,
    pub start_time: Option<String>,
    pub cgroup: Option<String>,
    /// Runtime and id.
    pub container: Option<(String, String)>,
}

/// What keeps a lock alive.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named as in the contract")]
pub struct Holder {
    pub pid: Option<i32>,
    pub tid: Option<i32>,
    pub comm: Option<String>,
    pub via: String,
    pub fd: Option<u64>,
    pub start_time: Option<String>,
    pub ns_pid: Option<i32>,
    /// Runtime and id.
    pub container: Option<(String, String)>,
}

/// Who waits for a lock.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named as in the contract")]
pub struct Waiter {
    pub pid: Option<i32>,
    pub comm: Option<String>,
    pub access: String,
    pub blocked_by: BTreeSet<String>,
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.json)
    }
}

impl Report {
    /// Reads one.
    pub fn read(json: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(json).context("the report is no JSON")?;
        let top = At { value: &value, path: String::new() };
        ensure!(top.get("schema")?.number()? == 1, "another schema than 1");
        top.get("scanned_at")?.moment()?;
        let summary = top.get("summary")?;
        let report = Self {
            source: top.get("source")?.word(&["bpf", "procfs"])?,
            kernel: top.get("kernel")?.text()?,
            host: top.get("host")?.text()?,
            history: top.get("history")?.flag()?,
            complete: top.get("complete")?.flag()?,
            limits: top.get("limits")?.texts()?,
            locks: top.get("locks")?.list()?.iter().map(lock).collect::<Result<_>>()?,
            findings: top.get("findings")?.list()?.iter().map(finding).collect::<Result<_>>()?,
            summary: Summary {
                locks: summary.get("locks")?.number()?,
                orphaned: summary.get("orphaned")?.number()?,
                waiters: summary.get("waiters")?.number()?,
            },
        };
        report.agrees_with_itself()?;
        Ok(report)
    }

    fn agrees_with_itself(&self) -> Result<()> {
        let ids: BTreeSet<_> = self.locks.iter().map(|lock| lock.id.as_str()).collect();
        ensure!(ids.len() == self.locks.len(), "two locks have one id");
        let orphans: BTreeSet<_> = self
            .locks
            .iter()
            .filter(|lock| lock.state == "orphaned")
            .map(|lock| &lock.id)
            .collect();
        let found: BTreeSet<_> = self
            .findings
            .iter()
            .filter(|finding| finding.kind == "orphaned_lock")
            .map(|finding| &finding.lock)
            .collect();
        ensure!(orphans == found, "orphans {orphans:?}, but findings {found:?}");
        ensure!(self.summary.locks == self.locks.len() as u64, "the summary miscounts the locks");
        ensure!(self.summary.orphaned == orphans.len() as u64, "the summary miscounts the orphans");
        ensure!(self.complete || !self.limits.is_empty(), "not complete, and no limit says why");
        for lock in &self.locks {
            let finding = lock.state == "orphaned";
            ensure!(lock.reason.is_some() == finding, "a reason without a finding: {lock:?}");
            let evident = lock.state == "held" || !lock.evidence.is_empty();
            ensure!(evident, "a verdict without evidence: {lock:?}");
            ensure!(
                lock.flags.contains("contended") != lock.waiters.is_empty(),
                "contended and waiters disagree: {lock:?}"
            );
            for (flag, fact) in [("deleted", lock.deleted), ("replaced", lock.replaced)] {
                ensure!(
                    lock.flags.contains(flag) == (fact == Some(true)),
                    "flag and field {flag} disagree: {lock:?}"
                );
            }
            for waiter in &lock.waiters {
                let listed = waiter.blocked_by.iter().all(|id| ids.contains(id.as_str()));
                ensure!(listed, "blocked by what is not listed: {lock:?}");
            }
        }
        Ok(())
    }

    /// The locks on one file, in the order of the report.
    pub fn locks_on(&self, file: &FileId) -> Vec<&Lock> {
        self.locks.iter().filter(|lock| lock.file == *file).collect()
    }

    /// The lock on a file that carries just one.
    pub fn only_lock_on(&self, file: &FileId) -> Result<&Lock> {
        match self.locks_on(file).as_slice() {
            [lock] => Ok(lock),
            locks => bail!("{} locks instead of one on {file:?}: {locks:?}", locks.len()),
        }
    }
}

fn finding(at: &At<'_>) -> Result<Finding> {
    Ok(Finding {
        kind: at.get("kind")?.text()?,
        lock: at.get("lock")?.text()?,
        message: at.get("message")?.text()?,
    })
}

fn lock(at: &At<'_>) -> Result<Lock> {
    let file = at.get("file")?;
    let flags: Result<_> = at.get("flags")?.list()?.iter().map(|flag| flag.word(FLAGS)).collect();
    let path_b64 = match file.get("path_b64") {
        Ok(path) => path.known().map(|path| path.text()).transpose()?,
        Err(_) => None,
    };
    Ok(Lock {
        id: at.get("id")?.text()?,
        kind: at.get("type")?.word(TYPES)?,
        access: at.get("access")?.word(ACCESS)?,
        start: at.get("start")?.number()?,
        end: at.get("end")?.known().map(|end| end.number()).transpose()?,
        path: file.get("path")?.known().map(|path| path.text()).transpose()?,
        path_b64,
        file: FileId { dev: file.get("dev")?.text()?, ino: file.get("ino")?.number()? },
        size: file.get("size")?.known().map(|size| size.number()).transpose()?,
        deleted: file.get("deleted")?.known().map(|fact| fact.flag()).transpose()?,
        replaced: file.get("replaced")?.known().map(|fact| fact.flag()).transpose()?,
        state: at.get("state")?.word(STATES)?,
        reason: at.get("reason")?.known().map(|reason| reason.word(REASONS)).transpose()?,
        confidence: at.get("confidence")?.word(&["certain", "likely"])?,
        evidence: at.get("evidence")?.texts()?,
        flags: flags?,
        acquirer: at.get("acquirer")?.known().map(|at| acquirer(&at)).transpose()?,
        acquired_at: at.get("acquired_at")?.known().map(|at| at.moment()).transpose()?,
        holders: at.get("holders")?.list()?.iter().map(holder).collect::<Result<_>>()?,
        waiters: at.get("waiters")?.list()?.iter().map(waiter).collect::<Result<_>>()?,
        json: at.value.to_string(),
    })
}

fn acquirer(at: &At<'_>) -> Result<Acquirer> {
    if let Some(exit) = at.get("exit")?.known() {
        for key in ["code", "signal"] {
            exit.get(key)?.known().map(|number| number.number()).transpose()?;
        }
        exit.get("at")?.known().map(|at| at.moment()).transpose()?;
    }
    Ok(Acquirer {
        pid: at.get("pid")?.known().map(|pid| pid.pid()).transpose()?,
        ns_pid: at.get("ns_pid")?.known().map(|pid| pid.pid()).transpose()?,
        alive: at.get("alive")?.known().map(|fact| fact.flag()).transpose()?,
        recycled: at.get("recycled")?.known().map(|fact| fact.flag()).transpose()?,
        comm: at.get("comm")?.known().map(|text| text.text()).transpose()?,
        exe: at.get("exe")?.known().map(|text| text.text()).transpose()?,
        start_time: at.get("start_time")?.known().map(|at| at.moment()).transpose()?,
        cgroup: at.get("cgroup")?.known().map(|text| text.text()).transpose()?,
        container: container(at)?,
    })
}

fn container(at: &At<'_>) -> Result<Option<(String, String)>> {
    let Some(container) = at.find("container") else { return Ok(None) };
    Ok(Some((container.get("runtime")?.text()?, container.get("id")?.text()?)))
}

fn holder(at: &At<'_>) -> Result<Holder> {
    Ok(Holder {
        pid: at.get("pid")?.known().map(|pid| pid.pid()).transpose()?,
        tid: at.get("tid")?.known().map(|pid| pid.pid()).transpose()?,
        comm: at.get("comm")?.known().map(|text| text.text()).transpose()?,
        via: at.get("via")?.word(VIA)?,
        fd: at.get("fd")?.known().map(|fd| fd.number()).transpose()?,
        start_time: at.get("start_time")?.known().map(|at| at.moment()).transpose()?,
        ns_pid: at.find("ns_pid").map(|pid| pid.pid()).transpose()?,
        container: container(at)?,
    })
}

fn waiter(at: &At<'_>) -> Result<Waiter> {
    at.get("since")?.known().map(|at| at.moment()).transpose()?;
    Ok(Waiter {
        pid: at.get("pid")?.known().map(|pid| pid.pid()).transpose()?,
        comm: at.get("comm")?.known().map(|text| text.text()).transpose()?,
        access: at.get("access")?.word(ACCESS)?,
        blocked_by: at.get("blocked_by")?.texts()?.into_iter().collect(),
    })
}

impl Lock {
    /// The state, with its reason where there is one: `held`, `orphaned/inherited`.
    pub fn verdict(&self) -> String {
        let reason = self.reason.as_ref().map_or_else(String::new, |reason| format!("/{reason}"));
        format!("{}{reason}", self.state)
    }

    /// Fails unless the verdict is this one.
    pub fn is(&self, verdict: &str) -> Result<()> {
        ensure!(self.verdict() == verdict, "{} instead of {verdict}: {self:?}", self.verdict());
        Ok(())
    }

    /// Fails unless the verdict is one of these.
    pub fn is_one_of(&self, verdicts: &[&str]) -> Result<()> {
        let verdict = self.verdict();
        let fits = verdicts.contains(&verdict.as_str());
        ensure!(fits, "{verdict} instead of one of {verdicts:?}: {self:?}");
        Ok(())
    }

    /// Fails unless kind, access and range are these, as in `FLOCK WRITE 0-eof`.
    pub fn looks_like(&self, expected: &str) -> Result<()> {
        let end = self.end.map_or_else(|| "eof".to_owned(), |end| end.to_string());
        let looks = format!("{} {} {}-{end}", self.kind, self.access, self.start);
        ensure!(looks == expected, "{looks} instead of {expected}: {self:?}");
        Ok(())
    }

    /// Fails unless the flag is raised.
    pub fn raises(&self, flag: &str) -> Result<()> {
        ensure!(self.flags.contains(flag), "no flag {flag}: {self:?}");
        Ok(())
    }

    /// Fails if the flag is raised.
    pub fn does_not_raise(&self, flag: &str) -> Result<()> {
        ensure!(!self.flags.contains(flag), "flag {flag}: {self:?}");
        Ok(())
    }

    /// Fails unless exactly these processes hold it, in whatever order.
    pub fn held_by(&self, pids: &[i32]) -> Result<()> {
        let holders: BTreeSet<_> = self.holders.iter().map(|holder| holder.pid).collect();
        let expected: BTreeSet<_> = pids.iter().map(|&pid| Some(pid)).collect();
        ensure!(holders == expected, "held by {holders:?} instead of {expected:?}: {self:?}");
        Ok(())
    }

    /// Fails unless exactly these processes hold it, each in this one way.
    pub fn held_via(&self, via: &str, pids: &[i32]) -> Result<()> {
        self.held_by(pids)?;
        let all = self.holders.iter().all(|holder| holder.via == via);
        ensure!(all, "not held via {via} alone: {self:?}");
        Ok(())
    }

    /// Fails unless one of the facts that the verdict rests on holds these words.
    pub fn rests_on(&self, words: &str) -> Result<()> {
        let told = self.evidence.iter().any(|fact| fact.contains(words));
        ensure!(told, "no evidence {words:?}: {self:?}");
        Ok(())
    }

    /// Who took it, where that is known.
    pub fn acquirer(&self) -> Result<&Acquirer> {
        self.acquirer.as_ref().with_context(|| format!("no acquirer: {self:?}"))
    }

    /// Fails unless this process took it and lives.
    pub fn acquired_by_living(&self, pid: i32) -> Result<()> {
        let acquirer = self.acquirer()?;
        ensure!(acquirer.pid == Some(pid), "not acquired by {pid}: {self:?}");
        ensure!(acquirer.alive == Some(true), "the acquirer is not alive: {self:?}");
        ensure!(acquirer.recycled == Some(false), "the acquirer counts as recycled: {self:?}");
        Ok(())
    }

    /// Fails unless this process took it and is dead.
    pub fn acquired_by_dead(&self, pid: i32) -> Result<()> {
        let acquirer = self.acquirer()?;
        ensure!(acquirer.pid == Some(pid), "not acquired by {pid}: {self:?}");
        ensure!(acquirer.alive == Some(false), "the acquirer is not dead: {self:?}");
        Ok(())
    }

    /// The waiter with this pid.
    pub fn waiter(&self, pid: i32) -> Result<&Waiter> {
        let waiter = self.waiters.iter().find(|waiter| waiter.pid == Some(pid));
        waiter.with_context(|| format!("{pid} is no waiter: {self:?}"))
    }
}
