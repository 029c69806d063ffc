//! Puts together what a VM boots into: init, the programs under test, the tools that the tests
//! call, their libraries, and the kernel's modules.
//!
//! Takes programs from this machine as they are and builds nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::cpio::Archive;
use super::programs::Programs;
use super::{libraries, modules, tools};
use crate::progress;

/// Where init finds its instructions. The same names stand in `tests/src/bin/vm-init.rs`.
const MODULES_FILE: &str = "vm/modules";
const RUN_FILE: &str = "vm/run.json";

/// The modules that live tests need; what a kernel has built in is not missed.
const MODULES: [&str; 4] = ["fuse", "overlay", "loop", "unix_diag"];

/// The tools that live tests may call. Only the first must be there.
const TOOLS: [&str; 41] = [
    "sh", "flock", "unshare", "lslocks", "nsenter", "setpriv", "mount", "umount", "losetup",
    "kill", "prlimit", "cat", "ls", "cp", "mv", "rm", "ln", "mkdir", "rmdir", "touch", "sleep",
    "true", "false", "id", "env", "timeout", "stat", "dd", "head", "seq", "uname", "dmesg", "ip",
    "echo", "busybox", "grep", "find", "tail", "wc", "sort", "setsid",
];

/// The folders of a merged `/usr`, so that a tool is found by either of its paths.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];

/// Everything but the modules and the run: the same for each VM, so made once.
pub(crate) fn base(programs: &Programs) -> Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    for name in MERGED {
        archive.folder(&format!("usr/{name}"))?;
        archive.symlink(name, &format!("usr/{name}"))?;
    }
    for folder in ["proc", "sys", "dev", "run", "tmp", "root", "etc", "mnt", "var", "vm"] {
        archive.folder(folder)?;
    }
    archive.symlink("var/run", "../run")?;
    archive.symlink("var/tmp", "../tmp")?;
    archive.device("dev/console", 5, 1)?;
    archive.device("dev/null", 1, 3)?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    archive.file("etc/hostname", 0o644, b"lockwatch-vm\n")?;

    add_program(&mut archive, &programs.init, "init")?;
    add_program(&mut archive, &programs.tests, "usr/bin/live-tests")?;
    for (program, place) in [(&programs.lockwatch, LOCKWATCH), (&programs.rig, RIG)] {
        if let Some(program) = program {
            add_program(&mut archive, program, place)?;
        }
    }
    for tool in TOOLS {
        match tools::find(tool) {
            Some(path) => add_program(&mut archive, &path, &format!("usr/bin/{tool}"))?,
            None if tool == TOOLS[0] => anyhow::bail!("this machine has no {tool} to take along"),
            None => {
                progress::say(&format!("{tool} is not on this machine, so the VMs do without it"))
            }
        }
    }
    Ok(archive.finish()?)
}

const LOCKWATCH: &str = "usr/bin/lockwatch";
const RIG: &str = "usr/bin/rig";

/// `base`, this kernel's modules, and what the tests are called with, `more` in their environment.
/// The kernel unpacks archives that follow one another.
pub(crate) fn complete(
    base: &[u8],
    module_folder: &Path,
    arguments: &[String],
    more: Option<(&str, String)>,
) -> Result<Vec<u8>> {
    let (found, absent) = modules::closure(module_folder, &MODULES)?;
    let mut archive = Archive::new(Vec::new());
    let mut list = String::new();
    for module in &found {
        let path = format!("vm/module/{}.ko", module.name);
        archive.file(&path, 0o644, &module.object)?;
        list.push_str(&format!("/{path}\n"));
    }
    // Init checks that these are built in.
    for name in absent {
        list.push_str(&format!("built-in {name}\n"));
    }
    archive.file(MODULES_FILE, 0o644, list.as_bytes())?;
    let programs = [("LOCKWATCH_BIN", LOCKWATCH), ("RIG_BIN", RIG)];
    let programs = programs.map(|(name, place)| (name, format!("/{place}")));
    let environment: BTreeMap<_, _> = programs.into_iter().chain(more).collect();
    let run = serde_json::json!({
        "program": "/usr/bin/live-tests",
        "arguments": arguments,
        "environment": environment,
    });
    archive.file(RUN_FILE, 0o644, &serde_json::to_vec(&run)?)?;
    Ok([base, &archive.finish()?].concat())
}

fn add_program(archive: &mut Archive<Vec<u8>>, program: &Path, place: &str) -> Result<()> {
    let content =
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    archive.file(place, 0o755, &content)?;
    for library in libraries::of(program)? {
        let place = in_merged_usr(&library);
        if !archive.has(&place) {
            let content =
                fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
            archive.file(&place, 0o755, &content)?;
        }
    }
    Ok(())
}

/// `usr/lib/x.so` for `/lib/x.so`: a path through one of the links would be written through
/// the link by some kernels and over it by others.
fn in_merged_usr(path: &Path) -> String {
    let path = path.to_string_lossy();
    let path = path.trim_start_matches('/');
    match path.split_once('/') {
        Some((first, _)) if MERGED.contains(&first) => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_go_where_the_links_lead() {
        let place = |path: &str| in_merged_usr(Path::new(path));
        assert_eq!(place("/lib64/ld-linux-x86-64.so.2"), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(place("/usr/lib/x.so"), "usr/lib/x.so");
        assert_eq!(place("/opt/lib/x.so"), "opt/lib/x.so");
    }

    #[test]
    fn the_modules_follow_the_base() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("fuse.ko"), b"\0depends=\0").unwrap();
        let whole = complete(b"BASE", folder.path(), &["--exact".to_owned()], None).unwrap();
        assert!(whole.starts_with(b"BASE070701"));
        let text = String::from_utf8_lossy(&whole);
        assert!(text.contains("/vm/module/fuse.ko\nbuilt-in overlay\nbuilt-in loop\n"), "{text}");
        assert!(text.contains("\"arguments\":[\"--exact\"]"), "{text}");
    }
}
