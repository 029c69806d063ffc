//! The secret with which lock ids are made: one a boot, kept where only root can read it.
//!
//! Refuses to make ids that could be traced back to kernel pointers: without a secret of its own a
//! run makes one that nobody else knows, and says that its ids hold for itself alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::engine::id::IdKey;
use crate::engine::snapshot::{Hides, Limit};

const PATH: &str = "/run/lockwatch.key";

/// The machine's secret; made on first use.
pub fn machine_key() -> (IdKey, Option<Limit>) {
    match stored(Path::new(PATH)) {
        Ok(key) => (key, None),
        Err(error) => {
            let what = format!("lock ids hold for this run alone: {PATH}: {error}");
            (fresh().unwrap_or(IdKey([0; 16])), Some(Limit { what, hides: Hides::Nothing }))
        }
    }
}

/// A secret for locks that are named without any pointer, so that it need not be one.
pub fn public_key() -> IdKey {
    IdKey(*b"lockwatch procfs")
}

fn stored(path: &Path) -> io::Result<IdKey> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    // Another run may be doing the same: whoever links first has made it.
    let draft = path.with_extension(format!("key.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let linked = file.write_all(&fresh()?.0).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    fs::remove_file(&draft)?;
    linked?;
    read(path)
}

fn read(path: &Path) -> io::Result<IdKey> {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let meta = file.metadata()?;
    // Root without its usual privileges, in a user namespace say, cannot trust another's file.
    let own = rustix::process::geteuid().as_raw();
    if !meta.is_file() || meta.uid() != own || meta.mode() & 0o077 != 0 {
        return Err(io::Error::other("not a file of one's own that nobody else may read"));
    }
    let mut key = [0; 16];
    file.read_exact(&mut key)?;
    Ok(IdKey(key))
}

/// A secret that nobody has.
///
/// # Errors
/// Where the kernel gives none.
pub fn fresh() -> io::Result<IdKey> {
    let mut key = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(IdKey(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_made_once_and_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        let first = stored(&path).unwrap();
        assert_eq!(first.0, stored(&path).unwrap().0);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path).unwrap();
        assert!(stored(&path).is_err());
        assert!(stored(&folder.path().join("absent/a.key")).is_err());
    }
}
