//! From the running kernel's type information to the table of offsets that the programs use.
//!
//! Refuses to guess: a member that is needed and absent is an error that names it.

use lockwatch_common::offsets::Offsets;
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
    let offsets = Offsets {
        file_inode: of("file", "f_inode")?,
        file_path: of("file", "f_path")?,
        file_mode: of("file", "f_mode")?,
        file_cred: of("file", "f_cred")?,
        path_dentry: of("path", "dentry")?,
        dentry_hash_pprev: of("dentry", "d_hash.pprev")?,
        dentry_parent: of("dentry", "d_parent")?,
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
    ] {
        if offset as usize + 8 > LOCK_SPAN {
            return Err(LayoutError::TooFar(name));
        }
    }
    Ok(offsets)
}
