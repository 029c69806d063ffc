//! How actors come to be, and become others: fork, clone, exec, other programs.
//!
//! Refuses to wait for children, but for those of `run`: who dies is gone at once.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::language::Birth;

/// Who returns from a fork.
pub(super) enum Born {
    Parent { child: libc::pid_t },
    Child,
}

/// Forks, with what `birth` asks for.
pub(super) fn fork(birth: &Birth) -> io::Result<Born> {
    let answer = if *birth == Birth::default() {
        // SAFETY: the child goes on in the same code; what it must not use of its parent's
        // threads (one that waits for a lock) it forgets first.
        libc::c_long::from(unsafe { libc::fork() })
    } else {
        clone(birth)
    };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Born::Child),
        child => Ok(Born::Parent {
            child: libc::pid_t::try_from(child)
                .map_err(|_| io::Error::other("a pid out of range"))?,
        }),
    }
}

fn clone(birth: &Birth) -> libc::c_long {
    let mut flags = 0;
    for (wanted, flag) in [
        (birth.share_files, libc::CLONE_FILES),
        (birth.new_pids, libc::CLONE_NEWPID),
        (birth.new_mounts, libc::CLONE_NEWNS),
    ] {
        if wanted {
            flags |= u64::from(flag.unsigned_abs());
        }
    }
    // The pid can be chosen here, and not with `ns_last_pid`, so that the order in which the
    // kernel gives out pids afterwards stays what it was.
    let set_tid = birth.pid.map(|pid| [pid]);
    let args = CloneArgs {
        flags,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        set_tid: set_tid.as_ref().map_or(0, |pids| pids.as_ptr().addr() as u64),
        set_tid_size: set_tid.map_or(0, |pids| pids.len() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: `args` and the array that it points to outlive the call; without CLONE_VM it is a
    // fork, of which the same holds as above.
    unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) }
}

/// `struct clone_args` of `linux/sched.h`, as Linux 5.5 had it.
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// Becomes a fresh rig with the same part to play. Returns only what went wrong.
pub(super) fn exec(stage: &str, name: &str, descriptors: &str) -> anyhow::Error {
    let attempt = || -> Result<()> {
        let program = std::env::current_exe().context("finding this program")?;
        let program = CString::new(program.into_os_string().into_vec())?;
        let mut argv = vec![program.clone()];
        for word in ["--stage", stage, "--name", name, "--descriptors", descriptors] {
            argv.push(CString::new(word)?);
        }
        let mut pointers: Vec<_> = argv.iter().map(|word| word.as_ptr()).collect();
        pointers.push(std::ptr::null());
        // SAFETY: a null-terminated array of C strings that outlive the call.
        unsafe { libc::execv(program.as_ptr(), pointers.as_ptr()) };
        Err(io::Error::last_os_error()).with_context(|| format!("exec {program:?}"))
    };
    match attempt() {
        Ok(()) => anyhow::anyhow!("exec came back"),
        Err(error) => error,
    }
}

fn program(argv: &[Vec<u8>]) -> Result<Command> {
    let [program, args @ ..] = argv else { bail!("no program") };
    let mut command = Command::new(OsStr::from_bytes(program));
    command.args(args.iter().map(|arg| OsStr::from_bytes(arg)));
    // SAFETY: signal(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // Programs expect the defaults, and what is ignored stays so across an exec.
            for signal in [libc::SIGCHLD, libc::SIGIO] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    Ok(command)
}

/// Starts another program and leaves it alone.
pub(super) fn spawn(argv: &[Vec<u8>]) -> Result<u32> {
    let child = program(argv)?.spawn().with_context(|| format!("starting {}", show(argv)))?;
    Ok(child.id())
}

/// Runs another program to its end; says how that was.
pub(super) fn run(output: &[u8], argv: &[Vec<u8>]) -> Result<String> {
    let file = |ending: &str| -> Result<Stdio> {
        let mut path = OsString::from_vec(output.to_vec());
        path.push(ending);
        Ok(Stdio::from(File::create(&path).with_context(|| format!("making {path:?}"))?))
    };
    let mut command = program(argv)?;
    command.stdin(Stdio::null()).stdout(file(".out")?).stderr(file(".err")?);
    // Ignoring SIGCHLD reaps children unseen, and then nobody learns their exit status.
    let reaping = |disposition| {
        // SAFETY: neither disposition installs a handler.
        unsafe { libc::signal(libc::SIGCHLD, disposition) };
    };
    reaping(libc::SIG_DFL);
    let status = command.status();
    reaping(libc::SIG_IGN);
    let status = status.with_context(|| format!("running {}", show(argv)))?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit={code}"),
        (None, Some(signal)) => format!("signal={signal}"),
        (None, None) => bail!("neither exit nor signal"),
    })
}

fn show(argv: &[Vec<u8>]) -> String {
    argv.iter().map(|word| super::language::escape(word)).collect::<Vec<_>>().join(" ")
}
