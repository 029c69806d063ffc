//! From the running kernel's type information to the table of offsets that the programs use.
//!
//! Refuses to guess: a member that is needed and absent is an error that names it.

use lockwatch_common::offsets::{ABSENT, Offsets};
use lockwatch_common::snapshot::LOCK_SPAN;

use super::btf::Btf;

/// A kernel whose structures do not have what a snapshot needs.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// A structure or member is absent from the BTF.
    #[error("this kernel's BTF has no {0}")]
    Absent(String),
    /// A member lies further out than the programs look.
    #[error("{0} lies beyond {LOCK_SPAN} bytes of its structure")]
    TooFar(&'static str),
}

/// The offsets of a kernel.
///
/// `has_d_path` says whether `bpf_d_path` may be called from an iterator, which BTF does not tell.
///
/// # Errors
/// Names the member that this kernel lacks.
pub fn offsets(btf: &Btf<'_>, has_d_path: bool) -> Result<Offsets, LayoutError> {
    let of = |structure: &str, path: &str| {
        btf.offset_of(structure, path)
            .ok_or_else(|| LayoutError::Absent(format!("{structure}.{path}")))
    };
    // 6.9 moved what locks and leases share into `file_lock_core`, the first member of both.
    let core = |new: &str, old: &str| {
        if btf.has_structure("file_lock_core") {
            let core = of("file_lock", "c")?;
            Ok(core + of("file_lock_core", new)?)
        } else {
            of("file_lock", old)
        }
    };
    let may = |structure: &str, path: &str| btf.offset_of(structure, path).unwrap_or(ABSENT);
    // `timespec64` has its seconds first, then its nanoseconds, 8 bytes each.
    let whole = |path| btf.offset_of("inode", path).map(|at| (at, at + 8));
    let halves = btf.offset_of("inode", "i_mtime_sec").zip(btf.offset_of("inode", "i_mtime_nsec"));
    let modified = halves.or(whole("__i_mtime")).or(whole("i_mtime")).unwrap_or((ABSENT, ABSENT));
    let offsets = Offsets {
        file_inode: of("file", "f_inode")?,
        file_path: of("file", "f_path")?,
        file_mode: of("file", "f_mode")?,
        file_cred: of("file", "f_cred")?,
        path_dentry: of("path", "dentry")?,
        dentry_hash_pprev: of("dentry", "d_hash.pprev")?,
        dentry_parent: of("dentry", "d_parent")?,
        dentry_name: of("dentry", "d_name.name")?,
        inode_flctx: of("inode", "i_flctx")?,
        inode_ino: of("inode", "i_ino")?,
        inode_size: of("inode", "i_size")?,
        inode_nlink: of("inode", "i_nlink")?,
        inode_sb: of("inode", "i_sb")?,
        sb_dev: of("super_block", "s_dev")?,
        ctx_flock: of("file_lock_context", "flc_flock")?,
        ctx_posix: of("file_lock_context", "flc_posix")?,
        ctx_lease: of("file_lock_context", "flc_lease")?,
        lock_blocker: core("flc_blocker", "fl_blocker")?,
        lock_list: core("flc_list", "fl_list")?,
        lock_blocked_requests: core("flc_blocked_requests", "fl_blocked_requests")?,
        lock_blocked_member: core("flc_blocked_member", "fl_blocked_member")?,
        lock_owner: core("flc_owner", "fl_owner")?,
        lock_flags: core("flc_flags", "fl_flags")?,
        lock_type: core("flc_type", "fl_type")?,
        lock_pid: core("flc_pid", "fl_pid")?,
        lock_file: core("flc_file", "fl_file")?,
        lock_link: core("flc_link", "fl_link")?,
        lock_link_cpu: core("flc_link_cpu", "fl_link_cpu")?,
        lock_start: of("file_lock", "fl_start")?,
        lock_end: of("file_lock", "fl_end")?,
        task_files: of("task_struct", "files")?,
        task_tgid: of("task_struct", "tgid")?,
        task_pid: of("task_struct", "pid")?,
        task_flags: of("task_struct", "flags")?,
        task_comm: of("task_struct", "comm")?,
        task_cred: of("task_struct", "cred")?,
        task_start: of("task_struct", "start_boottime")?,
        task_leader: of("task_struct", "group_leader")?,
        task_parent: of("task_struct", "real_parent")?,
        task_thread_pid: of("task_struct", "thread_pid")?,
        pid_level: of("pid", "level")?,
        pid_numbers: of("pid", "numbers")?,
        upid_size: btf.size_of("upid").ok_or_else(|| LayoutError::Absent("upid".into()))?,
        upid_nr: of("upid", "nr")?,
        upid_ns: of("upid", "ns")?,
        pid_ns_inum: of("pid_namespace", "ns.inum")?,
        has_d_path: u32::from(has_d_path),
        // 5.12 has it; the helper came a version earlier, which BTF does not tell.
        has_task_btf: u32::from(btf.has_structure("bpf_iter__task_vma")),
        inode_mtime_sec: modified.0,
        inode_mtime_nsec: modified.1,
        task_mm: may("task_struct", "mm"),
        task_exec_id: may("task_struct", "self_exec_id"),
        task_signal: may("task_struct", "signal"),
        task_exit_code: may("task_struct", "exit_code"),
        mm_exe_file: may("mm_struct", "exe_file"),
        signal_live: may("signal_struct", "live"),
        signal_flags: may("signal_struct", "flags"),
        signal_group_exit_code: may("signal_struct", "group_exit_code"),
    };
    for (name, offset) in [
        ("file_lock.fl_end", offsets.lock_end),
        ("file_lock.fl_start", offsets.lock_start),
        ("flc_file", offsets.lock_file),
        ("flc_owner", offsets.lock_owner),
        ("flc_blocker", offsets.lock_blocker),
        ("flc_list", offsets.lock_list),
        ("flc_blocked_requests", offsets.lock_blocked_requests),
        ("flc_blocked_member", offsets.lock_blocked_member),
        ("flc_flags", offsets.lock_flags),
        ("flc_type", offsets.lock_type),
        ("flc_pid", offsets.lock_pid),
        ("flc_link", offsets.lock_link + 8),
        ("flc_link_cpu", offsets.lock_link_cpu),
    ] {
        if offset as usize + 8 > LOCK_SPAN {
            return Err(LayoutError::TooFar(name));
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels of the matrix: BTF, and what another reader of BTF says of it.
    const KERNELS: [(&str, &[u8], &str); 5] =
        [fixture!("5.10"), fixture!("6.1"), fixture!("6.12"), fixture!("6.18"), fixture!("7.2")];

    macro_rules! fixture {
        ($version:literal) => {
            (
                $version,
                include_bytes!(concat!("../../../../tests/fixtures/btf/", $version, ".btf")),
                include_str!(concat!("../../../../tests/fixtures/btf/", $version, ".txt")),
            )
        };
    }
    use fixture;

    /// The offset of a member in the text, looked up by indentation: members of anonymous ones
    /// stand deeper.
    fn told(text: &str, structure: &str, path: &str) -> Option<u32> {
        let mut lines = text
            .lines()
            .skip_while(|line| !line.starts_with(&format!("struct {structure}: ")))
            .skip(1)
            .take_while(|line| line.starts_with(' '));
        let mut deepest = 0;
        let mut offset = None;
        for name in path.split('.') {
            let line = lines.find(|line| line.split_whitespace().nth(1) == Some(name))?;
            let depth = line.len() - line.trim_start().len();
            assert!(offset.is_none() || depth > deepest, "{structure}.{path} is not nested");
            deepest = depth;
            offset = line.split_whitespace().next()?.parse::<u32>().ok();
        }
        Some(offset? / 8)
    }

    #[test]
    fn every_kernel_of_the_matrix_has_all_that_is_looked_up() {
        for (version, bytes, text) in KERNELS {
            let btf = Btf::parse(bytes).unwrap_or_else(|error| panic!("{version}: {error}"));
            let found = offsets(&btf, true).unwrap_or_else(|error| panic!("{version}: {error}"));
            let core = |new, old| {
                told(text, "file_lock_core", new).or_else(|| told(text, "file_lock", old))
            };
            let of = |structure, path| told(text, structure, path);
            for (name, found, told) in [
                ("f_inode", found.file_inode, of("file", "f_inode")),
                ("f_path", found.file_path, of("file", "f_path")),
                ("f_mode", found.file_mode, of("file", "f_mode")),
                ("f_cred", found.file_cred, of("file", "f_cred")),
                ("path.dentry", found.path_dentry, of("path", "dentry")),
                ("d_parent", found.dentry_parent, of("dentry", "d_parent")),
                ("i_flctx", found.inode_flctx, of("inode", "i_flctx")),
                ("i_ino", found.inode_ino, of("inode", "i_ino")),
                ("i_size", found.inode_size, of("inode", "i_size")),
                ("i_nlink", found.inode_nlink, of("inode", "i_nlink")),
                ("i_sb", found.inode_sb, of("inode", "i_sb")),
                ("s_dev", found.sb_dev, of("super_block", "s_dev")),
                ("flc_flock", found.ctx_flock, of("file_lock_context", "flc_flock")),
                ("flc_posix", found.ctx_posix, of("file_lock_context", "flc_posix")),
                ("flc_lease", found.ctx_lease, of("file_lock_context", "flc_lease")),
                ("blocker", found.lock_blocker, core("flc_blocker", "fl_blocker")),
                ("list", found.lock_list, core("flc_list", "fl_list")),
                ("owner", found.lock_owner, core("flc_owner", "fl_owner")),
                ("flags", found.lock_flags, core("flc_flags", "fl_flags")),
                ("type", found.lock_type, core("flc_type", "fl_type")),
                ("pid", found.lock_pid, core("flc_pid", "fl_pid")),
                ("file", found.lock_file, core("flc_file", "fl_file")),
                ("link", found.lock_link, core("flc_link", "fl_link")),
                ("link_cpu", found.lock_link_cpu, core("flc_link_cpu", "fl_link_cpu")),
                (
                    "blocked_requests",
                    found.lock_blocked_requests,
                    core("flc_blocked_requests", "fl_blocked_requests"),
                ),
                (
                    "blocked_member",
                    found.lock_blocked_member,
                    core("flc_blocked_member", "fl_blocked_member"),
                ),
                ("fl_start", found.lock_start, of("file_lock", "fl_start")),
                ("fl_end", found.lock_end, of("file_lock", "fl_end")),
                ("files", found.task_files, of("task_struct", "files")),
                ("tgid", found.task_tgid, of("task_struct", "tgid")),
                ("comm", found.task_comm, of("task_struct", "comm")),
                ("cred", found.task_cred, of("task_struct", "cred")),
                ("start", found.task_start, of("task_struct", "start_boottime")),
                ("exec id", found.task_exec_id, of("task_struct", "self_exec_id")),
                ("leader", found.task_leader, of("task_struct", "group_leader")),
                ("thread_pid", found.task_thread_pid, of("task_struct", "thread_pid")),
                ("level", found.pid_level, of("pid", "level")),
                ("numbers", found.pid_numbers, of("pid", "numbers")),
                ("upid.nr", found.upid_nr, of("upid", "nr")),
                ("upid.ns", found.upid_ns, of("upid", "ns")),
            ] {
                assert_eq!(Some(found), told, "{version}: {name}");
            }
        }
    }

    #[test]
    fn a_member_that_a_kernel_lacks_is_named() {
        let (_, bytes, _) = KERNELS[0];
        let mut bytes = bytes.to_vec();
        let name = b"\0i_flctx\0";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        bytes[at + 1] = b'x';
        let error = offsets(&Btf::parse(&bytes).unwrap(), true).unwrap_err();
        assert_eq!(error, LayoutError::Absent("inode.i_flctx".into()));
    }
}
