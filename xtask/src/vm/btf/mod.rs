//! Makes the BTF fixtures: of each kernel, a small valid BTF and the same as text.
//!
//! A unit test can run lockwatch's look-up of offsets on the one and a person can read the
//! other. Boots nothing: the BTF is taken out of the kernel's image.

mod image;
mod reduce;
mod text;
mod types;
mod wanted;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::fetch::Fetched;
use crate::progress;
use types::Types;

/// Where the fixtures are, from the workspace's folder.
pub(super) const FIXTURES: &str = "tests/fixtures/btf";
/// Fixtures live in the repository.
const LIMIT: usize = 64 * 1024;
const RUNNING: &str = "/sys/kernel/btf/vmlinux";

/// Writes the fixtures of a kernel of the matrix.
pub(super) fn renew(folder: &Path, base: &str, kernel: &Fetched) -> Result<()> {
    let whole = image::btf(&kernel.vmlinuz)?;
    write(folder, base, &format!("{}, Debian's {}", kernel.release, kernel.origin), &whole)
}

/// Writes the fixtures of the running kernel.
pub(super) fn renew_host(folder: &Path) -> Result<()> {
    let whole = fs::read(RUNNING).with_context(|| format!("cannot read {RUNNING}"))?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    // What a machine's builder appended says nothing elsewhere.
    let version = release.split('-').next().unwrap_or_default();
    let base: Vec<_> = version.split('.').take(2).collect();
    write(folder, &base.join("."), &format!("{version}, the build machine's own"), &whole)
}

fn write(folder: &Path, base: &str, origin: &str, whole: &[u8]) -> Result<()> {
    let whole = Types::read(whole).with_context(|| format!("the BTF of {base} is damaged"))?;
    let bytes = reduce::reduced(&whole).write()?;
    let layouts = text::layouts(&whole);
    ensure!(
        text::layouts(&Types::read(&bytes)?) == layouts,
        "the reduced BTF of {base} says something else than the whole"
    );
    ensure!(bytes.len() < LIMIT, "the reduced BTF of {base} has {} bytes", bytes.len());
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let put = |ending: &str, content: &[u8]| {
        let file = folder.join(format!("{base}.{ending}"));
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    };
    put("btf", &bytes)?;
    put("txt", format!("origin: {origin}\n\n{layouts}").as_bytes())?;
    progress::say(&format!("{base}: {} bytes of BTF from {origin}", bytes.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace;

    /// What a person reads is what a test of the look-ups is given.
    #[test]
    fn each_fixture_says_the_same_in_both_forms() {
        let folder = workspace::root().join(FIXTURES);
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let file = entry.unwrap().path();
            if file.extension().is_some_and(|ending| ending == "btf") {
                let types = Types::read(&fs::read(&file).unwrap()).unwrap();
                let text = fs::read_to_string(file.with_extension("txt")).unwrap();
                let (origin, layouts) = text.split_once("\n\n").unwrap();
                assert!(origin.starts_with("origin: "), "{}", file.display());
                assert_eq!(layouts, text::layouts(&types), "{}", file.display());
                count += 1;
            }
        }
        assert!(count >= 5, "only {count} fixtures in {}", folder.display());
    }
}
