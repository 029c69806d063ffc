//! The table: its columns keep the names and the manners of lslocks.

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{Run, Scene, Test};
use lockwatch_tests::{once, same};

use crate::stories::{HELD, LEAKED, SHELL_IDIOM};

pub(crate) const TESTS: &[Test] = &[
    once!(the_heading_has_the_columns_of_lslocks).needs(&["root"]),
    once!(every_column_of_the_contract_can_be_chosen).needs(&["root"]),
    once!(o_chooses_the_columns_and_their_order).needs(&["root"]),
    once!(o_plus_adds_to_the_usual_columns).needs(&["root"]),
    once!(n_leaves_the_heading_out).needs(&["root"]),
    once!(r_is_for_programs).needs(&["root"]),
    once!(a_table_ends_with_one_line_of_judgement).needs(&["root", "iter/task_file"]),
    once!(only_selects_by_state).needs(&["root"]),
    once!(a_waiter_names_all_that_block_it).needs(&["root"]),
];

/// The columns of lslocks 2.38 where none are chosen, but for those that say nothing about a lock
/// (SIZE, M).
const OF_LSLOCKS: &[&str] = &["COMMAND", "PID", "TYPE", "MODE", "START", "END", "PATH"];

/// Every column of the contract.
const ALL: &str = "COMMAND,PID,TYPE,SIZE,MODE,M,START,END,PATH,INODE,MAJ:MIN,BLOCKER,HOLDERS,\
                   STATE,REASON,CONFIDENCE,AGE,ACQUIRER,WAITERS,CGROUP,ID";

fn words(line: &str) -> Vec<&str> {
    line.split_ascii_whitespace().collect()
}

fn heading(run: &Run) -> Result<Vec<&str>> {
    Ok(words(run.lines()?.first().copied().unwrap_or_default()))
}

fn the_heading_has_the_columns_of_lslocks(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let run = scene.run(&["scan", "."])?;
    run.exits(0)?;
    let heading = heading(&run)?;
    let known: Vec<_> =
        heading.iter().copied().filter(|column| OF_LSLOCKS.contains(column)).collect();
    same!("those of lslocks, in its order", known, OF_LSLOCKS);
    ensure!(heading.contains(&"STATE"), "no STATE in {heading:?}");
    Ok(())
}

fn every_column_of_the_contract_can_be_chosen(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    let run = scene.run(&["scan", "-o", ALL, "."])?;
    run.exits(1)?;
    same!("heading", heading(&run)?, ALL.split(',').collect::<Vec<_>>());
    Ok(())
}

fn o_chooses_the_columns_and_their_order(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start owner
         owner: open a lock
         owner: posix a rd 10 19
         owner: comm a-name",
    )?;
    let run = scene.run(&["scan", "-o", "STATE,END,START,MODE,TYPE,PID,COMMAND", "."])?;
    let lines = run.lines()?;
    same!("lines", lines.len(), 3);
    same!("heading", words(lines[0]), ["STATE", "END", "START", "MODE", "TYPE", "PID", "COMMAND"]);
    let pid = scene.pid("owner")?.to_string();
    same!("row", words(lines[1]), ["held", "19", "10", "READ", "POSIX", pid.as_str(), "a-name"]);
    Ok(())
}

fn o_plus_adds_to_the_usual_columns(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let usual = scene.run(&["scan", "."])?;
    let more = scene.run(&["scan", "-o", "+INODE,MAJ:MIN", "."])?;
    let mut expected = heading(&usual)?;
    expected.extend(["INODE", "MAJ:MIN"]);
    same!("heading", heading(&more)?, expected);
    let inode = scene.file("lock")?.ino.to_string();
    let row = words(more.lines()?[1]);
    ensure!(row.contains(&inode.as_str()), "no inode number {inode} in {row:?}");
    Ok(())
}

fn n_leaves_the_heading_out(scene: &mut Scene) -> Result<()> {
    scene.play(HELD)?;
    let pid = scene.pid("owner")?.to_string();
    for option in ["-n", "--noheadings"] {
        let run = scene.run(&["scan", option, "-o", "PID,TYPE", "."])?;
        same!("the first line", words(run.lines()?[0]), [pid.as_str(), "FLOCK"]);
    }
    Ok(())
}

fn r_is_for_programs(scene: &mut Scene) -> Result<()> {
    scene.play(
        r"start owner
          owner: open a a\sname\swith\sblanks
          owner: write a twelve\sbytes
          owner: posix a wr 10 19",
    )?;
    let pid = scene.pid("owner")?;
    for option in ["-r", "--raw"] {
        let run =
            scene.run(&["scan", option, "-n", "-o", "PID,TYPE,SIZE,START,END,PATH,M", "."])?;
        // One blank between two columns, and none inside; sizes in bytes.
        let path = scene.path_text("a name with blanks")?.replace(' ', "\\x20");
        same!("rows", run.lines()?, [format!("{pid} POSIX 12 10 19 {path} 0")]);
    }
    Ok(())
}

fn a_table_ends_with_one_line_of_judgement(scene: &mut Scene) -> Result<()> {
    scene.play(SHELL_IDIOM)?;
    let clear = scene.run(&["scan", "."])?;
    clear.exits(0)?;
    same!("the last line", clear.last_line()?, "ALL CLEAR (1 locks)");
    same!("complaints", clear.complaints()?.len(), 0);
    scene.play(
        "start owner
         owner: open a leaked
         owner: flock a ex
         owner: fork heir
         heir: exec
         owner: exit 0",
    )?;
    let hot = scene.run(&["scan", "."])?;
    hot.exits(1)?;
    same!("the last line", hot.last_line()?, "HOT: 1 orphaned of 2 locks");
    Ok(())
}

fn only_selects_by_state(scene: &mut Scene) -> Result<()> {
    scene.play(LEAKED)?;
    scene.play(
        "start holder
         holder: open a held
         holder: flock a ex
         start shell
         shell: open a shared
         shell: fork locker
         locker: flock a ex
         locker: exit 0",
    )?;
    let states = |only: &str| -> Result<Vec<String>> {
        let run = scene.run(&["scan", "--only", only, "-r", "-n", "-o", "STATE", "."])?;
        let mut states: Vec<_> = run.lines()?.into_iter().map(ToOwned::to_owned).collect();
        states.sort();
        Ok(states)
    };
    same!("orphaned", states("orphaned")?, ["orphaned"]);
    same!("held", states("held")?, ["held"]);
    same!("two states", states("orphaned,shared")?, ["orphaned", "shared"]);
    same!("remote", states("remote")?.len(), 0);
    Ok(())
}

fn a_waiter_names_all_that_block_it(scene: &mut Scene) -> Result<()> {
    for name in ["one", "two", "three"] {
        scene.play(&format!(
            "start {name}
             {name}: open a lock
             {name}: flock a sh"
        ))?;
    }
    scene.play(
        "start waiter
         waiter: open a lock
         waiter: later flock a ex
         await waiter blocked",
    )?;
    let run = scene.run(&["scan", "-r", "-n", "-o", "PID,MODE,BLOCKER", "."])?;
    // lslocks marks a request that waits with a star.
    let start = format!("{} WRITE* ", scene.pid("waiter")?);
    let lines = run.lines()?;
    let row = lines.iter().find_map(|line| line.strip_prefix(&start));
    let Some(blockers) = row else { anyhow::bail!("no row begins with {start:?}: {lines:?}") };
    for name in ["one", "two", "three"] {
        let pid = scene.pid(name)?.to_string();
        let named = blockers.split(|c: char| !c.is_ascii_digit()).any(|word| word == pid);
        ensure!(named, "{name} ({pid}) is no blocker in {blockers:?}");
    }
    Ok(())
}
