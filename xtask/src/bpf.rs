//! The BPF objects: `lockwatch-ebpf`, compiled, stripped of what the kernel does not read, and put
//! where lockwatch's build script takes them.
//!
//! Sets nothing up, and never touches user space's own build.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::{self, Step};
use crate::setup::Toolchain;
use crate::{command, workspace};

#[path = "../../lockwatch/bpf_sources.rs"]
mod bpf_sources;

const PACKAGE: &str = "lockwatch-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// Builds the objects, or finds that nothing they are made of has changed. Answers the
/// folder in which they are.
pub(crate) fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let target = workspace::target();
    let folder = target.join(bpf_sources::FOLDER);
    let object = |name: &str| folder.join(bpf_sources::file_name(name));
    let stamp_file = target.join(bpf_sources::STAMP);
    let stamp = stamp(toolchain)?;
    let complete = bpf_sources::OBJECTS.iter().all(|name| object(name).exists());
    if complete && fs::read_to_string(&stamp_file).is_ok_and(|old| old == stamp) {
        return Ok(folder);
    }

    let step = Step::start("compiling the BPF programs");
    let mut cargo = cargo(toolchain, &folder, "-Cdebuginfo=2\x1f-Clink-arg=--btf");
    cargo.args(["build", "--quiet", "--release", "--package", PACKAGE, "--target", TARGET]);
    command::capture(&mut cargo, &advice(toolchain))?;
    let mut size = 0;
    for name in bpf_sources::OBJECTS {
        let bytes = stripped(&folder.join(TARGET).join("release").join(name))?;
        write_if_changed(&object(name), &bytes)?;
        size += bytes.len() as u64;
    }
    // Last: a stamp must never vouch for an object that was not written.
    write_if_changed(&stamp_file, stamp.as_bytes())?;
    step.done(&progress::size(size));
    Ok(folder)
}

/// Compiles the programs with warnings denied, in a folder apart: other flags would make the
/// next build start anew.
pub(crate) fn check(toolchain: &Toolchain) -> Result<()> {
    let folder = workspace::target().join("bpf-check");
    let mut cargo = cargo(toolchain, &folder, "-Dwarnings");
    cargo.args(["check", "--quiet", "--release", "--package", PACKAGE, "--target", TARGET]);
    command::run(&mut cargo, "")
}

fn cargo(toolchain: &Toolchain, target: &Path, flags: &str) -> Command {
    let mut cargo = match toolchain {
        Toolchain::Rustup { name } => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", name, "cargo", "-Zbuild-std=core"]);
            // Those of the toolchain that runs xtask.
            cargo.env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
            cargo
        }
        Toolchain::Debian { rustc, linker_folder, .. } => {
            let mut cargo = Command::new(workspace::cargo_program());
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(linker_folder.clone())
                .chain(std::env::split_paths(&path))
                .collect::<Vec<_>>();
            // Only a folder with a colon in its name cannot be joined; the linker is then
            // reported missing by rustc.
            cargo.env("PATH", std::env::join_paths(folders).unwrap_or(path));
            // Debian's core for BPF is unstable only in name: the target is tier 3.
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
    };
    cargo
        .current_dir(workspace::root())
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTFLAGS");
    cargo
}

fn advice(toolchain: &Toolchain) -> String {
    match toolchain {
        Toolchain::Rustup { name } => format!(
            "if bpf-linker is what fails, it may know an older LLVM than {name}: \
             cargo install bpf-linker --locked --force"
        ),
        Toolchain::Debian { rustc, .. } => format!(
            "if the toolchain is what fails, remove {} and run this again",
            rustc.parent().and_then(Path::parent).unwrap_or(rustc).display()
        ),
    }
}

/// Everything that decides what the objects will be. Its line about the sources is the one that
/// the build script compares.
fn stamp(toolchain: &Toolchain) -> Result<String> {
    let root = workspace::root();
    let sources = bpf_sources::stamp_line(&root).context("reading the BPF programs' sources")?;
    let mut digest = bpf_sources::Digest::default();
    for name in ["Cargo.lock", "Cargo.toml"] {
        digest.add(&fs::read(root.join(name)).with_context(|| format!("reading {name}"))?);
    }
    Ok(format!("{sources}\nworkspace {:016x}\ntoolchain {}\n", digest.0, toolchain.id()))
}

/// The object without its DWARF, which is most of it, where there is an objcopy; BTF stays.
fn stripped(built: &Path) -> Result<Vec<u8>> {
    let whole = fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    let Some(mut objcopy) = objcopy() else { return Ok(whole) };
    let output = built.with_extension("stripped");
    let strip = objcopy.arg("--strip-debug").arg(built).arg(&output);
    if let Err(error) = command::capture(strip, "") {
        progress::say(&format!("a BPF object keeps its debug sections: {error:#}"));
        return Ok(whole);
    }
    let bytes = fs::read(&output).with_context(|| format!("reading {}", output.display()))?;
    for section in [".BTF\0", ".BTF.ext\0"] {
        if names(&whole, section) && !names(&bytes, section) {
            bail!("stripping {} took its {} away", built.display(), section.trim_end_matches('\0'));
        }
    }
    Ok(bytes)
}

/// An objcopy that knows BPF: the Rust toolchain has one, LLVM another. GNU's knows no BPF.
fn objcopy() -> Option<Command> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let libraries =
        command::capture(Command::new(rustc).args(["--print", "target-libdir"]), "").ok()?;
    // lib/rustlib/<host>/lib, of which the objcopy is a sibling.
    let libraries = Path::new(libraries.trim());
    let ours = libraries.parent()?.join("bin/rust-objcopy");
    if ours.exists() {
        let mut command = Command::new(ours);
        // Its LLVM is rustc's own, which it does not find by itself.
        command.env("LD_LIBRARY_PATH", libraries.ancestors().nth(3)?);
        return Some(command);
    }
    command::find("llvm-objcopy").map(Command::new)
}

/// Whether an ELF file's string tables hold a section name, given with its final NUL.
fn names(elf: &[u8], section: &str) -> bool {
    elf.windows(section.len()).any(|window| window == section.as_bytes())
}

/// A file that keeps its time stamp when nothing changes, so that cargo rebuilds nothing.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, bytes)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_digest_follows_names_and_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for package in bpf_sources::PACKAGES {
            fs::create_dir_all(folder.path().join(package).join("src")).unwrap();
        }
        let file = folder.path().join("lockwatch-ebpf/src/one.rs");
        fs::write(&file, "one").unwrap();
        let first = bpf_sources::stamp_line(folder.path()).unwrap();
        fs::write(&file, "one").unwrap();
        assert_eq!(bpf_sources::stamp_line(folder.path()).unwrap(), first);
        fs::write(&file, "two").unwrap();
        let second = bpf_sources::stamp_line(folder.path()).unwrap();
        assert_ne!(second, first);
        fs::rename(&file, file.with_file_name("other.rs")).unwrap();
        assert_ne!(bpf_sources::stamp_line(folder.path()).unwrap(), second);
    }

    #[test]
    fn an_unchanged_file_keeps_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("object");
        write_if_changed(&path, b"same").unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        write_if_changed(&path, b"same").unwrap();
        assert_eq!(path.metadata().unwrap().modified().unwrap(), old);
        write_if_changed(&path, b"other").unwrap();
        assert_ne!(path.metadata().unwrap().modified().unwrap(), old);
    }

    #[test]
    fn btf_is_not_taken_for_its_extension() {
        assert!(names(b"\0.text\0.BTF\0.rel.BTF.ext\0", ".BTF\0"));
        assert!(!names(b"\0.text\0.rel.BTF.ext\0", ".BTF\0"));
    }
}
