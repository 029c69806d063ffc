//! Whether root alone could have written what root is about to obey.
//!
//! Refuses by the whole way to a file: whoever can rename one of its folders can replace it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Somebody but root could change what root would do.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It could not be looked at.
    #[error("{what}: {path}: {error}", path = .path.display())]
    Look {
        /// What it is for.
        what: String,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another user owns the file or a folder on the way to it.
    #[error(
        "{what}: {path} belongs to uid {uid}: it and its folders must be root's (chown root {path})",
        path = .path.display()
    )]
    Owner {
        /// What it is for.
        what: String,
        /// The file or folder.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// It is nothing that can be executed.
    #[error("{what}: {path}: not a program (chmod +x {path})", path = .path.display())]
    NoProgram {
        /// What it is for.
        what: String,
        /// The file.
        path: PathBuf,
    },
    /// It was replaced while it was being looked at.
    #[error("{what}: {path}: was replaced while it was being looked at", path = .path.display())]
    Replaced {
        /// What it is for.
        what: String,
        /// The file.
        path: PathBuf,
    },
    /// Others may write the file or a folder on the way to it.
    #[error(
        "{what}: {path} can be written by others than root (chmod go-w {path})",
        path = .path.display()
    )]
    Writable {
        /// What it is for.
        what: String,
        /// The file or folder.
        path: PathBuf,
    },
}

/// Finds that root alone can write the file and every folder on the way to it, links resolved.
///
/// # Errors
/// Where that is not so, or cannot be told.
pub fn check(what: &str, path: &Path) -> Result<(), TrustError> {
    let look = |path: &Path, error| TrustError::Look {
        what: what.to_owned(),
        path: path.to_owned(),
        error,
    };
    // Both ways count: the one that the links take, and the folders in which the links are.
    let real = path.canonicalize().map_err(|error| look(path, error))?;
    for part in path.ancestors().skip(1).chain(real.ancestors()) {
        if part.as_os_str().is_empty() {
            continue;
        }
        let meta = fs::metadata(part).map_err(|error| look(part, error))?;
        if meta.uid() != 0 {
            let (what, path) = (what.to_owned(), part.to_owned());
            return Err(TrustError::Owner { what, path, uid: meta.uid() });
        }
        if meta.mode() & 0o022 != 0 {
            return Err(TrustError::Writable { what: what.to_owned(), path: part.to_owned() });
        }
    }
    Ok(())
}

/// Opens a program that root alone can write. Whoever executes this very descriptor executes what
/// was looked at, whatever becomes of the path.
///
/// # Errors
/// As for [`check`], and where it is no program.
pub fn open_program(what: &str, path: &Path) -> Result<OwnedFd, TrustError> {
    let look =
        |error: io::Error| TrustError::Look { what: what.to_owned(), path: path.to_owned(), error };
    // Whatever else it may be, opening it must not wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = fs::File::from(
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| look(error.into()))?,
    );
    check(what, path)?;
    let (own, now) = (opened.metadata().map_err(look)?, fs::metadata(path).map_err(look)?);
    let (what, path) = (what.to_owned(), path.to_owned());
    if (own.dev(), own.ino()) != (now.dev(), now.ino()) {
        return Err(TrustError::Replaced { what, path });
    }
    if !own.is_file() || own.mode() & 0o111 == 0 {
        return Err(TrustError::NoProgram { what, path });
    }
    Ok(opened.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    /// A folder of root's own on a way that others cannot write. Only root can have one.
    fn folder() -> Option<tempfile::TempDir> {
        (rustix::process::geteuid().is_root())
            .then(|| tempfile::tempdir_in("/run").expect("a folder below /run"))
    }

    #[test]
    fn a_file_of_roots_own_is_trusted_and_every_way_around_it_is_not() {
        let Some(folder) = folder() else {
            eprintln!("skipped: needs root");
            return;
        };
        let below = folder.path().join("below");
        fs::create_dir(&below).unwrap();
        let file = below.join("hook");
        fs::write(&file, "").unwrap();
        check("it", &file).unwrap();

        fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
        let error = check("it", &file).unwrap_err().to_string();
        assert!(error.starts_with("it: ") && error.contains("hook can be written"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();

        fs::set_permissions(&below, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            matches!(check("it", &file), Err(TrustError::Writable { path, .. }) if path == below)
        );
        fs::set_permissions(&below, fs::Permissions::from_mode(0o755)).unwrap();

        chown(&below, Some(65534), None).unwrap();
        assert!(matches!(check("it", &file), Err(TrustError::Owner { uid: 65534, .. })));
        chown(&below, Some(0), None).unwrap();

        // A link in a folder that anybody can write is as good as the file in it.
        let open = folder.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        symlink(&file, open.join("link")).unwrap();
        assert!(matches!(check("it", &open.join("link")), Err(TrustError::Writable { .. })));
    }

    #[test]
    fn a_program_is_a_file_that_can_be_executed() {
        let Some(folder) = folder() else {
            eprintln!("skipped: needs root");
            return;
        };
        let program = folder.path().join("hook");
        fs::write(&program, "").unwrap();
        let mode = |mode| fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o644);
        assert!(matches!(open_program("it", &program), Err(TrustError::NoProgram { .. })));
        mode(0o755);
        open_program("it", &program).unwrap();
        mode(0o777);
        assert!(matches!(open_program("it", &program), Err(TrustError::Writable { .. })));
        assert!(matches!(
            open_program("it", folder.path()),
            Err(TrustError::NoProgram { .. } | TrustError::Writable { .. })
        ));
        let absent = folder.path().join("absent");
        assert!(matches!(open_program("it", &absent), Err(TrustError::Look { .. })));
    }

    #[test]
    fn what_is_not_there_is_not_trusted() {
        let error = check("drain", Path::new("/nowhere/hook")).unwrap_err().to_string();
        assert!(error.starts_with("drain: /nowhere/hook: No such file"), "{error}");
    }
}
