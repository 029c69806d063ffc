//! Where the kernel refuses BPF: one line that names the cause, what /proc tells all the same, and
//! a doctor that says what is missing.
//!
//! Each cause is made for real, and only for the process that is to meet it; lockdown, which holds
//! for a whole machine, is found in a virtual one that was booted with it.

use anyhow::{Context, Result, ensure};
use lockwatch_tests::harness::invocation::{Capability, Invocation};
use lockwatch_tests::harness::{Scene, Test, capability};
use lockwatch_tests::{once, same};
use serde_json::Value;

use crate::stories::HELD;

pub(crate) const TESTS: &[Test] = &[
    once!(without_capabilities_proc_is_read).needs(&["root", "btf", "procfs"]),
    once!(a_single_capability_that_is_missing_is_named).needs(&["root", "iter/task_file"]),
    once!(cap_bpf_and_cap_perfmon_are_enough).needs(&["root", "iter/task_file"]),
    once!(without_privilege_proc_is_read).needs(&["nobody", "btf", "procfs"]),
    once!(without_type_information_proc_is_read).needs(&["root", "mounts", "btf", "procfs"]),
    once!(under_lockdown_proc_is_read).needs(&["lockdown", "root", "procfs"]),
];

const ALL_THAT_BPF_NEEDS: &[Capability] =
    &[Capability::SysAdmin, Capability::Bpf, Capability::PerfMon];

/// Who meets the refusal, and what it looks like.
struct Refusal<'a> {
    /// `lockwatch` with arguments, as it meets it.
    run: &'a dyn Fn(&Scene, &[&str]) -> Result<Invocation>,
    /// What the line on standard error must contain.
    names: &'a [&'a str],
    /// The probe of the doctor that must fail, and what its detail must contain.
    probe: (&'a str, &'a [&'a str]),
}

/// One line, /proc in place of the kernel's own tables, and a doctor that knows why.
fn is_met(scene: &mut Scene, refusal: &Refusal<'_>) -> Result<()> {
    scene.play(HELD)?;
    falls_back(scene, refusal)?;
    let refused = (refusal.run)(scene, &["scan", "--source", "bpf", "."])?.run()?;
    contains(refused.fails_in_one_line()?, refusal.names)?;
    doctor_knows(scene, refusal)
}

fn falls_back(scene: &Scene, refusal: &Refusal<'_>) -> Result<()> {
    // Of the whole machine: a path below which to look tells little to whoever may look into little.
    let run = (refusal.run)(scene, &["scan", "--json"])?.run()?;
    let report = scene.report(&run)?;
    same!("source", report.source, "procfs");
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.looks_like("FLOCK WRITE 0-eof")?;
    let complaints = run.complaints()?;
    same!("complaints", complaints.len(), 1);
    let line = complaints.first().context("no complaint")?;
    ensure!(line.starts_with("lockwatch: "), "{line:?}");
    contains(line, &["/proc", "lockwatch doctor"])?;
    contains(line, refusal.names)
}

fn doctor_knows(scene: &Scene, refusal: &Refusal<'_>) -> Result<()> {
    let run = (refusal.run)(scene, &["doctor", "--json"])?.run()?;
    run.exits(1)?;
    same!("complaints", run.complaints()?.len(), 0);
    let report: Value = serde_json::from_slice(&run.stdout)?;
    let (name, says) = refusal.probe;
    let probes = report["probes"].as_array().context("no probes")?;
    let probe = probes.iter().find(|probe| probe["name"].as_str() == Some(name));
    let probe = probe.with_context(|| format!("no probe {name}"))?;
    same!(name, probe["ok"].as_bool(), Some(false));
    contains(probe["detail"].as_str().context("no detail")?, says)?;
    // And for a human: the same words behind the same name.
    let run = (refusal.run)(scene, &["doctor"])?.run()?;
    run.exits(1)?;
    let line = run.lines()?.into_iter().find(|line| {
        line.strip_prefix("MISSING").is_some_and(|rest| rest.trim_start().starts_with(name))
    });
    contains(line.with_context(|| format!("{name} is not marked"))?, says)
}

fn contains(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in {text:?}");
    }
    Ok(())
}

fn without_capabilities_proc_is_read(scene: &mut Scene) -> Result<()> {
    let run = |scene: &Scene, args: &[&str]| Ok(scene.lockwatch(args)?.without(ALL_THAT_BPF_NEEDS));
    let missing = "this process lacks CAP_BPF and CAP_PERFMON";
    let probe: (_, &[_]) = ("bpf", &["Operation not permitted (os error 1)", missing]);
    is_met(scene, &Refusal { run: &run, names: &["os error 1", missing], probe })
}

fn a_single_capability_that_is_missing_is_named(scene: &mut Scene) -> Result<()> {
    let run = |scene: &Scene, args: &[&str]| {
        Ok(scene.lockwatch(args)?.without(&[Capability::SysAdmin, Capability::PerfMon]))
    };
    let missing = "this process lacks CAP_PERFMON";
    let probe: (_, &[_]) = ("iter/task_file", &["Operation not permitted (os error 1)", missing]);
    is_met(scene, &Refusal { run: &run, names: &["os error 1", missing], probe })
}

fn cap_bpf_and_cap_perfmon_are_enough(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let run = scene.lockwatch(&["scan", "--json", "."])?.without(&[Capability::SysAdmin]).run()?;
    let report = scene.report(&run)?;
    same!("source", report.source, "bpf");
    same!("complaints", run.complaints()?.len(), 0);
    report.only_lock_on(&scene.file("lock")?)?.is("held")
}

fn without_privilege_proc_is_read(scene: &mut Scene) -> Result<()> {
    let run = |scene: &Scene, args: &[&str]| Ok(scene.public_lockwatch(args)?.as_nobody());
    let disabled = std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
    let disabled = disabled.context("unprivileged_bpf_disabled")?;
    let missing = match disabled.trim() {
        // Anybody may have maps there; programs that look into the kernel nobody but root.
        "0" => "this process lacks CAP_BPF and CAP_PERFMON".to_owned(),
        value => format!(
            "this process lacks CAP_BPF and CAP_PERFMON, and kernel.unprivileged_bpf_disabled is \
             {value}"
        ),
    };
    let names = ["os error 1", missing.as_str()];
    is_met(scene, &Refusal { run: &run, names: &names, probe: ("iter/task_file", &[]) })
}

fn without_type_information_proc_is_read(scene: &mut Scene) -> Result<()> {
    scene.private_mounts()?;
    capability::tmpfs(std::path::Path::new("/sys/kernel/btf"))?;
    let run = |scene: &Scene, args: &[&str]| scene.lockwatch(args);
    let names = ["/sys/kernel/btf/vmlinux", "os error 2", "CONFIG_DEBUG_INFO_BTF"];
    is_met(scene, &Refusal { run: &run, names: &names, probe: ("btf", &names) })
}

fn under_lockdown_proc_is_read(scene: &mut Scene) -> Result<()> {
    let run = |scene: &Scene, args: &[&str]| scene.lockwatch(args);
    let names = ["lockdown=confidentiality"];
    is_met(scene, &Refusal { run: &run, names: &names, probe: ("iter/task_file", &names) })
}
