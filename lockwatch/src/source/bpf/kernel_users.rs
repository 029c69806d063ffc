//! Files that the kernel itself uses, as far as it tells: behind loop devices, and for swapping.
//!
//! Refuses to take a file for a description: that the kernel uses the file of a lock makes it
//! likely, and no more, that it keeps the lock.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::engine::identity::Dev;
use crate::engine::snapshot::File;
use crate::source::octal::unescape;

/// The files that are in use.
pub(super) struct KernelUsers {
    users: Vec<User>,
    /// What could not be read, and why.
    pub(super) unread: Vec<String>,
}

struct User {
    /// As the kernel shows it.
    path: Vec<u8>,
    /// The file that is there now: device and inode number by stat(2).
    now: Option<(Dev, u64)>,
    what: String,
}

impl KernelUsers {
    /// Where nobody asks.
    pub(super) fn none() -> Self {
        Self { users: Vec::new(), unread: Vec::new() }
    }

    /// Reads `/sys/block` and `/proc/swaps`.
    pub(super) fn read() -> Self {
        Self::below(Path::new("/sys/block"), Path::new("/proc/swaps"))
    }

    fn below(blocks: &Path, swaps: &Path) -> Self {
        let mut found = Self::none();
        if let Err(error) = found.loops(blocks) {
            found.unread.push(format!("{}: {error}", blocks.display()));
        }
        match fs::read(swaps) {
            Ok(text) => found.swaps(&text),
            // A kernel without swapping has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => found.unread.push(format!("{}: {error}", swaps.display())),
        }
        found
    }

    fn loops(&mut self, blocks: &Path) -> io::Result<()> {
        for entry in fs::read_dir(blocks)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with("loop")) else {
                continue;
            };
            let file = entry.path().join("loop/backing_file");
            match fs::read(&file) {
                Ok(text) => self.add(text.trim_ascii_end(), format!("loop device /dev/{name}")),
                // A loop device without a file, or one that lost it since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.unread.push(format!("{}: {error}", file.display())),
            }
        }
        self.users.sort_by(|a, b| a.what.cmp(&b.what));
        Ok(())
    }

    fn swaps(&mut self, text: &[u8]) {
        for line in text.split(|&byte| byte == b'\n').skip(1) {
            let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            if let (Some(path), Some(b"file")) = (fields.next(), fields.next()) {
                self.add(&unescape(path), "swap".to_owned());
            }
        }
    }

    fn add(&mut self, path: &[u8], what: String) {
        let now = fs::metadata(OsStr::from_bytes(path)).ok().and_then(|file| {
            let dev = file.dev();
            let dev = Dev::exact(libc::major(dev), libc::minor(dev))?;
            Some((dev, file.ino()))
        });
        self.users.push(User { path: path.to_owned(), now, what });
    }

    /// What uses `file`.
    pub(super) fn of<'a>(&'a self, file: &'a File) -> impl Iterator<Item = &'a str> {
        let is_it = |user: &&User| match user.now {
            Some(now) if now == (file.dev, file.ino) => true,
            // stat(2) and the kernel's own inode differ on some file systems; the path then tells,
            // as long as it is still the file's.
            _ => file.replaced == Some(false) && file.path.as_deref() == Some(&user.path[..]),
        };
        self.users.iter().filter(is_it).map(|user| user.what.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, ino: u64) -> File {
        File {
            dev: Dev::new(1, 2),
            ino,
            size: None,
            path: Some(path.as_bytes().into()),
            deleted: Some(false),
            replaced: Some(false),
        }
    }

    #[test]
    fn a_swap_file_is_known_by_its_path_and_a_partition_is_none() {
        let mut users = KernelUsers::none();
        users.swaps(
            b"Filename\tType\tSize\tUsed\tPriority\n/sw\\040ap  file\t8\t0\t-2\n/dev/vda2 partition\t8\t0\t-3\n",
        );
        assert_eq!(users.of(&file("/sw ap", 7)).collect::<Vec<_>>(), ["swap"]);
        assert_eq!(users.of(&file("/dev/vda2", 7)).count(), 0);
        let replaced = File { replaced: Some(true), ..file("/sw ap", 7) };
        assert_eq!(users.of(&replaced).count(), 0, "the path is another file's by now");
    }

    #[test]
    fn what_cannot_be_read_is_told_and_what_is_absent_by_nature_is_not() {
        let users = KernelUsers::below(Path::new("/nowhere/block"), Path::new("/nowhere/swaps"));
        assert_eq!(users.unread.len(), 1);
        assert!(users.unread[0].starts_with("/nowhere/block: "), "{:?}", users.unread);
    }
}
