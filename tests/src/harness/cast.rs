//! The actors of one test: starts rigs, tells them what to do, waits for what must have happened.
//!
//! Refuses to guess: a stage direction that does not happen in time fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::stage::{Arrival, Line, Stage};
use super::{descent, patience, place};
use crate::rig::language::{self, Command as Told};

/// One actor: a rig, a thread of one, or another program that a rig started.
pub(super) struct Actor {
    /// Its pid as the test sees it.
    pub(super) pid: i32,
    /// Its pid in its own namespace, and its thread id there.
    pub(super) own: (i32, i32),
    /// With the pid its identity.
    start: Option<u64>,
    line: Option<Line>,
}

/// All of them, also those that are dead by now.
pub(super) struct Cast {
    /// What actors have as standard input, and nobody ever writes to: a program that only waits
    /// for its end (`cat`) ends with the test, whatever becomes of the test.
    lifeline: (PipeReader, PipeWriter),
    stage: Stage,
    actors: BTreeMap<String, Actor>,
}

impl Cast {
    pub(super) fn new() -> Result<Self> {
        let lifeline = io::pipe().context("the lifeline")?;
        Ok(Self { lifeline, stage: Stage::open()?, actors: BTreeMap::new() })
    }

    pub(super) fn actor(&self, name: &str) -> Result<&Actor> {
        self.actors.get(name).with_context(|| format!("nobody is called {name}"))
    }

    pub(super) fn pids(&self) -> BTreeSet<i32> {
        self.actors.values().map(|actor| actor.pid).collect()
    }

    fn line(&mut self, name: &str) -> Result<&mut Line> {
        let actor =
            self.actors.get_mut(name).with_context(|| format!("nobody is called {name}"))?;
        actor.line.as_mut().with_context(|| format!("{name} takes no orders"))
    }

    /// One line of a story: `NAME: COMMAND`, or one of the stage directions `start NAME`,
    /// `kill NAME`, `await NAME blocked|done|gone|zombie`, and `await tick`: /proc counts ages in
    /// hundredths of a second, and who is born in the same one is of the same age.
    pub(super) fn direct(&mut self, line: &str, folder: &Path) -> Result<String> {
        let line = self.with_pids(line)?;
        if let Some((name, command)) = line.split_once(':') {
            return self.tell(name.trim(), command.trim());
        }
        match line.split_ascii_whitespace().collect::<Vec<_>>().as_slice() {
            ["start", name] => self.start(name, folder)?,
            ["kill", name] => {
                descent::kill(self.actor(name)?.pid)?;
                self.await_gone(name)?;
            }
            ["await", "tick"] => await_tick()?,
            ["await", name, "gone"] => self.await_gone(name)?,
            ["await", name, "zombie"] => self.await_zombie(name)?,
            ["await", name, state @ ("blocked" | "done")] => self.await_progress(name, state)?,
            _ => bail!("no stage direction"),
        }
        Ok("ok".to_owned())
    }

    /// Puts the pid of an actor where its name stands in braces.
    fn with_pids(&self, line: &str) -> Result<String> {
        let Some((before, rest)) = line.split_once('{') else { return Ok(line.to_owned()) };
        let (name, after) = rest.split_once('}').context("a brace is not closed")?;
        Ok(format!("{before}{}{}", self.actor(name)?.pid, self.with_pids(after)?))
    }

    fn start(&mut self, name: &str, folder: &Path) -> Result<()> {
        self.ensure_new(name)?;
        let log = || {
            let path = folder.with_extension("log");
            File::options().append(true).create(true).open(&path).context("the rigs' log")
        };
        let mut command = Command::new(place::rig()?);
        command
            .arg0("rig")
            .args(["--stage", self.stage.address(), "--name", name])
            .current_dir(folder)
            .stdin(self.lifeline.0.try_clone().context("the lifeline")?)
            .stdout(log()?)
            .stderr(log()?);
        // Its end is awaited by pid, like everybody's.
        command.spawn().context("starting a rig")?;
        let arrival = self.stage.expect(name)?;
        self.enter(arrival)
    }

    fn ensure_new(&self, name: &str) -> Result<()> {
        ensure!(!self.actors.contains_key(name), "there is a {name} already");
        Ok(())
    }

    fn enter(&mut self, arrival: Arrival) -> Result<()> {
        let start = descent::stat(arrival.pid).map(|stat| stat.start);
        let start = Some(start.with_context(|| format!("{} is gone already", arrival.name))?);
        let own = (arrival.own_pid, arrival.own_tid);
        let actor = Actor { pid: arrival.pid, own, start, line: Some(arrival.line) };
        self.actors.insert(arrival.name, actor);
        Ok(())
    }

    fn tell(&mut self, name: &str, command: &str) -> Result<String> {
        let told = language::parse(command)?;
        if let Told::Fork { name, .. } | Told::Thread { name, .. } | Told::Spawn { name, .. } =
            &told
        {
            self.ensure_new(name)?;
        }
        let line = self.line(name)?;
        line.say(command)?;
        match told {
            Told::Exec => return self.await_exec(name),
            Told::Leave => {
                let last = line.hear()?;
                ensure!(last.is_none(), "{name} left with a word: {last:?}");
                return Ok("gone".to_owned());
            }
            _ if told.is_an_end() => {
                self.await_gone(name)?;
                return Ok("gone".to_owned());
            }
            _ => {}
        }
        let answer = line.hear()?.with_context(|| format!("{name} died instead of answering"))?;
        ensure!(answer == "ok" || answer.starts_with("ok "), "{name} answers: {answer}");
        match told {
            Told::Fork { name, .. } | Told::Thread { name, .. } => {
                let arrival = self.stage.expect(&name)?;
                self.enter(arrival)?;
            }
            Told::Spawn { name, .. } => {
                let pid = answer.strip_prefix("ok pid=").context("no pid")?.parse()?;
                let start = descent::stat(pid).map(|stat| stat.start);
                let actor = Actor { pid, own: (pid, pid), start, line: None };
                self.actors.insert(name, actor);
            }
            _ => {}
        }
        Ok(answer)
    }

    pub(super) fn stick_in_end(&mut self, name: &str, command: &str) -> Result<()> {
        self.line(name)?.say(command)?;
        let pid = self.actor(name)?.pid;
        patience::until(&format!("{name} on its way out"), || {
            let stat = descent::stat(pid).with_context(|| format!("{name} is gone"))?;
            ensure!(stat.state != 'Z', "{name} is dead");
            Ok(stat.exiting.then_some(()))
        })
    }

    /// After an exec the same process says hello again; before one that failed it says why.
    fn await_exec(&mut self, name: &str) -> Result<String> {
        let arrival = patience::until(&format!("the exec of {name}"), || {
            if let Some(arrival) = self.stage.look_for(name)? {
                return Ok(Some(arrival));
            }
            let line = self.line(name)?;
            if line.has_news()?
                && let Some(answer) = line.hear()?
            {
                bail!("{name} answers: {answer}");
            }
            Ok(None)
        })?;
        self.enter(arrival)?;
        Ok("ok".to_owned())
    }

    /// Waits until nothing is left of a process, not even its exit status.
    fn await_gone(&self, name: &str) -> Result<()> {
        let actor = self.actor(name)?;
        patience::until(&format!("the end of {name}"), || {
            descent::reap(actor.pid);
            let gone = match descent::stat(actor.pid) {
                Some(now) => Some(now.start) != actor.start,
                None => descent::is_free(actor.pid)?,
            };
            Ok(gone.then_some(()))
        })
    }

    /// Waits until a process is dead, and leaves its exit status where it is.
    fn await_zombie(&self, name: &str) -> Result<()> {
        let pid = self.actor(name)?.pid;
        patience::until(&format!("the death of {name}"), || {
            let stat = descent::stat(pid).with_context(|| format!("{name} was reaped"))?;
            Ok((stat.state == 'Z').then_some(()))
        })
    }

    /// Tells a rig to die, and leaves its exit status to nobody.
    pub(super) fn die_unreaped(&mut self, name: &str, command: &str) -> Result<()> {
        ensure!(language::parse(command)?.is_an_end(), "{command} is no end");
        self.line(name)?.say(command)?;
        self.await_zombie(name)
    }

    fn await_progress(&mut self, name: &str, state: &str) -> Result<()> {
        let expected = format!("ok {state}");
        patience::until(&format!("that {name} is {state}"), || {
            let line = self.line(name)?;
            line.say("progress")?;
            let answer = line.hear()?.with_context(|| format!("{name} died"))?;
            let on_the_way = ["ok running", "ok blocked"].contains(&answer.as_str());
            ensure!(answer == expected || on_the_way, "{name} answers: {answer}");
            Ok((answer == expected).then_some(()))
        })
    }
}

fn await_tick() -> Result<()> {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        (time.tv_sec, time.tv_nsec / 10_000_000)
    };
    let before = now();
    patience::until("the next hundredth of a second", || Ok((now() != before).then_some(())))
}
