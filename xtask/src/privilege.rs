//! With whose rights a program that wants to see everything is run: root's where they can be
//! had, the caller's otherwise; either way the caller is told.
//!
//! Runs nothing but sudo's own questions.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::Path;
use std::process::Command;

use crate::{command, progress};

/// With whose rights.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    /// The caller is root.
    Root,
    /// sudo lets the caller without a question.
    Sudo,
    /// sudo would ask for a password, and there is a terminal to ask on.
    Ask,
    /// The caller's own rights, because of this.
    Without(&'static str),
}

struct Facts {
    root: bool,
    sudo: bool,
    no_new_privileges: bool,
    sudo_asks_nothing: bool,
    terminal: bool,
}

/// A command that runs `program` with root's rights if possible, and with these variables.
/// What was chosen is said on stderr, unless the caller is root.
pub(crate) fn command(program: &Path, variables: &[(&str, &OsStr)]) -> Command {
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let with_sudo = || {
        progress::say(&format!("running {name} through sudo, to see every process"));
        let mut command = Command::new("sudo");
        // sudo empties the environment, and its own way to keep a variable needs a permission.
        command.arg("--").arg("env");
        for (key, value) in variables {
            let mut pair = OsStr::new(key).to_os_string();
            pair.push("=");
            pair.push(value);
            command.arg(pair);
        }
        command.arg(program);
        command
    };
    let without = |why: &str| {
        progress::say(&format!("running {name} without root's rights ({why}): it sees less"));
        plain(program, variables)
    };
    match choose(&facts()) {
        Way::Root => plain(program, variables),
        Way::Sudo => with_sudo(),
        Way::Ask if command::run(Command::new("sudo").arg("--validate"), "").is_ok() => with_sudo(),
        Way::Ask => without("sudo refused"),
        Way::Without(why) => without(why),
    }
}

/// Whether the caller is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether lockwatch's BPF programs should load here: for root with all capabilities, on a kernel
/// that shows its types and is not locked down.
pub(crate) fn bpf_is_due() -> bool {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    is_root()
        && Path::new("/sys/kernel/btf/vmlinux").exists()
        && has_system_capabilities(&text("/proc/self/status"))
        && !text("/sys/kernel/security/lockdown").contains("[confidentiality]")
        && text("/proc/self/uid_map").split_whitespace().eq(["0", "0", "4294967295"])
}

fn has_system_capabilities(status: &str) -> bool {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|held| held & CAP_SYS_ADMIN != 0)
}

fn plain(program: &Path, variables: &[(&str, &OsStr)]) -> Command {
    let mut command = Command::new(program);
    command.envs(variables.iter().copied());
    command
}

fn choose(facts: &Facts) -> Way {
    match facts {
        Facts { root: true, .. } => Way::Root,
        Facts { sudo: false, .. } => Way::Without("there is no sudo here"),
        Facts { no_new_privileges: true, .. } => Way::Without("this process may not use sudo"),
        Facts { sudo_asks_nothing: true, .. } => Way::Sudo,
        Facts { terminal: true, .. } => Way::Ask,
        _ => Way::Without("sudo wants a password and there is no terminal to ask on"),
    }
}

fn facts() -> Facts {
    let root = is_root();
    let sudo = !root && command::find("sudo").is_some();
    Facts {
        root,
        sudo,
        no_new_privileges: rustix::thread::no_new_privs().unwrap_or(false),
        sudo_asks_nothing: sudo
            && command::succeeds(Command::new("sudo").args(["--non-interactive", "true"])),
        terminal: std::io::stdin().is_terminal(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Facts = Facts {
        root: false,
        sudo: true,
        no_new_privileges: false,
        sudo_asks_nothing: false,
        terminal: false,
    };

    #[test]
    fn capabilities_are_read() {
        assert!(has_system_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_system_capabilities("CapEff:\t00000000a80425fb\n"));
        assert!(!has_system_capabilities(""));
    }

    #[test]
    fn root_needs_no_sudo() {
        assert_eq!(choose(&Facts { root: true, ..USER }), Way::Root);
    }

    #[test]
    fn a_user_gets_sudo_where_it_works() {
        assert_eq!(choose(&Facts { sudo_asks_nothing: true, ..USER }), Way::Sudo);
        assert_eq!(choose(&Facts { terminal: true, ..USER }), Way::Ask);
    }

    #[test]
    fn a_user_without_sudo_goes_without() {
        let terminal = true;
        assert!(matches!(choose(&USER), Way::Without(why) if why.contains("password")));
        assert!(matches!(choose(&Facts { sudo: false, terminal, ..USER }), Way::Without(_)));
        assert!(matches!(
            choose(&Facts { no_new_privileges: true, terminal, ..USER }),
            Way::Without(_)
        ));
    }
}
