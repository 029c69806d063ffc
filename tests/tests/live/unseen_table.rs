//! What the tools of the machine say of each lock that no fd table shows, beside what `lockwatch`
//! says: the table of docs/unseen-holders.md.
//!
//! `cargo xtask unseen` runs this with the name of a file in `LOCKWATCH_UNSEEN_TABLE`, and puts the
//! table into the page.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{FileId, Scene, Test, place};
use lockwatch_tests::once;

pub(crate) const TESTS: &[Test] = &[once!(lockwatch_names_the_holder_whatever_the_others_say)
    .needs(&["root", "iter/task_file", "iter/task_vma", "io_uring", "loop-devices"])
    .within(Duration::from_secs(180))];

/// One lock on `FILE`, in actors of its own: what it is, how it comes about, its verdict, and the
/// actor that keeps it (or none), with what `lockwatch` calls the way.
struct Case {
    what: &'static str,
    story: &'static str,
    verdict: &'static str,
    keeper: Option<&'static str>,
}

const CASES: [Case; 8] = [
    Case {
        what: "in flight in a unix socket",
        story: "start keeper
            keeper: socketpair tx rx
            keeper: fork owner
            owner: open a FILE
            owner: flock a ex
            owner: send tx a
            owner: exit 0",
        verdict: "orphaned/scm_rights",
        keeper: Some("keeper"),
    },
    Case {
        what: "in flight in a socket that is itself in flight",
        story: "start keeper
            keeper: socketpair outer-tx outer-rx
            keeper: socketpair tx rx
            keeper: fork owner
            owner: open a FILE
            owner: flock a ex
            owner: send tx a
            owner: send outer-tx rx
            owner: exit 0
            keeper: close rx
            keeper: close tx",
        verdict: "orphaned/scm_rights",
        keeper: Some("keeper"),
    },
    Case {
        what: "sent over a connection that nobody accepted",
        story: "start keeper
            keeper: listen door FILE-socket
            start owner
            owner: open a FILE
            owner: flock a ex
            owner: connect visitor FILE-socket
            owner: send visitor a
            owner: exit 0",
        verdict: "orphaned/scm_rights",
        keeper: Some("keeper"),
    },
    Case {
        what: "registered with an io_uring",
        story: "start owner
            owner: open a FILE
            owner: flock a ex
            owner: uring ring a
            owner: close a
            owner: fork keeper
            owner: exit 0",
        verdict: "orphaned/io_uring",
        keeper: Some("keeper"),
    },
    Case {
        what: "mapped, and closed",
        story: "start owner
            owner: open a FILE
            owner: flock a ex
            owner: map a
            owner: fork keeper
            keeper: close a
            owner: exit 0",
        verdict: "orphaned/mmap",
        keeper: Some("keeper"),
    },
    Case {
        what: "behind a loop device",
        story: "start owner
            owner: open a FILE
            owner: write a ________________________________________________________________
            owner: flock a ex
            owner: loopdev device a
            owner: close a
            owner: fork keeper
            owner: exit 0",
        verdict: "orphaned/kernel",
        keeper: None,
    },
    Case {
        what: "POSIX, in an fd table that another process shares",
        story: "start owner
            owner: open a FILE
            owner: posix a wr 0 eof
            owner: fork keeper files
            owner: exit 0",
        verdict: "orphaned/shared_files",
        keeper: Some("keeper"),
    },
    Case {
        what: "leaked to a child across an exec (an fd table shows it)",
        story: "start owner
            owner: open a FILE
            owner: flock a ex
            owner: fork keeper
            keeper: exec
            owner: exit 0",
        verdict: "orphaned/inherited",
        keeper: Some("keeper"),
    },
];

const TOOLS: [&str; 4] = ["lslocks", "lsfd", "lsof", "fuser"];

fn lockwatch_names_the_holder_whatever_the_others_say(scene: &mut Scene) -> Result<()> {
    let mut table = String::from("| the lock's description is | lockwatch |");
    for tool in TOOLS {
        let _ = write!(table, " {tool} |");
    }
    table.push_str("\n|---|---|---|---|---|---|\n");
    for (number, case) in CASES.iter().enumerate() {
        let file = format!("case{number}");
        let name = |role: &str| format!("{role}{number}");
        let story = case.story.replace("FILE", &file);
        let story =
            ["owner", "keeper"].iter().fold(story, |story, role| story.replace(role, &name(role)));
        scene.play(&story)?;
        let keeper = case.keeper.map(|role| scene.pid(&name(role))).transpose()?;
        let ours = lockwatch(scene, case, &file, keeper)?;
        let _ = write!(table, "| {} | {ours} |", case.what);
        let owner = scene.pid(&name("owner"))?;
        let others = scene.pid(&name("keeper"))?;
        for tool in TOOLS {
            let said = said(scene, tool, &file)?;
            let _ = write!(table, " {} |", told(&said, owner, others));
        }
        table.push('\n');
    }
    match std::env::var_os("LOCKWATCH_UNSEEN_TABLE") {
        Some(path) => std::fs::write(&path, table).with_context(|| format!("{path:?}")),
        None => Ok(()),
    }
}

/// What it says, having seen that it is right.
fn lockwatch(scene: &Scene, case: &Case, file: &str, keeper: Option<i32>) -> Result<String> {
    let report = scene.scan_by_bpf()?;
    let lock = report.only_lock_on(&scene.file(file)?)?;
    lock.is(case.verdict).with_context(|| case.what.to_owned())?;
    let holder = lock.holders.iter().find(|holder| keeper.is_none() || holder.pid == keeper);
    let holder = holder.with_context(|| format!("the keeper is not named: {lock:?}"))?;
    ensure!(keeper.is_some() == holder.pid.is_some(), "somebody is named: {lock:?}");
    let whose = if keeper.is_some() { "the keeper" } else { "the device" };
    Ok(format!("{}, `{}`: names {whose}", lock.state, lock.reason.as_deref().unwrap_or_default()))
}

/// The lines of a tool about one file; `None` where the tool is not installed.
fn said(scene: &Scene, tool: &str, file: &str) -> Result<Option<Vec<String>>> {
    if place::system_program(tool).is_none() {
        return Ok(None);
    }
    let path = scene.path_text(file)?;
    let FileId { ino, .. } = scene.file(file)?;
    let filter = format!("INODE == {ino}");
    let args: Vec<&str> = match tool {
        "lslocks" => vec!["--noheadings", "--raw", "--output", "PID,COMMAND,INODE"],
        "lsfd" => {
            vec!["--noheadings", "--raw", "--output", "PID,COMMAND,ASSOC,INODE", "-Q", &filter]
        }
        "lsof" => vec!["-w", "-F", "pcf", &path],
        _ => vec![&path],
    };
    let run = scene.program(tool, &args)?.run()?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let lines = text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned);
    let own = ino.to_string();
    Ok(Some(match tool {
        // It lists every lock; those of the file have its inode as their last word.
        "lslocks" => lines.filter(|line| line.split_whitespace().last() == Some(&own)).collect(),
        "lsof" => {
            lines.filter(|line| line.starts_with('p')).map(|line| line[1..].to_owned()).collect()
        }
        _ => lines.collect(),
    }))
}

/// In words that do not change from one run to the next.
fn told(said: &Option<Vec<String>>, owner: i32, keeper: i32) -> String {
    let Some(lines) = said else { return "not installed".to_owned() };
    let mut parts = Vec::new();
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let has = |pid: i32| {
            words.iter().any(|word| {
                word.trim_end_matches(|c: char| c.is_ascii_alphabetic()) == pid.to_string()
            })
        };
        let mapped = words.iter().any(|word| word.ends_with('m') || *word == "mem");
        parts.push(match (has(keeper), has(owner)) {
            (true, _) if mapped => "the keeper, as one that maps the file".to_owned(),
            (true, _) => "the keeper".to_owned(),
            (_, true) => "a dead pid".to_owned(),
            _ => format!("`{}`", line.trim()),
        });
    }
    parts.dedup();
    if parts.is_empty() { "nothing".to_owned() } else { parts.join("; ") }
}
