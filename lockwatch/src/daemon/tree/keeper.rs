//! The thread that makes trees out of views and serves them.
//!
//! Refuses to tell a writer "done" before the tree shows it: answers wait behind the view that came
//! before them.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::places;
use crate::engine::input::Watched;
use crate::engine::view::View;
use crate::sink::clock::Clock;
use crate::sink::fuse::{Mounted, Reply};
use crate::sink::tree::command::Refusal;
use crate::sink::tree::{Facts, Tree};

/// What can be switched in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Switches {
    /// Between two reconciliations, milliseconds.
    pub(super) gc_interval_ms: u64,
    /// Whether locks may be reclaimed.
    pub(super) reclaim_enabled: bool,
}

enum Job {
    Publish {
        view: Arc<View>,
        clock: Clock,
        watches: Arc<[Watched]>,
        switches: Switches,
    },
    Answer(Reply, Result<(), Refusal>),
    /// Whoever waits is told that all before it is done.
    Done(SyncSender<()>),
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Desk {
    queue: Mutex<Queue>,
    work: Condvar,
    mounted: Mounted,
}

/// Keeps a mounted tree up to date; unmounts it when dropped.
pub(super) struct Keeper {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Takes a mounted tree over. `host` is this machine's name.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub(super) fn start(mounted: Mounted, host: String) -> std::io::Result<Self> {
        let desk = Arc::new(Desk { queue: Mutex::default(), work: Condvar::new(), mounted });
        let theirs = desk.clone();
        let thread = std::thread::Builder::new()
            .name("tree-keeper".into())
            .spawn(move || theirs.work(&host))?;
        Ok(Self { desk, thread: Some(thread) })
    }

    /// Serves what follows from a view. One that is still waiting is passed over.
    pub(super) fn publish(
        &self,
        view: Arc<View>,
        clock: Clock,
        watches: Arc<[Watched]>,
        switches: Switches,
    ) {
        let job = Job::Publish { view, clock, watches, switches };
        self.desk.put(|jobs| {
            if matches!(jobs.back(), Some(Job::Publish { .. })) {
                jobs.pop_back();
            }
            jobs.push_back(job);
        });
    }

    /// Answers a writer, once the tree shows the views that came before.
    pub(super) fn answer(&self, reply: Reply, outcome: Result<(), Refusal>) {
        self.desk.put(|jobs| jobs.push_back(Job::Answer(reply, outcome)));
    }

    /// Waits until the tree shows what was published before; false where it does not within `limit`.
    pub(super) fn settled(&self, limit: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        self.desk.put(|jobs| jobs.push_back(Job::Done(done)));
        wait.recv_timeout(limit).is_ok()
    }

    /// Hands an event, one line with its newline, to every reader of `events`.
    pub(super) fn tell(&self, line: &[u8]) {
        self.desk.mounted.tell(line);
    }

    /// False where somebody has unmounted the tree.
    pub(super) fn is_served(&self) -> bool {
        self.desk.mounted.is_served()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.desk.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that kept the tree had panicked");
        }
    }
}

impl Desk {
    fn put(&self, put: impl FnOnce(&mut VecDeque<Job>)) {
        put(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner).jobs);
        self.work.notify_one();
    }

    fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.work.notify_one();
    }

    /// The next job; `None` where there will be none.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if queue.closed {
                return None;
            }
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, host: &str) {
        let mut current = Arc::new(Tree::default());
        while let Some(job) = self.next() {
            match job {
                Job::Answer(reply, outcome) => reply.answer(outcome),
                Job::Done(done) => {
                    // Who gave up waiting has no use for it.
                    let _ = done.try_send(());
                }
                Job::Publish { view, clock, watches, switches } => {
                    let seen = places::look(Tree::paths(&view, &watches));
                    let next = current.next(&Facts {
                        view: &view,
                        clock,
                        host,
                        watches: &watches,
                        seen: &seen,
                        gc_interval_ms: switches.gc_interval_ms,
                        reclaim_enabled: switches.reclaim_enabled,
                    });
                    if next != *current {
                        current = Arc::new(next);
                        self.mounted.publish(current.clone());
                    }
                }
            }
        }
    }
}
