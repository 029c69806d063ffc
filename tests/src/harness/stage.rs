//! The socket at which actors appear, and one line to each of them.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use anyhow::{Context, Result, bail, ensure};

use super::patience;

/// The socket. Its name is abstract: no file, and rigs of other users and in other mount
/// namespaces reach it too.
pub(super) struct Stage {
    listener: UnixListener,
    address: String,
    /// Who said hello before anybody waited for them.
    early: Vec<Arrival>,
}

/// An actor that said hello.
pub(super) struct Arrival {
    pub(super) name: String,
    /// Its pid as the test sees it: the kernel's word, not the actor's.
    pub(super) pid: i32,
    /// Its own idea of its pid, in its own namespace.
    pub(super) own_pid: i32,
    /// Its thread id, in its own namespace.
    pub(super) own_tid: i32,
    pub(super) line: Line,
}

impl Stage {
    pub(super) fn open() -> Result<Self> {
        let pid = rustix::process::getpid();
        let moment = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .context("the clock")?
            .as_nanos();
        let address = format!("lockwatch-stage-{pid}-{moment:x}");
        let listener = UnixListener::bind_addr(
            &SocketAddr::from_abstract_name(&address).context("the stage's address")?,
        )
        .context("opening the stage")?;
        listener.set_nonblocking(true).context("the stage")?;
        Ok(Self { listener, address, early: Vec::new() })
    }

    /// Where rigs connect.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Waits until the actor of that name has said hello.
    pub(super) fn expect(&mut self, name: &str) -> Result<Arrival> {
        patience::until(&format!("the appearance of {name}"), || self.look_for(name))
    }

    /// Takes the actor of that name if it has said hello.
    pub(super) fn look_for(&mut self, name: &str) -> Result<Option<Arrival>> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => self.early.push(Arrival::greet(socket)?),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("accepting an actor"),
            }
        }
        let place = self.early.iter().position(|arrival| arrival.name == name);
        Ok(place.map(|place| self.early.remove(place)))
    }
}

impl Arrival {
    fn greet(socket: UnixStream) -> Result<Self> {
        let pid = rustix::net::sockopt::socket_peercred(&socket)
            .context("SO_PEERCRED")?
            .pid
            .as_raw_nonzero()
            .get();
        let mut line = Line::new(socket)?;
        let hello = line.hear()?.context("an actor came and went without a word")?;
        let words: Vec<_> = hello.split(' ').collect();
        let number = |word: &str, key: &str| -> Result<i32> {
            let digits =
                word.strip_prefix(key).with_context(|| format!("no {key} in {hello:?}"))?;
            digits.parse().with_context(|| hello.clone())
        };
        match words.as_slice() {
            ["hello", name, own_pid, own_tid] => Ok(Self {
                name: (*name).to_owned(),
                pid,
                own_pid: number(own_pid, "pid=")?,
                own_tid: number(own_tid, "tid=")?,
                line,
            }),
            _ => bail!("an actor said {hello:?}"),
        }
    }
}

/// The connection with one actor.
pub(super) struct Line {
    wire: BufReader<UnixStream>,
}

impl Line {
    fn new(socket: UnixStream) -> Result<Self> {
        socket.set_nonblocking(false).context("an actor's line")?;
        // Nothing that a rig does takes long; whatever waits, waits in a thread of its own.
        let limit = patience::stretched(patience::USUAL);
        socket.set_read_timeout(Some(limit)).context("an actor's line")?;
        Ok(Self { wire: BufReader::new(socket) })
    }

    pub(super) fn say(&mut self, command: &str) -> Result<()> {
        self.wire.get_mut().write_all(format!("{command}\n").as_bytes()).context("an actor's line")
    }

    /// The next answer; `None` at the actor's end.
    pub(super) fn hear(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        match self.wire.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => {
                ensure!(line.ends_with('\n'), "half an answer: {line:?}");
                line.truncate(line.len() - 1);
                Ok(Some(line))
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error).context("waiting for an actor's answer"),
        }
    }

    /// True where something can be heard: an answer, or the actor's end.
    pub(super) fn has_news(&self) -> Result<bool> {
        if !self.wire.buffer().is_empty() {
            return Ok(true);
        }
        let mut wait =
            [rustix::event::PollFd::new(self.wire.get_ref(), rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = rustix::event::poll(&mut wait, Some(&now)).context("an actor's line")?;
        Ok(ready > 0)
    }
}
