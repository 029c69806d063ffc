//! Takes the section `.BTF` out of a compressed kernel.
//!
//! Knows x86's boot protocol and 64-bit little-endian ELF: the kernels of the matrix.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::super::tools;

/// The BTF of the kernel in `vmlinuz`: the same bytes as `/sys/kernel/btf/vmlinux` when it runs.
pub(super) fn btf(vmlinuz: &Path) -> Result<Vec<u8>> {
    let image =
        std::fs::read(vmlinuz).with_context(|| format!("cannot read {}", vmlinuz.display()))?;
    let payload =
        payload(&image).with_context(|| format!("{} is no kernel for x86", vmlinuz.display()))?;
    let kernel = decompressed(payload)?;
    let section = section(&kernel, b".BTF").context("the decompressed kernel is damaged")?;
    Ok(section.context("the kernel has no BTF")?.to_vec())
}

/// The compressed kernel proper, which follows the real-mode code.
fn payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + word(image, 0x248)?;
    // The last four bytes are the size of what comes out.
    image.get(start..start + word(image, 0x24c)?.checked_sub(4)?)
}

fn decompressed(payload: &[u8]) -> Result<Vec<u8>> {
    let (program, package) = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", "zstd"),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", "lz4"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", "xz-utils"),
        [0x1f, 0x8b, ..] => ("gzip", "gzip"),
        _ => bail!("the kernel is compressed in an unknown way"),
    };
    let program = tools::require(program, package)?;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(payload)?;
    tools::stdout(Command::new(program).arg("-dc").stdin(file.reopen()?))
}

/// The content of ELF's section `name`; the outer `None` for what is no such ELF.
fn section<'a>(elf: &'a [u8], name: &[u8]) -> Option<Option<&'a [u8]>> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = long(elf, 0x28)?;
    let size = half(elf, 0x3a)?;
    let header = |index: usize| elf.get(table + index * size..table + (index + 1) * size);
    let content = |header: &[u8]| {
        let start = long(header, 0x18)?;
        elf.get(start..start + long(header, 0x20)?)
    };
    let names = content(header(half(elf, 0x3e)?)?)?;
    for index in 0..half(elf, 0x3c)? {
        let header = header(index)?;
        let own = names.get(word(header, 0)?..)?.split(|byte| *byte == 0).next()?;
        if own == name {
            return Some(Some(content(header)?));
        }
    }
    Some(None)
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?).try_into().ok()
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?).try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_follows_the_setup_code() {
        let mut image = vec![0; 0x400 + 64];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248] = 8;
        image[0x24c] = 10;
        image[0x408..0x40e].copy_from_slice(b"kernel");
        assert_eq!(payload(&image), Some(b"kernel".as_slice()));
        assert_eq!(payload(&image[..0x300]), None);
        assert_eq!(payload(b"MZ"), None);
    }

    #[test]
    fn finds_a_section_in_a_real_program() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        assert!(section(&program, b".text").unwrap().is_some_and(|text| !text.is_empty()));
        assert!(section(&program, b".no-such").unwrap().is_none());
        assert!(section(b"#!/bin/sh", b".text").is_none());
    }
}
