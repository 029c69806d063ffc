//! The machine's programs that VMs are made with: found, installed where that is allowed, and
//! run quietly, from several threads at once, with bytes as their output.
//!
//! What the user is to see running is for `crate::command`.

use std::env;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::progress;
use anyhow::{Context as _, Result, bail};

/// Runs `command` to its end; its output, whatever its status.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("cannot run `{}`", line(command)))
}

/// Runs `command` and gives its standard output; a status other than 0 is an error with what
/// it said on standard error.
pub(crate) fn stdout(command: &mut Command) -> Result<Vec<u8>> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "`{}` failed with {}:\n{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Where `program` is, looked up in `PATH` and in the places of system programs, which a plain
/// user's `PATH` may lack.
pub(crate) fn find(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program.as_ref()))
        .find(|file| file.is_file())
}

/// Makes sure that `program` is there: installs Debian's `package` where that is allowed, and
/// otherwise says in one line what to do.
pub(crate) fn require(program: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = find(program) {
        return Ok(found);
    }
    if !crate::privilege::is_root() {
        bail!(
            "{program} is missing: install Debian's package {package} (`apt-get install {package}`)"
        );
    }
    progress::say(&format!("installing {package}, for {program}"));
    let install = || {
        output(
            Command::new("apt-get")
                // A fresh machine may be busy with updates of its own.
                .args(["-o", "DPkg::Lock::Timeout=120"])
                .args(["install", "--yes", "--no-install-recommends", package])
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    if !install()?.status.success() {
        // A fresh machine has no package lists yet.
        stdout(Command::new("apt-get").arg("update"))?;
        let second = install()?;
        if !second.status.success() {
            bail!(
                "`apt-get install {package}` failed:\n{}",
                String::from_utf8_lossy(&second.stderr).trim()
            );
        }
    }
    find(program).with_context(|| format!("{package} is installed but has no {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command() {
        let error = stdout(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("sh -c") && message.contains("why"), "{message}");
    }
}
