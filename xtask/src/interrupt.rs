//! A clean end on SIGINT and SIGTERM: the child that is running gets the signal too, and xtask
//! stays until that child has ended, so that nothing goes on behind the caller's back.
//!
//! Cleans nothing up itself: a half-done set-up is removed by its owner's error path, or by the
//! next set-up.

use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// What a shell calls the death by SIGINT.
pub(crate) const EXIT_CODE: u8 = 130;

static HAPPENED: AtomicBool = AtomicBool::new(false);
static CHILD: Mutex<Option<Pid>> = Mutex::new(None);

/// Starts to listen. Call once, before the first child.
pub(crate) fn install() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listening for SIGINT")?;
    thread::spawn(move || {
        for signal in signals.forever() {
            HAPPENED.store(true, Ordering::SeqCst);
            // A terminal sends SIGINT to the whole foreground group by itself. Give that a
            // moment, so that the child does not see one Ctrl-C as two.
            if signal == SIGINT {
                thread::sleep(Duration::from_millis(200));
            }
            forward(if signal == SIGINT { Signal::INT } else { Signal::TERM });
        }
    });
    Ok(())
}

/// Whether the caller asked for the end.
pub(crate) fn happened() -> bool {
    HAPPENED.load(Ordering::SeqCst)
}

/// Does what there is to do while a child runs, then waits for it; passes signals on to it
/// meanwhile.
pub(crate) fn wait(child: &mut Child, meanwhile: impl FnOnce()) -> std::io::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    set_child(Some(pid));
    meanwhile();
    // Not reaped before it is unregistered: its pid cannot become another process's while a
    // signal may still be sent to it.
    while let Err(error) = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
        if error != rustix::io::Errno::INTR {
            break;
        }
    }
    set_child(None);
    child.wait()
}

fn set_child(pid: Option<Pid>) {
    let mut child = CHILD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *child = pid;
}

fn forward(signal: Signal) {
    let child = CHILD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(pid) = *child {
        // It may have ended already, or be root's (sudo passes the terminal's signal on).
        let _ = kill_process(pid, signal);
    }
}
