//! Checks the VM itself: that what `vm-init` promises to the live tests is there.
//!
//! Takes the place of the live tests in `cargo xtask vm --self-check` and speaks as they do:
//! `--json FILE`, `--patience N` (which it has no use for), a filter, a closing line. It tests
//! nothing of lockwatch.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

type Check = (&'static str, fn() -> Result<Option<String>>);

const CHECKS: [Check; 8] = [
    ("mounts", mounts),
    ("btf", btf),
    ("locks", locks),
    ("file_systems", file_systems),
    ("loop_devices", loop_devices),
    ("loopback", loopback),
    ("tools", tools),
    ("orphans_are_reaped", orphans_are_reaped),
];

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let (mut file, mut filter) = (None, String::new());
    while let Some(argument) = arguments.next() {
        if argument == "--json" {
            file = arguments.next();
        } else if argument == "--patience" {
            arguments.next();
        } else {
            filter = argument;
        }
    }
    let (mut results, mut counts) = (String::new(), [0; 3]);
    for (name, check) in CHECKS.iter().filter(|(name, _)| name.contains(&filter)) {
        let started = Instant::now();
        let (which, outcome, reason) = match check() {
            Ok(None) => (0, "passed", String::new()),
            Ok(Some(reason)) => (2, "skipped", reason),
            Err(error) => (1, "failed", format!("{error:#}")),
        };
        counts[which] += 1;
        println!("test {name} ... {outcome} {reason}");
        let result = json!({
            "name": name, "result": outcome, "reason": reason,
            "seconds": started.elapsed().as_secs_f64(),
        });
        results.push_str(&format!("{result}\n"));
    }
    if let Some(file) = file {
        fs::write(&file, results).with_context(|| format!("cannot write {file}"))?;
    }
    println!("{} passed, {} failed, {} skipped", counts[0], counts[1], counts[2]);
    Ok(if counts[1] == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shell(script: &str) -> Result<String> {
    let output = Command::new("/bin/sh").args(["-c", script]).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{script}` failed with {}: {said}", output.status);
    Ok(said)
}

fn mounts() -> Result<Option<String>> {
    let text = fs::read_to_string("/proc/self/mounts")?;
    for place in ["/proc", "/sys", "/dev", "/tmp", "/run", "/sys/fs/bpf", "/sys/fs/cgroup"] {
        ensure!(text.contains(&format!(" {place} ")), "{place} is not mounted");
    }
    ensure!(Path::new("/sys/kernel/tracing/events/filelock/flock_lock_inode").exists());
    Ok(None)
}

fn btf() -> Result<Option<String>> {
    ensure!(fs::metadata("/sys/kernel/btf/vmlinux")?.len() > 100_000, "the BTF is too small");
    Ok(None)
}

/// A shell and flock(1), as the live tests use them.
fn locks() -> Result<Option<String>> {
    let said = shell("exec 9>/tmp/selfcheck.lock; flock 9; cat /proc/locks")?;
    ensure!(said.contains("FLOCK  ADVISORY  WRITE"), "no lock in:\n{said}");
    Ok(None)
}

fn file_systems() -> Result<Option<String>> {
    let text = fs::read_to_string("/proc/filesystems")?;
    for name in ["fuse", "overlay", "tmpfs"] {
        ensure!(text.lines().any(|line| line.ends_with(&format!("\t{name}"))), "no {name}");
    }
    ensure!(Path::new("/dev/fuse").exists(), "no /dev/fuse");
    shell(
        "mkdir -p /tmp/o/l /tmp/o/u /tmp/o/w /tmp/o/m && mount -t overlay overlay \
         -o lowerdir=/tmp/o/l,upperdir=/tmp/o/u,workdir=/tmp/o/w /tmp/o/m && \
         touch /tmp/o/m/file && umount /tmp/o/m",
    )?;
    Ok(None)
}

fn loop_devices() -> Result<Option<String>> {
    ensure!(Path::new("/dev/loop-control").exists(), "no /dev/loop-control");
    Ok(None)
}

fn loopback() -> Result<Option<String>> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    std::net::TcpStream::connect(listener.local_addr()?)?;
    Ok(None)
}

fn tools() -> Result<Option<String>> {
    shell("unshare --pid --fork --mount-proc sh -c 'test $$ = 1 && cat /proc/1/comm'")?;
    shell("flock --version && lslocks --version && uname -r")?;
    Ok(None)
}

/// Nobody but init can reap the grandchild.
fn orphans_are_reaped() -> Result<Option<String>> {
    let pid = shell("sh -c 'sleep 0.2 </dev/null >/dev/null 2>&1 & echo $!'")?;
    for _ in 0..50 {
        if !Path::new("/proc").join(pid.trim()).exists() {
            return Ok(None);
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    anyhow::bail!("process {} is still there", pid.trim())
}
