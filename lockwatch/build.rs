//! Puts the BPF objects into OUT_DIR, for the library to embed.
//!
//! Does not build them: that takes a toolchain of its own, which `cargo xtask` sets up. Objects
//! that are absent, or older than their sources, end the build with the command to run.

mod bpf_sources;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const OVERRIDE: &str = "LOCKWATCH_BPF_OBJECTS";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("\n{why}\n");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    println!("cargo:rerun-if-env-changed={OVERRIDE}");
    println!("cargo:rerun-if-env-changed=CARGO_TARGET_DIR");
    let out = PathBuf::from(variable("OUT_DIR")?);
    let folder = match env::var_os(OVERRIDE) {
        // Whoever names a folder answers for it.
        Some(folder) => PathBuf::from(folder),
        None => built_objects(&out)?,
    };
    for name in bpf_sources::OBJECTS.map(bpf_sources::file_name) {
        let object = folder.join(&name);
        println!("cargo:rerun-if-changed={}", object.display());
        fs::copy(&object, out.join(&name))
            .map_err(|error| format!("embedding the BPF object {}: {error}", object.display()))?;
    }
    Ok(())
}

/// The folder in which the objects are, all of them as new as their sources.
fn built_objects(out: &Path) -> Result<PathBuf, String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("lockwatch's package is not in a workspace")?;
    for package in bpf_sources::PACKAGES {
        println!("cargo:rerun-if-changed={}", workspace.join(package).display());
    }
    let targets = target_folders(out, workspace);
    let Some(target) = targets.iter().find(|target| target.join(bpf_sources::STAMP).exists())
    else {
        return Err("the BPF objects are not built yet: run `cargo xtask build` \
                    (or `cargo xtask setup`, after which plain `cargo build` works)"
            .to_owned());
    };
    let now = bpf_sources::stamp_line(workspace)
        .map_err(|error| format!("reading the sources of the BPF objects: {error}"))?;
    let stamp = target.join(bpf_sources::STAMP);
    println!("cargo:rerun-if-changed={}", stamp.display());
    let stamp = fs::read_to_string(stamp).unwrap_or_default();
    if !stamp.lines().any(|line| line == now) {
        return Err(format!(
            "the BPF objects are older than their sources ({}): run `cargo xtask build`",
            bpf_sources::PACKAGES.join(", ")
        ));
    }
    Ok(target.join(bpf_sources::FOLDER))
}

/// The target folders in which the objects may be, the likeliest first.
fn target_folders(out: &Path, workspace: &Path) -> Vec<PathBuf> {
    // OUT_DIR is target/[triple/]profile/build/package-hash/out.
    let mut folders: Vec<PathBuf> = out.ancestors().skip(4).take(2).map(Path::to_owned).collect();
    if let Some(folder) = env::var_os("CARGO_TARGET_DIR") {
        folders.push(workspace.join(folder));
    }
    folders.push(workspace.join("target"));
    folders.dedup();
    folders
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
