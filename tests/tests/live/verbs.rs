//! The verbs beside scan and check: explain, doctor, completions, man.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::{Scene, Test};
use lockwatch_tests::{each_source, once, same};
use serde_json::Value;

use crate::stories::{FREE, HELD, LEAKED, SHELL_IDIOM};

pub(crate) const TESTS: &[Test] = &[
    each_source!(explain_tells_the_chain_of_a_leak).procfs_needs(&["every-process"]),
    each_source!(explain_names_a_living_holder),
    each_source!(explain_says_why_a_dead_acquirer_is_no_orphan),
    each_source!(explain_names_who_waits),
    each_source!(explain_of_a_free_file_says_so),
    once!(doctor_lists_every_probe),
    once!(doctor_is_readable_too),
    once!(doctor_says_what_a_user_without_privilege_lacks).needs(&["nobody"]),
    once!(completions_exist_for_the_usual_shells),
    once!(the_manual_is_a_manual_page),
];

const PROBES: &[&str] = &[
    "btf",
    "bpf",
    "iter/task_file",
    "bpf_d_path",
    "iter/task_vma",
    "iter/unix",
    "tp_btf",
    "fentry",
    "fexit",
    "lsm",
    "kcmp",
    "pidfd_getfd",
    "fuse",
    "procfs",
];

fn explained(scene: &Scene) -> Result<String> {
    let run = scene.run(&["explain", "./lock"])?;
    ensure!(run.code() != Some(2), "it could not be explained: {:?}", run.complaints());
    Ok(run.text()?.to_owned())
}

fn names(text: &str, what: &[String]) -> Result<()> {
    for word in what {
        let found = text.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| part == word)
            || text.contains(word.as_str());
        ensure!(found, "{word} is not named in {text:?}");
    }
    Ok(())
}

fn explain_tells_the_chain_of_a_leak(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play("heir: comm the-heir")?;
    let text = explained(scene)?;
    let pids = [scene.pid("owner")?.to_string(), scene.pid("heir")?.to_string()];
    names(&text, &pids)?;
    names(&text, &["lock".to_owned(), "the-heir".to_owned(), "inherited".to_owned()])
}

fn explain_names_a_living_holder(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play("owner: comm the-owner")?;
    let text = explained(scene)?;
    names(&text, &[scene.pid("owner")?.to_string(), "the-owner".to_owned()])
}

fn explain_says_why_a_dead_acquirer_is_no_orphan(scene: &mut Scene) -> Result<()> {
    scene.play(SHELL_IDIOM)?;
    let text = explained(scene)?;
    names(&text, &[scene.pid("locker")?.to_string(), scene.pid("shell")?.to_string()])
}

fn explain_names_who_waits(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    scene.play(
        "start waiter
         waiter: open a lock
         waiter: later flock a ex
         await waiter blocked",
    )?;
    names(&explained(scene)?, &[scene.pid("waiter")?.to_string()])
}

fn explain_of_a_free_file_says_so(scene: &mut Scene) -> Result<()> {
    scene.play(FREE)?;
    let text = explained(scene)?;
    ensure!(text.contains("lock") && !text.contains("orphan"), "{text:?}");
    Ok(())
}

/// The probes of a doctor's report, by name.
fn probes(report: &Value) -> Result<BTreeMap<String, bool>> {
    let mut found = BTreeMap::new();
    for probe in report["probes"].as_array().context("no probes")? {
        let text = |key: &str| probe[key].as_str().with_context(|| format!("{key} of {probe}"));
        let name = text("name")?.to_owned();
        ensure!(!text("needed_for")?.is_empty(), "{name} is needed for nothing");
        ensure!(!text("detail")?.contains('\n'), "{name}: more than a line");
        let ok = probe["ok"].as_bool().with_context(|| format!("ok of {probe}"))?;
        ensure!(ok || !text("detail")?.is_empty(), "{name} is missing for no reason");
        ensure!(found.insert(name.clone(), ok).is_none(), "{name} twice");
    }
    Ok(found)
}

fn doctor_lists_every_probe(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["doctor", "--json"])?;
    ensure!(matches!(run.code(), Some(0 | 1)), "it ended with {:?}", run.code());
    let report: Value = serde_json::from_slice(&run.stdout)?;
    same!("schema", report["schema"].as_u64(), Some(1));
    let kernel = rustix::system::uname();
    same!("kernel", report["kernel"].as_str(), kernel.release().to_str().ok());
    let found = probes(&report)?;
    for name in PROBES {
        ensure!(found.contains_key(*name), "no probe {name} in {found:?}");
    }
    Ok(())
}

fn doctor_is_readable_too(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["doctor"])?;
    for name in PROBES {
        ensure!(run.text()?.contains(name), "{name} is not mentioned");
    }
    Ok(())
}

fn doctor_says_what_a_user_without_privilege_lacks(scene: &mut Scene) -> Result<()> {
    let run = scene.public_lockwatch(&["doctor", "--json"])?.as_nobody().run()?;
    let report: Value = serde_json::from_slice(&run.stdout)?;
    let found = probes(&report)?;
    same!("iterators", found.get("iter/task_file"), Some(&false));
    for name in PROBES {
        ensure!(found.contains_key(*name), "no probe {name} in {found:?}");
    }
    Ok(())
}

fn completions_exist_for_the_usual_shells(scene: &mut Scene) -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let run = scene.run(&["completions", shell])?;
        run.exits(0)?;
        for word in ["lockwatch", "scan", "explain"] {
            ensure!(run.text()?.contains(word), "{shell}: no {word}");
        }
    }
    scene.run(&["completions", "no-such-shell"])?.exits(2)?;
    Ok(())
}

fn the_manual_is_a_manual_page(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["man"])?;
    run.exits(0)?;
    let text = run.text()?;
    ensure!(text.lines().any(|line| line.starts_with(".TH lockwatch")), "no .TH lockwatch");
    ensure!(text.contains("scan"), "no scan in it");
    Ok(())
}
