//! The line between one actor and the test that directs it.
//!
//! Refuses to show up in the play: its descriptor has a high number and is closed on exec.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use anyhow::{Context, Result};

/// Descriptors from here on are the rig's own; the play has those below.
const FIRST_OWN_DESCRIPTOR: RawFd = 500;

/// An actor's connection.
pub(super) struct Control {
    wire: BufReader<Wire>,
    /// Where to connect again for another actor, and the name of this one.
    stage: Option<(String, String)>,
}

enum Wire {
    Socket(UnixStream),
    Stdio { input: io::Stdin, output: io::Stdout },
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => socket.read(buffer),
            Self::Stdio { input, .. } => input.read(buffer),
        }
    }
}

impl Control {
    /// Connects to the test and says who is there. The test learns the pid, as it sees it, from
    /// the socket itself.
    pub(super) fn connect(stage: &str, name: &str) -> Result<Self> {
        let address = SocketAddr::from_abstract_name(stage).context("the stage's address")?;
        let socket = UnixStream::connect_addr(&address)
            .with_context(|| format!("connecting to the stage as {name}"))?;
        let own = rustix::io::fcntl_dupfd_cloexec(&socket, FIRST_OWN_DESCRIPTOR)
            .context("moving the connection out of the way")?;
        drop(socket);
        let mut control = Self {
            wire: BufReader::new(Wire::Socket(UnixStream::from(own))),
            stage: Some((stage.to_owned(), name.to_owned())),
        };
        let (pid, tid) = (rustix::process::getpid(), rustix::thread::gettid());
        control.say(&format!("hello {name} pid={pid} tid={tid}"))?;
        Ok(control)
    }

    /// Obeys standard input instead.
    pub(super) fn stdio() -> Result<Self> {
        let wire = BufReader::new(Wire::Stdio { input: io::stdin(), output: io::stdout() });
        let mut control = Self { wire, stage: None };
        control.say(&format!("ok pid={}", rustix::process::getpid()))?;
        Ok(control)
    }

    /// The address under which other actors connect.
    pub(super) fn stage(&self) -> Result<&str> {
        self.stage.as_ref().map(|(stage, _)| stage.as_str()).context(
            "another actor needs a connection of its own, and standard input is only one line",
        )
    }

    /// This actor's name.
    pub(super) fn name(&self) -> Result<&str> {
        self.stage.as_ref().map(|(_, name)| name.as_str()).context("this actor has no name")
    }

    /// The next line, or `None` when the test is over.
    pub(super) fn hear(&mut self) -> Result<Option<String>> {
        let mut line = String::new();
        match self.wire.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(line)),
            // The test was killed with an answer unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error).context("hearing the next command"),
        }
    }

    /// One line of answer.
    pub(super) fn say(&mut self, line: &str) -> Result<()> {
        let line = format!("{}\n", line.replace('\n', " "));
        match self.wire.get_mut() {
            Wire::Socket(socket) => socket.write_all(line.as_bytes()),
            Wire::Stdio { output, .. } => {
                output.write_all(line.as_bytes()).and_then(|()| output.flush())
            }
        }
        .context("answering")
    }

    /// Ends the connection itself, whoever else has a descriptor of it.
    pub(super) fn hang_up(&self) {
        if let Wire::Socket(socket) = self.wire.get_ref() {
            // Only fails where the test has ended it already.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// The number of the connection's descriptor.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        match self.wire.get_ref() {
            Wire::Socket(socket) => Some(socket.as_raw_fd()),
            Wire::Stdio { .. } => None,
        }
    }
}
