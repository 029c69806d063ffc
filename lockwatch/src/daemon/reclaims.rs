//! Has reclaims carried out, each as a run of `lockwatch reclaim`: those of the configuration and
//! those that were written into the tree.
//!
//! Refuses to do it in this process: what is fetched for a release would be held by the daemon for
//! that moment, and a stuck hook would be a stuck daemon. A run plans with its own eyes, and is on
//! record like any other. One run a file at a time: who comes later waits, and finds what is left.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::engine::classify::Confidence;
use crate::engine::id::LockId;
use crate::engine::input::FileId;
use crate::engine::reclaim::progress::{Asker, Done, Planned, Progress, Reclaimed};
use crate::look::STATE_DIR;

/// This program, also where its file has been replaced since.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Bytes of a run's complaints that are kept.
const COMPLAINTS: u64 = 4096;

/// What every run needs to know.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    /// The configuration, where it is not the default one.
    pub(super) config: Option<PathBuf>,
    /// Where the history is.
    pub(super) state_dir: PathBuf,
}

/// Something to be reclaimed.
#[derive(Debug)]
pub(super) struct Job<T> {
    /// Who has it done.
    pub(super) by: Asker,
    /// On which file, where that is known.
    pub(super) file: Option<FileId>,
    /// Which locks are meant.
    pub(super) locks: Vec<LockId>,
    /// What to name to each run: a path, or the id of a lock.
    pub(super) subjects: Vec<OsString>,
    /// Also without an orphan's verdict.
    pub(super) force: bool,
    /// How sure that verdict must be at least.
    pub(super) at_least: Confidence,
    /// What is handed back at the end.
    pub(super) ticket: T,
}

/// What is told of the runs.
pub(super) enum News<T> {
    /// One is about to act.
    Planned(Planned),
    /// A job has ended.
    Ended(Reclaimed, T),
}

enum Said<T> {
    Planned(Planned),
    Ended { number: u64, reclaimed: Reclaimed, ticket: T },
}

/// The runs that are under way, and those that wait.
pub(super) struct Reclaims<T> {
    surroundings: Surroundings,
    say: mpsc::UnboundedSender<Said<T>>,
    said: mpsc::UnboundedReceiver<Said<T>>,
    running: BTreeMap<u64, (Option<FileId>, Arc<Line>)>,
    waiting: VecDeque<Job<T>>,
    last: u64,
}

/// What keeps a run going: it releases nothing more once this has ended, which it also does with the
/// daemon.
#[derive(Default)]
struct Line(Mutex<Held>);

#[derive(Default)]
struct Held {
    stopped: bool,
    run: Option<ChildStdin>,
}

impl Line {
    fn hold(&self, run: Option<ChildStdin>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.run = run.filter(|_| !held.stopped);
    }

    fn is_stopped(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).stopped
    }

    fn stop(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Held { stopped: true, run: None };
    }
}

impl<T: Send + 'static> Reclaims<T> {
    pub(super) fn new(surroundings: Surroundings) -> Self {
        let (say, said) = mpsc::unbounded_channel();
        Self {
            surroundings,
            say,
            said,
            running: BTreeMap::new(),
            waiting: VecDeque::new(),
            last: 0,
        }
    }

    /// Has a job done, now or as soon as nothing else is done on its file.
    pub(super) fn begin(&mut self, job: Job<T>) {
        self.waiting.push_back(job);
        self.start_waiting();
    }

    /// Lets every run release nothing more, and begins none of those that wait.
    pub(super) fn stop(&mut self) {
        for (_, line) in self.running.values() {
            line.stop();
        }
        for job in std::mem::take(&mut self.waiting) {
            let ended = Reclaimed {
                by: job.by,
                file: job.file,
                locks: job.locks,
                done: Done::default(),
                error: Some("reclaim was switched off before it began".into()),
            };
            // This side keeps the other end.
            let _ = self.say.send(Said::Ended { number: 0, reclaimed: ended, ticket: job.ticket });
        }
    }

    /// Waits for the next news; for ever where nothing is under way.
    pub(super) async fn next(&mut self) -> News<T> {
        loop {
            match self.said.recv().await {
                Some(Said::Planned(planned)) => return News::Planned(planned),
                Some(Said::Ended { number, reclaimed, ticket }) => {
                    self.running.remove(&number);
                    self.start_waiting();
                    return News::Ended(reclaimed, ticket);
                }
                // This side keeps a sender.
                None => std::future::pending::<()>().await,
            }
        }
    }

    fn start_waiting(&mut self) {
        for job in std::mem::take(&mut self.waiting) {
            let file = job.file;
            let is_busy = self.running.values().any(|(busy, _)| file.is_some() && *busy == file);
            if is_busy {
                self.waiting.push_back(job);
            } else {
                self.start(job);
            }
        }
    }

    fn start(&mut self, job: Job<T>) {
        self.last += 1;
        let (number, line) = (self.last, Arc::new(Line::default()));
        self.running.insert(number, (job.file, Arc::clone(&line)));
        let (say, surroundings) = (self.say.clone(), self.surroundings.clone());
        let run = move || {
            let (done, error) = job.run(&surroundings, &line, &say);
            let Job { by, file, locks, ticket, .. } = job;
            let reclaimed = Reclaimed { by, file, locks, done, error };
            // Where nobody receives any more, the daemon ends.
            let _ = say.send(Said::Ended { number, reclaimed, ticket });
        };
        if let Err(error) = std::thread::Builder::new().name("reclaim".into()).spawn(run) {
            // The job went with the thread that was not: whoever waits gets an error as it is dropped.
            self.running.remove(&number);
            log::error!("starting the thread of a reclaim: {error}");
        }
    }
}

impl<T> Job<T> {
    /// Every run of the job, one after the other, up to the first that fails.
    fn run(
        &self,
        surroundings: &Surroundings,
        line: &Line,
        say: &mpsc::UnboundedSender<Said<T>>,
    ) -> (Done, Option<String>) {
        let mut all = Done::default();
        for subject in &self.subjects {
            if line.is_stopped() {
                return (all, Some("reclaim was switched off".into()));
            }
            match self.one(subject, surroundings, line, say) {
                Ok(Done { outcomes, hooks }) => {
                    all.outcomes.extend(outcomes);
                    all.hooks.extend(hooks);
                }
                Err(error) => {
                    log::error!("a reclaim that the {} asked for: {error}", self.by.name());
                    return (all, Some(error));
                }
            }
            if !all.is_success() {
                break;
            }
        }
        (all, None)
    }

    fn one(
        &self,
        subject: &OsString,
        surroundings: &Surroundings,
        line: &Line,
        say: &mpsc::UnboundedSender<Said<T>>,
    ) -> Result<Done, String> {
        let mut command = Command::new(OWN_PROGRAM);
        command.args(["reclaim", "--execute", "--attended", self.by.name()]);
        if self.force {
            command.arg("--force");
        }
        if self.at_least == Confidence::Likely {
            command.arg("--likely");
        }
        if let Some(config) = &surroundings.config {
            command.arg("--config").arg(config);
        }
        command.env(STATE_DIR, &surroundings.state_dir).arg("--").arg(subject);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut run =
            command.spawn().map_err(|error| format!("start `lockwatch reclaim`: {error}"))?;
        line.hold(run.stdin.take());
        let (done, complaints) = listen(&mut run, say);
        let status =
            run.wait().map_err(|error| format!("wait for `lockwatch reclaim`: {error}"))?;
        done.ok_or_else(|| match complaints.trim() {
            "" => format!("`lockwatch reclaim` ended with {status}, and did not say why"),
            complaints => complaints.to_owned(),
        })
    }
}

/// Hears a run to its end.
fn listen<T>(run: &mut Child, say: &mpsc::UnboundedSender<Said<T>>) -> (Option<Done>, String) {
    let (stdout, stderr) = (run.stdout.take(), run.stderr.take());
    std::thread::scope(|scope| {
        // Both at once: a full pipe would hold the run up.
        let complaints = scope.spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.by_ref().take(COMPLAINTS).read_to_end(&mut text);
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            }
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut done = None;
        for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
            let Ok(line) = line else { break };
            match serde_json::from_str(&line) {
                Ok(Progress::Planned(planned)) => {
                    let _ = say.send(Said::Planned(planned));
                }
                Ok(Progress::Done(ended)) => done = Some(ended),
                Err(error) => log::error!("a line of `lockwatch reclaim`: {error}"),
            }
        }
        (done, complaints.join().unwrap_or_default())
    })
}
