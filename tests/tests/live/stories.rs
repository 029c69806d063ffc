//! Beginnings that several tests share.

use anyhow::Result;
use lockwatch_tests::harness::{Scene, patience};

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

/// As [`LEAKED`], but `owner` was killed.
pub(crate) const CRASHED: &str = "
    start owner
    owner: open a lock
    owner: flock a ex
    owner: fork heir
    heir: exec
    owner: die KILL";

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

/// Two processes of one thread each have the locks on `left` and `right` and wait for the other's,
/// each below the one that has its lock for it: flock(1) in flock(1). A rig that waits in a thread
/// has another thread, which could release what the first waits for.
pub(crate) fn deadlock(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start gatekeeper
         gatekeeper: open gate gate
         gatekeeper: flock gate ex
         gatekeeper: spawn one flock left flock -s gate flock right true
         gatekeeper: spawn two flock right flock -s gate flock left true",
    )?;
    let gate = scene.file("gate")?;
    patience::until("both to have their own lock", || {
        let lines = crate::kernel::proc_locks_on(&gate)?;
        Ok((lines.iter().filter(|line| line.contains("->")).count() == 2).then_some(()))
    })?;
    scene.play("gatekeeper: flock gate un")
}
