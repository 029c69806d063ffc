//! Which shared libraries a program of this machine needs, asked of its dynamic loader.
//!
//! Only for programs of this machine that are trusted: `ldd` may run them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::tools;

/// The libraries and the loader of `program`; none for a static one.
pub(crate) fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    let output = tools::output(ldd.arg(program).env("LC_ALL", "C"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        anyhow::bail!("`{}` failed:\n{}", tools::line(&ldd), said.trim());
    }
    if let Some(missing) = said.lines().find(|line| line.contains("not found")) {
        anyhow::bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(said.lines().filter_map(parse).collect())
}

/// `libc.so.6 => /lib/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`; not the vdso.
fn parse(line: &str) -> Option<PathBuf> {
    let place = line.split_once("=>").map_or(line, |(_, place)| place).trim();
    let path = place.split(" (").next()?.trim();
    path.starts_with('/').then(|| path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_lines() {
        let path = |line| parse(line).map(|p| p.display().to_string());
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007ffc)"), None);
        assert_eq!(
            path("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)").as_deref(),
            Some("/lib/x86_64-linux-gnu/libc.so.6")
        );
        assert_eq!(
            path("\t/lib64/ld-linux-x86-64.so.2 (0x7f)").as_deref(),
            Some("/lib64/ld-linux-x86-64.so.2")
        );
    }
}
