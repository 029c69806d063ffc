//! Hostile names: whatever a file or a process is called, a line stays a line, a terminal stays as
//! it is, and JSON carries the truth.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Result, ensure};
use lockwatch_tests::harness::{FileId, Run, Scene, Test, scene::file_id};
use lockwatch_tests::{each_source, once, same};

use crate::base64;

pub(crate) const TESTS: &[Test] = &[
    each_source!(a_newline_in_a_path_survives_in_json),
    each_source!(an_escape_in_a_path_survives_in_json),
    each_source!(a_path_that_is_not_utf_8_survives_in_json),
    each_source!(a_hostile_comm_survives_in_json),
    each_source!(a_file_that_is_named_deleted_is_not_deleted),
    once!(a_hostile_path_stays_on_its_line_of_the_table).needs(&["root"]),
    once!(a_hostile_comm_stays_on_its_line_of_the_table).needs(&["root"]),
    once!(a_terminal_gets_no_escape_of_a_name).needs(&["root", "terminal"]),
    once!(check_and_explain_escape_names_too).needs(&["root"]),
    once!(a_complaint_about_a_hostile_name_is_one_line).needs(&["root", "iter/task_file"]),
];

/// Sets the title of a terminal, if it gets there.
const TITLE: &str = r"\e]0;owned\x07";
const TITLE_BYTES: &[u8] = b"\x1b]0;owned\x07";

fn locked(scene: &mut Scene, escaped: &str, bytes: &[u8]) -> Result<FileId> {
    scene.play(&format!(
        "start owner
         owner: open a {escaped}
         owner: flock a ex"
    ))?;
    file_id(&scene.folder().join(OsString::from_vec(bytes.to_vec())))
}

fn a_newline_in_a_path_survives_in_json(scene: &mut Scene) -> Result<()> {
    let file = locked(scene, r"two\nlines", b"two\nlines")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&file)?;
    same!("path", lock.path, Some(scene.path_text("two\nlines")?));
    lock.is("held")
}

fn an_escape_in_a_path_survives_in_json(scene: &mut Scene) -> Result<()> {
    let file = locked(scene, r#"\e[31m"red"\t\\"#, b"\x1b[31m\"red\"\t\\")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&file)?;
    same!("path", lock.path, Some(scene.path_text("\u{1b}[31m\"red\"\t\\")?));
    lock.is("held")
}

fn a_path_that_is_not_utf_8_survives_in_json(scene: &mut Scene) -> Result<()> {
    let name = b"caf\xe9\n\xff";
    let file = locked(scene, r"caf\xe9\n\xff", name)?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&file)?;
    let path = scene.folder().join(OsString::from_vec(name.to_vec()));
    same!("path_b64", lock.path_b64, Some(base64::encode(path.as_os_str().as_bytes())));
    lock.is("held")
}

fn a_hostile_comm_survives_in_json(scene: &mut Scene) -> Result<()> {
    scene.play(
        r"start owner
          owner: comm a)\s\n\e[31m\sR
          owner: open a lock
          owner: flock a ex",
    )?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&scene.file("lock")?)?;
    lock.is("held")?;
    let comm = Some("a) \n\u{1b}[31m R");
    same!("the acquirer's comm", lock.acquirer()?.comm.as_deref(), comm);
    let comms: Vec<_> = lock.holders.iter().map(|holder| holder.comm.as_deref()).collect();
    same!("the holder's comm", comms, [comm]);
    Ok(())
}

fn a_file_that_is_named_deleted_is_not_deleted(scene: &mut Scene) -> Result<()> {
    let file = locked(scene, r"lock\s(deleted)", b"lock (deleted)")?;
    let report = scene.scan()?;
    let lock = report.only_lock_on(&file)?;
    lock.does_not_raise("deleted")?;
    same!("deleted", lock.deleted, Some(false));
    same!("path", lock.path, Some(scene.path_text("lock (deleted)")?));
    Ok(())
}

/// Fails where anything but line ends controls a terminal.
fn is_harmless(run: &Run) -> Result<()> {
    let control = run.stdout.iter().find(|byte| byte.is_ascii_control() && **byte != b'\n');
    ensure!(control.is_none(), "a control character: {control:?}");
    run.text()?;
    Ok(())
}

/// Fails unless the table has its heading, one row, and its closing line.
fn has_one_row(run: &Run) -> Result<()> {
    is_harmless(run)?;
    same!("lines", run.lines()?.len(), 3);
    same!("the last line", run.last_line()?, "ALL CLEAR (1 locks)");
    Ok(())
}

fn a_hostile_path_stays_on_its_line_of_the_table(scene: &mut Scene) -> Result<()> {
    let mut name = b"two\nlines\r\xff".to_vec();
    name.extend(TITLE_BYTES);
    locked(scene, &format!(r"two\nlines\x0d\xff{TITLE}"), &name)?;
    has_one_row(&scene.run(&["scan", "."])?)?;
    let raw = scene.run(&["scan", "-r", "-n", "-o", "PATH,PID", "."])?;
    is_harmless(&raw)?;
    same!("raw rows", raw.lines()?.len(), 1);
    Ok(())
}

fn a_hostile_comm_stays_on_its_line_of_the_table(scene: &mut Scene) -> Result<()> {
    scene.play(
        r"start owner
          owner: comm a\nb\e[2Jc
          owner: open a lock
          owner: flock a ex",
    )?;
    has_one_row(&scene.run(&["scan", "."])?)?;
    has_one_row(&scene.run(&["scan", "-o", "+ACQUIRER,HOLDERS,WAITERS", "."])?)
}

fn a_terminal_gets_no_escape_of_a_name(scene: &mut Scene) -> Result<()> {
    let mut name = b"lock".to_vec();
    name.extend(TITLE_BYTES);
    locked(scene, &format!("lock{TITLE}"), &name)?;
    scene.play(r"owner: comm \e]0;owned\x07")?;
    let run = scene.lockwatch(&["scan", "-o", "+ACQUIRER", "."])?.on_terminal().run()?;
    run.exits(0)?;
    let found = run.stdout.windows(TITLE_BYTES.len()).any(|bytes| bytes == TITLE_BYTES);
    ensure!(!found, "the terminal's title is set");
    ensure!(!run.stdout.contains(&7), "the terminal's bell rings");
    Ok(())
}

fn check_and_explain_escape_names_too(scene: &mut Scene) -> Result<()> {
    locked(scene, r"two\nlines\e[2J", b"two\nlines\x1b[2J")?;
    scene.play(r"owner: comm a\nb\e[2Jc")?;
    let check = scene.run(&["check", "two\nlines\u{1b}[2J"])?;
    check.exits(3)?;
    is_harmless(&check)?;
    same!("lines", check.lines()?.len(), 1);
    is_harmless(&scene.run(&["explain", "two\nlines\u{1b}[2J"])?)
}

fn a_complaint_about_a_hostile_name_is_one_line(scene: &mut Scene) -> Result<()> {
    let run = scene.run(&["check", "no\nsuch\u{1b}[2Jfile"])?;
    let complaint = run.fails_in_one_line()?;
    ensure!(!complaint.contains('\u{1b}'), "an escape in {complaint:?}");
    Ok(())
}
