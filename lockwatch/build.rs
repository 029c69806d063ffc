//! Puts the BPF object into OUT_DIR, for the library to embed.
//!
//! Does not build it: that takes a toolchain of its own, which `cargo xtask` sets up. An object
//! that is absent, or older than its sources, ends the build with the command to run.

mod bpf_sources;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const OVERRIDE: &str = "LOCKWATCH_BPF_OBJECT";

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
    let object = match env::var_os(OVERRIDE) {
        // Whoever names an object answers for it.
        Some(object) => PathBuf::from(object),
        None => built_object(&out)?,
    };
    println!("cargo:rerun-if-changed={}", object.display());
    fs::copy(&object, out.join("lockwatch.bpf.o"))
        .map_err(|error| format!("embedding the BPF object {}: {error}", object.display()))?;
    Ok(())
}

fn built_object(out: &Path) -> Result<PathBuf, String> {
    let manifest = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = manifest.parent().ok_or("lockwatch's package is not in a workspace")?;
    for package in bpf_sources::PACKAGES {
        println!("cargo:rerun-if-changed={}", workspace.join(package).display());
    }
    let targets = target_folders(out, workspace);
    let Some(target) = targets.iter().find(|target| target.join(bpf_sources::OBJECT).exists())
    else {
        return Err("the BPF object is not built yet: run `cargo xtask build` \
                    (or `cargo xtask setup`, after which plain `cargo build` works)"
            .to_owned());
    };
    let now = bpf_sources::stamp_line(workspace)
        .map_err(|error| format!("reading the sources of the BPF object: {error}"))?;
    let stamp = target.join(bpf_sources::STAMP);
    println!("cargo:rerun-if-changed={}", stamp.display());
    let stamp = fs::read_to_string(stamp).unwrap_or_default();
    if !stamp.lines().any(|line| line == now) {
        return Err(format!(
            "the BPF object is older than its sources ({}): run `cargo xtask build`",
            bpf_sources::PACKAGES.join(", ")
        ));
    }
    Ok(target.join(bpf_sources::OBJECT))
}

/// The target folders in which the object may be, the likeliest first.
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
