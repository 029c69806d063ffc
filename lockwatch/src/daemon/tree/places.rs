//! What the file system tells of the paths in the tree.
//!
//! Refuses to open anything: that would break a lease.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::sink::tree::Seen;

/// Looks at each path.
pub(super) fn look<'a>(paths: impl Iterator<Item = &'a [u8]>) -> BTreeMap<Box<[u8]>, Seen> {
    let mut folders = BTreeMap::new();
    paths
        .map(|path| (path.into(), seen(Path::new(OsStr::from_bytes(path)), &mut folders)))
        .collect()
}

fn seen(path: &Path, folders: &mut BTreeMap<PathBuf, bool>) -> Seen {
    let folder = path.parent().filter(|folder| folder.is_absolute());
    Seen {
        public: folder.is_some_and(|folder| is_public(folder, folders)),
        modified: fs::metadata(path).ok().and_then(|meta| modified(&meta)),
    }
}

/// Whether everybody may list the folder, and come there.
fn is_public(folder: &Path, folders: &mut BTreeMap<PathBuf, bool>) -> bool {
    if let Some(&known) = folders.get(folder) {
        return known;
    }
    let may = |folder: &Path, bits: u32| {
        fs::metadata(folder).is_ok_and(|meta| meta.is_dir() && meta.mode() & bits == bits)
    };
    let public = may(folder, 0o005) && folder.ancestors().skip(1).all(|above| may(above, 0o001));
    folders.insert(folder.to_owned(), public);
    public
}

fn modified(meta: &fs::Metadata) -> Option<u64> {
    let seconds = u64::try_from(meta.mtime()).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(u64::try_from(meta.mtime_nsec()).ok()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_public_where_its_folder_is_and_the_way_there_is_open() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let folder = root.path().join("a");
        fs::create_dir(&folder).unwrap();
        let file = folder.join("file");
        fs::write(&file, "x").unwrap();
        let public = |root_mode, folder_mode| {
            mode(root.path(), root_mode);
            mode(&folder, folder_mode);
            let all = look([file.as_os_str().as_bytes()].into_iter());
            all[file.as_os_str().as_bytes()].public
        };
        assert!(public(0o711, 0o755));
        assert!(!public(0o711, 0o711), "nobody else may list it");
        assert!(!public(0o700, 0o755), "nobody else comes there");
    }

    #[test]
    fn what_is_not_there_was_not_written_and_a_path_that_is_none_is_for_nobody() {
        let all = look([b"/absent-for-sure/file".as_slice(), b"relative", b""].into_iter());
        assert!(all.values().all(|seen| *seen == Seen::default()));
        assert_eq!(all.len(), 3);
    }
}
