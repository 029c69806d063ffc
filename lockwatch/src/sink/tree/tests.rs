use std::collections::BTreeMap;

use super::command::Command;
use super::*;
use crate::engine::id::IdKey;
use crate::engine::identity::{
    Access, BootTime, Dev, LockKind, Owner, ProcessId, Range, RecordedPid, StartTime,
};
use crate::engine::snapshot::{
    File as SnapshotFile, FileIx, Hides, Limit, Lock, Process, Reference, Remembered, Snapshot,
    Taken, Via,
};

const DEV: Dev = Dev::new(0xfe, 0);
const WATCHED: &str = "/srv/aim/aim_lock_config.conf";

/// A machine: what its locks are, and what the file system tells.
#[derive(Default)]
struct Stage {
    snapshot: Snapshot,
    seen: BTreeMap<Box<[u8]>, Seen>,
    now: u64,
}

impl Stage {
    /// A file with a flock of a living owner, whose pid it is.
    fn held(mut self, ino: u64, path: &str, pid: i32) -> Self {
        self.lock(ino, path, pid, Some((pid, 10)));
        self
    }

    /// A file whose flock is kept by a process that is younger than the dead owner.
    fn orphaned(mut self, ino: u64, path: &str, pid: i32) -> Self {
        self.lock(ino, path, pid, Some((pid + 1, 30)));
        self
    }

    /// The same, taken when somebody watched.
    fn taken(mut self, at: u64) -> Self {
        let lock = self.snapshot.locks.last_mut().unwrap();
        let RecordedPid::Local(pid) = lock.acquirer else { panic!() };
        let by = Remembered {
            id: ProcessId { pid, start: StartTime(5) },
            comm: b"locksmith".as_slice().into(),
            ns_pid: None,
            pid_ns: None,
            exe: None,
            cgroup: None,
        };
        lock.taken = Some(Taken { at: BootTime(at), by: by.into() });
        self
    }

    fn lock(&mut self, ino: u64, path: &str, pid: i32, holder: Option<(i32, u64)>) {
        let file = FileIx(self.snapshot.files.len() as u32);
        self.snapshot.stable_owners = true;
        self.snapshot.files.push(SnapshotFile {
            dev: DEV,
            ino,
            size: None,
            path: (!path.is_empty()).then(|| path.as_bytes().into()),
            deleted: None,
            replaced: None,
        });
        let owner = Owner::new(ino * 1000 + u64::from(pid.unsigned_abs()));
        self.snapshot.locks.push(Lock {
            entry: owner.token(),
            file,
            kind: LockKind::Flock,
            access: Access::Write,
            range: Range::WHOLE,
            owner: Some(owner),
            acquirer: RecordedPid::Local(pid),
            breaking_to: None,
            taken: None,
        });
        let Some((holder, start)) = holder else { return };
        self.snapshot.references.push(Reference {
            pid: holder,
            tid: holder,
            via: Via::Fd,
            fd: Some(9),
            file,
            description: Some(owner),
            table: Some(Owner::new(holder as u64)),
            opener: None,
            writes: None,
        });
        let process = Process {
            start: Some(StartTime(start)),
            comm: b"sleep".as_slice().into(),
            forked_no_exec: Some(holder == pid),
            ..Process::default()
        };
        self.snapshot.processes.insert(holder, process);
        let births = &mut self.snapshot.births;
        (births.forks, births.pid_max) = (Some(10_000), Some(1 << 22));
        births.last_pid = Some(10_000);
    }

    fn public(mut self, path: &str) -> Self {
        self.seen.insert(path.as_bytes().into(), Seen { public: true, modified: Some(0) });
        self
    }

    fn at(mut self, now: u64) -> Self {
        self.now = now;
        self
    }

    fn tree(&self, before: &Tree) -> Tree {
        let ids = crate::engine::id::assign(&self.snapshot, &IdKey([1; 16]));
        let view = View::new(self.snapshot.clone(), &ids);
        let file = |watch: &Watched| watch.file.is_some();
        let watches = [Watched {
            name: "aim_lock_config".into(),
            path: WATCHED.as_bytes().into(),
            file: Some(FileId { dev: DEV, ino: 1 }),
        }];
        assert!(watches.iter().all(file));
        before.next(&Facts {
            view: &view,
            clock: Clock { unix: 1_000_000_000 + self.now, boot: self.now },
            host: "node-7",
            watches: &watches,
            seen: &self.seen,
            gc_interval_ms: 2000,
            reclaim_enabled: true,
        })
    }

    fn first(&self) -> Tree {
        self.tree(&Tree::default())
    }
}

fn node(tree: &Tree, path: &str) -> Option<Node> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .try_fold(tree.node(ROOT)?, |node, part| tree.look_up(node.ino, part, true))
}

#[track_caller]
fn content(tree: &Tree, path: &str) -> String {
    match node(tree, path).map(|node| node.kind) {
        Some(NodeKind::File(_, content)) => String::from_utf8(content.to_vec()).unwrap(),
        other => panic!("{path}: {other:?}"),
    }
}

fn names(tree: &Tree, path: &str, is_root: bool) -> Vec<String> {
    let list = tree.list(node(tree, path).unwrap().ino, is_root).unwrap();
    list.into_iter().map(|(_, _, name)| name).collect()
}

const AIM: &str = "locks/aim_lock_config";

#[test]
fn the_tree_has_the_files_of_the_contract() {
    let tree = Stage::default().first();
    assert_eq!(
        names(&tree, "", true),
        ["status", "events", "gc_interval_ms", "gc", "reclaim_enabled", "locks"]
    );
    assert_eq!(names(&tree, "locks", true), ["aim_lock_config"]);
    assert_eq!(
        names(&tree, AIM, true),
        [
            "locked",
            "conf_locked",
            "force_unlock",
            "state",
            "reason",
            "type",
            "access",
            "acquirer",
            "holders",
            "waiters",
            "since",
            "generation",
            "last_touched",
            "path"
        ]
    );
}

#[test]
fn every_name_that_is_listed_is_found_and_its_number_leads_back() {
    let tree = Stage::default().orphaned(2, "/a/b.txt", 100).held(1, WATCHED, 50).first();
    let mut folders = vec![ROOT];
    let mut seen = BTreeSet::from([ROOT]);
    while let Some(folder) = folders.pop() {
        for (ino, is_folder, name) in tree.list(folder, true).unwrap() {
            let node = tree.look_up(folder, &name, true).unwrap();
            assert_eq!(node.ino, ino, "{name}");
            assert_eq!(tree.node(ino), Some(node), "{name}");
            assert_eq!(Tree::parent(ino), folder, "{name}");
            assert!(seen.insert(ino), "{name} has the number of another");
            if is_folder {
                folders.push(ino);
            }
        }
    }
    assert_eq!(seen.len(), 1 + 6 + 2 + 14 + 14);
}

#[test]
fn before_anything_was_read_nothing_is_clear() {
    let tree = Tree::default();
    assert_eq!(content(&tree, "status"), "UNKNOWN\n");
    assert_eq!(names(&tree, "locks", true), <[&str; 0]>::default());
}

#[test]
fn a_free_file_says_so_in_every_value() {
    let tree = Stage::default().first();
    let value = |name: &str| content(&tree, &format!("{AIM}/{name}"));
    assert_eq!(content(&tree, "status"), "ALL CLEAR\n");
    assert_eq!(value("locked"), "0\n");
    assert_eq!(value("conf_locked"), "0\n");
    assert_eq!(value("state"), "free\n");
    for name in ["reason", "type", "access", "acquirer", "since"] {
        assert_eq!(value(name), "-\n", "{name}");
    }
    assert_eq!((value("holders"), value("waiters")), (String::new(), String::new()));
    assert_eq!(value("last_touched"), "unknown\n");
    assert_eq!(value("path"), format!("{WATCHED}\n"));
}

#[test]
fn an_orphan_makes_the_machine_hot_and_tells_its_story() {
    let tree = Stage::default().orphaned(1, WATCHED, 100).taken(7).first();
    let value = |name: &str| content(&tree, &format!("{AIM}/{name}"));
    assert_eq!(content(&tree, "status"), "HOT 1\n");
    assert_eq!(value("locked"), "1\n");
    assert_eq!(value("state"), "orphaned\n");
    assert_eq!(value("reason"), "inherited\n");
    assert_eq!((value("type"), value("access")), ("FLOCK\n".into(), "WRITE\n".into()));
    assert_eq!(value("holders"), "sleep (pid 101) via fd 9\n");
    assert_eq!(value("since"), "1970-01-01T00:00:01.000000007Z\n");
    assert_eq!(
        value("last_touched"),
        "locksmith (pid 100) on node-7 at 1970-01-01T00:00:01.000000007Z\n"
    );
}

#[test]
fn who_touched_it_last_is_remembered_when_the_lock_is_gone() {
    let held = Stage::default().held(1, WATCHED, 100).taken(7).first();
    let gone = Stage::default().at(50).tree(&held);
    let last = format!("{AIM}/last_touched");
    assert_eq!(content(&gone, &format!("{AIM}/since")), "-\n");
    assert_eq!(content(&gone, &last), content(&held, &last));
    let again = Stage::default().at(90).held(1, WATCHED, 200).taken(60).tree(&gone);
    assert!(content(&again, &last).starts_with("locksmith (pid 200) on node-7 at "));
}

#[test]
fn a_lock_that_nobody_saw_being_taken_was_taken_before_it_was_seen() {
    let tree = Stage::default().at(9).held(1, WATCHED, 100).first();
    assert_eq!(content(&tree, &format!("{AIM}/since")), "unknown\n");
    let last = format!("{AIM}/last_touched");
    let told = "sleep (pid 100) on node-7 before 1970-01-01T00:00:01.000000009Z\n";
    assert_eq!(content(&tree, &last), told);
    let later = Stage::default().at(99).held(1, WATCHED, 100).tree(&tree);
    assert_eq!(content(&later, &last), told, "the first sight counts");
}

#[test]
fn without_a_lock_ever_the_files_own_time_is_told() {
    let tree = Stage::default().public(WATCHED).first();
    assert_eq!(
        content(&tree, &format!("{AIM}/last_touched")),
        "unknown at 1970-01-01T00:00:00.000000000Z\n"
    );
}

#[test]
fn nothing_that_may_be_hidden_is_called_free_or_clear() {
    let mut stage = Stage::default();
    stage.snapshot.limits.push(Limit { what: "a walk was cut".into(), hides: Hides::Locks });
    let tree = stage.first();
    assert_eq!(content(&tree, "status"), "UNKNOWN\n");
    assert_eq!(content(&tree, &format!("{AIM}/state")), "unknown\n");
    assert_eq!(content(&tree, &format!("{AIM}/locked")), "unknown\n");
    let locked = node(&tree, &format!("{AIM}/locked")).unwrap();
    assert_eq!(tree.command(locked.ino, b"0"), Err(Refusal::Unverified));
}

#[test]
fn a_generation_is_counted_when_something_changes_and_not_otherwise() {
    let free = Stage::default().at(1).first();
    let generation = |tree: &Tree| content(tree, &format!("{AIM}/generation"));
    assert_eq!(generation(&free), "1\n");
    let still = Stage::default().at(2).tree(&free);
    assert_eq!(still, free, "nothing happened");
    let held = Stage::default().at(3).held(1, WATCHED, 100).tree(&still);
    assert_eq!(generation(&held), "2\n");
    assert_eq!(node(&held, AIM).unwrap().changed, 1_000_000_003);
    // A file's own time is that of its own value.
    let at = |tree: &Tree, name: &str| node(tree, &format!("{AIM}/{name}")).unwrap().changed;
    for (name, changed) in
        [("state", 3), ("since", 3), ("generation", 3), ("reason", 1), ("path", 1)]
    {
        assert_eq!(at(&held, name), 1_000_000_000 + changed, "{name}");
    }
    assert_eq!(node(&held, "status").unwrap().changed, 1_000_000_001);
    let drifted = Stage::default().at(4).held(1, WATCHED, 100).tree(&held);
    assert_eq!(generation(&drifted), "2\n");
    assert_eq!(node(&drifted, AIM).unwrap().changed, 1_000_000_003);
}

#[test]
fn orphans_elsewhere_have_folders_with_numbers_where_stems_collide() {
    let tree = Stage::default()
        .orphaned(10, "/a/x.conf", 100)
        .orphaned(11, "/b/x.lock", 200)
        .orphaned(12, "/c/aim_lock_config", 300)
        .orphaned(13, "", 400)
        .held(14, "/d/held.conf", 500)
        .first();
    assert_eq!(
        names(&tree, "locks", true),
        ["aim_lock_config", "aim_lock_config~2", "fe_0_13", "x", "x~2"]
    );
    assert_eq!(content(&tree, "locks/x/path"), "/a/x.conf\n");
    assert_eq!(content(&tree, "locks/x~2/path"), "/b/x.lock\n");
    assert!(node(&tree, "locks/x~2/lock_locked").is_some());
    assert_eq!(content(&tree, "locks/fe_0_13/path"), "unknown\n");
    assert_eq!(content(&tree, "status"), "HOT 4\n");
}

#[test]
fn a_name_and_a_number_stay_while_the_lock_is_the_same() {
    let both = Stage::default().orphaned(10, "/a/x", 100).orphaned(11, "/b/x", 200).first();
    let second = node(&both, "locks/x~2").unwrap().ino;
    let one = Stage::default().orphaned(11, "/b/x", 200).tree(&both);
    assert_eq!(names(&one, "locks", true), ["aim_lock_config", "x~2"]);
    assert_eq!(node(&one, "locks/x~2").unwrap().ino, second);
    let first = node(&both, "locks/x").unwrap().ino;
    let other = Stage::default().orphaned(9, "/0/x", 300).orphaned(11, "/b/x", 200).tree(&one);
    assert_eq!(content(&other, "locks/x/path"), "/0/x\n");
    assert_eq!(content(&other, "locks/x~2/path"), "/b/x\n");
    assert_ne!(node(&other, "locks/x").unwrap().ino, first, "another lock, another number");
    assert!(other.node(first).is_none());
}

#[test]
fn a_file_that_is_watched_has_no_second_folder() {
    let tree = Stage::default().orphaned(1, WATCHED, 100).first();
    assert_eq!(names(&tree, "locks", true), ["aim_lock_config"]);
}

#[test]
fn only_what_everybody_may_read_is_shown_to_everybody() {
    let stage = Stage::default().orphaned(10, "/secret/x", 100).orphaned(11, "/b/y", 200);
    let tree = stage.public("/b/y").first();
    assert_eq!(names(&tree, "locks", false), ["aim_lock_config", "y"]);
    let locks = node(&tree, "locks").unwrap().ino;
    assert!(tree.look_up(locks, "x", false).is_none());
    let mode = |path: &str| node(&tree, path).unwrap().mode;
    assert_eq!((mode("locks/y"), mode("locks/y/state")), (0o755, 0o444));
    assert_eq!((mode("locks/y/locked"), mode("locks/y/force_unlock")), (0o644, 0o200));
    assert_eq!((mode(AIM), mode(&format!("{AIM}/state"))), (0o700, 0o400));
    assert_eq!(mode("locks/x/locked"), 0o600);
    assert_eq!((mode("status"), mode("events"), mode("gc")), (0o444, 0o400, 0o200));
    assert_eq!((mode("gc_interval_ms"), mode("reclaim_enabled")), (0o644, 0o644));
}

#[test]
fn a_release_names_the_locks_that_were_seen() {
    let stage = Stage::default().orphaned(10, "/a/x", 100).held(1, WATCHED, 50);
    let tree = stage.first();
    let write = |path: &str, bytes: &[u8]| tree.command(node(&tree, path).unwrap().ino, bytes);
    assert_eq!(write("gc", b"1\n"), Ok(Some(Command::Gc)));
    assert_eq!(write(&format!("{AIM}/conf_locked"), b"0\n"), Err(Refusal::Busy));
    let Ok(Some(Command::ForceUnlock(aim))) = write(&format!("{AIM}/force_unlock"), b"1") else {
        panic!("no force")
    };
    assert_eq!(aim.target, Target::Watch("aim_lock_config".into()));
    assert_eq!(aim.locks.len(), 1);
    let Ok(Some(Command::Release(aim))) = write("locks/x/locked", b"0") else {
        panic!("no release")
    };
    assert_eq!((aim.name.as_str(), aim.locks[0].ino), ("x", 10));
    assert_eq!(write("locks/x/state", b"0"), Err(Refusal::Invalid));
}

#[test]
fn a_name_that_would_be_a_path_stays_inside() {
    let tree = Stage::default().orphaned(10, "/a/..", 100).orphaned(11, "/a/\u{1b}[2J\n", 200);
    let tree = tree.first();
    let names = names(&tree, "locks", true);
    assert_eq!(names, ["_", "__2J_", "aim_lock_config"]);
    assert_eq!(content(&tree, "locks/__2J_/path"), "/a/\\x1b[2J\\n\n");
}
