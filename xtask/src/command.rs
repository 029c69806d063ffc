//! Running other programs: every failure names the command, how it ended, and what to try.
//!
//! Knows nothing of what the programs do.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::interrupt;

/// How much of a failed command's own words an error repeats.
const TAIL_LINES: usize = 8;

/// Runs to the end with the caller's stdio. Anything but success is an error that ends with
/// `advice`.
pub(crate) fn run(command: &mut Command, advice: &str) -> Result<()> {
    let status = status(command)?;
    if status.success() { Ok(()) } else { Err(failure(command, status, "", advice)) }
}

/// Runs to the end with the caller's stdio, and answers how it ended.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    stop_if_interrupted()?;
    let mut child = spawn(command)?;
    let status = interrupt::wait(&mut child, || ()).with_context(|| shown(command))?;
    stop_if_interrupted()?;
    Ok(status)
}

/// Runs to the end without stdin and answers its stdout. What it wrote is repeated only when it
/// failed.
pub(crate) fn capture(command: &mut Command, advice: &str) -> Result<String> {
    let (status, stdout, stderr) = silent(command)?;
    if status.success() {
        Ok(stdout)
    } else {
        Err(failure(command, status, &format!("{stdout}{stderr}"), advice))
    }
}

/// Whether it ran and succeeded; what it wrote is of no interest.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    silent(command).is_ok_and(|(status, ..)| status.success())
}

/// Runs to the end, passes its stdout on as it comes, and shows each line to `each`.
pub(crate) fn tee(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut lost = None;
    let status = lines(command, |line| {
        if let Err(error) = print(&format!("{line}\n")) {
            lost.get_or_insert(error);
        }
        each(line);
    })?;
    lost.map_or(Ok(status), Err)
}

/// Runs to the end and shows each line of its stdout to `each`.
pub(crate) fn lines(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    stop_if_interrupted()?;
    let mut child = spawn(command.stdout(Stdio::piped()))?;
    let pipe = child.stdout.take().context("a child without stdout")?;
    let status = interrupt::wait(&mut child, || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            each(&String::from_utf8_lossy(&line));
        }
    });
    let status = status.with_context(|| shown(command))?;
    stop_if_interrupted()?;
    Ok(status)
}

/// Text on stdout.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("writing to stdout")
}

/// The exit code that hands a child's end on: its own, or 128 + the signal as a shell has it.
pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(2))
}

/// The file that a name on PATH stands for.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    find_in(&std::env::var_os("PATH")?, program)
}

fn find_in(path: &OsStr, program: &str) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn silent(command: &mut Command) -> Result<(ExitStatus, String, String)> {
    stop_if_interrupted()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let mut texts = (String::new(), String::new());
    let status = interrupt::wait(&mut child, || {
        // Both pipes are drained at once: a child that fills one while we read the other would
        // never end.
        let stderr = stderr.map(|pipe| thread::spawn(move || read_all(pipe)));
        texts.0 = stdout.map(read_all).unwrap_or_default();
        texts.1 = stderr.and_then(|reader| reader.join().ok()).unwrap_or_default();
    });
    let status = status.with_context(|| shown(command))?;
    let (stdout, stderr) = texts;
    stop_if_interrupted()?;
    Ok((status, stdout, stderr))
}

fn read_all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What came before a broken pipe is still worth showing.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn spawn(command: &mut Command) -> Result<std::process::Child> {
    command.spawn().with_context(|| format!("starting `{}`", shown(command)))
}

fn stop_if_interrupted() -> Result<()> {
    if interrupt::happened() { bail!("interrupted") } else { Ok(()) }
}

fn failure(command: &Command, status: ExitStatus, output: &str, advice: &str) -> anyhow::Error {
    let lines: Vec<&str> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail: String = lines[lines.len().saturating_sub(TAIL_LINES)..]
        .iter()
        .map(|line| format!("\n  | {line}"))
        .collect();
    let advice = if advice.is_empty() { String::new() } else { format!("\n  try: {advice}") };
    anyhow!("`{}` failed ({status}){tail}{advice}", shown(command))
}

/// The command as a human would type it.
pub(crate) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_names_command_status_words_and_advice() {
        let error = capture(&mut sh("echo no route >&2; exit 7"), "a network").unwrap_err();
        let text = error.to_string();
        for part in ["sh -c", "exit status: 7", "| no route", "try: a network"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(&mut Command::new("no-such-program-here"), "").unwrap_err();
        assert!(format!("{error:#}").contains("no-such-program-here"));
    }

    #[test]
    fn each_line_is_shown_also_the_last() {
        let mut seen = Vec::new();
        let status = lines(&mut sh("printf 'a\\nb'"), |line| seen.push(line.to_owned())).unwrap();
        assert!(status.success());
        assert_eq!(seen, ["a", "b"]);
    }

    #[test]
    fn only_an_executable_file_is_a_program() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tool"), "").unwrap();
        assert_eq!(find_in(folder.path().as_os_str(), "tool"), None);
        assert!(find("sh").is_some());
    }
}
