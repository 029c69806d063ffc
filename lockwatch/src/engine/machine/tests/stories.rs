//! One story for each kind of event: what the tests of sinks and traces are made of.

use super::stage::{End, MS, Stage, World, file, ms};
use crate::engine::identity::{Access, ProcessId, StartTime};
use crate::engine::input::{Input, Outcome, PidReused, Settings, Watched};

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
        ("lost", lost()),
        ("verbose", verbose()),
    ]
}
