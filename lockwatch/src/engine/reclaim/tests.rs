//! Plans and rechecks as specifications.

use super::*;
use crate::engine::classify::{Confidence, State};
use crate::engine::id::{self, IdKey};
use crate::engine::identity::{
    Access, BootTime, Dev, LockKind, Owner, ProcessId, Range, RecordedPid, StartTime,
};
use crate::engine::snapshot::{
    Births, File, FileIx, Hides, Limit, Lock, Place, PlaceKind, PlaceOwner, Process, Reference,
    Remembered, Snapshot, Taken, Via,
};
use crate::engine::view::View;

const OWN: i32 = 9999;
const HEIR: i32 = 200;
const DEAD: i32 = 100;
const DESCRIPTION: Owner = Owner::new(7);

fn lock(kind: LockKind) -> Lock {
    Lock {
        entry: 1,
        file: FileIx(0),
        kind,
        access: Access::Write,
        range: Range::new(10, Some(19)),
        owner: Some(DESCRIPTION),
        acquirer: RecordedPid::Local(DEAD),
        breaking_to: None,
        taken: None,
    }
}

fn reference(pid: i32, fd: u32) -> Reference {
    Reference {
        pid,
        tid: pid,
        via: Via::Fd,
        fd: Some(fd),
        file: FileIx(0),
        description: Some(DESCRIPTION),
        table: Some(DESCRIPTION),
        opener: Some(false),
        writes: Some(true),
    }
}

fn process(start: u64, forked_no_exec: bool) -> Process {
    Process {
        start: Some(StartTime(start * 1_000_000_000)),
        comm: (*b"heir").into(),
        forked_no_exec: Some(forked_no_exec),
        ..Process::default()
    }
}

/// An orphan: its acquirer is gone, and a later process carried it across an exec.
fn orphan(kind: LockKind) -> Snapshot {
    Snapshot {
        files: vec![File {
            dev: Dev::new(1, 2),
            ino: 5,
            size: crate::engine::identity::Size::new(0),
            path: Some((*b"/srv/lock").into()),
            deleted: Some(false),
            replaced: Some(false),
        }]
        .into(),
        locks: vec![lock(kind)].into(),
        references: vec![reference(HEIR, 3)].into(),
        processes: [(HEIR, process(20, false))].into(),
        births: Births {
            forks: Some(1000),
            pid_max: Some(4_194_304),
            last_pid: Some(1000),
            now: Some(StartTime(1_000_000_000_000)),
        },
        stable_owners: true,
        ..Snapshot::default()
    }
}

fn view(snapshot: Snapshot) -> View {
    let ids = id::assign(&snapshot, &IdKey([1; 16]));
    View::new(snapshot, &ids)
}

/// The same, and somebody watched it being taken.
fn proven(kind: LockKind) -> Snapshot {
    let mut snapshot = orphan(kind);
    let acquirer = ProcessId { pid: DEAD, start: StartTime(10_000_000_000) };
    let by = Remembered {
        id: acquirer,
        comm: (*b"owner").into(),
        ns_pid: None,
        pid_ns: None,
        exe: None,
        cgroup: None,
    };
    snapshot.locks[0].taken = Some(Taken { at: BootTime(15_000_000_000), by: by.into() });
    snapshot
}

fn planned(snapshot: &Snapshot, wanted: Wanted, forced: bool) -> Result<Plan, Refusal> {
    let at_least = Confidence::Likely;
    on_terms(snapshot, Terms { wanted, forced, at_least, own: OWN })
}

fn on_terms(snapshot: &Snapshot, terms: Terms) -> Result<Plan, Refusal> {
    let view = view(snapshot.clone());
    plan(&view, &view.locks[0], terms)
}

fn plan_of(snapshot: &Snapshot) -> Plan {
    planned(snapshot, Wanted::Auto, false).unwrap()
}

/// A lock that its living acquirer has.
fn held() -> Snapshot {
    let mut snapshot = orphan(LockKind::Flock);
    snapshot.references.push(reference(DEAD, 4));
    snapshot.processes.insert(DEAD, process(10, true));
    snapshot
}

#[test]
fn an_orphan_is_released_through_a_descriptor_of_whoever_keeps_it() {
    for kind in [LockKind::Flock, LockKind::Ofd, LockKind::Lease] {
        let plan = plan_of(&orphan(kind));
        assert_eq!(
            (plan.method, plan.through.reader_pid, plan.through.fd),
            (Method::Fd, HEIR, Some(3))
        );
        assert!(!plan.forced && !plan.steps.is_empty() && !plan.safe.is_empty());
        assert!(plan.not_excluded.iter().any(|open| open.contains("anew")), "{plan:?}");
        let writers: Vec<_> = plan.writers.iter().flatten().map(|of| of.pid).collect();
        assert_eq!(writers, [HEIR]);
    }
}

#[test]
fn without_an_orphans_verdict_there_is_no_plan_unless_by_force_and_then_it_says_who_loses() {
    let refusal = planned(&held(), Wanted::Auto, false).unwrap_err();
    assert!(matches!(refusal, Refusal::NotOrphaned { state: State::Held, .. }), "{refusal}");
    let plan = planned(&held(), Wanted::Auto, true).unwrap();
    assert!(plan.forced);
    assert!(plan.safe.iter().all(|safe| !safe.contains("orphaned")), "{plan:?}");
    for pid in [DEAD, HEIR] {
        let loses =
            |warning: &String| warning.contains(&format!("pid {pid}")) && warning.contains("loses");
        assert!(plan.warnings.iter().any(loses), "{plan:?}");
    }
    assert!(plan.warnings.iter().any(|warning| warning.contains("which took it, loses")));
}

#[test]
fn force_on_an_orphan_is_no_force() {
    assert!(!planned(&orphan(LockKind::Flock), Wanted::Auto, true).unwrap().forced);
}

#[test]
fn who_wants_only_what_is_certain_gets_no_plan_for_what_was_inferred() {
    let at_least = Confidence::Certain;
    let terms = Terms { wanted: Wanted::Auto, forced: false, at_least, own: OWN };
    let refusal = on_terms(&orphan(LockKind::Flock), terms).unwrap_err();
    assert_eq!(refusal.name(), "only_likely");
    let why = refusal.to_string();
    assert!(why.contains("likely, not certain") && why.contains("reclaim_likely"), "{why}");
    let plan = on_terms(&proven(LockKind::Flock), terms).unwrap();
    assert_eq!(plan.confidence, Confidence::Certain);
}

#[test]
fn who_wants_only_what_is_certain_gets_no_plan_for_what_somebody_may_be_about_to_receive() {
    let mut snapshot = proven(LockKind::Flock);
    snapshot.references.clear();
    snapshot.places.push(Place {
        description: DESCRIPTION,
        kind: PlaceKind::Queue { socket: Some(7), name: None, depth: 0 },
        owners: vec![PlaceOwner { pid: HEIR, tid: HEIR, fd: Some(5), opener: None }],
    });
    let terms = |at_least| Terms { wanted: Wanted::Auto, forced: false, at_least, own: OWN };
    assert_eq!(on_terms(&snapshot, terms(Confidence::Certain)), Err(Refusal::InFlight));
    let plan = on_terms(&snapshot, terms(Confidence::Likely)).unwrap();
    assert_eq!((plan.method, plan.confidence), (Method::Queue, Confidence::Certain));
    assert!(plan.not_excluded.iter().any(|open| open.contains("about to receive")), "{plan:?}");
}

#[test]
fn a_plan_that_was_certain_is_not_carried_out_once_that_is_gone() {
    let plan = plan_of(&proven(LockKind::Flock));
    assert_eq!(recheck(&plan, &view(proven(LockKind::Flock)), Some(DESCRIPTION)), Ok(()));
    let now = recheck(&plan, &view(orphan(LockKind::Flock)), Some(DESCRIPTION));
    assert_eq!(now, Err(Race::Doubt));
    // What was likely may have become certain.
    let plan = plan_of(&orphan(LockKind::Flock));
    assert_eq!(recheck(&plan, &view(proven(LockKind::Flock)), Some(DESCRIPTION)), Ok(()));
}

#[test]
fn what_could_not_be_read_is_unknown_and_refused() {
    let mut snapshot = orphan(LockKind::Flock);
    snapshot.processes.remove(&HEIR);
    snapshot.limits.push(Limit { what: "it".into(), hides: Hides::Holders });
    let refusal = planned(&snapshot, Wanted::Auto, false).unwrap_err();
    assert!(matches!(refusal, Refusal::NotOrphaned { state: State::Unknown, .. }), "{refusal:?}");
    let forced = planned(&snapshot, Wanted::Auto, true).unwrap_err();
    assert_eq!(forced, Refusal::ProcessUnknown { pid: HEIR }, "a pid alone is not enough");
}

#[test]
fn a_posix_lock_is_never_released_through_a_descriptor() {
    let mut snapshot = orphan(LockKind::Posix);
    for wanted in [Wanted::Auto, Wanted::Fd] {
        let refusal = planned(&snapshot, wanted, false).unwrap_err();
        assert_eq!(refusal.name(), "method_does_not_fit");
        assert!(refusal.to_string().contains("--method inject"), "{refusal}");
    }
    let plan = planned(&snapshot, Wanted::Inject, false).unwrap();
    assert_eq!(plan.method, Method::Inject);
    assert!(plan.not_excluded.iter().any(|open| open.contains("itself is killed")), "{plan:?}");
    snapshot.references[0].tid = HEIR;
    let plan = planned(&snapshot, Wanted::Signal, false).unwrap();
    assert_eq!(plan.method, Method::Signal);
    assert!(plan.warnings.iter().any(|warning| warning.contains("is ended")), "{plan:?}");
}

#[test]
fn what_another_machine_or_the_nfs_server_holds_is_left_to_its_administrator() {
    let mut snapshot = orphan(LockKind::Posix);
    snapshot.locks[0].acquirer = RecordedPid::Remote(-5);
    for forced in [false, true] {
        let refusal = planned(&snapshot, Wanted::Signal, forced).unwrap_err();
        assert!(refusal.to_string().contains("/proc/fs/nfsd"), "{refusal}");
        let refusal = planned(&orphan(LockKind::Deleg), Wanted::Auto, forced).unwrap_err();
        assert_eq!(refusal.name(), "nfs_server");
    }
}

#[test]
fn nothing_that_refers_is_no_way() {
    let mut snapshot = orphan(LockKind::Flock);
    snapshot.references.clear();
    let refusal = planned(&snapshot, Wanted::Auto, false).unwrap_err();
    assert!(matches!(refusal, Refusal::NoWay { .. }), "{refusal:?}");
}

#[test]
fn pid_1_and_oneself_are_never_signalled_or_halted() {
    for pid in [1, OWN] {
        let mut snapshot = orphan(LockKind::Flock);
        snapshot.references[0].pid = pid;
        snapshot.processes = [(pid, process(20, false))].into();
        for wanted in [Wanted::Signal, Wanted::Inject] {
            assert_eq!(planned(&snapshot, wanted, true).unwrap_err(), Refusal::Untouchable { pid });
        }
    }
}

/// What a recheck says after a change, with the planned description fetched.
#[track_caller]
fn race(change: impl FnOnce(&mut Snapshot)) -> Race {
    let before = orphan(LockKind::Flock);
    let plan = plan_of(&before);
    let mut after = before;
    change(&mut after);
    recheck(&plan, &view(after), Some(DESCRIPTION)).expect_err("it passed")
}

#[test]
fn a_plan_passes_where_nothing_changed() {
    let snapshot = orphan(LockKind::Flock);
    let plan = plan_of(&snapshot);
    assert_eq!(recheck(&plan, &view(snapshot.clone()), Some(DESCRIPTION)), Ok(()));
    // What others have to do with the file is their own affair.
    let mut busy = snapshot;
    let mut other = lock(LockKind::Ofd);
    other.owner = Some(Owner::new(8));
    busy.locks.push(other);
    assert_eq!(recheck(&plan, &view(busy), Some(DESCRIPTION)), Ok(()));
}

#[test]
fn a_lock_that_is_gone_or_another_ones_is_a_race() {
    assert_eq!(race(|after| after.locks.clear()), Race::Gone);
    let retaken = race(|after| after.locks[0].acquirer = RecordedPid::Local(HEIR));
    assert_eq!(retaken, Race::Another { what: "who took it" });
    let others = race(|after| after.locks[0].owner = Some(Owner::new(8)));
    assert_eq!(others, Race::Gone);
    let downgraded = race(|after| after.locks[0].access = Access::Read);
    assert_eq!(downgraded, Race::Another { what: "its access" });
    let shortened = race(|after| after.locks[0].range = Range::new(10, Some(12)));
    assert_eq!(shortened, Race::Another { what: "its range" });
    let moved = race(|after| after.locks[0].range.start = 12);
    assert_eq!(moved, Race::Another { what: "its range" });
}

#[test]
fn a_file_that_lost_its_name_or_gave_it_to_another_is_a_race() {
    assert!(matches!(race(|after| after.files[0].deleted = Some(true)), Race::File { .. }));
    assert!(matches!(race(|after| after.files[0].replaced = Some(true)), Race::File { .. }));
}

#[test]
fn a_process_that_is_gone_or_another_one_is_a_race() {
    let same_pid = race(|after| {
        after.processes.insert(HEIR, process(30, false));
    });
    assert_eq!(same_pid, Race::Process { pid: HEIR, what: "is another process" });
    let closed = race(|after| {
        after.references[0].pid = 201;
        after.processes.insert(201, process(21, false));
    });
    assert_eq!(closed, Race::Process { pid: HEIR, what: "holds it no more" });
}

#[test]
fn a_verdict_that_changed_is_a_race_but_not_for_a_forced_plan() {
    let before = orphan(LockKind::Flock);
    let plan = plan_of(&before);
    let now_held = view(held());
    let race = recheck(&plan, &now_held, Some(DESCRIPTION)).unwrap_err();
    assert_eq!(race, Race::Verdict { now: State::Held });
    let forced = planned(&held(), Wanted::Auto, true).unwrap();
    assert_eq!(recheck(&forced, &now_held, Some(DESCRIPTION)), Ok(()));
}

#[test]
fn another_description_or_none_is_a_race() {
    let snapshot = orphan(LockKind::Flock);
    let plan = plan_of(&snapshot);
    for fetched in [None, Some(Owner::new(8))] {
        assert_eq!(recheck(&plan, &view(snapshot.clone()), fetched), Err(Race::Description));
    }
}

#[test]
fn released_is_what_the_tables_do_not_show_any_more() {
    let before = orphan(LockKind::Flock);
    let plan = plan_of(&before);
    let before_view = view(before.clone());
    assert_eq!(verify(&plan, &before_view, &before_view), End::StillHeld);

    let mut after = before.clone();
    after.locks.clear();
    let gone = verify(&plan, &before_view, &view(after.clone()));
    assert_eq!(gone, End::Released { taken_by: Vec::new() });

    after.limits.push(Limit { what: "a list was cut".into(), hides: Hides::Locks });
    let unsure = verify(&plan, &before_view, &view(after.clone()));
    assert!(matches!(unsure, End::Unverified { why } if why == "a list was cut"));

    after.limits.clear();
    let mut next = lock(LockKind::Flock);
    next.owner = Some(Owner::new(8));
    next.acquirer = RecordedPid::Local(300);
    after.locks.push(next);
    after.processes.insert(300, process(30, true));
    let End::Released { taken_by } = verify(&plan, &before_view, &view(after)) else { panic!() };
    assert_eq!(taken_by.len(), 1);
    assert_eq!(taken_by[0].pid, Some(300));
}
