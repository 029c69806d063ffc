//! One story for each kind of event: what the tests of sinks and traces are made of.

use super::stage::{End, MS, Stage, World, file, ms};
use crate::engine::identity::{Access, ProcessId, StartTime};
use crate::engine::input::{
    Input, LockName, Outcome, Permission, PidReused, Policy, Settings, Watched,
};
use crate::engine::reclaim::Method;
use crate::engine::reclaim::progress::{
    Asker, Done, Ended, Ending, Evicted, HookEnd, Planned, PlannedLock, Reclaimed,
};

pub(crate) const PATH: &str = "/srv/aim/aim_lock_config.conf";

/// A locksmith that locked a file, and a child of it with the descriptor.
fn locksmith(world: &mut World) {
    world.file(131, PATH);
    world.born(8123, "locksmith", ms(5_000));
    world.open(8123, 131, 1);
    world.lock(8123, 131, 1, Access::Write, ms(6_000));
}

/// A locksmith that is killed, and whose child keeps the lock, until it ends, too.
pub(crate) fn orphan() -> Stage {
    let mut stage = Stage::new();
    locksmith(&mut stage.world);
    stage.world.fork(8123, 8130, "sleep", ms(7_000));
    stage.world.exec(8130);
    stage.until(12_000);
    let death = stage.dies(8123, End::Signal(9));
    stage.until(13_000);
    let ended = stage.ended(1, death, Some(false));
    stage.world.die(8130, stage.now, End::Exit(0));
    stage.input(Input::Ended(ended));
    stage.until(13_500);
    stage
}

/// A locksmith that is killed while another waits, who gets the lock.
pub(crate) fn crash_handoff() -> Stage {
    let mut stage = Stage::new();
    locksmith(&mut stage.world);
    stage.world.born(8200, "successor", ms(5_500));
    stage.world.open(8200, 131, 2);
    stage.until(12_000);
    let death = stage.dies(8123, End::Signal(11));
    stage.until(12_001);
    let ended = stage.ended(1, death, Some(true));
    stage.input(Input::Ended(ended));
    stage.until(12_010);
    let acquired = stage.acquired(8200, 131, 2);
    stage.input(Input::Acquired(acquired));
    stage.until(12_500);
    stage
}

/// One that tries while the locksmith is on its way out.
pub(crate) fn exit_race() -> Stage {
    let mut stage = Stage::new();
    locksmith(&mut stage.world);
    stage.world.born(8200, "successor", ms(5_500));
    stage.until(12_000);
    let death = stage.dies(8123, End::Exit(0));
    stage.until(12_001);
    let attempt = stage.attempt(8200, 1, Outcome::Refused, Some(death));
    stage.input(Input::Attempt(attempt));
    stage.until(12_002);
    let ended = stage.ended(1, death, None);
    stage.input(Input::Ended(ended));
    stage.until(12_500);
    stage
}

/// A locksmith whose child goes on with the lock, and whose pid is given away.
pub(crate) fn pid_recycled() -> Stage {
    let mut stage = Stage::new();
    locksmith(&mut stage.world);
    stage.world.fork(8123, 8130, "locksmith", ms(7_000));
    stage.until(12_000);
    stage.dies(8123, End::Exit(0));
    stage.until(13_000);
    stage.world.born(8123, "bystander", ms(13_000));
    let process = ProcessId { pid: 8123, start: StartTime(13_000 * MS + 1) };
    stage.input(Input::PidReused(PidReused { process, at: stage.now }));
    stage.until(13_500);
    stage
}

/// A lock file that is made anew while it is locked.
pub(crate) fn lock_replaced() -> Stage {
    let mut stage = Stage::new();
    locksmith(&mut stage.world);
    stage.until(12_000);
    stage.world.replace(131, 132);
    stage.world.born(8200, "successor", ms(11_000));
    stage.world.open(8200, 132, 2);
    stage.world.lock(8200, 132, 2, Access::Write, ms(12_000));
    stage.until(14_500);
    stage
}

/// One that is told that a watched lock is taken.
pub(crate) fn refused() -> Stage {
    let mut stage = Stage::new();
    locksmith(&mut stage.world);
    stage.watch("aim_lock_config", PATH, 131);
    stage.world.born(8200, "successor", ms(5_500));
    stage.until(12_500);
    let attempt = stage.attempt(8200, 1, Outcome::Refused, None);
    stage.input(Input::Attempt(attempt));
    stage.until(13_000);
    stage
}

/// One that waits for longer than half a minute.
pub(crate) fn long_wait() -> Stage {
    let mut stage = Stage::new();
    locksmith(&mut stage.world);
    stage.world.born(8200, "patient", ms(5_500));
    stage.world.open(8200, 131, 2);
    stage.until(12_000);
    stage.world.wait(8200, 131, 2, Some(ms(12_000)));
    stage.until(60_000);
    stage
}

/// Two that took two locks in opposite order.
pub(crate) fn deadlock() -> Stage {
    let mut stage = Stage::new();
    let world = &mut stage.world;
    world.file(131, "/srv/a.lock");
    world.file(132, "/srv/b.lock");
    for (pid, comm, own, other) in [(81, "first", 131, 132), (82, "second", 132, 131)] {
        world.born(pid, comm, ms(5_000));
        world.open(pid, own, pid as u64);
        world.open(pid, other, pid as u64 + 100);
        world.lock(pid, own, pid as u64, Access::Write, ms(6_000));
        world.wait(pid, other, pid as u64 + 100, Some(ms(7_000)));
    }
    stage.until(13_000);
    stage
}

/// Records that did not fit into the ring.
pub(crate) fn lost() -> Stage {
    let mut stage = Stage::new();
    stage.until(11_000);
    stage.input(Input::Lost(17));
    stage.until(11_100);
    stage
}

/// A daemon that may reclaim a watched file, on which a lock is orphaned; what is about to be done
/// about it, and the lock's name.
fn reclaiming() -> (Stage, LockName) {
    let permission = Permission { path: PATH.as_bytes().into(), allowed: true, likely: false };
    let reclaim = Policy { automatic: true, watches: vec![permission], ..Policy::default() };
    let mut stage = Stage::with(Settings { reclaim, ..Settings::default() }, World::default());
    locksmith(&mut stage.world);
    stage.watch("aim_lock_config", PATH, 131);
    stage.world.fork(8123, 8130, "sleep", ms(7_000));
    stage.world.exec(8130);
    stage.until(12_000);
    stage.dies(8123, End::Signal(9));
    stage.until(13_000);
    let lock = stage.world.name(1);
    let through = Evicted {
        process: stage.world.who(8130).id,
        reader_pid: 8130,
        comm: b"sleep".as_slice().into(),
        fd: Some(3),
        writes: Some(true),
    };
    let planned = PlannedLock {
        lock: lock.clone(),
        path: Some(PATH.as_bytes().into()),
        method: Method::Fd,
        forced: false,
        holders: vec![through.clone()],
        through,
        warnings: vec!["sleep (pid 8130) has the file open for writing".into()],
    };
    stage.input(Input::Planned(Planned { by: Asker::Policy, locks: vec![planned] }));
    (stage, lock)
}

/// The end of a reclaim by the policy.
pub(crate) fn ended(lock: &LockName, ending: Ending, hooks: Vec<HookEnd>) -> Reclaimed {
    let ended = Ended {
        lock: lock.clone(),
        path: Some(PATH.as_bytes().into()),
        method: Some(Method::Fd),
        took: matches!(ending, Ending::Released { .. }).then_some(3_200_000),
        ending,
    };
    Reclaimed {
        by: Asker::Policy,
        file: Some(lock.file),
        locks: vec![lock.id],
        done: Done { outcomes: vec![ended], hooks },
        error: None,
    }
}

/// A hook that has ended.
pub(crate) fn hook(name: &str, code: i32) -> HookEnd {
    HookEnd {
        hook: name.into(),
        ok: code == 0,
        status: format!("exited with {code}"),
        said: String::new(),
        took: 12_000_000,
    }
}

/// An orphan that is released, with its hooks around that.
pub(crate) fn reclaim() -> Stage {
    let (mut stage, lock) = reclaiming();
    stage.world.unlock(1);
    let hooks = ["drain", "canary", "resume"].map(|name| hook(name, 0)).into();
    let ending = Ending::Released { taken_by: Vec::new() };
    stage.input(Input::Reclaimed(ended(&lock, ending, hooks)));
    stage.until(14_000);
    stage
}

/// An orphan whose drain fails.
pub(crate) fn reclaim_failed() -> Stage {
    let (mut stage, lock) = reclaiming();
    let ending = Ending::Failed { result: "not_tried".into(), why: "drain exited with 1".into() };
    let hooks = vec![hook("drain", 1), hook("resume", 0)];
    stage.input(Input::Reclaimed(ended(&lock, ending, hooks)));
    stage.until(14_000);
    stage
}

/// An orphan whose holder ends between plan and act.
pub(crate) fn reclaim_race() -> Stage {
    let (mut stage, lock) = reclaiming();
    stage.world.unlock(1);
    let (race, why) = ("process".into(), "pid 8130 is gone".into());
    stage.input(Input::Reclaimed(ended(&lock, Ending::Race { race, why }, Vec::new())));
    stage.until(14_000);
    stage
}

/// Everything that happens on a watched file.
pub(crate) fn verbose() -> Stage {
    let settings = Settings { verbose: true, ..Settings::default() };
    let mut stage = Stage::with(settings, World::default());
    stage.world.file(131, PATH);
    stage.world.born(8123, "locksmith", ms(5_000));
    stage.world.open(8123, 131, 1);
    stage.world.born(8200, "patient", ms(5_500));
    let path = PATH.as_bytes().into();
    let watched = Watched { name: "aim_lock_config".into(), path, file: Some(file(131)) };
    stage.input(Input::Watch(vec![watched]));
    stage.until(11_000);
    let acquired = stage.acquired(8123, 131, 1);
    stage.input(Input::Acquired(acquired));
    stage.until(11_010);
    let attempt = stage.attempt(8200, 1, Outcome::Blocked, None);
    stage.input(Input::Attempt(attempt));
    stage.until(11_020);
    let released = stage.released(8123, 1);
    stage.input(Input::Released(released));
    stage.until(11_100);
    stage
}

/// Every story.
pub(crate) fn all() -> Vec<(&'static str, Stage)> {
    vec![
        ("orphan", orphan()),
        ("crash_handoff", crash_handoff()),
        ("exit_race", exit_race()),
        ("pid_recycled", pid_recycled()),
        ("lock_replaced", lock_replaced()),
        ("refused", refused()),
        ("long_wait", long_wait()),
        ("deadlock", deadlock()),
        ("reclaim", reclaim()),
        ("reclaim_failed", reclaim_failed()),
        ("reclaim_race", reclaim_race()),
        ("lost", lost()),
        ("verbose", verbose()),
    ]
}
