//! Verdicts as specifications: each test is one way in which a lock comes to be what it is.

use std::sync::Arc;

use super::*;
use crate::engine::identity::{Access, BootTime, LockKind, Owner, ProcessId, Range};
use crate::engine::snapshot::{FileIx, PlaceKind, PlaceOwner, Remembered, Taken};

const ACQUIRER: Pid = 100;
const HOUR: u64 = 3_600_000_000_000;

fn lock(kind: LockKind) -> Lock {
    Lock {
        entry: 1,
        file: FileIx(0),
        kind,
        access: Access::Write,
        range: Range::WHOLE,
        owner: Some(Owner::new(7)),
        acquirer: RecordedPid::Local(ACQUIRER),
        breaking_to: None,
        taken: None,
    }
}

/// Nothing has gone round: 400 forks since boot, an hour ago.
fn births() -> Births {
    Births {
        forks: Some(400),
        pid_max: Some(32_768),
        last_pid: Some(400),
        now: Some(StartTime(HOUR)),
    }
}

/// A process born so many seconds after boot.
fn born(second: u64) -> Process {
    Process {
        start: Some(StartTime(second * 1_000_000_000)),
        forked_no_exec: Some(false),
        parent: Some(1),
        ..Process::default()
    }
}

fn forked(second: u64) -> Process {
    Process { forked_no_exec: Some(true), ..born(second) }
}

struct Case {
    lock: Lock,
    acquirer: Option<Process>,
    survivors: Vec<(Pid, Process, Option<bool>)>,
    births: Births,
    nested: bool,
    hidden: bool,
    death: Option<Death>,
    overdue: bool,
    places: Vec<Place>,
    processes: BTreeMap<Pid, Process>,
    stuck: BTreeSet<ProcessId>,
}

impl Case {
    fn new(acquirer: Option<Process>, survivors: Vec<(Pid, Process)>) -> Self {
        Self {
            lock: lock(LockKind::Flock),
            acquirer,
            survivors: survivors
                .into_iter()
                .map(|(pid, process)| (pid, process, Some(false)))
                .collect(),
            births: births(),
            nested: false,
            hidden: false,
            death: None,
            overdue: false,
            places: Vec::new(),
            processes: BTreeMap::new(),
            stuck: BTreeSet::new(),
        }
    }

    fn verdict(&self) -> Verdict {
        let survivors: Vec<Survivor<'_>> = self
            .survivors
            .iter()
            .map(|(pid, process, opener)| Survivor {
                pid: *pid,
                via: Via::Fd,
                fd: Some(3),
                opener: *opener,
                process: Some(process),
            })
            .collect();
        classify(&Facts {
            lock: &self.lock,
            acquirer: self.acquirer.as_ref(),
            survivors: &survivors,
            death: self.death.as_ref(),
            overdue: self.overdue,
            places: &self.places.iter().collect::<Vec<_>>(),
            search: &Search::none("nobody looked"),
            processes: &self.processes,
            stuck: &self.stuck,
            births: &self.births,
            nested: self.nested,
            hidden: self.hidden,
        })
    }

    fn state(&self) -> (State, Option<Reason>, Confidence) {
        let verdict = self.verdict();
        (verdict.state, verdict.reason, verdict.confidence)
    }
}

const LIKELY: Confidence = Confidence::Likely;
const CERTAIN: Confidence = Confidence::Certain;
const UNKNOWN: (State, Option<Reason>, Confidence) = (State::Unknown, None, CERTAIN);

#[test]
fn a_living_acquirer_that_still_refers_to_it_holds_it() {
    let case = Case::new(Some(born(10)), vec![(ACQUIRER, born(10)), (300, born(20))]);
    assert_eq!(case.state(), (State::Held, None, CERTAIN));
    assert_eq!(case.verdict().acquirer_alive, Some(true));
}

#[test]
fn the_shell_idiom_is_shared_certainly_where_the_shell_opened_the_file() {
    let mut case = Case::new(None, vec![(50, born(5)), (300, born(20))]);
    assert_eq!(case.state(), (State::Shared, None, LIKELY), "an older survivor");
    case.survivors[0].2 = Some(true);
    assert_eq!(case.state(), (State::Shared, None, CERTAIN), "the opener survives");
    assert_eq!(case.verdict().acquirer_alive, Some(false));
}

#[test]
fn a_fork_child_that_has_not_execed_goes_on_with_the_lock() {
    let case = Case::new(None, vec![(300, forked(20)), (301, born(21))]);
    assert_eq!(case.state(), (State::HandedOver, None, LIKELY));
    assert!(case.verdict().evidence.contains(&Evidence::ExitUnknown));
}

#[test]
fn a_descriptor_that_leaked_across_an_exec_makes_an_orphan() {
    let case = Case::new(None, vec![(300, born(20))]);
    assert_eq!(case.state(), (State::Orphaned, Some(Reason::Inherited), LIKELY));
}

#[test]
fn a_dead_acquirer_alone_is_never_a_finding() {
    for survivor in [born(5), forked(5), forked(20)] {
        let pid = if survivor.start < born(10).start { 50 } else { 300 };
        let case = Case::new(None, vec![(pid, survivor)]);
        assert_ne!(case.state().0, State::Orphaned);
    }
}

#[test]
fn one_survivor_that_has_it_by_right_is_enough() {
    let mut survivors: Vec<_> = (200..210).map(|pid| (pid, born(20))).collect();
    survivors.push((50, born(5)));
    assert_eq!(Case::new(None, survivors).state().0, State::Shared);
}

#[test]
fn without_an_order_of_births_an_execed_survivor_is_unknown() {
    let mut case = Case::new(None, vec![(300, born(20))]);
    case.births.forks = Some(10_000_000);
    assert_eq!(case.state(), UNKNOWN);
    assert_eq!(case.verdict().evidence.last(), Some(&Evidence::HolderAgeUnknown { pid: 300 }));
    case.births = Births::default();
    assert_eq!(case.state(), UNKNOWN);
}

#[test]
fn a_session_led_by_the_acquirer_tells_that_its_members_are_younger() {
    let mut survivor = born(20);
    survivor.session = Some(ACQUIRER);
    let mut case = Case::new(None, vec![(300, survivor)]);
    case.births = Births::default();
    assert_eq!(case.state(), (State::Orphaned, Some(Reason::Inherited), LIKELY));
}

#[test]
fn what_could_not_be_read_may_hide_the_rightful_holder() {
    let mut case = Case::new(None, vec![(300, born(20))]);
    case.hidden = true;
    assert_eq!(case.state(), UNKNOWN);
    assert!(case.verdict().evidence.contains(&Evidence::Hidden));
    let mut alone = Case::new(None, vec![]);
    alone.hidden = true;
    assert_eq!(alone.state(), UNKNOWN);
}

#[test]
fn a_lock_without_any_reference_is_unaccounted_and_says_where_nobody_looked() {
    let case = Case::new(None, vec![]);
    assert_eq!(case.state(), (State::Orphaned, Some(Reason::Unaccounted), LIKELY));
    let evidence = case.verdict().evidence;
    let gaps = Search::none("nobody looked").gaps;
    assert!(evidence.contains(&Evidence::NotSearched { places: gaps.into() }));
}

#[test]
fn a_zombie_is_dead_and_its_start_is_known() {
    let zombie = Process { zombie: true, ..born(10) };
    let mut case = Case::new(Some(zombie), vec![(300, born(20))]);
    case.births = Births::default();
    assert_eq!(case.state(), (State::Orphaned, Some(Reason::Inherited), LIKELY));
    assert_eq!(case.verdict().acquirer_alive, Some(false));
}

#[test]
fn an_acquirer_on_its_way_out_is_not_yet_gone() {
    let exiting = Process { exiting: true, ..born(10) };
    assert_eq!(Case::new(Some(exiting), vec![]).state(), UNKNOWN);
}

#[test]
fn a_bystander_with_the_recorded_pid_is_not_blamed() {
    let case = Case::new(Some(born(30)), vec![(99, born(20))]);
    let verdict = case.verdict();
    assert!(verdict.recycled);
    assert_ne!(verdict.state, State::Held);
    assert_eq!(verdict.acquirer_alive, Some(false));
    assert_eq!(verdict.confidence, LIKELY);
}

#[test]
fn a_child_of_a_holder_that_closed_it_is_detached_and_no_bystander() {
    let lent = Process { parent: Some(50), ..born(30) };
    let verdict = Case::new(Some(lent), vec![(50, born(20))]).verdict();
    assert!(verdict.detached && !verdict.recycled);
    assert_eq!(verdict.state, State::Shared);
    assert_eq!(verdict.acquirer_alive, Some(true));
}

#[test]
fn while_a_detached_acquirer_lives_its_leak_is_no_orphan() {
    let verdict = Case::new(Some(born(10)), vec![(300, born(20))]).verdict();
    assert!(verdict.detached);
    assert_eq!(verdict.state, State::Unknown);
}

#[test]
fn from_inside_a_pid_namespace_a_missing_acquirer_may_live_outside() {
    let mut case = Case::new(None, vec![(300, born(20))]);
    case.nested = true;
    assert_eq!(case.state(), UNKNOWN);
    assert_eq!(case.verdict().acquirer_alive, None);
}

#[test]
fn a_posix_lock_outlives_its_acquirer_only_in_a_shared_fd_table() {
    let mut case = Case::new(None, vec![(300, forked(20))]);
    case.lock.kind = LockKind::Posix;
    assert_eq!(case.state(), (State::Orphaned, Some(Reason::SharedFiles), LIKELY));
}

#[test]
fn pids_that_are_no_pids_are_never_looked_up() {
    for (recorded, state) in [
        (RecordedPid::Remote(-9), State::Remote),
        (RecordedPid::Zero, State::Unknown),
        (RecordedPid::Withheld, State::Unknown),
    ] {
        let mut case = Case::new(None, vec![(300, born(20))]);
        case.lock.acquirer = recorded;
        assert_eq!(case.state().0, state);
        assert_eq!(case.verdict().acquirer_alive, None);
    }
}

#[test]
fn a_lock_of_which_the_owner_could_not_be_read_is_unknown() {
    let mut case = Case::new(None, vec![]);
    case.lock.owner = None;
    assert_eq!(case.state(), UNKNOWN);
    assert!(case.verdict().evidence.contains(&Evidence::OwnerUnknown));
}

#[test]
fn a_lease_that_is_being_broken_says_so() {
    let mut case = Case::new(Some(born(10)), vec![(ACQUIRER, born(10))]);
    case.lock.kind = LockKind::Lease;
    case.lock.breaking_to = Some(Access::Read);
    let evidence = case.verdict().evidence;
    assert!(evidence.contains(&Evidence::LeaseBreaking { to: Access::Read }));
}

/// Second 15 after boot; the acquirer was born in second 10.
const TAKEN: u64 = 15_000_000_000;

/// Somebody watched: taken at [`TAKEN`], and the acquirer ended so.
fn watched(mut case: Case, death: Option<(Option<i32>, Option<i32>)>) -> Case {
    let id = ProcessId { pid: ACQUIRER, start: StartTime(10_000_000_000) };
    let by = Remembered {
        id,
        comm: b"locksmith".as_slice().into(),
        ns_pid: None,
        pid_ns: None,
        exe: None,
        cgroup: None,
    };
    case.lock.taken = Some(Taken { at: BootTime(TAKEN), by: by.into() });
    case.death =
        death.map(|(code, signal)| Death { process: id, at: BootTime(TAKEN * 2), code, signal });
    case.births = Births::default();
    case
}

const CLEAN: Option<(Option<i32>, Option<i32>)> = Some((Some(0), None));
const KILLED: Option<(Option<i32>, Option<i32>)> = Some((None, Some(9)));
const FAILED: Option<(Option<i32>, Option<i32>)> = Some((Some(1), None));
const INHERITED: (State, Option<Reason>, Confidence) =
    (State::Orphaned, Some(Reason::Inherited), CERTAIN);

#[test]
fn history_proves_that_a_survivor_was_there_before_the_lock_was_taken() {
    // Younger than the acquirer, older than the taking: only the time of the taking tells.
    for death in [None, CLEAN, KILLED, FAILED] {
        let case = watched(Case::new(None, vec![(300, born(12)), (301, born(20))]), death);
        assert_eq!(case.state(), (State::Shared, None, CERTAIN), "{death:?}");
        assert!(case.verdict().evidence.contains(&Evidence::HolderBefore { pid: 300 }));
    }
}

#[test]
fn history_proves_a_hand_over_by_a_clean_exit_alone() {
    let case = watched(Case::new(None, vec![(300, forked(20)), (301, born(21))]), CLEAN);
    assert_eq!(case.state(), (State::HandedOver, None, CERTAIN));
    let case = watched(Case::new(None, vec![(300, forked(20))]), None);
    assert_eq!(case.state(), (State::HandedOver, None, LIKELY), "how it ended was not seen");
    assert!(case.verdict().evidence.contains(&Evidence::ExitUnknown));
}

#[test]
fn a_child_of_an_acquirer_that_crashed_holds_an_orphan() {
    for death in [KILLED, FAILED] {
        let case = watched(Case::new(None, vec![(300, forked(20))]), death);
        assert_eq!(case.state(), INHERITED, "{death:?}");
        let mut unread = forked(20);
        unread.forked_no_exec = None;
        let case = watched(Case::new(None, vec![(300, unread)]), death);
        assert_eq!(case.state(), INHERITED, "an exec does not matter then");
    }
}

#[test]
fn a_later_born_survivor_that_execed_holds_an_orphan_however_the_acquirer_ended() {
    for death in [None, CLEAN, KILLED, FAILED] {
        let case = watched(Case::new(None, vec![(300, born(20))]), death);
        assert_eq!(case.state(), INHERITED, "{death:?}");
        assert_eq!(case.verdict().acquirer_alive, Some(false));
    }
}

#[test]
fn a_birth_that_cannot_be_told_from_the_taking_is_unknown() {
    // Clock ticks: the start may be as late as the tick's end.
    let mut survivor = born(0);
    survivor.start = Some(StartTime(TAKEN - 5_000_000 - TAKEN % StartTime::NANOS_PER_TICK));
    assert!(!survivor.start.unwrap().is_whole_ticks());
    let exact = watched(Case::new(None, vec![(300, survivor.clone())]), KILLED);
    assert_eq!(exact.state().0, State::Shared);
    survivor.start = Some(StartTime(TAKEN));
    let same = watched(Case::new(None, vec![(300, survivor.clone())]), KILLED);
    assert_eq!(same.state(), UNKNOWN);
    survivor.start = Some(StartTime(TAKEN - StartTime::NANOS_PER_TICK));
    let mut ticks = watched(Case::new(None, vec![(300, survivor.clone())]), KILLED);
    assert_eq!(ticks.state().0, State::Shared, "the whole tick lies before");
    ticks.lock.taken.as_mut().unwrap().at = BootTime(TAKEN - 1_000_000);
    assert_eq!(ticks.state(), UNKNOWN, "the tick contains the taking");
    survivor.start = None;
    let unread = watched(Case::new(None, vec![(300, survivor)]), KILLED);
    assert_eq!(unread.state(), UNKNOWN);
    assert_eq!(unread.verdict().evidence.last(), Some(&Evidence::HolderBirthUnknown { pid: 300 }));
}

#[test]
fn without_its_exec_a_survivor_of_a_clean_exit_is_unknown() {
    let mut survivor = born(20);
    survivor.forked_no_exec = None;
    for death in [None, CLEAN] {
        let case = watched(Case::new(None, vec![(300, survivor.clone())]), death);
        assert_eq!(case.state(), UNKNOWN);
        assert_eq!(case.verdict().evidence.last(), Some(&Evidence::HolderExecUnknown { pid: 300 }));
    }
}

#[test]
fn what_could_not_be_read_hides_a_rightful_holder_from_history_too() {
    let mut case = watched(Case::new(None, vec![(300, forked(20))]), KILLED);
    case.hidden = true;
    assert_eq!(case.state(), UNKNOWN);
    assert!(case.verdict().evidence.contains(&Evidence::Hidden));
}

#[test]
fn history_proves_that_the_recorded_pid_has_a_new_owner() {
    // It even refers to the lock, as a process that inherited it and got the old pid would.
    let another = born(30);
    let survivors = vec![(ACQUIRER, another.clone())];
    let case = watched(Case::new(Some(another), survivors), KILLED);
    let verdict = case.verdict();
    assert!(verdict.recycled);
    assert_eq!((verdict.state, verdict.confidence), (State::Orphaned, CERTAIN));
    assert!(verdict.evidence.contains(&Evidence::PidRecycledProven { pid: ACQUIRER }));
    assert_eq!(verdict.acquirer_alive, Some(false));
}

#[test]
fn a_recycled_pid_is_told_apart_within_one_clock_tick() {
    let mut another = born(10);
    another.start = Some(StartTime(10_000_000_001));
    let case = watched(Case::new(Some(another.clone()), vec![(300, born(20))]), KILLED);
    assert!(!case.verdict().recycled, "history may have it in clock ticks");
    let mut exact = case;
    exact.lock.taken.as_mut().map(|taken| Arc::make_mut(&mut taken.by)).unwrap().id.start =
        StartTime(10_000_000_002);
    assert!(exact.verdict().recycled);
}

#[test]
fn history_proves_that_an_acquirer_let_go_of_it_and_lives() {
    let case = watched(Case::new(Some(born(10)), vec![(300, born(20))]), None);
    let verdict = case.verdict();
    assert!(verdict.detached && !verdict.recycled);
    assert_eq!(verdict.state, State::Unknown, "while it lives its leak is no orphan");
    assert_eq!(verdict.acquirer_alive, Some(true));
}

#[test]
fn an_acquirer_that_is_stuck_in_its_exit_longer_than_the_grace_leaves_an_orphan() {
    let exiting = Process { exiting: true, ..born(10) };
    for survivors in [vec![], vec![(ACQUIRER, exiting.clone())]] {
        let mut case = watched(Case::new(Some(exiting.clone()), survivors.clone()), KILLED);
        let early = if survivors.is_empty() { State::Unknown } else { State::Held };
        assert_eq!(case.state().0, early, "within the grace");
        case.overdue = true;
        assert_eq!(case.state(), (State::Orphaned, Some(Reason::Exiting), CERTAIN));
        case.death = None;
        assert_eq!(case.state().0, early, "nobody saw it die");
    }
}

#[test]
fn a_stuck_acquirer_does_not_take_the_lock_from_those_who_share_it() {
    let exiting = Process { exiting: true, ..born(10) };
    let survivors = vec![(ACQUIRER, exiting.clone()), (300, born(12))];
    let mut case = watched(Case::new(Some(exiting), survivors), KILLED);
    case.overdue = true;
    assert_eq!(case.state(), (State::Shared, None, CERTAIN));
}

#[test]
fn a_posix_lock_in_a_shared_table_is_handed_over_by_a_clean_exit_alone() {
    let of = |death| {
        let mut case = watched(Case::new(None, vec![(300, forked(20))]), death);
        case.lock.kind = LockKind::Posix;
        case.state()
    };
    assert_eq!(of(CLEAN), (State::HandedOver, None, CERTAIN));
    assert_eq!(of(KILLED), (State::Orphaned, Some(Reason::SharedFiles), CERTAIN));
    assert_eq!(of(None), (State::Orphaned, Some(Reason::SharedFiles), LIKELY));
}

#[test]
fn history_of_another_taking_proves_nothing() {
    let mut case = watched(Case::new(None, vec![(300, forked(20))]), KILLED);
    case.lock.taken.as_mut().map(|taken| Arc::make_mut(&mut taken.by)).unwrap().id.pid =
        ACQUIRER + 1;
    assert_eq!(case.state(), (State::HandedOver, None, LIKELY), "as without history");
    let mut case = watched(Case::new(None, vec![(300, forked(20))]), KILLED);
    case.death.as_mut().unwrap().process.start = StartTime(1);
    assert_eq!(case.state(), (State::HandedOver, None, LIKELY), "the death of another process");
}

#[test]
fn history_tells_of_a_mapping_whether_its_owner_had_it_before_the_lock_was_taken() {
    let of = |owner: Process| {
        let mut case = watched(Case::new(None, vec![]), KILLED);
        case.processes.insert(300, owner);
        let owner = PlaceOwner { pid: 300, tid: 300, fd: None, opener: Some(false) };
        let kind = PlaceKind::Mapping { start: 0x1000, end: 0x2000, protection: *b"rw-s" };
        case.places = vec![Place { description: Owner::new(7), kind, owners: vec![owner] }];
        case.state()
    };
    assert_eq!(of(born(12)), (State::Shared, None, CERTAIN), "younger than the acquirer");
    assert_eq!(of(born(20)), (State::Orphaned, Some(Reason::Mmap), CERTAIN));
    assert_eq!(of(Process::default()), UNKNOWN, "its start was not read");
}

#[test]
fn a_stuck_acquirers_own_ring_does_not_make_it_hold_the_lock() {
    let exiting = Process { exiting: true, ..born(10) };
    let mut case = watched(Case::new(Some(exiting), vec![]), KILLED);
    let owner = PlaceOwner { pid: ACQUIRER, tid: ACQUIRER, fd: Some(5), opener: None };
    let kind = PlaceKind::Ring { slot: 0, depth: 0 };
    case.places = vec![Place { description: Owner::new(7), kind, owners: vec![owner] }];
    assert_eq!(case.state().0, State::Held, "within the grace");
    case.overdue = true;
    assert_eq!(case.state(), (State::Orphaned, Some(Reason::Exiting), CERTAIN));
}

#[test]
fn what_dies_is_waited_for_and_is_an_orphan_once_it_is_stuck() {
    let dying = Process { exiting: true, ..born(10) };
    let mut case = Case::new(Some(dying.clone()), vec![]);
    assert_eq!(case.state(), UNKNOWN);
    let other = ProcessId { pid: ACQUIRER, start: StartTime(HOUR) };
    case.stuck.insert(other);
    assert_eq!(case.state(), UNKNOWN, "another process had the pid");
    case.stuck.insert(ProcessId { pid: ACQUIRER, start: StartTime(10_000_000_000) });
    assert_eq!(case.state(), (State::Orphaned, Some(Reason::Exiting), CERTAIN));
    assert_eq!(case.verdict().acquirer_alive, Some(true), "it is still there");
    // Who had the description before goes on with it.
    let older = Case::new(Some(dying), vec![(50, born(5))]);
    let case = Case { stuck: case.stuck, ..older };
    assert_eq!(case.state(), (State::Shared, None, LIKELY));
}

#[test]
fn what_a_file_servers_thread_took_is_its_clients() {
    let server = Process { kernel_thread: true, ..born(10) };
    let case = Case::new(Some(server.clone()), vec![]);
    assert_eq!(case.state(), (State::Remote, None, LIKELY));
    // Where a process has the description, the thread only got the pid of who took it.
    let case = Case::new(Some(server), vec![(300, born(5))]);
    assert_eq!(case.state().0, State::Orphaned);
}

#[test]
fn a_delegation_that_outlives_the_servers_thread_is_still_a_clients() {
    let mut case = Case::new(None, vec![]);
    case.lock = lock(LockKind::Deleg);
    assert_eq!(case.state(), (State::Remote, None, LIKELY));
}

#[test]
fn a_posix_lock_without_an_fd_table_is_nobodys_orphan() {
    let mut case = Case::new(None, vec![]);
    case.lock = lock(LockKind::Posix);
    assert_eq!(case.state(), UNKNOWN);
    assert!(case.verdict().evidence.contains(&Evidence::NoTable));
}
