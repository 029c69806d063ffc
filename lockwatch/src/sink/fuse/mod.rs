//! The tree as a file system: a thin adapter between [`Tree`] and `/dev/fuse`.
//!
//! Refuses to know a lock, and to let anybody wait for ever. A thread of its own answers at once
//! from the newest tree; only a read of `events` and a write that releases something are answered
//! later, and either can be interrupted. Whatever happens to this process or that thread, the
//! kernel's end is closed with it, and nobody waits any more.
//!
//! The protocol is spoken here and not through the crate `fuser`, because that (0.18) answers the
//! kernel's `FUSE_INTERRUPT` with `ENOSYS`: from then on the kernel interrupts nobody on this mount,
//! and a reader that is killed sleeps on, unkillable, until its answer comes.
//!
//! Whoever has the engine plugs in so:
//!
//! ```text
//! let tree = fuse::mount(&config.mount, fuse::Options::default(), move |request| { send.send(request); })?;
//! loop {
//!     tree.publish(current.next(&facts));         // after each reading, and each switch that changed
//!     tree.tell(json_line);                       // each event
//!     request.reply.answer(carry_out(request.command));   // when it is done, from any thread
//! }
//! // Dropping it unmounts, and whoever still waits gets an error.
//! ```

mod arrivals;
mod feed;
mod mount;
mod state;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use rustix::io::Errno;

use self::arrivals::Arrivals;
use self::mount::Point;
use self::state::{Events, Gone, Message, State};
use self::wire::{Attr, Entry, Op, Opening};
use super::tree::command::{Command, Refusal};
use super::tree::{File, Node, NodeKind, Tree, Value};

pub use self::mount::MountError;

/// How a name may be believed, nanoseconds. A folder that is gone says so all the same: its number
/// is never another's, and the kernel asks again where a number is not known (`ESTALE`).
const NAME_FOR: u32 = 900_000_000;
/// The same of a folder's mode.
const FOLDER_FOR: u32 = 900_000_000;
/// The same of a value's size and time, which may change with the next view: just long enough for
/// whoever has listed a folder and walks through it.
const VALUE_FOR: u32 = 20_000_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether others than root may come near it at all (`allow_other`).
    pub allow_other: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { allow_other: true }
    }
}

/// A command that somebody wrote into the tree, and waits for.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// Where the answer goes; without one it is `EIO`.
    pub reply: Reply,
}

/// The answer that a writer waits for.
pub struct Reply {
    shared: Weak<Shared>,
    unique: u64,
    written: u32,
}

impl Reply {
    /// Answers. Nobody hears it where the writer was interrupted meanwhile.
    pub fn answer(self, outcome: Result<(), Refusal>) {
        self.send(outcome);
    }

    /// Whether the writer was interrupted and waits no longer.
    pub fn is_abandoned(&self) -> bool {
        self.shared.upgrade().is_none_or(|shared| !shared.state().waits(self.unique))
    }

    fn send(&self, outcome: Result<(), Refusal>) {
        let Some(shared) = self.shared.upgrade() else { return };
        if shared.state().stop_waiting(self.unique) {
            shared.send(&match outcome {
                Ok(()) => wire::written(self.unique, self.written),
                Err(refusal) => wire::error(self.unique, errno(refusal)),
            });
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(Err(Refusal::Unverified));
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reply").field("unique", &self.unique).finish_non_exhaustive()
    }
}

/// A mounted tree; unmounted when dropped.
pub struct Mounted {
    shared: Arc<Shared>,
    point: Point,
    thread: Option<JoinHandle<()>>,
}

/// Mounts a tree in which there is nothing yet. `ask` gets what is written into it: it must not wait
/// for anything.
///
/// # Errors
/// Where it cannot be mounted there.
pub fn mount(
    path: &Path,
    options: Options,
    ask: impl Fn(Request) + Send + Sync + 'static,
) -> Result<Mounted, MountError> {
    let (point, device) = mount::mount(path, options.allow_other)?;
    let device = Arc::new(device);
    let shared = Arc::new(Shared {
        device: Arc::downgrade(&device),
        state: Mutex::default(),
        ask: Box::new(ask),
    });
    let mut mounted = Mounted { shared: shared.clone(), point, thread: None };
    let thread = std::thread::Builder::new().name("tree".into()).spawn(move || {
        // With the thread the device is closed, even where it panicked: then nobody waits.
        let device = device;
        shared.serve(&device);
    });
    mounted.thread = Some(thread.map_err(MountError::Thread)?);
    Ok(mounted)
}

impl Mounted {
    /// Serves this tree from now on, and wakes whoever polls what has changed.
    pub fn publish(&self, tree: Arc<Tree>) {
        let mut state = self.shared.state();
        for message in state.publish(tree) {
            self.shared.send(&message);
        }
    }

    /// Hands a line, with its newline, to every reader of `events`.
    pub fn tell(&self, line: &[u8]) {
        let mut state = self.shared.state();
        for message in state.tell(line.into()) {
            self.shared.send(&message);
        }
    }

    /// False where somebody has unmounted it.
    pub fn is_served(&self) -> bool {
        self.shared.device.strong_count() > 0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.point.unmount()
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that served the tree had panicked");
        }
    }
}

struct Shared {
    /// The thread's; closed with it.
    device: Weak<OwnedFd>,
    state: Mutex<State>,
    ask: Box<dyn Fn(Request) + Send + Sync>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message to the kernel. One that it does not want any more is nobody's loss.
    fn send(&self, message: &[u8]) {
        let Some(device) = self.device.upgrade() else { return };
        match rustix::io::write(&device, message) {
            // The request was interrupted, or the mount is gone.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => log::warn!("an answer of the tree was refused: {error}"),
        }
    }

    /// Answers until the mount is gone.
    fn serve(self: Arc<Self>, device: &OwnedFd) {
        let mut buffer = vec![0; wire::REQUEST_MAX];
        let mut arrivals = Arrivals::of(device);
        loop {
            match arrivals.next(&mut buffer) {
                Ok(length) => match wire::Request::parse(&buffer[..length]) {
                    Some(request) => {
                        if let Some(answer) = self.answer(&request) {
                            self.send(&answer);
                        }
                    }
                    None => log::error!("the kernel asked the tree for something without a head"),
                },
                // NOENT: the request was interrupted before it could be read.
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(Errno::NODEV) => return,
                Err(error) => {
                    log::error!("the tree cannot be served any more: {}", io::Error::from(error));
                    return;
                }
            }
        }
    }

    /// The answer; `None` where there is none, or not yet.
    fn answer(self: &Arc<Self>, request: &wire::Request<'_>) -> Option<Message> {
        let unique = request.unique;
        let node = State::node_of(request.node);
        let refuse = |errno: Errno| Some(wire::error(unique, errno.raw_os_error()));
        let mut state = self.state();
        match request.op {
            Op::Init { major, minor, max_readahead, flags } => {
                log::debug!("the kernel speaks FUSE {major}.{minor}");
                Some(if major > wire::MAJOR {
                    wire::init_major(unique)
                } else {
                    wire::init(unique, max_readahead, flags)
                })
            }
            Op::Destroy => Some(wire::done(unique)),
            Op::Forget => None,
            Op::Interrupt { unique: interrupted } => {
                if state.stop_waiting(interrupted) {
                    self.send(&wire::error(interrupted, Errno::INTR.raw_os_error()));
                }
                None
            }
            Op::Lookup { name } => {
                let name = std::str::from_utf8(name).unwrap_or_default();
                match state.tree.look_up(node, name, request.uid == 0) {
                    None => refuse(Errno::NOENT),
                    Some(found) => Some(wire::entry(unique, &entry(&state, &found))),
                }
            }
            Op::Getattr { handle } => match state.tree.node(node) {
                None => refuse(Errno::STALE),
                Some(found) => {
                    let size = handle.and_then(|handle| state.open_size(handle));
                    Some(wire::attr(unique, belief(&found).1, &attr(&found, size)))
                }
            },
            Op::Setattr { valid } => match state.tree.node(node) {
                None => refuse(Errno::STALE),
                // Cut to nothing, as `>` does: a value cannot be.
                Some(found) if valid & !wire::SETS_SIZE_ALONE == 0 && is_writable(&found) => {
                    Some(wire::attr(unique, 0, &attr(&found, None)))
                }
                Some(_) => refuse(Errno::PERM),
            },
            Op::Open { flags } => {
                let Some(found) = state.tree.node(node) else { return refuse(Errno::STALE) };
                let mode = flags & libc::O_ACCMODE as u32;
                let (read_only, write_only) = (libc::O_RDONLY as u32, libc::O_WRONLY as u32);
                if mode != read_only && !is_writable(&found) {
                    return refuse(Errno::ACCESS);
                }
                match state.open(found, mode == write_only) {
                    Some((handle, opening)) => Some(wire::opened(unique, handle, opening)),
                    None => refuse(Errno::ISDIR),
                }
            }
            Op::Read { handle, offset, size, flags } => {
                let size = size as usize;
                if let Some(read) = state.read_value(handle, offset, size) {
                    return match read {
                        Ok(bytes) => Some(wire::data(unique, &bytes)),
                        Err(Gone) => refuse(Errno::NODEV),
                    };
                }
                let may_wait = flags & libc::O_NONBLOCK as u32 == 0;
                match state.read_events(unique, handle, size, may_wait) {
                    None => refuse(Errno::BADF),
                    Some(Events::Come(bytes)) => Some(wire::data(unique, &bytes)),
                    Some(Events::None) => refuse(Errno::AGAIN),
                    Some(Events::Wait) => None,
                }
            }
            Op::Write { bytes, .. } => match state.tree.command(node, bytes) {
                Err(refusal) => Some(wire::error(unique, errno(refusal))),
                Ok(None) => Some(wire::written(unique, bytes.len() as u32)),
                Ok(Some(command)) => {
                    state.wait_for_command(unique, node);
                    let (shared, written) = (Arc::downgrade(self), bytes.len() as u32);
                    let reply = Reply { shared, unique, written };
                    drop(state);
                    (self.ask)(Request { command, reply });
                    None
                }
            },
            Op::Release { handle } | Op::Releasedir { handle } => {
                state.close(handle);
                Some(wire::done(unique))
            }
            Op::Opendir => {
                let Some(mut entries) = state.tree.list(node, request.uid == 0) else {
                    return refuse(Errno::STALE);
                };
                let dots = [(node, true, ".".into()), (Tree::parent(node), true, "..".into())];
                entries.splice(0..0, dots);
                let handle = state.open_folder(entries);
                Some(wire::opened(unique, handle, Opening::FOLDER))
            }
            Op::Readdir { handle, offset, size, with_nodes } => {
                let entry = with_nodes.then_some(entry);
                match state.read_folder(handle, offset, size as usize, entry) {
                    Some(list) => Some(wire::data(unique, &list)),
                    None => refuse(Errno::BADF),
                }
            }
            Op::Statfs => Some(wire::statfs(unique, 0)),
            Op::Poll { handle, kernel_handle, wants_notice } => {
                match state.poll(handle, kernel_handle, wants_notice) {
                    Some(events) => Some(wire::polled(unique, events)),
                    None => refuse(Errno::BADF),
                }
            }
            Op::Change => refuse(Errno::PERM),
            // The kernel does without, and does not ask again.
            Op::Other => refuse(Errno::NOSYS),
        }
    }
}

fn is_writable(node: &Node) -> bool {
    matches!(node.kind, NodeKind::File(file, _) if file.is_writable())
}

/// For how long a node's name and the rest of it may be believed, nanoseconds.
fn belief(node: &Node) -> (u32, u32) {
    match node.kind {
        // Not everybody may know it.
        NodeKind::Folder(_) if node.mode & 0o005 == 0 => (0, 0),
        NodeKind::Folder(_) => (NAME_FOR, FOLDER_FOR),
        // It may get another number at any time: see `state`.
        NodeKind::File(File::Value(Value::Locked | Value::Alias | Value::ForceUnlock), _) => (0, 0),
        NodeKind::File(..) => (NAME_FOR, VALUE_FOR),
    }
}

fn entry(state: &State, node: &Node) -> Entry {
    let (name_for, attr_for) = belief(node);
    let number = state.kernel_number(node.ino);
    Entry { number, name_for, attr_for, attr: attr(node, None) }
}

fn attr(node: &Node, open_size: Option<u64>) -> Attr {
    let (kind, size, links) = match &node.kind {
        NodeKind::Folder(folders) => (S_IFDIR, 0, 2 + folders),
        NodeKind::File(_, content) => (S_IFREG, content.len() as u64, 1),
    };
    Attr {
        ino: node.ino,
        size: open_size.unwrap_or(size),
        mode: kind | u32::from(node.mode),
        links,
        changed: node.changed,
    }
}

fn errno(refusal: Refusal) -> i32 {
    match refusal {
        Refusal::Invalid => Errno::INVAL,
        Refusal::Busy => Errno::BUSY,
        Refusal::NotPermitted => Errno::PERM,
        Refusal::Cancelled => Errno::CANCELED,
        Refusal::Unverified => Errno::IO,
    }
    .raw_os_error()
}
