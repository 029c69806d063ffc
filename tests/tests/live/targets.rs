//! What a scan is asked about: paths, folders, names, processes, lock ids.

use std::collections::BTreeSet;

use anyhow::Result;
use lockwatch_tests::harness::{Report, Scene, Test};
use lockwatch_tests::{each_source, once, same};

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_path_selects_its_file),
    each_source!(a_path_through_a_link_selects_its_file),
    each_source!(a_folder_selects_all_below),
    each_source!(a_folder_does_not_select_its_namesakes_neighbour),
    each_source!(a_name_selects_by_the_last_component),
    each_source!(the_option_t_is_a_target_too),
    each_source!(a_pid_selects_what_it_took),
    each_source!(a_pid_selects_what_it_waits_for),
    each_source!(a_lock_id_selects_one_lock_of_many),
    each_source!(several_targets_select_the_sum),
    once!(a_name_that_nobody_locks_selects_nothing).needs(&["root"]),
];

/// Three files, two of one name; `one` and `two` hold them.
const THREE: &str = "
    start one
    one: open a here/lock
    one: flock a ex
    one: open b here/other
    one: flock b ex
    start two
    two: open c there/lock
    two: flock c ex";

fn three(scene: &mut Scene) -> Result<()> {
    scene.new_folder("here")?;
    scene.new_folder("there")?;
    scene.play(THREE)
}

/// The paths of a report that are this test's own, below its folder.
fn paths(scene: &Scene, report: &Report) -> BTreeSet<String> {
    let root = format!("{}/", scene.folder().display());
    let own = report.locks.iter().filter_map(|lock| lock.path.as_deref()?.strip_prefix(&root));
    own.map(ToOwned::to_owned).collect()
}

/// What targets select, which must be on this test's files alone.
fn selected(scene: &Scene, targets: &[&str]) -> Result<BTreeSet<String>> {
    let report = scene.scan_for(targets)?;
    let paths = paths(scene, &report);
    same!("locks and paths", report.locks.len(), paths.len());
    same!("locks counted", report.summary.locks, report.locks.len() as u64);
    Ok(paths)
}

fn set(paths: &[&str]) -> BTreeSet<String> {
    paths.iter().map(ToString::to_string).collect()
}

fn a_path_selects_its_file(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    let path = scene.path_text("here/lock")?;
    same!("an absolute path", selected(scene, &[&path])?, set(&["here/lock"]));
    same!("a relative path", selected(scene, &["here/lock"])?, set(&["here/lock"]));
    same!("a winding path", selected(scene, &["./there/../here/lock"])?, set(&["here/lock"]));
    Ok(())
}

fn a_path_through_a_link_selects_its_file(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    std::os::unix::fs::symlink("here/other", scene.path("soft"))?;
    std::fs::hard_link(scene.path("there/lock"), scene.path("hard"))?;
    same!("a symbolic link", selected(scene, &["./soft"])?, set(&["here/other"]));
    same!("a hard link", selected(scene, &["./hard"])?, set(&["there/lock"]));
    Ok(())
}

fn a_folder_selects_all_below(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    let all = set(&["here/lock", "here/other", "there/lock"]);
    same!("the folder", selected(scene, &["."])?, all);
    let folder = scene.path_text("here")?;
    same!("one below", selected(scene, &[&folder])?, set(&["here/lock", "here/other"]));
    same!("with a slash", selected(scene, &["there/"])?, set(&["there/lock"]));
    Ok(())
}

fn a_folder_does_not_select_its_namesakes_neighbour(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    scene.new_folder("here-too")?;
    scene.play(
        "two: open d here-too/lock
         two: flock d ex",
    )?;
    same!("the folder", selected(scene, &["./here"])?, set(&["here/lock", "here/other"]));
    Ok(())
}

fn a_name_selects_by_the_last_component(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    // Other processes of the machine may lock files of that name.
    let report = scene.scan_for(&["lock"])?;
    same!("the name", paths(scene, &report), set(&["here/lock", "there/lock"]));
    same!("a part of it", paths(scene, &scene.scan_for(&["loc"])?), set(&[]));
    Ok(())
}

fn the_option_t_is_a_target_too(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    let short = scene.scan_for(&["-t", "other"])?;
    same!("-t", paths(scene, &short), set(&["here/other"]));
    let long = scene.scan_for(&["--target", "other", "./there"])?;
    same!("--target", paths(scene, &long), set(&["here/other", "there/lock"]));
    Ok(())
}

fn a_pid_selects_what_it_took(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    let one = format!("pid:{}", scene.pid("one")?);
    same!("one", selected(scene, &[&one])?, set(&["here/lock", "here/other"]));
    let two = format!("pid:{}", scene.pid("two")?);
    same!("two", selected(scene, &[&two])?, set(&["there/lock"]));
    Ok(())
}

fn a_pid_selects_what_it_waits_for(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    scene.play(
        "start waiter
         waiter: open a there/lock
         waiter: later flock a ex
         await waiter blocked",
    )?;
    let waiter = format!("pid:{}", scene.pid("waiter")?);
    same!("the waiter", selected(scene, &[&waiter])?, set(&["there/lock"]));
    Ok(())
}

fn a_lock_id_selects_one_lock_of_many(scene: &mut Scene) -> Result<()> {
    scene.play(
        "start one
         one: open a lock
         one: posix a wr 0 9
         one: posix a wr 20 29",
    )?;
    let file = scene.file("lock")?;
    let report = scene.scan()?;
    for lock in report.locks_on(&file) {
        let alone = scene.scan_for(&[&lock.id])?;
        same!("the range", alone.only_lock_on(&file)?.start, lock.start);
        same!("locks", alone.locks.len(), 1);
    }
    Ok(())
}

fn several_targets_select_the_sum(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    let two = format!("pid:{}", scene.pid("two")?);
    let both = selected(scene, &["here/other", &two])?;
    same!("a path and a pid", both, set(&["here/other", "there/lock"]));
    // What two targets name is listed once.
    same!(
        "twice the same",
        selected(scene, &["./there", "there/lock", &two])?,
        set(&["there/lock"])
    );
    Ok(())
}

fn a_name_that_nobody_locks_selects_nothing(scene: &mut Scene) -> Result<()> {
    three(scene)?;
    let run = scene.run(&["scan", "no-file-has-this-name"])?;
    run.exits(0)?;
    same!("the last line", run.last_line()?, "ALL CLEAR (0 locks)");
    Ok(())
}
