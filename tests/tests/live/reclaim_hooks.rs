//! The programs around a reclaim: their order, their surroundings, their end, and who may write
//! them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test, patience};
use lockwatch_tests::{once, same};
use serde_json::Value;

use crate::reclaim::{AUDIT, BPF, CONFIG, account, execute, prepare, text};
use crate::stories::LEAKED;

pub(crate) const NEEDS: &[&str] =
    &["root", "mounts", "iter/task_file", "pidfd_getfd", "kcmp", "program:sh", "program:sleep"];

pub(crate) const TESTS: &[Test] = &[
    once!(they_run_in_order_and_are_told_the_finding).needs(NEEDS),
    once!(a_failed_drain_stops_everything_and_resume_runs).needs(NEEDS),
    once!(a_failed_canary_is_an_alarm_and_resume_runs).needs(NEEDS),
    once!(a_hook_that_hangs_is_ended_whole_at_its_limit).needs(NEEDS),
    once!(what_a_hook_leaves_behind_is_ended_with_it).needs(NEEDS),
    once!(a_gigabyte_of_output_is_counted_and_not_kept).needs(&[
        "root",
        "mounts",
        "iter/task_file",
        "pidfd_getfd",
        "kcmp",
        "program:sh",
        "program:head",
    ]),
    once!(a_hook_that_cannot_be_trusted_stops_everything_before_it_begins).needs(NEEDS),
    once!(what_was_found_trustworthy_is_what_is_executed).needs(NEEDS),
    once!(an_interrupted_reclaim_ends_its_drain_and_resumes).needs(NEEDS),
    once!(a_hook_does_not_outlive_lockwatch).needs(NEEDS),
    once!(hooks_of_other_files_are_not_run).needs(NEEDS),
    once!(a_dry_run_runs_no_hook).needs(BPF),
];

/// Writes a hook, and names it in the configuration.
pub(crate) fn hook(scene: &mut Scene, name: &str, limit: &str, script: &str) -> Result<()> {
    prepare(scene)?;
    program(&format!("/run/{name}"), script)?;
    let mut config = fs::read_to_string(CONFIG)?;
    if !config.contains("[[watch]]") {
        let path = scene.path_text("lock")?;
        config.push_str(&format!("[[watch]]\nname = \"it\"\npath = \"{path}\"\n"));
    }
    config.push_str(&format!(
        "{name} = {{ run = [\"/run/{name}\", \"arg\"], timeout = \"{limit}\" }}\n"
    ));
    Ok(fs::write(CONFIG, config)?)
}

pub(crate) fn program(path: &str, script: &str) -> Result<()> {
    // Made anew: what is being executed cannot be written.
    let draft = format!("{path}.new");
    fs::write(&draft, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(&draft, path)?)
}

fn log() -> Result<String> {
    match fs::read_to_string("/run/log") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.context("/run/log"),
    }
}

fn still_orphaned(scene: &Scene) -> Result<()> {
    let report = scene.scan()?;
    report.only_lock_on(&scene.file("lock")?)?.is("orphaned/inherited")
}

fn they_run_in_order_and_are_told_the_finding(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    for name in ["drain", "canary", "resume"] {
        let script = format!(
            "echo {name} $1 $LOCKWATCH_HOOK $LOCKWATCH_RESULT >> /run/log\n\
             cat /proc/$$/environ > /run/{name}.env; cat > /run/{name}.in; echo said; pwd"
        );
        hook(scene, name, "5s", &script)?;
    }
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    same!(
        "the log",
        log()?,
        "drain arg drain\ncanary arg canary released\nresume arg resume released\n"
    );
    let environment = fs::read("/run/drain.env")?;
    for variable in environment.split(|&byte| byte == 0).filter(|word| !word.is_empty()) {
        ensure!(variable.starts_with(b"LOCKWATCH_"), "{}", String::from_utf8_lossy(variable));
    }
    let path = format!("LOCKWATCH_PATH={}", scene.path_text("lock")?);
    ensure!(environment.split(|&byte| byte == 0).any(|word| word == path.as_bytes()), "{path}");
    let finding: Value = serde_json::from_slice(&fs::read("/run/canary.in")?)?;
    same!("kind", finding["kind"], "orphaned_lock");
    same!("plan", finding["plans"][0]["through"]["pid"], scene.pid("heir")?);
    same!("outcome", finding["outcomes"][0]["result"], "released");
    same!("output", text(&account, "/hooks/0/stdout/head")?, "said\n/\n");
    let record = fs::read_to_string(AUDIT)?;
    ensure!(record.contains("\"said\\n/\\n\""), "the output is not on record: {record}");
    Ok(())
}

fn a_failed_drain_stops_everything_and_resume_runs(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "drain", "5s", "echo no such fleet >&2; exit 3")?;
    hook(scene, "canary", "5s", "echo canary >> /run/log")?;
    hook(scene, "resume", "5s", "echo resume $LOCKWATCH_RESULT >> /run/log")?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(1));
    same!("result", text(&account, "/outcomes/0/result")?, "not_tried");
    same!("why", text(&account, "/outcomes/0/why")?, "drain exited with 3");
    same!("exit", account["hooks"][0]["exit"], 3);
    same!("it said", text(&account, "/hooks/0/stderr/head")?, "no such fleet\n");
    same!("the log", log()?, "resume not_tried\n");
    still_orphaned(scene)
}

fn a_failed_canary_is_an_alarm_and_resume_runs(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "canary", "5s", "kill -9 $$")?;
    hook(scene, "resume", "5s", "echo resume >> /run/log")?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(1));
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    same!("signal", account["hooks"][0]["signal"], 9);
    same!("the log", log()?, "resume\n");
    Ok(())
}

fn sleepers(seconds: u32) -> Result<usize> {
    let wanted = format!("sleep\0{seconds}\0");
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let line = entry?.path().join("cmdline");
        found += usize::from(fs::read(line).is_ok_and(|line| line == wanted.as_bytes()));
    }
    Ok(found)
}

fn a_hook_that_hangs_is_ended_whole_at_its_limit(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    // Deaf to SIGTERM, with one child in its group and one that left it.
    let script = "trap '' TERM; sleep 98765 & \
                  (exec setsid sleep 98765) & (sleep 98765 & exit) ; sleep 98765";
    hook(scene, "drain", "1s", script)?;
    hook(scene, "resume", "5s", "echo resume >> /run/log")?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(1));
    same!("timed out", account["hooks"][0]["timed_out"], true);
    ensure!(account["hooks"][0]["leftovers"].as_u64() >= Some(4), "{account}");
    same!("what is left", sleepers(98765)?, 0);
    same!("the log", log()?, "resume\n");
    still_orphaned(scene)
}

fn what_a_hook_leaves_behind_is_ended_with_it(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "drain", "10s", "(sleep 87654 & exit); echo done")?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    same!("leftovers", account["hooks"][0]["leftovers"], 1);
    same!("what is left", sleepers(87654)?, 0);
    same!("result", text(&account, "/outcomes/0/result")?, "released");
    Ok(())
}

fn a_gigabyte_of_output_is_counted_and_not_kept(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "drain", "60s", "echo begin; head -c 1073741824 /dev/zero; echo end; echo no >&2")?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    let stdout = &account["hooks"][0]["stdout"];
    same!("bytes", stdout["bytes"], 1_073_741_824 + 10);
    let (head, tail) = (text(stdout, "/head")?, text(stdout, "/tail")?);
    ensure!(head.starts_with("begin\n") && tail.ends_with("end\n"), "its ends are not kept");
    ensure!(head.len() + tail.len() <= 65536, "kept {} bytes", head.len() + tail.len());
    same!("stderr", text(&account, "/hooks/0/stderr/head")?, "no\n");
    Ok(())
}

fn a_hook_that_cannot_be_trusted_stops_everything_before_it_begins(
    scene: &mut Scene,
) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "drain", "5s", "echo drain >> /run/log")?;
    hook(scene, "canary", "5s", "echo canary >> /run/log")?;
    let canary = Path::new("/run/canary");
    let mode = |mode| fs::set_permissions(canary, fs::Permissions::from_mode(mode));
    let refused = |scene: &mut Scene, why: &str| -> Result<()> {
        let run = scene.run(&["reclaim", "./lock", "--execute", "--config", CONFIG])?;
        let line = run.fails_in_one_line()?;
        ensure!(line.contains("/run/canary") && line.contains(why), "{why:?} is not in {line}");
        same!("the log", log()?, "");
        still_orphaned(scene)
    };
    mode(0o777)?;
    refused(scene, "can be written by others")?;
    mode(0o644)?;
    refused(scene, "not a program")?;
    mode(0o755)?;
    std::os::unix::fs::chown(canary, Some(65534), None)?;
    refused(scene, "belongs to uid 65534")?;
    fs::remove_file(canary)?;
    refused(scene, "No such file")?;
    // A configuration that others can write could name any program.
    program("/run/canary", "true")?;
    fs::set_permissions(CONFIG, fs::Permissions::from_mode(0o666))?;
    let run = scene.run(&["reclaim", "./lock", "--execute", "--config", CONFIG])?;
    ensure!(run.fails_in_one_line()?.contains("can be written by others"), "taken");
    same!("the log", log()?, "");
    still_orphaned(scene)
}

fn what_was_found_trustworthy_is_what_is_executed(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let replace = "echo '#!/bin/sh\necho another >> /run/log' > /run/other; \
                   chmod 755 /run/other; mv /run/other /run/canary; echo drain >> /run/log";
    hook(scene, "drain", "5s", replace)?;
    hook(scene, "canary", "5s", "echo canary >> /run/log")?;
    let (code, _) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    same!("the log", log()?, "drain\ncanary\n");
    Ok(())
}

fn an_interrupted_reclaim_ends_its_drain_and_resumes(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "drain", "60s", ": > /run/begun; sleep 76543")?;
    hook(scene, "resume", "5s", "echo resume $LOCKWATCH_RESULT >> /run/log")?;
    let run = scene
        .lockwatch(&["reclaim", "./lock", "--execute", "--json", "--config", CONFIG])?
        .start()?;
    patience::until("the drain", || Ok(Path::new("/run/begun").exists().then_some(())))?;
    run.signal(rustix::process::Signal::INT)?;
    let run = run.finish()?;
    run.exits(130)?;
    let told = account(&run)?;
    same!("why", text(&told, "/outcomes/0/why")?, "drain was interrupted");
    same!("the log", log()?, "resume not_tried\n");
    same!("what is left", sleepers(76543)?, 0);
    still_orphaned(scene)
}

fn a_hook_does_not_outlive_lockwatch(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "drain", "60s", ": > /run/begun; sleep 65432")?;
    let run = scene
        .lockwatch(&["reclaim", "./lock", "--execute", "--json", "--config", CONFIG])?
        .start()?;
    patience::until("the drain", || Ok(Path::new("/run/begun").exists().then_some(())))?;
    run.signal(rustix::process::Signal::KILL)?;
    run.finish()?;
    patience::until("the end of the hook", || Ok((sleepers(65432)? == 0).then_some(())))?;
    let record = fs::read_to_string(AUDIT)?;
    ensure!(record.contains("begun") && !record.contains("ended"), "the record: {record}");
    still_orphaned(scene)?;
    // And its turn ended with it.
    let (code, _) = execute(scene, &["--no-hooks"])?;
    same!("exit code", code, Some(0));
    Ok(())
}

fn hooks_of_other_files_are_not_run(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play("heir: open o other")?;
    hook(scene, "drain", "5s", "exit 1")?;
    let config = fs::read_to_string(CONFIG)?.replace("/lock\"", "/other\"");
    fs::write(CONFIG, config)?;
    let (code, account) = execute(scene, &[])?;
    same!("exit code", code, Some(0));
    same!("hooks", account["hooks"], Value::Array(Vec::new()));
    Ok(())
}

fn a_dry_run_runs_no_hook(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    hook(scene, "drain", "5s", "echo drain >> /run/log")?;
    scene.run(&["reclaim", "./lock", "--config", CONFIG])?.exits(0)?;
    same!("the log", log()?, "");
    ensure!(!Path::new(AUDIT).exists(), "a dry run is on record");
    still_orphaned(scene)
}
