//! Giving a lock back: a waiter gets it, the holder lives on, and nothing else is touched.

use anyhow::{Context, Result, bail, ensure};
use lockwatch_tests::harness::{Run, Scene, Test, capability};
use lockwatch_tests::{each_source, once, same};
use serde_json::Value;

use crate::stories::{FREE, HELD, LEAKED, SHELL_IDIOM};

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_waiter_gets_the_lock_and_the_holder_lives_on)
        .needs(&["mounts"])
        .procfs_needs(&["every-process"]),
    once!(only_the_planned_bytes_of_a_description_are_given_up).needs(BPF),
    once!(a_leaked_lease_is_given_back).needs(BPF),
    once!(a_dry_run_changes_nothing).needs(BPF),
    once!(a_lock_that_is_held_by_right_is_refused).needs(BPF),
    once!(force_takes_one_named_lock_and_says_from_whom).needs(BPF),
    once!(force_takes_no_more_than_one).needs(BPF),
    once!(a_folder_is_itself_and_not_what_is_below_it).needs(BPF),
    once!(a_path_that_was_several_files_is_no_name).needs(BPF),
    once!(a_free_file_needs_nothing).needs(BPF),
    once!(every_reclaim_is_on_record).needs(BPF),
    once!(what_cannot_be_recorded_is_not_done).needs(BPF),
    once!(nobody_may_execute_but_root).needs(&["root", "nobody", "iter/task_file"]),
];

pub(crate) const BPF: &[&str] = &["root", "mounts", "iter/task_file", "pidfd_getfd", "kcmp"];

/// The configuration of a test, and its record of reclaims.
pub(crate) const CONFIG: &str = "/run/lockwatch-live.toml";
pub(crate) const AUDIT: &str = "/run/lockwatch-live.jsonl";

/// Gives the test a `/run` of its own, which root alone can write: for a configuration, hooks, the
/// record, and the secret of the ids.
pub(crate) fn prepare(scene: &mut Scene) -> Result<()> {
    if !std::path::Path::new(CONFIG).exists() {
        scene.private_mounts()?;
        capability::tmpfs(std::path::Path::new("/run"))?;
        std::fs::write(CONFIG, format!("[reclaim]\naudit = \"{AUDIT}\"\n"))?;
    }
    Ok(())
}

/// What `reclaim --json` wrote.
pub(crate) fn account(run: &Run) -> Result<Value> {
    serde_json::from_slice(&run.stdout).with_context(|| format!("{:?}", run.complaints()))
}

/// Reclaims `lock` for real; its account.
pub(crate) fn execute(scene: &mut Scene, more: &[&str]) -> Result<(Option<i32>, Value)> {
    prepare(scene)?;
    let mut args = vec!["reclaim", "./lock", "--execute", "--json", "--config", CONFIG];
    args.extend(more);
    let run = scene.run(&args)?;
    Ok((run.code(), account(&run)?))
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> Result<&'a str> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.with_context(|| format!("no text at {pointer} in {value}"))
}

fn a_waiter_gets_the_lock_and_the_holder_lives_on(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play(
        "heir: open other other
         heir: flock other ex
         start waiter
         waiter: open w lock
         waiter: later flock w ex
         await waiter blocked",
    )?;
    let (code, account) = execute(scene, &[])?;
    scene.play("await waiter done")?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "taken_by");
    same!("by", account["outcomes"][0]["taken_by"][0]["pid"], scene.pid("waiter")?);
    same!("method", text(&account, "/plans/0/method")?, "fd");
    if scene.is_bpf() {
        let writers = account["plans"][0]["writers"].as_array().context("no writers")?;
        let pids: Vec<_> = writers.iter().filter_map(|writer| writer["pid"].as_i64()).collect();
        let of = |name: &str| scene.pid(name).map(i64::from);
        same!("who may write", pids, [of("heir")?, of("waiter")?]);
    }
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.held_by(&[scene.pid("waiter")?])?;
    let other = report.only_lock_on(&scene.file("other")?)?;
    other.held_by(&[scene.pid("heir")?])?;
    // Its descriptor is what it was.
    scene.play("heir: write a still-open")?;
    same!("the file", scene.shown_to("heir", "lock")?, "still-open");
    Ok(())
}

fn only_the_planned_bytes_of_a_description_are_given_up(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    scene.play(
        "start owner
         owner: open a lock
         owner: ofd a wr 10 19
         owner: ofd a rd 30 39
         owner: fork heir
         heir: exec
         heir: ofd a wr 50 59
         owner: exit 0",
    )?;
    let report = scene.scan()?;
    let locks = report.locks_on(&scene.file("lock")?);
    let planned = locks.iter().find(|lock| lock.start == 10).context("bytes 10-19")?;
    planned.is("orphaned/inherited")?;
    let run = scene.run(&["reclaim", &planned.id, "--execute", "--json", "--config", CONFIG])?;
    run.exits(0)?;
    let done = account(&run)?;
    same!("result", text(&done, "/outcomes/0/result")?, "released");
    let report = scene.scan()?;
    let mut left: Vec<_> =
        report.locks_on(&scene.file("lock")?).iter().map(|lock| lock.start).collect();
    left.sort();
    same!("what is left", left, [30, 50]);
    // By the file's name, every orphan of it, and no lock that is held by right.
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    same!("plans", account["plans"].as_array().map(Vec::len), Some(1));
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.looks_like("OFDLCK WRITE 50-59")
}

fn a_leaked_lease_is_given_back(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: lease a wr
         owner: fork heir
         heir: exec
         owner: exit 0
         start breaker
         breaker: later open b lock wo
         await breaker blocked",
    )?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    scene.play("await breaker done")?;
    same!("locks", scene.scan()?.locks_on(&scene.file("lock")?).len(), 0);
    Ok(())
}

fn a_dry_run_changes_nothing(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let run = scene.run(&["reclaim", "./lock"])?;
    run.exits(0)?;
    let text = run.text()?;
    for word in ["would be released by fd", "Safe:", "Not excluded:", "dry run"] {
        ensure!(text.contains(word), "{word:?} is not in {text:?}");
    }
    ensure!(text.contains(&format!("pid {}", scene.pid("heir")?)), "the holder: {text:?}");
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")
}

fn a_lock_that_is_held_by_right_is_refused(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    for story in [HELD, SHELL_IDIOM] {
        let run = refused(scene, story)?;
        ensure!(run["reason"] == "not_orphaned", "{run}");
        scene.play(if story == HELD { "kill owner" } else { "kill shell" })?;
    }
    Ok(())
}

fn refused(scene: &mut Scene, story: &str) -> Result<Value> {
    scene.play(story)?;
    let before = scene.scan()?.only_lock_on(&scene.file("lock")?)?.id.clone();
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(1));
    same!("plans", account["plans"], Value::Array(Vec::new()));
    let after = scene.scan()?.only_lock_on(&scene.file("lock")?)?.id.clone();
    same!("the lock", after, before);
    Ok(account["refusals"][0].clone())
}

fn force_takes_one_named_lock_and_says_from_whom(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    scene.play(HELD)?;
    let id = scene.scan()?.only_lock_on(&scene.file("lock")?)?.id.clone();
    let dry = scene.run(&["reclaim", &id, "--force"])?;
    dry.exits(0)?;
    let loses = format!("pid {}, which took it, loses this lock", scene.pid("owner")?);
    ensure!(dry.text()?.contains(&loses), "{loses:?} is not in {:?}", dry.text()?);
    let run = scene.run(&["reclaim", &id, "--force", "--execute", "--json", "--config", CONFIG])?;
    run.exits(0)?;
    let account = account(&run)?;
    same!("forced", account["plans"][0]["forced"], true);
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    same!("locks", scene.scan()?.locks_on(&scene.file("lock")?).len(), 0);
    scene.play("owner: write a alive")
}

fn force_takes_no_more_than_one(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: ofd a wr 0 9
         owner: ofd a wr 20 29",
    )?;
    let (code, account) = execute(scene, &["--force"])?;
    same!("exit code", code, Some(1));
    same!("reason", text(&account, "/refusals/0/reason")?, "force_needs_one");
    same!("locks", scene.scan()?.locks_on(&scene.file("lock")?).len(), 2);
    Ok(())
}

fn a_folder_is_itself_and_not_what_is_below_it(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    scene.play(LEAKED)?;
    for more in [&[][..], &["--force"]] {
        let mut args = vec!["reclaim", ".", "--execute", "--config", CONFIG];
        args.extend(more);
        let run = scene.run(&args)?;
        run.exits(0)?;
        ensure!(run.text()?.contains("nothing to do"), "{:?}", run.text()?);
        let report = scene.scan()?;
        report.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")?;
    }
    Ok(())
}

fn a_path_that_was_several_files_is_no_name(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play("heir: unlink lock")?;
    scene.play(&LEAKED.replace("owner", "second").replace("heir", "child"))?;
    scene.play("child: unlink lock")?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(1));
    same!("refusals", account["refusals"].as_array().map(Vec::len), Some(2));
    same!("reason", text(&account, "/refusals/0/reason")?, "several_files");
    same!("plans", account["plans"], Value::Array(Vec::new()));
    Ok(())
}

fn a_free_file_needs_nothing(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    scene.play(FREE)?;
    let run = scene.run(&["reclaim", "./lock", "--execute", "--config", CONFIG])?;
    run.exits(0)?;
    ensure!(run.text()?.contains("nothing to do"), "{:?}", run.text()?);
    Ok(())
}

/// Who is not root may not carry a reclaim out with these options, and is told who may.
pub(crate) fn is_refused_to_nobody(scene: &Scene, more: &[&str]) -> Result<()> {
    let run = scene
        .public_lockwatch(&["reclaim", "./lock", "--execute"])?
        .args(more)
        .as_nobody()
        .run()?;
    let line = run.fails_in_one_line()?;
    ensure!(line.contains("root"), "{line}");
    Ok(())
}

fn nobody_may_execute_but_root(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    for more in [&[][..], &["--force"], &["--method", "signal"], &["--method", "inject"]] {
        is_refused_to_nobody(scene, more)?;
    }
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")
}

fn every_reclaim_is_on_record(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let (code, _) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    let text = std::fs::read_to_string(AUDIT)?;
    let records: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(text.clone())?;
    let [begun, noted @ .., ended] = &records[..] else { bail!("the record: {text}") };
    same!("first", begun["record"], "begun");
    same!("who", begun["who"]["uid"], 0);
    same!("holder", begun["plans"][0]["through"]["pid"], scene.pid("heir")?);
    same!("last", ended["record"], "ended");
    for record in &records {
        same!("of the same", record["reclaim"], begun["reclaim"]);
    }
    same!("result", ended["outcomes"][0]["result"], "released");
    let steps = ended["outcomes"][0]["steps"].as_array().context("no steps")?;
    let names =
        |steps: &[Value]| -> Vec<Value> { steps.iter().map(|step| step["step"].clone()).collect() };
    same!("noted on the way", names(noted), names(steps));
    let steps = ended["outcomes"][0]["steps"].to_string();
    for step in ["fetched", "rechecked", "proven", "unlocked", "verified"] {
        ensure!(steps.contains(step), "{step} is not in {steps}");
    }
    Ok(())
}

fn what_cannot_be_recorded_is_not_done(scene: &mut Scene) -> Result<()> {
    prepare(scene)?;
    scene.play(LEAKED)?;
    for audit in ["/run", "/dev/full", "/proc/self/comm"] {
        std::fs::write(CONFIG, format!("[reclaim]\naudit = \"{audit}\"\n"))?;
        let run = scene.run(&["reclaim", "./lock", "--execute", "--config", CONFIG])?;
        let line = run.fails_in_one_line()?;
        ensure!(line.contains("nothing was done: audit: "), "{line}");
    }
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")
}
