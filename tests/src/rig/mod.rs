//! The rig: one small program that takes real locks in every way that matters, as it is told.
//!
//! A test starts a rig, tells it one command of [`language`] after the other, and hears one line
//! of answer to each: `ok …` or `err …`. A rig forks, execs and starts threads when told to; each
//! of these actors connects to the test by itself and obeys by itself, so a child goes on playing
//! its part after its parent died, which is what the tests are about.
//!
//! Every actor ends when its connection to the test does: nothing survives a test, even one that
//! was killed. Refuses to judge anything, to retry, and to go on after something failed: the
//! command that failed says so, in its answer.

mod birth;
mod control;
mod crowd;
mod descriptors;
mod files;
pub mod language;
mod locking;
mod passing;
mod player;
mod resting;
mod stuck;

use std::ffi::OsString;

use anyhow::{Context, Result, bail};

use control::Control;
use descriptors::Descriptors;
use player::Player;

/// The rig's whole life, from the program's arguments on:
///
/// - `rig --stage ADDRESS --name NAME [--descriptors NAME=FD,…]` obeys over the abstract unix
///   socket ADDRESS. The descriptors are what an exec left open.
/// - `rig` alone obeys standard input, and answers on standard output. It can do all but fork,
///   thread and exec, which need a connection for each actor.
pub fn run(args: impl Iterator<Item = OsString>) -> Result<()> {
    let (mut stage, mut name, mut descriptors) = (None, None, Descriptors::default());
    let mut args = args.map(|arg| arg.into_string().map_err(|arg| anyhow::anyhow!("{arg:?}")));
    while let Some(arg) = args.next().transpose()? {
        let value = args.next().transpose()?.with_context(|| format!("{arg}: needs a value"))?;
        match arg.as_str() {
            "--stage" => stage = Some(value),
            "--name" => name = Some(value),
            "--descriptors" => descriptors = Descriptors::from_argument(&value)?,
            _ => bail!("{arg}: no such option"),
        }
    }
    settle()?;
    let control = match (stage, name) {
        (Some(stage), Some(name)) => Control::connect(&stage, &name)?,
        (None, None) => Control::stdio()?,
        _ => bail!("--stage and --name belong together"),
    };
    Player::new(control, descriptors).play()
}

/// What every rig needs once, before it does anything.
fn settle() -> Result<()> {
    // A dead child must not linger as a zombie where a test expects it to be gone, and a lease
    // that is broken (SIGIO) must not end its holder.
    for signal in [libc::SIGCHLD, libc::SIGIO] {
        // SAFETY: ignoring a signal installs no handler.
        if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
            return Err(std::io::Error::last_os_error()).context("ignoring a signal");
        }
    }
    // Tests let rigs crash on purpose: no core files.
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none)
        .context("switching off core files")
}
