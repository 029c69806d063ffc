//! Beginnings that several tests share.

/// `owner` holds an exclusive flock on `lock`.
pub(crate) const HELD: &str = "
    start owner
    owner: open a lock
    owner: flock a ex";

/// `owner` is dead, and `heir`, which it forked afterwards, carried its flock on `lock` across an
/// exec.
pub(crate) const LEAKED: &str = "
    start owner
    owner: open a lock
    owner: flock a ex
    owner: fork heir
    heir: exec
    owner: exit 0";

/// `shell` opened `lock`, its child `locker` took the flock and ended: `exec 9>lock; flock 9`.
pub(crate) const SHELL_IDIOM: &str = "
    start shell
    shell: open a lock
    shell: fork locker
    locker: exec
    locker: flock a ex
    locker: exit 0";

/// Where nothing is locked.
pub(crate) const FREE: &str = "
    start owner
    owner: open a lock";
