//! What a binary needs of the system's libraries, read from the binary itself.
//!
//! Refuses a library that it does not know: a package that lacks a dependency fails at its user's.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command;

/// The Debian packages that a binary needs, as `Depends:` lists them.
pub(super) fn depends(binary: &Path) -> Result<String> {
    let mut readelf = Command::new("readelf");
    readelf.args(["--wide", "--dynamic", "--version-info"]).arg(binary);
    let text = command::capture(&mut readelf, "install binutils")?;
    let libc = newest_glibc(&text);
    let mut depends = Vec::new();
    for library in needed(&text) {
        let package = match library {
            "libc.so.6" | "libm.so.6" => match libc {
                Some((major, minor)) => format!("libc6 (>= {major}.{minor})"),
                None => "libc6".to_owned(),
            },
            "libgcc_s.so.1" => "libgcc-s1 (>= 4.2)".to_owned(),
            name if name.starts_with("ld-linux") => continue,
            name => bail!("{} needs {name}, of which no package is known here", binary.display()),
        };
        if !depends.contains(&package) {
            depends.push(package);
        }
    }
    depends.sort();
    Ok(depends.join(", "))
}

fn needed(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.split_once(']').map(|(name, _)| name))
}

fn newest_glibc(text: &str) -> Option<(u32, u32)> {
    text.split("GLIBC_")
        .skip(1)
        .filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let mut numbers = rest[..end].split('.').map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
 0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
  0x00c0:   Name: GLIBC_2.9  Flags: none  Version: 14
  0x00d0:   Name: GLIBC_2.34  Flags: none  Version: 13
  0x00e0:   Name: GLIBC_PRIVATE  Flags: none  Version: 12";

    #[test]
    fn libraries_and_the_newest_symbols_are_read() {
        assert_eq!(needed(TEXT).collect::<Vec<_>>(), ["libgcc_s.so.1", "libc.so.6"]);
        assert_eq!(newest_glibc(TEXT), Some((2, 34)));
        assert_eq!(newest_glibc(""), None);
    }
}
