//! Brings the newest kernel of a suite into the cache, unpacked, and finds it there again.
//!
//! Refuses to use anything that apt could not verify. A folder in the cache is complete or
//! absent: it is made under another name and renamed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use super::apt::{self, Package, Refusal, Suite};
use super::sources::Mirror;
use super::suites::Kernel;
use super::tools;
use crate::progress;

const META: &str = "linux-image-cloud-amd64";
const KEYRING_PACKAGE: &str = "debian-archive-keyring";
/// What the names of half-made folders begin with.
const PARTIAL: &str = ".fetch-";
/// How long a suite's answer is good for.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    /// What `uname -r` says there.
    pub(crate) release: String,
    /// The Debian package and its version, for origins and reports.
    pub(crate) origin: String,
    pub(crate) vmlinuz: PathBuf,
    pub(crate) modules: PathBuf,
}

/// The newest kernel of `kernel`'s suite: asked of the mirror when the last answer is older
/// than a day or `refresh` is set, from the cache otherwise or when the mirror is silent.
pub(crate) fn newest(
    cache: &Path,
    mirror: &Result<Mirror>,
    kernel: &Kernel,
    refresh: bool,
) -> Result<Fetched> {
    let folder = cache.join("kernels").join(kernel.suite);
    let current = folder.join("current");
    let cached = cached(cache, kernel);
    let age = fs::metadata(&current)
        .and_then(|meta| meta.modified())
        .ok()
        .and_then(|time| SystemTime::now().duration_since(time).ok());
    if let Some(cached) = &cached
        && !refresh
        && age.is_some_and(|age| age < FRESH)
    {
        return Ok(cached.clone());
    }
    let fetched = match mirror {
        Ok(mirror) => fetch(cache, &folder, mirror, kernel),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    match (fetched, cached) {
        (Ok(version), _) => {
            let fetched = load(&folder.join(&version))?;
            replace(&current, &version)?;
            forget_others(&folder, &version);
            Ok(fetched)
        }
        (Err(error), Some(cached)) => {
            let days = age.map_or(0, |age| age.as_secs() / (24 * 60 * 60));
            progress::say(&format!(
                "{}: using the cached {} from {days} days ago, because: {error:#}",
                kernel.base, cached.origin
            ));
            Ok(cached)
        }
        (Err(error), None) => Err(error),
    }
}

/// The kernel of the last answer, if it is there.
pub(crate) fn cached(cache: &Path, kernel: &Kernel) -> Option<Fetched> {
    let folder = cache.join("kernels").join(kernel.suite);
    let version = fs::read_to_string(folder.join("current")).ok()?;
    load(&folder.join(version.trim())).ok()
}

/// Resolves and, if it is not there, unpacks; the version that is now in `folder`.
fn fetch(cache: &Path, folder: &Path, mirror: &Mirror, kernel: &Kernel) -> Result<String> {
    progress::say(&format!("{}: asking for {}'s newest cloud kernel", kernel.base, kernel.suite));
    let mut best: Option<(Suite, Vec<Package>)> = None;
    let mut refused = Vec::new();
    for (uri, suite) in places(mirror, kernel) {
        match resolve(cache, mirror, &uri, &suite) {
            Ok(found) => {
                let better = match &best {
                    Some((_, packages)) => apt::newer(version(&found.1), version(packages))?,
                    None => true,
                };
                if better {
                    best = Some(found);
                }
            }
            Err(error) => refused.push(format!("{suite}: {error:#}")),
        }
    }
    let Some((suite, packages)) = best else {
        bail!("no kernel of {} can be had: {}", kernel.suite, refused.join("; "));
    };
    for refusal in refused {
        progress::say(&format!("{}: done without {refusal}", kernel.base));
    }
    let version = version(&packages).to_owned();
    if load(&folder.join(&version)).is_err() {
        unpack(folder, &version, &suite, &packages)
            .with_context(|| format!("cannot fetch the kernel of {}", suite.name))?;
    }
    Ok(version)
}

fn places(mirror: &Mirror, kernel: &Kernel) -> Vec<(String, String)> {
    let security = mirror.security.iter().filter(|_| kernel.security);
    security
        .map(|uri| (uri.clone(), format!("{}-security", kernel.suite)))
        .chain([(mirror.archive.clone(), kernel.suite.to_owned())])
        .collect()
}

fn resolve(cache: &Path, mirror: &Mirror, uri: &str, suite: &str) -> Result<(Suite, Vec<Package>)> {
    let folder = cache.join("apt");
    let mut view = Suite::prepare(&folder, uri, suite, mirror.keyring.as_deref())?;
    let mut answer = view.update()?;
    if answer == Err(Refusal::UnknownKey) {
        let keyring = newer_keyring(cache)?;
        view = Suite::prepare(&folder, uri, suite, Some(&keyring))?;
        answer = view.update()?;
    }
    match answer {
        Ok(()) => {}
        Err(Refusal::UnknownKey) => bail!("it is signed by a key that no keyring here has"),
        Err(Refusal::Other(why)) => bail!("{why}"),
    }
    let packages = kernel_packages(|name| view.package(name))?;
    Ok((view, packages))
}

/// The real packages behind the meta-package. What is one package up to trixie is split into
/// image, binary and modules after it.
fn kernel_packages(show: impl Fn(&str) -> Result<Option<Package>>) -> Result<Vec<Package>> {
    let meta = show(META)?.with_context(|| format!("it has no {META}"))?;
    let mut wanted = meta.depends;
    let mut packages: Vec<Package> = Vec::new();
    while let Some(name) = wanted.pop() {
        if !is_kernel(&name) || packages.iter().any(|package| package.name == name) {
            continue;
        }
        let package = show(&name)?.with_context(|| format!("it has no {name}"))?;
        wanted.extend(package.depends.iter().cloned());
        packages.push(package);
    }
    if packages.is_empty() {
        bail!("its {META} leads to no kernel");
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

fn is_kernel(name: &str) -> bool {
    let versioned = ["linux-image-", "linux-binary-", "linux-modules-"]
        .iter()
        .find_map(|start| name.strip_prefix(start)?.strip_suffix("-cloud-amd64"));
    versioned.is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
}

/// All packages of one kernel are built together and have one version.
fn version(packages: &[Package]) -> &str {
    packages.first().map_or("", |package| &package.version)
}

/// The archive's newest keyring that can be had over a suite which this machine trusts
/// already, through its own configuration of apt.
fn newer_keyring(cache: &Path) -> Result<PathBuf> {
    progress::say(&format!(
        "a suite is signed by an unknown key; taking the newest {KEYRING_PACKAGE} over a trusted one"
    ));
    let folder = tempfile::tempdir_in(cache)?;
    let mut download = Command::new("apt-get");
    // The machine's options stand in its own files; only unsigned packages are ruled out.
    download.args(["-o", "APT::Get::AllowUnauthenticated=false", "-o", "APT::Sandbox::User="]);
    download.args(["download", KEYRING_PACKAGE]).current_dir(folder.path());
    tools::stdout(&mut download)
        .context("no newer keyring (has `apt-get update` been run on this machine?)")?;
    extract(folder.path())?;
    let found = folder.path().join("root/usr/share/keyrings/debian-archive-keyring.gpg");
    let keyring = cache.join("debian-archive-keyring.gpg");
    // A newer package has a link here.
    fs::copy(fs::canonicalize(&found)?, &keyring)
        .with_context(|| format!("no keyring in {KEYRING_PACKAGE}"))?;
    Ok(keyring)
}

/// Downloads into `folder/version`: `vmlinuz`, `modules/`, `release`, `origin`.
fn unpack(folder: &Path, version: &str, suite: &Suite, packages: &[Package]) -> Result<()> {
    let names: Vec<_> = packages.iter().map(|package| package.name.as_str()).collect();
    progress::say(&format!("fetching {} {version} ({})", names.join(", "), suite.name));
    fs::create_dir_all(folder)?;
    let work = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(folder)?;
    suite.download(packages, work.path())?;
    extract(work.path())?;
    let root = work.path().join("root");
    // /lib is a link into /usr nowadays, but an old package still has its own.
    let modules = [root.join("usr/lib/modules"), root.join("lib/modules")]
        .into_iter()
        .find(|folder| folder.is_dir())
        .context("the packages hold no modules")?;
    let release = only_child(&modules)?;
    let modules = modules.join(&release);
    let vmlinuz = [root.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|file| file.is_file())
        .context("the packages hold no vmlinuz")?;

    let ready = work.path().join("ready");
    fs::create_dir(&ready)?;
    fs::rename(vmlinuz, ready.join("vmlinuz"))?;
    fs::rename(modules, ready.join("modules"))?;
    fs::write(ready.join("release"), release)?;
    let image = names.iter().find(|name| name.starts_with("linux-binary-")).or(names.first());
    let origin = format!("{} {version} ({})", image.unwrap_or(&META), suite.name);
    fs::write(ready.join("origin"), origin)?;
    let place = folder.join(version);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::rename(&ready, &place).with_context(|| format!("cannot put {} in place", place.display()))
}

/// Unpacks every `.deb` in `folder` into `folder/root`.
fn extract(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "deb") {
            let mut dpkg = Command::new("dpkg-deb");
            tools::stdout(dpkg.arg("--extract").arg(&file).arg(folder.join("root")))?;
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

fn only_child(folder: &Path) -> Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    match names.pop() {
        Some(name) if names.is_empty() => Ok(name),
        _ => bail!("{} should hold one folder", folder.display()),
    }
}

fn load(place: &Path) -> Result<Fetched> {
    let read = |name: &str| -> Result<String> {
        let file = place.join(name);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(text.trim().to_owned())
    };
    Ok(Fetched {
        release: read("release")?,
        origin: read("origin")?,
        vmlinuz: place.join("vmlinuz"),
        modules: place.join("modules"),
    })
}

fn replace(file: &Path, content: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, content).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("cannot write {}", file.display()))
}

/// Frees what older versions and interrupted runs took. A failure costs disk and nothing else.
fn forget_others(folder: &Path, version: &str) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_version = name.starts_with(|c: char| c.is_ascii_digit());
        if (is_version && name != version) || name.starts_with(PARTIAL) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, depends: &[&str]) -> Package {
        let depends = depends.iter().map(ToString::to_string).collect();
        Package { name: name.into(), version: version.into(), depends }
    }

    fn found(all: &[Package]) -> Result<Vec<String>> {
        let packages = kernel_packages(|name| {
            Ok(all.iter().find(|p| p.name == name).map(|p| {
                package(
                    &p.name,
                    &p.version,
                    &p.depends.iter().map(String::as_str).collect::<Vec<_>>(),
                )
            }))
        })?;
        Ok(packages.into_iter().map(|p| p.name).collect())
    }

    #[test]
    fn a_kernel_in_one_package() {
        let all = [
            package(META, "6.1.176-1", &["linux-image-6.1.0-50-cloud-amd64"]),
            package("linux-image-6.1.0-50-cloud-amd64", "6.1.176-1", &["kmod", "linux-base"]),
        ];
        assert_eq!(found(&all).unwrap(), ["linux-image-6.1.0-50-cloud-amd64"]);
    }

    #[test]
    fn a_kernel_that_is_split_up() {
        let image = "linux-image-7.2.13+deb14-cloud-amd64";
        let binary = "linux-binary-7.2.13+deb14-cloud-amd64";
        let modules = "linux-modules-7.2.13+deb14-cloud-amd64";
        let all = [
            package(META, "7.2.13-1", &["linux-base-cloud-amd64", image]),
            package(image, "7.2.13-1", &["dracut", binary, modules]),
            package(binary, "7.2.13-1", &["linux-base-7.2.13+deb14-cloud-amd64"]),
            package(modules, "7.2.13-1", &[]),
        ];
        assert_eq!(found(&all).unwrap(), [binary, image, modules]);
    }

    #[test]
    fn a_suite_without_a_cloud_kernel_says_so() {
        assert!(found(&[]).unwrap_err().to_string().contains(META));
    }

    #[test]
    fn an_unreachable_mirror_falls_back_to_the_cache() {
        let cache = tempfile::tempdir().unwrap();
        let kernel = Kernel { base: "6.1", suite: "bookworm", security: true };
        let no_mirror = Err(anyhow::anyhow!("no mirror"));
        assert!(newest(cache.path(), &no_mirror, &kernel, false).is_err());
        let place = cache.path().join("kernels/bookworm/6.1.1-1");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("release"), "6.1.1-cloud").unwrap();
        fs::write(place.join("origin"), "a package").unwrap();
        fs::write(cache.path().join("kernels/bookworm/current"), "6.1.1-1").unwrap();
        let fetched = newest(cache.path(), &no_mirror, &kernel, true).unwrap();
        assert_eq!(fetched.release, "6.1.1-cloud");
    }
}
