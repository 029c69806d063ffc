//! The registers of a halted thread, and what the kernel will do with them when it goes on.
//!
//! Refuses 32-bit threads: their registers come in another shape.

use std::io;
use std::mem::MaybeUninit;

use super::super::ActError;

/// `NT_PRSTATUS` of `include/uapi/linux/elf.h`.
const NT_PRSTATUS: usize = 1;
/// The code segment of 64-bit user space (`__USER_CS`).
const USER_CS: u64 = 0x33;
/// `-ERESTARTNOHAND` of `include/linux/errno.h`: try again unless a handler ran.
const RESTART_UNLESS_HANDLED: u64 = (-514_i64).cast_unsigned();
const INTERRUPTED: u64 = (-(libc::EINTR as i64)).cast_unsigned();

/// System calls that end with `EINTR` when their thread is merely halted (signal(7), "Interruption
/// of system calls and library functions by stop signals").
const NOT_RESUMED: [libc::c_long; 9] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
    333, // io_pgetevents
    libc::SYS_msgrcv,
];

/// The registers.
#[derive(Clone, Copy)]
pub(super) struct Registers(pub(super) libc::user_regs_struct);

impl Registers {
    /// Those of a halted thread.
    pub(super) fn read(tid: i32) -> Result<Self, ActError> {
        let mut registers = MaybeUninit::<libc::user_regs_struct>::zeroed();
        let mut place = libc::iovec {
            iov_base: registers.as_mut_ptr().cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        // SAFETY: the kernel writes at most `iov_len` bytes at `iov_base`.
        if unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, NT_PRSTATUS, &raw mut place) } == -1 {
            return Err(ActError::last(format!("read the registers of thread {tid}")));
        }
        // SAFETY: integers alone, all zero before the kernel wrote.
        let registers = unsafe { registers.assume_init() };
        if place.iov_len != size_of::<libc::user_regs_struct>() || registers.cs != USER_CS {
            return Err(ActError::Impossible(format!("thread {tid} runs 32-bit code")));
        }
        Ok(Self(registers))
    }

    /// Gives them to a halted thread.
    pub(super) fn write(&self, tid: i32) -> Result<(), ActError> {
        let mut copy = self.0;
        let mut place = libc::iovec {
            iov_base: (&raw mut copy).cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        // SAFETY: the kernel reads `iov_len` bytes at `iov_base`.
        match unsafe { libc::ptrace(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, &raw mut place) } {
            -1 => Err(ActError::last(format!("write the registers of thread {tid}"))),
            _ => Ok(()),
        }
    }

    /// True where the thread was inside a system call when it was halted.
    pub(super) fn in_system_call(&self) -> bool {
        self.0.orig_rax.cast_signed() >= 0
    }

    /// Registers with which the halted thread makes one system call at `instruction`.
    pub(super) fn calling(&self, instruction: u64, number: libc::c_long, args: [u64; 3]) -> Self {
        let mut registers = self.0;
        registers.rip = instruction;
        registers.rax = number.cast_unsigned();
        // No system call is to be restarted on the way.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx] = args;
        Self(registers)
    }

    /// The answer of a system call, on its way out.
    pub(super) fn answer(&self) -> io::Result<()> {
        match self.0.rax.cast_signed() {
            0.. => Ok(()),
            error => Err(io::Error::from_raw_os_error(i32::try_from(-error).unwrap_or(libc::EIO))),
        }
    }

    /// Those with which a system call that halting would end is taken up again; `None` where
    /// nothing need be done. Should a signal's handler run first, it ends with `EINTR` all the
    /// same.
    pub(super) fn taken_up_again(&self) -> Option<Self> {
        let number = self.0.orig_rax.cast_signed();
        let ended = self.0.rax == INTERRUPTED && NOT_RESUMED.contains(&number);
        ended.then(|| {
            let mut registers = self.0;
            registers.rax = RESTART_UNLESS_HANDLED;
            Self(registers)
        })
    }
}
