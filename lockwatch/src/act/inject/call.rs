//! One system call of a halted thread, and everything of the thread put back.
//!
//! Refuses a thread that could not be put back; where none of a process fits, nothing is done.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::super::ActError;
use super::halt::{Halted, Stand, request, stand, stand_still};
use super::registers::Registers;
use super::{Call, Unlock};

/// `include/uapi/linux/ptrace.h`.
const GET_SIGMASK: libc::c_uint = 0x420a;
const SET_SIGMASK: libc::c_uint = 0x420b;
const GET_RSEQ: libc::c_uint = 0x420f;
const SUSPEND_SECCOMP: usize = 1 << 21;
/// Bytes below the stack pointer that belong to the function that runs (the ABI's red zone), and
/// then some.
const RED_ZONE: u64 = 512;
/// `syscall`.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];
/// Stops on the way of one call, at most.
const STOPS: u32 = 100;

/// Has one of the halted threads of the plan's process make the call. Returns which.
pub(super) fn perform(call: &Call<'_>, halted: &mut Halted) -> Result<i32, ActError> {
    let pid = call.plan.through.reader_pid;
    let path = format!("/proc/{pid}/mem");
    let memory = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| ActError::call(path, error))?;
    let instruction = system_call_instruction(pid, &memory)?;
    let own = call.plan.through.tid;
    let of_process = |tid: &i32| std::path::Path::new(&format!("/proc/{pid}/task/{tid}")).exists();
    let mut threads: Vec<(i32, Registers)> =
        halted.threads.iter().filter_map(|(&tid, &registers)| Some((tid, registers?))).collect();
    // A thread may have an fd table of its own: the one through which the lock was found comes
    // first, and is the only one where it is not the whole process's.
    threads.retain(|(tid, _)| *tid == own || (own == pid && of_process(tid)));
    threads.sort_by_key(|(tid, _)| *tid != own);
    let mut why = ActError::Impossible(format!("pid {pid} has no thread that could be halted"));
    for (tid, registers) in threads {
        match fits(tid, &registers, &memory).and_then(|()| shares_table(own, tid)) {
            Ok(()) => {
                let victim = Victim { tid, registers, memory: &memory };
                victim.call(call, instruction)?;
                return Ok(tid);
            }
            Err(unfit) => why = unfit,
        }
    }
    Err(why)
}

/// Finds that a thread has the descriptor's table, and not one of its own.
fn shares_table(own: i32, tid: i32) -> Result<(), ActError> {
    /// `KCMP_FILES`.
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: takes numbers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, own, tid, KCMP_FILES, 0, 0) } {
        0 => Ok(()),
        -1 => Err(ActError::last(format!("compare the fd tables of {own} and {tid}"))),
        _ => Err(ActError::Impossible(format!("thread {tid} has an fd table of its own"))),
    }
}

/// Where a `syscall` instruction is in every process: in what the kernel maps into it.
fn system_call_instruction(pid: i32, memory: &File) -> Result<u64, ActError> {
    let none = || ActError::Impossible(format!("pid {pid} has no system call instruction mapped"));
    let maps =
        procfs::process::Process::new(pid).and_then(|process| process.maps()).map_err(|error| {
            ActError::call(format!("/proc/{pid}/maps"), std::io::Error::other(error))
        })?;
    let vdso =
        maps.iter().find(|map| map.pathname == procfs::process::MMapPath::Vdso).ok_or_else(none)?;
    let mut code = vec![0; usize::try_from(vdso.address.1 - vdso.address.0).map_err(|_| none())?];
    memory
        .read_exact_at(&mut code, vdso.address.0)
        .map_err(|error| ActError::call(format!("/proc/{pid}/mem"), error))?;
    let at = code.windows(2).position(|bytes| bytes == INSTRUCTION).ok_or_else(none)?;
    Ok(vdso.address.0 + at as u64)
}

/// Finds that a thread can be led through a call and put back.
fn fits(tid: i32, registers: &Registers, memory: &File) -> Result<(), ActError> {
    if registers.in_system_call() {
        return Ok(());
    }
    // The kernel forgets a restartable sequence when its thread is elsewhere.
    let unfit = |what| ActError::Impossible(format!("thread {tid} {what}"));
    #[repr(C)]
    #[derive(Default)]
    struct Configuration {
        area: u64,
        size: u32,
        signature: u32,
        flags: u32,
        pad: u32,
    }
    let mut configuration = Configuration::default();
    // SAFETY: the kernel writes at most the given number of bytes at the pointer.
    let answer =
        unsafe { libc::ptrace(GET_RSEQ, tid, size_of::<Configuration>(), &raw mut configuration) };
    if answer == -1 {
        return Err(unfit("runs, and whether inside a restartable sequence this kernel hides"));
    }
    if configuration.area == 0 {
        return Ok(());
    }
    let number = |at: u64| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, at).map(|()| u64::from_ne_bytes(bytes))
    };
    let unreadable = |error| ActError::call(format!("read the memory of thread {tid}"), error);
    // `struct rseq`: the pointer to the sequence is its second eight bytes. `struct rseq_cs`: two
    // times four bytes, then where it begins, and how long it is.
    let sequence = number(configuration.area + 8).map_err(unreadable)?;
    if sequence == 0 {
        return Ok(());
    }
    let start = number(sequence + 8).map_err(unreadable)?;
    let length = number(sequence + 16).map_err(unreadable)?;
    if registers.0.rip.wrapping_sub(start) < length {
        return Err(unfit("is inside a restartable sequence; try again"));
    }
    Ok(())
}

/// The thread that makes the call, as it was halted.
struct Victim<'a> {
    tid: i32,
    registers: Registers,
    memory: &'a File,
}

impl Victim<'_> {
    fn call(&self, call: &Call<'_>, instruction: u64) -> Result<(), ActError> {
        self.suspend_seccomp()?;
        let place = (self.registers.0.rsp - RED_ZONE) & !15;
        let saved = self.save(place)?;
        let mask = self.mask()?;
        let fd = u64::from(call.fd);
        let (number, args) = match call.unlock {
            Unlock::Flock => (libc::SYS_flock, [fd, libc::LOCK_UN as u64, 0]),
            Unlock::Lease => (libc::SYS_fcntl, [fd, libc::F_SETLEASE as u64, libc::F_UNLCK as u64]),
            Unlock::Range(command, request) => {
                self.store(place, &bytes_of(&request))?;
                (libc::SYS_fcntl, [fd, command as u64, place])
            }
        };
        // Whatever comes of it, all of it is put back before anything is said.
        let done = self.attempt(&self.registers.calling(instruction, number, args));
        let halted = self.halt_again();
        let restored = self.store(place, &saved);
        let unblocked = self.set_mask(mask);
        let back = self.registers.write(self.tid);
        let done = done?;
        halted.and(restored).and(unblocked).and(back)?;
        done.map_err(|error| ActError::call(format!("the call of thread {}", self.tid), error))
    }

    /// The call itself, with every signal blocked.
    fn attempt(&self, registers: &Registers) -> Result<std::io::Result<()>, ActError> {
        self.set_mask(u64::MAX)?;
        registers.write(self.tid)?;
        let mut entered = false;
        for _ in 0..STOPS {
            if !request(libc::PTRACE_SYSCALL, self.tid, 0) {
                return Err(ActError::last(format!("let thread {} run", self.tid)));
            }
            match stand(self.tid)? {
                Stand::Call if entered => return Ok(Registers::read(self.tid)?.answer()),
                Stand::Call => entered = true,
                // Somebody stops the whole process meanwhile: it will stop once it is let go.
                Stand::Halted => {}
                Stand::Signal(signal) => {
                    return Err(ActError::Impossible(format!(
                        "thread {} got signal {signal} on the way",
                        self.tid
                    )));
                }
                Stand::Gone => {
                    return Err(ActError::Impossible(format!("thread {} was killed", self.tid)));
                }
            }
        }
        Err(ActError::Impossible(format!("thread {} did not come to the call", self.tid)))
    }

    /// Halts where a system call is restarted from, if one was interrupted.
    fn halt_again(&self) -> Result<(), ActError> {
        request(libc::PTRACE_INTERRUPT, self.tid, 0);
        request(libc::PTRACE_CONT, self.tid, 0);
        if stand_still(self.tid)? {
            return Ok(());
        }
        Err(ActError::Impossible(format!("thread {} was killed", self.tid)))
    }

    /// A filter of system calls must not end the process for a call that is not its own.
    fn suspend_seccomp(&self) -> Result<(), ActError> {
        let path = format!("/proc/{}/status", self.tid);
        let status = std::fs::read_to_string(&path).map_err(|error| ActError::call(path, error))?;
        let filtered = status
            .lines()
            .find_map(|line| line.strip_prefix("Seccomp:"))
            .is_some_and(|mode| mode.trim() != "0");
        let options = SUSPEND_SECCOMP | libc::PTRACE_O_TRACESYSGOOD as usize;
        if filtered && !request(libc::PTRACE_SETOPTIONS, self.tid, options) {
            return Err(ActError::Impossible(format!(
                "thread {} runs under a seccomp filter, which this kernel or this process cannot \
                 suspend: {}",
                self.tid,
                std::io::Error::last_os_error()
            )));
        }
        Ok(())
    }

    fn save(&self, place: u64) -> Result<[u8; size_of::<libc::flock>()], ActError> {
        let mut bytes = [0; size_of::<libc::flock>()];
        let read = self.memory.read_exact_at(&mut bytes, place);
        read.map_err(|error| {
            ActError::call(format!("read the stack of thread {}", self.tid), error)
        })?;
        Ok(bytes)
    }

    fn store(&self, place: u64, bytes: &[u8]) -> Result<(), ActError> {
        self.memory.write_all_at(bytes, place).map_err(|error| {
            ActError::call(format!("write to the stack of thread {}", self.tid), error)
        })
    }

    fn mask(&self) -> Result<u64, ActError> {
        let mut mask = 0_u64;
        // SAFETY: the kernel writes eight bytes at the pointer.
        match unsafe { libc::ptrace(GET_SIGMASK, self.tid, size_of::<u64>(), &raw mut mask) } {
            -1 => Err(ActError::last(format!("read the signal mask of thread {}", self.tid))),
            _ => Ok(mask),
        }
    }

    fn set_mask(&self, mask: u64) -> Result<(), ActError> {
        // SAFETY: the kernel reads eight bytes at the pointer.
        match unsafe { libc::ptrace(SET_SIGMASK, self.tid, size_of::<u64>(), &raw const mask) } {
            -1 => Err(ActError::last(format!("set the signal mask of thread {}", self.tid))),
            _ => Ok(()),
        }
    }
}

/// The request as the kernel reads it, with its padding zero.
fn bytes_of(request: &libc::flock) -> [u8; size_of::<libc::flock>()] {
    let mut bytes = [0; size_of::<libc::flock>()];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(std::mem::offset_of!(libc::flock, l_type), &request.l_type.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_whence), &request.l_whence.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_start), &request.l_start.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_len), &request.l_len.to_ne_bytes());
    bytes
}
