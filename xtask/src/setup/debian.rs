//! Debian's way: its rustc-web packages carry a prebuilt `core` for BPF. They are unpacked into
//! the cache, and a bpf-linker is built against the LLVM that comes with them.
//!
//! Nothing is installed, and no version is written down here but bpf-linker's: the packages are
//! taken in the newest version that apt knows.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt::{self, Package};
use super::{Toolchain, WITH_RUSTUP};
use crate::cache::{Cache, Guard};
use crate::progress::{self, Step};
use crate::{command, workspace};

/// The package with `core` for BPF; the others follow from its version.
const CORE_FOR_BPF: &str = "libstd-rust-web-dev-bpf";
const LINKER_VERSION: &str = "0.13.0";
const TOOLCHAIN_PREFIX: &str = "bpf-toolchain-";
/// In the toolchain's folder: which major version of LLVM it has.
const LLVM_MAJOR: &str = "llvm-major";

/// What to fetch.
#[derive(Debug)]
struct Plan {
    version: String,
    llvm_major: u32,
    packages: Vec<Package>,
}

/// The toolchain from the cache, made if it is not there.
pub(super) fn toolchain(cache: &Cache) -> Result<Toolchain> {
    if let Some(ready) = ready(cache) {
        return Ok(ready);
    }
    let guard = cache.lock()?;
    // Another set-up may have made it while we waited.
    if let Some(ready) = ready(cache) {
        return Ok(ready);
    }
    let folder = match cache.entries(TOOLCHAIN_PREFIX).first() {
        Some(name) => cache.path(name),
        None => make_toolchain(&guard)?,
    };
    make_linker(&guard, &folder)?;
    ready(cache).context("the toolchain that was just made is not in the cache")
}

fn ready(cache: &Cache) -> Option<Toolchain> {
    let name = cache.entries(TOOLCHAIN_PREFIX).into_iter().next()?;
    let folder = cache.path(&name);
    let linker_folder = cache.path(&linker_entry(&folder).ok()?).join("bin");
    linker_folder.join("bpf-linker").exists().then(|| Toolchain::Debian {
        rustc: wrapper(&folder),
        linker_folder,
        version: format!("{name} bpf-linker-{LINKER_VERSION}"),
    })
}

fn wrapper(folder: &Path) -> PathBuf {
    folder.join("bin/rustc")
}

fn linker_entry(toolchain: &Path) -> Result<String> {
    let path = toolchain.join(LLVM_MAJOR);
    let major = fs::read_to_string(&path).with_context(|| {
        format!("reading {}: remove {} and run this again", path.display(), toolchain.display())
    })?;
    Ok(format!("bpf-linker-{LINKER_VERSION}-llvm-{}", major.trim()))
}

fn make_toolchain(guard: &Guard<'_>) -> Result<PathBuf> {
    let plan = match plan() {
        Ok(Some(plan)) => plan,
        _ => fresh_plan()?,
    };
    fetch(guard, &plan).or_else(|first| {
        // Lists that are too old name versions that the mirror no longer has.
        progress::say("that failed; trying again with fresh package lists");
        match fresh_plan() {
            Ok(plan) => fetch(guard, &plan),
            Err(second) => Err(first.context(format!("{second:#}"))),
        }
    })
}

fn fresh_plan() -> Result<Plan> {
    apt::update()?;
    match plan()? {
        Some(plan) => Ok(plan),
        None => bail!(
            "apt's lists have no {CORE_FOR_BPF}: Debian 12 has it in its security suite, 13 \
             and newer too; is that suite among apt's sources?\n  Otherwise, with rustup: \
             {WITH_RUSTUP}"
        ),
    }
}

fn plan() -> Result<Option<Plan>> {
    let Some(version) = apt::newest(CORE_FOR_BPF)? else { return Ok(None) };
    let release = release(&version)?;
    let libstd = apt::show(&format!("libstd-rust-web-{release}"), &version)?;
    let (llvm, llvm_major) = llvm(&libstd.depends)
        .with_context(|| format!("{} depends on no libllvm package", libstd.spec))?;
    let llvm_version = apt::newest(llvm)?.with_context(|| format!("apt's lists have no {llvm}"))?;
    let llvm = apt::show(llvm, &llvm_version)?;
    let mut packages = vec![llvm, libstd];
    for name in ["rustc-web", "libstd-rust-web-dev", CORE_FOR_BPF] {
        packages.push(apt::show(name, &version)?);
    }
    Ok(Some(Plan { version, llvm_major, packages }))
}

/// `1.96` of `1.96.0+dfsg1-1~deb12u2`.
fn release(version: &str) -> Result<String> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut parts = upstream.split('.');
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) if minor.chars().all(|c| c.is_ascii_digit()) => {
            Ok(format!("{major}.{minor}"))
        }
        _ => bail!("{CORE_FOR_BPF} has the version {version:?}, which names no Rust release"),
    }
}

fn llvm(depends: &[String]) -> Option<(&str, u32)> {
    depends
        .iter()
        .find_map(|name| Some((name.as_str(), name.strip_prefix("libllvm")?.parse().ok()?)))
}

fn fetch(guard: &Guard<'_>, plan: &Plan) -> Result<PathBuf> {
    progress::say(&format!(
        "no BPF toolchain yet: taking Debian's ({}), once, into the cache",
        plan.version
    ));
    guard.make(&format!("{TOOLCHAIN_PREFIX}{}", plan.version), |partial| {
        let (debs, root) = (partial.join("debs"), partial.join("root"));
        for folder in [&debs, &root] {
            fs::create_dir(folder).with_context(|| folder.display().to_string())?;
        }
        apt::unpack(&plan.packages, &debs, &root)?;
        fs::remove_dir_all(&debs).with_context(|| debs.display().to_string())?;
        furnish(partial, plan.llvm_major)?;
        prove(partial)
    })
}

/// Adds what the packages lack to be used in place: a rustc that finds its libraries, and the
/// folder layout that bpf-linker's build expects of an LLVM.
fn furnish(folder: &Path, llvm_major: u32) -> Result<()> {
    let (libraries, llvm) = llvm_library(&folder.join("root/usr/lib"), llvm_major)?;
    let llvm_lib = folder.join("llvm/lib");
    fs::create_dir_all(&llvm_lib).with_context(|| llvm_lib.display().to_string())?;
    // Relative, because the folder is about to be renamed.
    let library = Path::new("../../root/usr/lib").join(&libraries).join(&llvm);
    for name in ["libLLVM.so", llvm.as_str()] {
        symlink(&library, llvm_lib.join(name)).with_context(|| format!("linking {name}"))?;
    }

    let rustc = wrapper(folder);
    fs::create_dir_all(folder.join("bin")).with_context(|| rustc.display().to_string())?;
    let script = format!(
        "#!/bin/sh\n\
         here=$(dirname \"$0\")/../root/usr\n\
         LD_LIBRARY_PATH=\"$here/lib/{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
         export LD_LIBRARY_PATH\n\
         exec \"$here/bin/rustc\" \"$@\"\n"
    );
    fs::write(&rustc, script)
        .and_then(|()| fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", rustc.display()))?;
    let major = folder.join(LLVM_MAJOR);
    fs::write(&major, format!("{llvm_major}\n")).with_context(|| major.display().to_string())
}

/// The library folder's name (`x86_64-linux-gnu`) and the LLVM in it (`libLLVM.so.22.1`).
fn llvm_library(lib: &Path, major: u32) -> Result<(String, String)> {
    let prefix = format!("libLLVM.so.{major}");
    let names = |folder: &Path| -> Vec<String> {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    };
    names(lib)
        .into_iter()
        .find_map(|libraries| {
            let llvm = names(&lib.join(&libraries)).into_iter().find(|n| n.starts_with(&prefix))?;
            Some((libraries, llvm))
        })
        .with_context(|| format!("the unpacked packages hold no {prefix}"))
}

/// Runs the compiler once before the folder counts as complete.
fn prove(folder: &Path) -> Result<()> {
    let libraries = command::capture(
        Command::new(wrapper(folder)).args([
            "--print",
            "target-libdir",
            "--target",
            "bpfel-unknown-none",
        ]),
        "see whether the machine's libc and libstdc++ are those of its Debian release",
    )?;
    let libraries = Path::new(libraries.trim());
    let has_core = fs::read_dir(libraries).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("libcore-") && name.ends_with(".rlib")
    });
    if !has_core {
        bail!("the packages hold no core for BPF (looked in {})", libraries.display());
    }
    Ok(())
}

fn make_linker(guard: &Guard<'_>, toolchain: &Path) -> Result<()> {
    let entry = linker_entry(toolchain)?;
    let feature = entry
        .find("llvm-")
        .map(|at| &entry[at..])
        .context("a bpf-linker entry without an LLVM version")?;
    guard.make(&entry, |partial| {
        let step = Step::start(format!("building bpf-linker {LINKER_VERSION} ({feature})"));
        let mut install = Command::new(workspace::cargo_program());
        install
            // The workspace's cargo configuration is none of bpf-linker's business.
            .current_dir(partial)
            .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"])
            .args(["--no-default-features", "--features", feature, "--root"])
            .arg(partial)
            .arg("--target-dir")
            .arg(partial.join("target"))
            .env("LLVM_PREFIX", toolchain.join("llvm"))
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET");
        command::capture(
            &mut install,
            "see that the network works and that `cc` is there, then run this again",
        )?;
        let target = partial.join("target");
        fs::remove_dir_all(&target).with_context(|| target.display().to_string())?;
        step.done("");
        Ok(())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_start_of_the_version() {
        assert_eq!(release("1.96.0+dfsg1-1~deb12u2").unwrap(), "1.96");
        assert_eq!(release("1:2.0.1-1").unwrap(), "2.0");
        assert!(release("unknown").is_err());
    }

    #[test]
    fn llvm_is_found_among_the_dependencies() {
        let depends = ["libc6", "libllvm22", "libstdc++6"].map(str::to_owned);
        assert_eq!(llvm(&depends), Some(("libllvm22", 22)));
        assert_eq!(llvm(&depends[..1]), None);
    }

    #[test]
    fn a_toolchain_without_its_linker_is_not_ready() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert_eq!(ready(&cache), None);
        let toolchain = folder.path().join("bpf-toolchain-1.96.0-1");
        fs::create_dir(&toolchain).unwrap();
        assert_eq!(ready(&cache), None);
        fs::write(toolchain.join(LLVM_MAJOR), "22\n").unwrap();
        assert_eq!(ready(&cache), None);
        let bin = folder.path().join(format!("bpf-linker-{LINKER_VERSION}-llvm-22/bin"));
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("bpf-linker"), "").unwrap();
        assert!(ready(&cache).is_some());
    }

    #[test]
    fn a_furnished_toolchain_survives_its_renaming() {
        let folder = tempfile::tempdir().unwrap();
        let partial = folder.path().join("partial");
        let libraries = partial.join("root/usr/lib/any-linux-gnu");
        fs::create_dir_all(&libraries).unwrap();
        fs::write(libraries.join("libLLVM.so.22.1"), "llvm").unwrap();
        let bin = partial.join("root/usr/bin");
        fs::create_dir_all(&bin).unwrap();
        let rustc = bin.join("rustc");
        fs::write(&rustc, "#!/bin/sh\necho \"$LD_LIBRARY_PATH\"\n").unwrap();
        fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
        furnish(&partial, 22).unwrap();
        let whole = folder.path().join("whole");
        fs::rename(&partial, &whole).unwrap();
        assert_eq!(fs::read(whole.join("llvm/lib/libLLVM.so")).unwrap(), b"llvm");
        let path = command::capture(&mut Command::new(wrapper(&whole)), "").unwrap();
        assert!(path.contains("whole/bin/../root/usr/lib/any-linux-gnu"), "{path}");
    }
}
