//! Where the members of the kernel's structures are.
//!
//! User space resolves each from the running kernel's BTF and hands the whole table over as one
//! read-only global before the programs are loaded, so the verifier sees constants.

/// The name of the global that holds the table in the BPF object.
pub const GLOBAL: &str = "OFFSETS";

/// The offset of a member that this kernel does not have; only members that say so may be absent.
pub const ABSENT: u32 = u32::MAX;

/// A table of `u32`, and what both sides need to hand it over.
macro_rules! offsets {
    ($(#[$about:meta])* $table:ident: $( $(#[$doc:meta])* $name:ident, )*) => {
        $(#[$about])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $table {
            $( $(#[$doc])* pub $name: u32, )*
        }

        impl $table {
            /// Number of `u32` in the table.
            pub const WORDS: usize = [$(stringify!($name)),*].len();

            /// A table of zeros: what the object holds until user space writes it.
            pub const ZERO: Self = Self { $( $name: 0, )* };

            /// The table as plain words, in the order of the members.
            pub const fn words(&self) -> [u32; Self::WORDS] {
                [$( self.$name ),*]
            }
        }
    };
}
pub(crate) use offsets;

offsets! {
    /// Byte offsets of structure members, and sizes, of the running kernel.
    Offsets:
    /// `file.f_inode`
    file_inode,
    /// `file.f_path`
    file_path,
    /// `file.f_mode`
    file_mode,
    /// `file.f_cred`
    file_cred,
    /// `path.dentry`
    path_dentry,
    /// `dentry.d_hash.pprev`: null where the name is gone from its folder
    dentry_hash_pprev,
    /// `dentry.d_parent`: itself at a root
    dentry_parent,
    /// `dentry.d_name.name`
    dentry_name,
    /// `inode.i_flctx`
    inode_flctx,
    /// `inode.i_ino`
    inode_ino,
    /// `inode.i_size`
    inode_size,
    /// `inode.i_nlink`
    inode_nlink,
    /// `inode.i_sb`
    inode_sb,
    /// `super_block.s_dev`
    sb_dev,
    /// `file_lock_context.flc_flock`
    ctx_flock,
    /// `file_lock_context.flc_posix`
    ctx_posix,
    /// `file_lock_context.flc_lease`
    ctx_lease,
    /// `file_lock_core.flc_blocker` (before 6.9 `file_lock.fl_blocker`; so for the rest)
    lock_blocker,
    /// `file_lock_core.flc_list`
    lock_list,
    /// `file_lock_core.flc_blocked_requests`
    lock_blocked_requests,
    /// `file_lock_core.flc_blocked_member`
    lock_blocked_member,
    /// `file_lock_core.flc_owner`
    lock_owner,
    /// `file_lock_core.flc_flags`
    lock_flags,
    /// `file_lock_core.flc_type`
    lock_type,
    /// `file_lock_core.flc_pid`
    lock_pid,
    /// `file_lock_core.flc_file`
    lock_file,
    /// `file_lock_core.flc_link`: its place in its CPU's list of all locks
    lock_link,
    /// `file_lock_core.flc_link_cpu`
    lock_link_cpu,
    /// `file_lock.fl_start`; not for leases
    lock_start,
    /// `file_lock.fl_end`; not for leases
    lock_end,
    /// `task_struct.files`
    task_files,
    /// `task_struct.tgid`
    task_tgid,
    /// `task_struct.pid`
    task_pid,
    /// `task_struct.flags`
    task_flags,
    /// `task_struct.comm`
    task_comm,
    /// `task_struct.cred`
    task_cred,
    /// `task_struct.start_boottime`
    task_start,
    /// `task_struct.group_leader`
    task_leader,
    /// `task_struct.real_parent`
    task_parent,
    /// `task_struct.thread_pid`
    task_thread_pid,
    /// `pid.level`
    pid_level,
    /// `pid.numbers`
    pid_numbers,
    /// size of `upid`
    upid_size,
    /// `upid.nr`
    upid_nr,
    /// `upid.ns`
    upid_ns,
    /// `pid_namespace.ns.inum`
    pid_ns_inum,
    /// 1 where `bpf_d_path` may be called from an iterator (5.13), else 0
    has_d_path,
    /// 1 where `bpf_get_current_task_btf` may surely be called (5.11), else 0
    has_task_btf,
    /// `inode.i_mtime_sec` (before 6.11 within `i_mtime` or `__i_mtime`), or [`ABSENT`]
    inode_mtime_sec,
    /// `inode.i_mtime_nsec`, or [`ABSENT`]
    inode_mtime_nsec,
    /// `task_struct.mm`, or [`ABSENT`]; so for the rest
    task_mm,
    /// `task_struct.self_exec_id`
    task_exec_id,
    /// `task_struct.signal`
    task_signal,
    /// `task_struct.exit_code`
    task_exit_code,
    /// `mm_struct.exe_file`
    mm_exe_file,
    /// `signal_struct.live`
    signal_live,
    /// `signal_struct.flags`
    signal_flags,
    /// `signal_struct.group_exit_code`
    signal_group_exit_code,
}

const _: () = assert!(size_of::<Offsets>() == Offsets::WORDS * 4);
