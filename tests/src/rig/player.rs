//! One actor: hears commands, does them, answers.
//!
//! Refuses to die quietly: without an answer the actor is gone on purpose, or the test is over.

use std::ffi::CString;
use std::os::fd::RawFd;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::UnshareFlags;

use super::birth::{self, Born};
use super::control::Control;
use super::crowd::Crowds;
use super::descriptors::Descriptors;
use super::files;
use super::language::{self, Birth, Command};
use super::locking::{self, Later, Patience, Progress};
use super::{passing, resting, stuck};

/// An actor.
pub(super) struct Player {
    control: Control,
    descriptors: Descriptors,
    later: Option<Later>,
    crowds: Crowds,
}

/// What follows from a command.
enum Next {
    Answer(String),
    /// This is the child: it has said hello already, and the command was its parent's.
    Reborn,
}

impl Player {
    pub(super) fn new(control: Control, descriptors: Descriptors) -> Self {
        Self { control, descriptors, later: None, crowds: Crowds::default() }
    }

    /// Plays until the test is over, which ends the whole process.
    pub(super) fn play(mut self) -> Result<()> {
        while let Some(line) = self.control.hear()? {
            let command = match language::parse(&line) {
                Ok(command) => command,
                Err(why) => {
                    self.control.say(&format!("err {}: {why}", line.trim()))?;
                    continue;
                }
            };
            if command.is_an_end() {
                self.end(&command);
            }
            match self.obey(&command) {
                Ok(Next::Answer(answer)) => {
                    let blank = if answer.is_empty() { "" } else { " " };
                    self.control.say(&format!("ok{blank}{answer}"))?;
                }
                Ok(Next::Reborn) => {}
                Err(why) => self.control.say(&format!("err {}: {why:#}", line.trim()))?,
            }
        }
        exit_process(0)
    }

    fn obey(&mut self, command: &Command) -> Result<Next> {
        let mut answer = String::new();
        match command {
            Command::Open { name, path, mode, cloexec } => {
                let fd = passing::number(files::open(path, *mode, *cloexec)?);
                self.descriptors.add(name.clone(), fd)?;
                answer = format!("fd={fd}");
            }
            Command::Dup { name, copy } => {
                let fd = rustix::io::dup(self.descriptors.get(name)?).context("dup")?;
                let fd = passing::number(fd);
                self.descriptors.add(copy.clone(), fd)?;
                answer = format!("fd={fd}");
            }
            Command::Move { name, fd } => self.renumber(name, *fd)?,
            Command::Close { name } => close(self.descriptors.take(name)?)?,
            Command::Lock { name, asked } => {
                locking::take(self.descriptors.get(name)?, *asked, Patience::None)?;
            }
            Command::Later(command) => self.later(command)?,
            Command::Insist(command) => self.insist(command)?,
            Command::Rest { call, milliseconds } => {
                ensure!(self.later.is_none(), "there is something left for later already");
                let (call, time) = (*call, *milliseconds);
                self.later = Some(Later::start(move || resting::rest(call, time).map(|()| None))?);
            }
            Command::Filter => resting::filter()?,
            Command::Progress => answer = self.progress()?,
            Command::Fork { name, birth } => return self.fork(name, birth),
            Command::Thread { name, own_files } => self.thread(name, *own_files)?,
            Command::Exec => {
                let descriptors = self.descriptors.to_argument()?;
                return Err(birth::exec(self.control.stage()?, self.control.name()?, &descriptors));
            }
            Command::Spawn { argv, .. } => answer = format!("pid={}", birth::spawn(argv)?),
            Command::Run { output, argv } => answer = birth::run(output, argv)?,
            Command::Comm { text } => {
                let text = CString::new(text.clone()).context("a comm holds no NUL")?;
                rustix::thread::set_name(&text).context("prctl PR_SET_NAME")?;
            }
            Command::LoopDevice { device, name } => {
                let made = passing::loop_device(self.descriptors.get(name)?)?;
                let fd = passing::number(made.0);
                self.descriptors.add(device.clone(), fd)?;
                answer = format!("number={}", made.1);
            }
            Command::Stick { folder } => stuck::serve(folder)?,
            Command::Unshare => {
                // SAFETY: no descriptor table is unshared, which is what the call is unsafe for.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
                    .context("unshare CLONE_NEWNET")?;
            }
            Command::Become { uid } => become_user(*uid)?,
            Command::Unlink { path } => files::unlink(path)?,
            Command::Replace { path } => files::replace(path)?,
            Command::Write { name, text } => {
                let written =
                    rustix::io::write(self.descriptors.get(name)?, text).context("write")?;
                ensure!(written == text.len(), "wrote {written} bytes of {}", text.len());
            }
            Command::Read { name } => {
                files::read_byte(self.descriptors.get(name)?)?;
            }
            Command::Show { path } => answer = language::escape(&files::content(path)?),
            Command::Map { name } => {
                answer = format!("at={:x}", passing::map(self.descriptors.get(name)?)?);
            }
            Command::SocketPair { tx, rx } => {
                let (first, second) = passing::socket_pair()?;
                self.descriptors.add(tx.clone(), passing::number(first))?;
                self.descriptors.add(rx.clone(), passing::number(second))?;
            }
            Command::Listen { name, path } => {
                self.descriptors.add(name.clone(), passing::number(passing::listen(path)?))?;
            }
            Command::Connect { name, path } => {
                self.descriptors.add(name.clone(), passing::number(passing::connect(path)?))?;
            }
            Command::Send { socket, name } => {
                passing::send(self.descriptors.get(socket)?, self.descriptors.get(name)?)?;
            }
            Command::Receive { socket, name } => {
                let fd = passing::number(passing::receive(self.descriptors.get(socket)?)?);
                self.descriptors.add(name.clone(), fd)?;
                answer = format!("fd={fd}");
            }
            Command::Uring { ring, name, polled } => {
                let fd = passing::ring_with(self.descriptors.get(name)?, *polled)?;
                self.descriptors.add(ring.clone(), fd)?;
                answer = format!("fd={fd}");
            }
            Command::Mount { kind, path } => files::mount(*kind, path)?,
            Command::Mass { count, mass } => files::mass(&self.descriptors, *count, mass)?,
            Command::Crowd(crowd) => answer = self.crowds.play(crowd)?,
            Command::Dismiss => self.crowds.dismiss(),
            Command::Churn { name } => locking::churn(self.descriptors.get(name)?)?,
            Command::Exit { .. } | Command::Abort | Command::Die { .. } | Command::Leave => {
                bail!("an end is not obeyed, it happens");
            }
        }
        Ok(Next::Answer(answer))
    }

    fn renumber(&mut self, name: &str, to: RawFd) -> Result<()> {
        let from = self.descriptors.take(name)?;
        // SAFETY: the call takes numbers only. What had the number `to` is closed on purpose:
        // it is one of the standard three, or the test is wrong.
        if unsafe { libc::dup2(from, to) } == -1 {
            return Err(std::io::Error::last_os_error()).context("dup2");
        }
        self.descriptors.add(name.to_owned(), to)?;
        if from == to { Ok(()) } else { close(from) }
    }

    fn later(&mut self, command: &Command) -> Result<()> {
        ensure!(self.later.is_none(), "there is something left for later already");
        self.later = Some(match command.clone() {
            Command::Lock { name, asked } => {
                let fd = self.descriptors.get(&name)?;
                Later::start(move || locking::take(fd, asked, Patience::Endless).map(|()| None))?
            }
            Command::Open { name, path, mode, cloexec } => Later::start(move || {
                let fd = files::open(&path, mode, cloexec)?;
                Ok(Some((name, passing::number(fd))))
            })?,
            Command::Read { name } => {
                let fd = self.descriptors.get(&name)?;
                Later::start(move || files::read_byte(fd).map(|()| None))?
            }
            _ => bail!("only a lock, an open or a read can be left for later"),
        });
        Ok(())
    }

    fn insist(&mut self, command: &Command) -> Result<()> {
        ensure!(self.later.is_none(), "there is something left for later already");
        let Command::Lock { name, asked } = command else {
            bail!("only a lock can be insisted on");
        };
        let (fd, asked) = (self.descriptors.get(name)?, *asked);
        self.later = Some(Later::start(move || locking::insist(fd, asked).map(|()| None))?);
        Ok(())
    }

    fn progress(&mut self) -> Result<String> {
        let Some(later) = self.later.take() else { return Ok("idle".to_owned()) };
        let (later, progress) = later.progress()?;
        self.later = later;
        Ok(match progress {
            Progress::Running => "running".to_owned(),
            Progress::Blocked => "blocked".to_owned(),
            Progress::Failed(why) => format!("failed {why:#}"),
            Progress::Done(opened) => {
                if let Some((name, fd)) = opened {
                    self.descriptors.add(name, fd)?;
                }
                "done".to_owned()
            }
        })
    }

    fn fork(&mut self, name: &str, birth: &Birth) -> Result<Next> {
        let stage = self.control.stage()?.to_owned();
        match birth::fork(birth).context("fork")? {
            Born::Parent { child } => Ok(Next::Answer(format!("pid={child}"))),
            Born::Child => {
                if let Some(later) = self.later.take() {
                    later.forget();
                }
                match Control::connect(&stage, name) {
                    Ok(own) => {
                        let parents = std::mem::replace(&mut self.control, own);
                        if birth.share_files {
                            // Closing it here would close it for the parent.
                            std::mem::forget(parents);
                        }
                        Ok(Next::Reborn)
                    }
                    // Going on would answer in the parent's name.
                    Err(error) => {
                        eprintln!("rig: {name}: {error:#}");
                        exit_process(1)
                    }
                }
            }
        }
    }

    fn thread(&mut self, name: &str, own_files: bool) -> Result<()> {
        let stage = self.control.stage()?.to_owned();
        let leaders = self.control.descriptor();
        let (name, descriptors) = (name.to_owned(), self.descriptors.clone());
        let part = move || -> Result<()> {
            if own_files {
                // SAFETY: from here on the numbers mean this thread's own table. What other
                // threads hold by number stays theirs; this one only uses copies of the play's.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES) }
                    .context("unshare CLONE_FILES")?;
                if let Some(fd) = leaders {
                    close(fd)?;
                }
            }
            Self::new(Control::connect(&stage, &name)?, descriptors).play()
        };
        thread::Builder::new()
            .spawn(move || {
                if let Err(error) = part() {
                    eprintln!("rig: thread: {error:#}");
                    exit_process(1);
                }
            })
            .context("starting a thread")?;
        Ok(())
    }

    fn end(&self, command: &Command) -> ! {
        // Others may have a descriptor of the connection, and the test waits for its end.
        self.control.hang_up();
        match command {
            Command::Exit { code } => exit_process(*code),
            // SAFETY: ends this thread alone. Nothing of it is used afterwards, and what it
            // borrowed to others lives in memory that is never freed.
            Command::Leave => unsafe {
                libc::syscall(libc::SYS_exit, 0);
            },
            // SAFETY: a number is sent to this process itself.
            Command::Die { signal } => unsafe {
                libc::kill(libc::getpid(), *signal);
                // A signal that is caught or stops it: the test is wrong, or sends more.
                libc::pause();
            },
            _ => {}
        }
        std::process::abort()
    }
}

fn close(fd: RawFd) -> Result<()> {
    // SAFETY: the number is one of the play's, and its name is taken out of the table.
    if unsafe { libc::close(fd) } == -1 {
        return Err(std::io::Error::last_os_error()).context("close");
    }
    Ok(())
}

/// Ends every thread at once, and runs nothing more.
fn exit_process(code: i32) -> ! {
    // SAFETY: takes a number, and does not come back.
    unsafe { libc::_exit(code) }
}

fn become_user(uid: u32) -> Result<()> {
    // SAFETY: numbers only, and an empty list of groups. The C library applies each to every
    // thread.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) == -1
            || libc::setresgid(uid, uid, uid) == -1
            || libc::setresuid(uid, uid, uid) == -1
    };
    if failed {
        return Err(std::io::Error::last_os_error()).context("becoming another user");
    }
    // Changing the uid hides the process from its own user, which no login does.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .context("prctl PR_SET_DUMPABLE")
}
