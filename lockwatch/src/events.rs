//! `lockwatch events`: the running daemon's events, as they come.

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::daemon::follow::Request;
use crate::failure::{EXIT_CLEAR, EXIT_INTERRUPTED};

/// What to follow.
#[derive(Debug)]
pub struct Events {
    /// The daemon's configuration, where it is not the default one.
    pub config: Option<PathBuf>,
    /// What to ask for.
    pub request: Request,
}

/// Runs the verb: until the daemon ends or it is interrupted.
///
/// # Errors
/// Where no daemon answers, or the output cannot be written.
pub fn run(events: &Events) -> anyhow::Result<u8> {
    let config = Config::read(events.config.as_deref()).context("events")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("events: starting the timer")?;
    runtime.block_on(follow(&config, &events.request))
}

async fn follow(config: &Config, request: &Request) -> anyhow::Result<u8> {
    let socket = config.socket();
    let mut interrupted = signal(SignalKind::interrupt()).context("events: catching SIGINT")?;
    let mut stream = UnixStream::connect(&socket).await.with_context(|| {
        format!("events: {}: is the daemon running? (`lockwatch daemon`)", socket.display())
    })?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await.context("events: asking the daemon")?;
    let mut lines = BufReader::new(stream).lines();
    let mut out = io::stdout();
    loop {
        let line = tokio::select! {
            _ = interrupted.recv() => return Ok(EXIT_INTERRUPTED),
            line = lines.next_line() => line.context("events: reading from the daemon")?,
        };
        match line {
            Some(line) if line.starts_with("{\"error\":") => {
                bail!("events: the daemon refused: {line}")
            }
            Some(line) => {
                writeln!(out, "{line}")?;
                out.flush()?;
            }
            None => {
                if !request.end {
                    crate::failure::tell("events: the daemon has ended");
                }
                return Ok(EXIT_CLEAR);
            }
        }
    }
}
