//! One look at the machine's locks: a source, the engine, and where need be a second reading.
//!
//! Refuses to report what only one reading saw of a lock that may be on its way out: such an orphan
//! must be there twice.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::config::{Config, ConfigError};
use crate::engine::classify::{Reason, State};
use crate::engine::evidence::Evidence;
use crate::engine::id::{self, LockId};
use crate::engine::identity::{Dev, ProcessId};
use crate::engine::snapshot::{Hides, Limit, Snapshot, Via};
use crate::engine::view::View;
use crate::sink::clock::Clock;
use crate::source::history::{self, Contents, History, Names};
use crate::source::{bpf, procfs};
use crate::{failure, id_key, machine};

/// Where the facts are to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// BPF where it loads, else procfs.
    Auto,
    /// The kernel's own tables; needs root.
    Bpf,
    /// What `/proc` shows.
    Procfs,
}

/// What a look found.
pub struct Look {
    /// What the engine makes of it.
    pub view: View,
    /// Name of the source.
    pub source: &'static str,
    /// When.
    pub clock: Clock,
    /// The kernel's identity of each file that was asked about, in their order.
    pub files: Vec<Option<(Dev, u64)>>,
}

/// From a dying process's last sight to calling its lock orphaned: its descriptors may be closed
/// by a deferred worker.
const GRACE: Duration = Duration::from_millis(250);

/// The variable that names another folder of pins than the default configuration's.
pub const STATE_DIR: &str = "LOCKWATCH_STATE_DIR";

/// Looks. `files` are descriptors of what was asked about, opened with `O_PATH`.
///
/// # Errors
/// Where the chosen source cannot be read at all.
pub fn look(choice: Choice, files: &[OwnedFd]) -> anyhow::Result<Look> {
    let mut hunt = None;
    let first = once(choice, files, &BTreeSet::new(), &mut hunt)?;
    let dying = dying(&first.view);
    let suspects = fleeting(&first.view);
    if suspects.is_empty() && dying.is_empty() {
        return Ok(first);
    }
    // What is done with what was seen takes its time, too, and that counts.
    let seen = hunt.as_ref().map_or_else(Instant::now, bpf::Hunt::ended);
    sleep(GRACE.saturating_sub(seen.elapsed()));
    if dying.is_empty()
        && let Some(hunt) = &mut hunt
        && only_kept(&first.view, &suspects)
    {
        return Ok(still_there(first, hunt, &suspects)?);
    }
    let mut second = once(choice, files, &dying, &mut hunt)?;
    let new = fleeting(&second.view);
    for lock in &mut second.view.locks {
        let was_dying = lock.verdict.reason == Some(Reason::Exiting);
        if new.contains(&lock.id) && !suspects.contains(&lock.id) && !was_dying {
            lock.verdict.state = State::Unknown;
            lock.verdict.reason = None;
            lock.verdict.evidence.push(Evidence::SeenOnce);
        }
    }
    Ok(second)
}

/// True where each of `suspects` is known to be in a place of its own: then it need only be seen
/// whether that is still so.
fn only_kept(view: &View, suspects: &BTreeSet<LockId>) -> bool {
    let mut locks = view.locks.iter().filter(|lock| suspects.contains(&lock.id));
    locks.all(|lock| {
        let mut places = view.places(lock);
        places.len() > 0 && places.all(|place| place.via() != Via::Kernel)
    })
}

/// The first look, with what is found now of the places of its suspects. As long as a description
/// lives it is the same one, so what is there then and now was there all the time.
fn still_there(
    mut look: Look,
    hunt: &mut bpf::Hunt,
    suspects: &BTreeSet<LockId>,
) -> Result<Look, bpf::BpfError> {
    if !bpf::again(&mut look.view.snapshot, hunt)? {
        return Ok(look);
    }
    let mut view = view(look.view.snapshot);
    for place in 0..view.locks.len() {
        let lock = &view.locks[place];
        let gone = view.is_fleeting(lock) && view.places(lock).len() == 0;
        if suspects.contains(&lock.id) && gone {
            let verdict = &mut view.locks[place].verdict;
            verdict.state = State::Unknown;
            verdict.reason = None;
            verdict.evidence.push(Evidence::SeenOnce);
        }
    }
    Ok(Look { view, ..look })
}

/// Acquirers that are on their way out.
fn dying(view: &View) -> BTreeSet<ProcessId> {
    view.locks.iter().filter_map(|lock| view.dying(lock)).collect()
}

fn fleeting(view: &View) -> BTreeSet<LockId> {
    view.locks.iter().filter(|lock| view.is_fleeting(lock)).map(|lock| lock.id).collect()
}

/// `hunt` becomes the search that was made, where one was.
fn once(
    choice: Choice,
    files: &[OwnedFd],
    stuck: &BTreeSet<ProcessId>,
    hunt: &mut Option<bpf::Hunt>,
) -> anyhow::Result<Look> {
    match choice {
        Choice::Bpf => by_bpf(files, stuck, hunt).map_err(|error| {
            anyhow::anyhow!("{error}; see `lockwatch doctor`, or try `--source procfs`")
        }),
        Choice::Procfs => Ok(by_procfs(files, stuck)?),
        Choice::Auto => match by_bpf(files, stuck, hunt) {
            Ok(look) => Ok(look),
            Err(error) => {
                tell_once(&error);
                Ok(by_procfs(files, stuck)?)
            }
        },
    }
}

fn by_bpf(
    files: &[OwnedFd],
    stuck: &BTreeSet<ProcessId>,
    hunt: &mut Option<bpf::Hunt>,
) -> Result<Look, bpf::BpfError> {
    let bpf::Reading { mut snapshot, own_files, hunt: loading, .. } = read_bpf()?;
    snapshot.stuck = stuck.clone();
    let mut look = conclude(snapshot, "bpf", |files_of| own(&own_files, files_of), files);
    (look.view, *hunt) = explained(look.view, loading);
    Ok(look)
}

/// The view with what no fd table shows, where a lock is unexplained without, and the search that
/// was made for it: `loading`, where one is being loaded already.
pub(crate) fn explained(first: View, loading: Option<bpf::Loading>) -> (View, Option<bpf::Hunt>) {
    // Whoever has nothing unexplained pays nothing for the search.
    let unexplained = first.unexplained();
    if unexplained.is_empty() {
        return (first, None);
    }
    let mut snapshot = first.snapshot;
    let loaded = loading.and_then(bpf::Loading::wait);
    log::debug!("ready to search");
    let hunt = bpf::explain(&mut snapshot, &unexplained, loaded);
    log::debug!("searched for {} descriptions", unexplained.len());
    (view(snapshot), hunt)
}

/// The kernel's tables, with what the pinned history knows of them.
fn read_bpf() -> Result<bpf::Reading, bpf::BpfError> {
    let mut reading = bpf::read()?;
    remember(&mut reading);
    Ok(reading)
}

/// Adds what the pinned history knows, where there is one.
pub(crate) fn remember(reading: &mut bpf::Reading) {
    let mut unread = |why: &dyn std::fmt::Display| {
        reading.snapshot.limits.push(Limit {
            what: format!("the daemon's history could not be read: {why}"),
            hides: Hides::Nothing,
        });
    };
    let folder = match state_dir() {
        Ok(folder) => folder,
        Err(error) => return unread(&error),
    };
    let contents = History::read_only(&folder)
        .and_then(|tables| tables.map(|tables| Contents::read(&tables)).transpose());
    match contents {
        Ok(Some(contents)) => {
            history::join(&contents, &mut reading.snapshot, reading.ended, &mut Names::default());
            log::debug!("joined with the history in {}", folder.display());
        }
        Ok(None) => {}
        Err(error) => unread(&error),
    }
}

/// Where the daemon pins its history: as the environment says, or the default configuration.
fn state_dir() -> Result<PathBuf, ConfigError> {
    match std::env::var_os(STATE_DIR) {
        Some(folder) => Ok(folder.into()),
        None => Ok(Config::read(None)?.state_dir),
    }
}

fn own(own_files: &HashMap<u32, (Dev, u64)>, file: &OwnedFd) -> Option<(Dev, u64)> {
    own_files.get(&u32::try_from(file.as_raw_fd()).ok()?).copied()
}

fn by_procfs(files: &[OwnedFd], stuck: &BTreeSet<ProcessId>) -> Result<Look, procfs::ProcfsError> {
    let root = procfs::ProcRoot::live();
    let mut snapshot = procfs::read(&root, procfs::Options::default())?;
    snapshot.stuck = stuck.clone();
    Ok(conclude(snapshot, "procfs", procfs::kernel_identity, files))
}

fn conclude(
    snapshot: Snapshot,
    source: &'static str,
    identity: impl Fn(&OwnedFd) -> Option<(Dev, u64)>,
    files: &[OwnedFd],
) -> Look {
    let now = machine::now();
    let clock = Clock { unix: now.unix, boot: now.boot.0 };
    log::debug!(
        "{source}: {} locks, {} references",
        snapshot.locks.len(),
        snapshot.references.len()
    );
    let view = view(snapshot);
    log::debug!("concluded");
    Look { files: files.iter().map(identity).collect(), view, source, clock }
}

/// What the engine makes of a snapshot, under this machine's ids.
pub(crate) fn view(mut snapshot: Snapshot) -> View {
    let key = if snapshot.stable_owners {
        let (key, limit) = id_key::machine_key();
        snapshot.limits.extend(limit);
        key
    } else {
        id_key::public_key()
    };
    snapshot.limits.sort();
    snapshot.limits.dedup();
    let ids = id::assign(&snapshot, &key);
    View::new(snapshot, &ids)
}

/// Says why BPF is not used, once a run.
fn tell_once(error: &bpf::BpfError) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| {
        failure::tell(format_args!(
            "reading /proc instead of the kernel's own tables: {error}; see `lockwatch doctor`"
        ));
    });
}
