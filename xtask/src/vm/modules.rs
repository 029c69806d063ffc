//! Finds kernel modules and what they depend on, in the order in which to load them.
//!
//! Debian runs `depmod` when a kernel is installed, so an unpacked package has no
//! `modules.dep`: the dependencies are read from each module's own `.modinfo`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::tools;

/// A module ready to load.
pub(crate) struct Module {
    pub(crate) name: String,
    /// The decompressed object.
    pub(crate) object: Vec<u8>,
}

/// The modules `wanted` below `folder` with their dependencies before them, and the names that
/// are in no file there, which means built in or absent from this kernel.
pub(crate) fn closure(folder: &Path, wanted: &[&str]) -> Result<(Vec<Module>, Vec<String>)> {
    let mut files = BTreeMap::new();
    index(folder, &mut files)
        .with_context(|| format!("cannot list the modules in {}", folder.display()))?;
    let mut loaded: Vec<Module> = Vec::new();
    let mut absent = Vec::new();
    for name in wanted {
        visit(name, &files, &mut loaded, &mut absent, 0)?;
    }
    Ok((loaded, absent))
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    loaded: &mut Vec<Module>,
    absent: &mut Vec<String>,
    depth: u32,
) -> Result<()> {
    if loaded.iter().any(|module| module.name == name) || depth > 16 {
        return Ok(());
    }
    let Some(file) = files.get(name) else {
        absent.push(name.to_owned());
        return Ok(());
    };
    let object = decompressed(file)?;
    for dependency in dependencies(&object) {
        visit(&dependency, files, loaded, absent, depth + 1)?;
    }
    loaded.push(Module { name: name.to_owned(), object });
    Ok(())
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|n| n.to_str()).and_then(module_name) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// `unix_diag` for `unix-diag.ko.xz`: the kernel does not tell `-` from `_`.
fn module_name(file: &str) -> Option<String> {
    let (stem, ending) = file.split_once(".ko")?;
    matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

fn decompressed(file: &Path) -> Result<Vec<u8>> {
    let (program, package) = match file.extension().and_then(|e| e.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return fs::read(file).with_context(|| format!("cannot read {}", file.display())),
    };
    let program = tools::require(program, package)?;
    tools::stdout(Command::new(program).arg("-dc").arg(file))
}

/// What `depends=` in the module's `.modinfo` says. The section is a run of NUL-ended
/// `key=value` strings, and `depends=` occurs in every module that modpost made.
fn dependencies(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let at_key = |i: &usize| object[*i..].starts_with(KEY) && (*i == 0 || object[*i - 1] == 0);
    let Some(start) = (0..object.len()).find(at_key) else { return Vec::new() };
    let value = object[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(depends: &str) -> Vec<u8> {
        format!("\x7fELF..\0license=GPL\0depends={depends}\0retpoline=Y\0").into_bytes()
    }

    #[test]
    fn dependencies_come_from_modinfo() {
        assert_eq!(dependencies(&object("")), Vec::<String>::new());
        assert_eq!(dependencies(&object("crc32c,lib-a")), ["crc32c", "lib_a"]);
        assert_eq!(dependencies(b"softdepends=x\0"), Vec::<String>::new());
    }

    #[test]
    fn names_do_not_depend_on_compression() {
        assert_eq!(module_name("unix-diag.ko.xz").as_deref(), Some("unix_diag"));
        assert_eq!(module_name("loop.ko").as_deref(), Some("loop"));
        assert_eq!(module_name("loop.ko.sig"), None);
        assert_eq!(module_name("modules.order"), None);
    }

    #[test]
    fn a_module_follows_what_it_needs_and_absent_ones_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, depends: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, object(depends)).unwrap();
        };
        put("kernel/fs/overlay.ko", "exportfs");
        put("kernel/fs/exportfs.ko", "");
        put("kernel/net/a.ko", "overlay,exportfs");
        let (loaded, absent) = closure(folder.path(), &["overlay", "a", "fuse"]).unwrap();
        let names: Vec<_> = loaded.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["exportfs", "overlay", "a"]);
        assert_eq!(absent, ["fuse"]);
    }
}
