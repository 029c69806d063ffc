//! The listener for scrapes and probes: GET `/metrics`, `/healthz`, `/readyz`.
//!
//! For the daemon:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use std::time::Duration;
//! # use lockwatch::sink::http::{Board, Door, Server};
//! # use lockwatch::sink::metrics::{Counts, Tally};
//! # fn f(counts: Counts) -> Result<(), Box<dyn std::error::Error>> {
//! // Before saying ready, so that a taken address is an error of the start:
//! let board = Arc::new(Board::new("0.1.0", "6.18.0".into(), 0, Duration::from_secs(10), None));
//! let server = Server::start(Door::tcp(([127, 0, 0, 1], 9965).into())?, Arc::clone(&board), || {})?;
//! // In the loop, after each step, and at least once in half of those ten seconds:
//! board.beat(1_795_600_000_000_000_000);
//! board.show(counts); // where the view is another one: Counts::of(&view, &watched, clock)
//! board.tell(&Tally::default()); // where anything was counted
//! // Once each: board.swept(), board.mounted(true).
//! drop(server); // ends it, and takes its socket away
//! # Ok(())
//! # }
//! ```
//!
//! Refuses to touch the engine: it has a thread of its own and reads what the [`Board`] shows.
//! Connections are few, short, and closed after one answer, so a scraper that hangs costs nothing
//! but its own place.

mod answer;
mod board;
mod door;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, oneshot};

pub use board::{AskKernel, Board, Complaint};
pub use door::{Door, DoorError};
use door::{OpenDoor, Stream};

/// Connections at a time; who comes then waits in the kernel's queue.
const CONNECTIONS: usize = 32;
/// From accepting a connection to closing it.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// From accepting a connection to the end of its request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const HEAD_SIZE: usize = 16 << 10;
/// After a failed accept: descriptors may be short for a while.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts it, on a thread of its own, which does `first` before anything else.
    ///
    /// # Errors
    /// Where the thread or its runtime cannot be had.
    pub fn start(
        door: Door,
        board: Arc<Board>,
        first: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let door = {
            let _inside = runtime.enter();
            door.open()?
        };
        let thread =
            std::thread::Builder::new().name("lockwatch-http".into()).spawn(move || {
                first();
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(door, board) => {}
                        // Its other end is dropped or sends: either means the end.
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("metrics: the listener's thread panicked");
        }
    }
}

async fn accept(door: OpenDoor, board: Arc<Board>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match door.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("metrics: accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let board = Arc::clone(&board);
        tokio::spawn(async move {
            if tokio::time::timeout(CONNECTION_LIMIT, converse(stream, board)).await.is_err() {
                log::debug!("metrics: a connection took longer than {CONNECTION_LIMIT:?}");
            }
            drop(place);
        });
    }
}

async fn converse(stream: Box<dyn Stream>, board: Arc<Board>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer::answer(&board, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_SIZE)
        .keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        log::debug!("metrics: a connection: {error}");
    }
}

#[cfg(test)]
mod tests;
