//! The socket through which `lockwatch events` follows the daemon.
//!
//! Refuses to wait for a slow reader: it loses its own oldest events, and is told how many. Root
//! alone may connect.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::engine::event::Event;
use crate::sink::events;

/// Events that a reader may be behind before it loses the oldest.
const BEHIND: usize = 4096;
/// Events that are kept for those who ask for earlier ones.
const KEPT: usize = 1024;
/// The longest request, bytes.
const REQUEST: u64 = 4096;

/// What a follower asks for, one JSON line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// Sentences instead of JSON.
    pub text: bool,
    /// So many of the events before, where they are still kept.
    pub last: usize,
    /// Only these kinds; all of them where it is empty.
    pub kinds: Vec<String>,
    /// Nothing of what comes later.
    pub end: bool,
}

impl Request {
    /// The event as it was asked for; nothing where it was not.
    fn line(&self, event: &Event) -> io::Result<Vec<u8>> {
        let kind = event.kind.name();
        let mut line = Vec::new();
        if self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind) {
            if self.text {
                events::write_sentence(&mut line, event)?;
            } else {
                events::write_json(&mut line, event)?;
            }
        }
        Ok(line)
    }

    fn skipped(&self, count: u64) -> String {
        if self.text {
            format!("({count} events passed too fast for this reader)\n")
        } else {
            format!("{{\"skipped\":{count}}}\n")
        }
    }
}

/// Where events go in, and followers come to.
#[derive(Clone)]
pub(super) struct Hub {
    send: broadcast::Sender<Arc<Event>>,
    kept: Arc<Mutex<VecDeque<Arc<Event>>>>,
}

impl Hub {
    /// A hub without followers.
    pub(super) fn new() -> Self {
        Self { send: broadcast::Sender::new(BEHIND), kept: Arc::default() }
    }

    /// Hands an event to everybody.
    pub(super) fn tell(&self, event: &Arc<Event>) {
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Under the lock, so that no follower gets an event twice or not at all. Without
        // followers there is nobody to tell.
        let _ = self.send.send(event.clone());
    }

    /// The newest events that are kept, and all that come.
    fn follow(&self, last: usize) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let skip = kept.len().saturating_sub(last);
        (kept.iter().skip(skip).cloned().collect(), self.send.subscribe())
    }
}

/// The listening socket; its name is gone with it.
pub(super) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Listens. Whatever a dead daemon left under the name is taken away: the caller has found
    /// that no other one runs.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
                fs::remove_file(path)?;
            }
            Ok(_) => return Err(io::Error::other("is there, and no socket")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Serves whoever comes, for ever.
    pub(super) async fn serve(&self, hub: &Hub) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let hub = hub.clone();
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, &hub).await {
                            log::debug!("a follower of events left: {error}");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors, say: others may give some back.
                    log::warn!("accepting a follower of events: {error}");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve(stream: UnixStream, hub: &Hub) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read.take(REQUEST));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => {
            let answer = serde_json::json!({ "error": format!("request: {error}") });
            return write.write_all(format!("{answer}\n").as_bytes()).await;
        }
    };
    let (before, mut events) = hub.follow(request.last);
    for event in before {
        write.write_all(&request.line(&event)?).await?;
    }
    if request.end {
        return Ok(());
    }
    let mut rest = [0; 64];
    let mut left = reader.into_inner();
    left.set_limit(u64::MAX);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(event) => write.write_all(&request.line(&event)?).await?,
                Err(RecvError::Lagged(count)) => {
                    write.write_all(request.skipped(count).as_bytes()).await?;
                }
                Err(RecvError::Closed) => return Ok(()),
            },
            // A follower says nothing more: whatever comes is its end.
            read = left.read(&mut rest) => {
                if read? == 0 {
                    return Ok(());
                }
            }
        }
    }
}
