//! Writes a cpio archive in the `newc` format, which the kernel unpacks as its first root.
//!
//! Knows no file system: what goes in is given as bytes. Hard links and owners other than root
//! are not for it.

use std::collections::BTreeSet;
use std::io::{self, Write};

/// An archive that is being written.
pub(crate) struct Archive<W> {
    out: W,
    inode: u32,
    seen: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0, seen: BTreeSet::new() }
    }

    /// Whether `path` is in the archive already.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.seen.contains(path.trim_matches('/'))
    }

    /// A folder and those above it, once each.
    pub(crate) fn folder(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends.filter(|end| *end > 0) {
            if !self.has(&path[..end]) {
                self.entry(&path[..end], DIRECTORY | 0o755, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    /// A regular file with the permissions `mode`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, REGULAR | mode, (0, 0), content)
    }

    /// A symbolic link that reads `target`.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.parent(path)?;
        self.entry(path, CHARACTER | 0o600, (major, minor), &[])
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn parent(&mut self, path: &str) -> io::Result<()> {
        match path.trim_matches('/').rsplit_once('/') {
            Some((folder, _)) => self.folder(folder),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let path = path.trim_matches('/');
        self.seen.insert(path.to_owned());
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, path.to_owned());
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        // Order: ino, mode, uid, gid, nlink, mtime, filesize, device of the file (major,
        // minor), device that it is (major, minor), namesize, checksum (unused in newc).
        let fields =
            [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(b"\0")?;
        self.pad(header.len() + path.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    /// Names and contents end at multiples of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device, content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    fn entries(mut bytes: &[u8]) -> Vec<Entry> {
        let mut all = Vec::new();
        loop {
            let field = |i: usize| {
                let digits = std::str::from_utf8(&bytes[6 + i * 8..14 + i * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let data = (110 + name_size).next_multiple_of(4);
            let end = (data + size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), end);
                return all;
            }
            let content = bytes[data..data + size].to_vec();
            all.push((name, field(1), (field(9), field(10)), content));
            bytes = &bytes[end..];
        }
    }

    #[test]
    fn writes_what_the_kernel_unpacks() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/usr/bin/sh", 0o755, b"#!").unwrap();
        archive.file("usr/bin/true", 0o755, b"12345").unwrap();
        archive.symlink("bin", "usr/bin").unwrap();
        archive.device("/dev/console", 5, 1).unwrap();
        assert!(archive.has("/usr/bin"));
        let read = entries(&archive.finish().unwrap());
        let names: Vec<_> = read.iter().map(|entry| entry.0.as_str()).collect();
        let expected =
            ["usr", "usr/bin", "usr/bin/sh", "usr/bin/true", "bin", "dev", "dev/console"];
        assert_eq!(names, expected);
        assert_eq!(read[0].1, 0o040_755);
        assert_eq!((read[3].1, read[3].3.as_slice()), (0o100_755, b"12345".as_slice()));
        assert_eq!((read[4].1, read[4].3.as_slice()), (0o120_777, b"usr/bin".as_slice()));
        assert_eq!((read[6].1, read[6].2), (0o020_600, (5, 1)));
    }
}
