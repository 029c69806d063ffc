//! Waits of a known length in calls that a halted process must take up again, and a filter under
//! which system calls kill.
//!
//! Refuses to try again: a wait that ends early is told.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::language::Rest;

/// Waits so long in one call.
pub(super) fn rest(call: Rest, milliseconds: u16) -> Result<()> {
    let begun = Instant::now();
    let time = Duration::from_millis(milliseconds.into());
    let answer = match call {
        Rest::Sleep => sleep(time),
        Rest::Poll => {
            // SAFETY: no descriptor is looked at.
            i64::from(unsafe { libc::poll(std::ptr::null_mut(), 0, milliseconds.into()) })
        }
        Rest::Epoll => epoll(milliseconds)?,
        Rest::Futex => futex(time),
    };
    let error = io::Error::last_os_error();
    let over = call == Rest::Futex && error.raw_os_error() == Some(libc::ETIMEDOUT);
    ensure!(answer == 0 || over, "{call:?} ended after {:?}: {error}", begun.elapsed());
    ensure!(begun.elapsed() >= time, "{call:?} took only {:?}", begun.elapsed());
    Ok(())
}

fn timespec(time: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

fn sleep(time: Duration) -> i64 {
    let time = timespec(time);
    // SAFETY: the kernel reads one timespec, and is given no place to write to.
    unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, 0) }
}

fn epoll(milliseconds: u16) -> Result<i64> {
    // SAFETY: takes a number; the descriptor stays open until the end of this actor.
    let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    ensure!(epoll >= 0, "epoll_create1: {}", io::Error::last_os_error());
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: the kernel writes at most one event at the pointer.
    Ok(i64::from(unsafe { libc::epoll_wait(epoll, &raw mut event, 1, milliseconds.into()) }))
}

fn futex(time: Duration) -> i64 {
    let (word, time) = (0_u32, timespec(time));
    // SAFETY: the kernel reads one word and one timespec, which outlive the call.
    unsafe { libc::syscall(libc::SYS_futex, &raw const word, libc::FUTEX_WAIT, 0, &raw const time) }
}

/// From here on this process is killed for fcntl(2) and flock(2).
pub(super) fn filter() -> Result<()> {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let number = |call: libc::c_long| u32::try_from(call).context("the number of a call");
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let mut program = [
        // `struct seccomp_data` begins with the number of the call.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(equal, 2, 0, number(libc::SYS_fcntl)?),
        step(equal, 1, 0, number(libc::SYS_flock)?),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).context("the filter's length")?,
        filter: program.as_mut_ptr(),
    };
    rustix::thread::set_no_new_privs(true).context("PR_SET_NO_NEW_PRIVS")?;
    // SAFETY: the kernel reads the program, which outlives the call.
    let answer =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    ensure!(answer == 0, "PR_SET_SECCOMP: {}", io::Error::last_os_error());
    Ok(())
}
