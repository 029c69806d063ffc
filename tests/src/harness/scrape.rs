//! A scraper: asks a daemon's listener, and understands what it answers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::patience;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, in small letters.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Asks for a path at a unix socket. `head` is more lines of the request, each ended.
pub fn get(socket: &Path, path: &str, head: &str) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    let limit = Some(patience::stretched(Duration::from_secs(5)));
    stream.set_read_timeout(limit).context("a time limit")?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n").context("asking")?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("the answer to {path}"))?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without a head")?;
    let status = head.split_whitespace().nth(1).context("an answer without a status")?;
    let status = status.parse().context("the status")?;
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

/// Every sample of `/metrics`, by its name with labels.
pub fn samples(socket: &Path) -> Result<BTreeMap<String, f64>> {
    let answer = get(socket, "/metrics", "")?;
    ensure!(answer.status == 200, "/metrics answered {}", answer.status);
    let mut samples = BTreeMap::new();
    for line in answer.body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("a sample: {line}"))?;
        samples.insert(name.to_owned(), value.parse().with_context(|| format!("in {line}"))?);
    }
    Ok(samples)
}

/// Waits until a sample fits.
pub fn wait_for(socket: &Path, name: &str, fits: impl Fn(f64) -> bool) -> Result<f64> {
    let mut last = None;
    let found = patience::until(&format!("{name} as expected"), || {
        last = samples(socket)?.get(name).copied();
        Ok(last.filter(|value| fits(*value)))
    });
    found.with_context(|| format!("it is {last:?}"))
}
