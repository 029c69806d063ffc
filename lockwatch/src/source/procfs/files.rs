//! What a locked file is called, how large it is, and whether its name still means it.
//!
//! Refuses to open it: a link is read and statx(2) asked, nothing more. Each file is asked about
//! once, through the first descriptor that answers.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::path::DecInt;

use super::fault::number;
use super::root::{FileFacts, ProcRoot, open_folder, read_file, read_link};
use super::tasks::{is_gone, table_path};
use crate::engine::identity::{Dev, Pid};

/// A descriptor through which a file may be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Witness {
    pub file: (Dev, u64),
    pub pid: Pid,
    pub tid: Pid,
    pub fd: u32,
    pub mount: Option<u64>,
}

/// What is known of a file besides its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Label {
    pub size: Option<u64>,
    pub path: Option<Box<[u8]>>,
    pub deleted: Option<bool>,
    pub replaced: Option<bool>,
}

/// The labels found so far.
pub(super) struct Labels<'root> {
    root: &'root ProcRoot,
    folder: OwnedFd,
    found: HashMap<(Dev, u64), Label>,
    /// Mounts of the reader (`None`) and of processes in other mount namespaces.
    mounts: HashMap<Option<Pid>, Option<HashSet<u64>>>,
    /// True where the process's root is that of its mount namespace.
    at_root: HashMap<Pid, bool>,
}

/// What the kernel appends to the path of a descriptor whose name is gone.
const SUFFIX: &[u8] = b" (deleted)";

impl<'root> Labels<'root> {
    pub(super) fn new(root: &'root ProcRoot) -> io::Result<Self> {
        Ok(Self {
            root,
            folder: root.open()?,
            found: HashMap::new(),
            mounts: HashMap::new(),
            at_root: HashMap::new(),
        })
    }

    pub(super) fn get(&self, file: (Dev, u64)) -> Label {
        self.found.get(&file).cloned().unwrap_or_default()
    }

    /// Looks at every file that has no label yet. Witnesses of one process should come together.
    pub(super) fn add(&mut self, witnesses: impl Iterator<Item = Witness>) {
        let mut table: Option<((Pid, Pid), Option<OwnedFd>)> = None;
        for witness in witnesses {
            if self.found.contains_key(&witness.file) {
                continue;
            }
            let task = (witness.pid, witness.tid);
            if table.as_ref().is_none_or(|(of, _)| *of != task) {
                let below = table_path(witness.pid, witness.tid, "fd");
                let path = format!("{}/{below}", witness.pid);
                table = Some((task, open_folder(&self.folder, path).ok()));
            }
            let Some((_, Some(folder))) = &table else { continue };
            if let Some(label) = self.look(folder.as_fd().try_clone_to_owned().ok(), &witness) {
                self.found.insert(witness.file, label);
            }
        }
    }

    fn look(&mut self, folder: Option<OwnedFd>, witness: &Witness) -> Option<Label> {
        let folder = folder?;
        let target = read_link(&folder, DecInt::new(witness.fd)).ok()?;
        let open = match self.root.lookups().open_file(folder.as_fd(), &witness.fd.to_string()) {
            Ok(open) => Some(open),
            // Closed, and perhaps opened anew for another file, since its locks were read.
            Err(error) if is_gone(&error) => return None,
            Err(_) => None,
        };
        let Some(open) = open else {
            // Nobody to ask: the suffix is far more often the kernel's than part of a name.
            let path = target.strip_suffix(SUFFIX).unwrap_or(&target);
            return Some(Label { path: Some(path.into()), ..Label::default() });
        };

        let full = self.named(&target, witness);
        let deleted = open.links == 0;
        let (path, named) = match target.strip_suffix(SUFFIX) {
            // A file may really be called so: then that name leads to it.
            Some(stem) if deleted || !same(&full, &open) => (stem, self.named(stem, witness)),
            _ => (&*target, full),
        };
        let replaced = match named {
            Some(Ok(named)) => Some(identity(&named) != identity(&open)),
            Some(Err(error)) if is_gone(&error) => Some(false),
            _ => None,
        };
        let (size, path) = (Some(open.size), Some(path.into()));
        Some(Label { size, path, deleted: Some(deleted), replaced })
    }

    /// What the path means now, in the mount namespace from which the file was opened; `None`
    /// where the path cannot be followed from here.
    fn named(&mut self, path: &[u8], witness: &Witness) -> Option<io::Result<FileFacts>> {
        let mount = witness.mount?;
        if path.first() != Some(&b'/') {
            return None;
        }
        if self.has_mount(None, mount)? {
            return Some(self.root.lookups().named_file(path));
        }
        // The path is counted from the root of a namespace other than the reader's.
        let pid = witness.pid;
        if !self.has_mount(Some(pid), mount)? || !self.is_at_root(pid) {
            return None;
        }
        let mut through =
            self.root.path().join(format!("{pid}/root")).into_os_string().into_encoded_bytes();
        through.extend_from_slice(path);
        Some(self.root.lookups().named_file(&through))
    }

    fn has_mount(&mut self, of: Option<Pid>, mount: u64) -> Option<bool> {
        let Self { mounts, folder, .. } = self;
        let known = mounts.entry(of).or_insert_with(|| {
            let of = of.map_or("self".to_owned(), |pid| pid.to_string());
            let mut buffer = Vec::new();
            read_file(folder.as_fd(), format!("{of}/mountinfo"), &mut buffer).ok().map(mount_ids)
        });
        known.as_ref().map(|ids| ids.contains(&mount))
    }

    fn is_at_root(&mut self, pid: Pid) -> bool {
        let Self { at_root, folder, .. } = self;
        *at_root.entry(pid).or_insert_with(|| {
            read_link(folder.as_fd(), format!("{pid}/root")).is_ok_and(|root| root == b"/")
        })
    }
}

fn same(named: &Option<io::Result<FileFacts>>, open: &FileFacts) -> bool {
    matches!(named, Some(Ok(named)) if identity(named) == identity(open))
}

fn identity(facts: &FileFacts) -> ((u32, u32), u64) {
    (facts.dev, facts.ino)
}

/// The first column of each line of a mountinfo file. A line without one is nobody's mount.
fn mount_ids(text: &[u8]) -> HashSet<u64> {
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').next())
        .filter_map(|id| number(id, 10, "mount id").ok())
        .collect()
}
