//! Being run at once where there is something to do, also on a machine whose processors are busy.
//!
//! Refuses to hand that on: what this process starts is run like everybody else. The daemon's work
//! comes in pieces of a few milliseconds with long rests in between; each time that it had to queue
//! for a processor an orphan would be told that much later.

use std::io;

/// `struct sched_attr` of `include/uapi/linux/sched/types.h`, in its first form.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Nanoseconds: the slice, from 6.12 on.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// `SCHED_FLAG_RESET_ON_FORK`: threads and processes that are started begin with a nice value of 0.
const RESET_ON_FORK: u64 = 1;
/// The nice value of who must be first.
const NICE: i32 = -11;
/// That of who answers a question of some 0.3 ms: before what is usual, and after those who must be
/// first, however many ask.
const NICE_TO_ANSWER: i32 = -5;
/// Nanoseconds; who asks for short slices gets them sooner.
const SLICE: u64 = 500_000;

/// Has this thread preferred to what runs with the usual priority, unless somebody gave this process
/// another one than that.
///
/// # Errors
/// Where it may not be: without CAP_SYS_NICE.
pub(super) fn prefer_this_thread() -> io::Result<()> {
    prefer(NICE)
}

/// The same for a thread that answers questions, and less.
///
/// # Errors
/// As above.
pub(super) fn prefer_this_thread_to_answer() -> io::Result<()> {
    prefer(NICE_TO_ANSWER)
}

fn prefer(preferred: i32) -> io::Result<()> {
    // SAFETY: they take and give numbers; both speak of the calling thread.
    let (nice, policy) =
        unsafe { (libc::getpriority(libc::PRIO_PROCESS, 0), libc::sched_getscheduler(0)) };
    if nice != 0 || policy != libc::SCHED_OTHER {
        return Ok(());
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        flags: RESET_ON_FORK,
        nice: preferred,
        runtime: SLICE,
        ..Attributes::default()
    };
    // SAFETY: sched_setattr(2) reads as many bytes as the structure says that it has.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The nice value in a line of `/proc/PID/stat`.
    fn nice(stat: &str) -> i32 {
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        fields.nth(16).and_then(|field| field.parse().ok()).unwrap()
    }

    #[test]
    fn the_thread_is_preferred_and_what_it_starts_is_not() {
        let own = || nice(&std::fs::read_to_string("/proc/thread-self/stat").unwrap());
        type Prefer = fn() -> io::Result<()>;
        let ways: [(Prefer, i32); 2] =
            [(prefer_this_thread, NICE), (prefer_this_thread_to_answer, NICE_TO_ANSWER)];
        for (prefer, wanted) in ways {
            let preferred = std::thread::spawn(move || {
                let before = own();
                prefer().map(|()| {
                    let child = Command::new("cat").arg("/proc/self/stat").output().unwrap();
                    (before, own(), nice(&String::from_utf8(child.stdout).unwrap()))
                })
            });
            match preferred.join().unwrap() {
                Ok((0, now, child)) => assert_eq!((now, child), (wanted, 0)),
                Ok((before, now, child)) => assert_eq!((now, child), (before, before)),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
            }
        }
    }
}
