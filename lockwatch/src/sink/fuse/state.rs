//! What is open, who waits for what, and the tree that is served at the moment.
//!
//! Refuses to speak to the kernel: every change gives back the messages that are to be sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::feed::{Cursor, Feed};
use super::wire::{self, Entry, Listing, Opening};
use crate::sink::tree::{File, Node, NodeKind, Tree};

const POLLIN: u32 = 0x001;
const POLLPRI: u32 = 0x002;
const POLLOUT: u32 = 0x004;
const POLLERR: u32 = 0x008;
const POLLHUP: u32 = 0x010;
const POLLRDNORM: u32 = 0x040;
const POLLWRNORM: u32 = 0x100;

/// A message to the kernel.
pub(super) type Message = Vec<u8>;

/// An open file or folder.
pub(super) enum Handle {
    /// A file with a value.
    Value(ValueHandle),
    /// `events`.
    Events {
        /// How far its reader has come.
        cursor: Cursor,
        /// Whom to wake.
        polled: Option<u64>,
    },
    /// A folder, as it was when it was opened: number, whether a folder, name.
    Folder(Vec<(u64, bool, String)>),
}

/// An open file with a value.
pub(super) struct ValueHandle {
    node: u64,
    file: File,
    /// What its reader sees until it reads from the start again.
    content: Arc<[u8]>,
    /// Whether it was read yet.
    read: bool,
    polled: Option<u64>,
}

/// A request that is answered later.
pub(super) enum Waiting {
    /// A read of `events`: the handle, and how much.
    Read(u64, usize),
    /// A write whose command is being carried out.
    Command,
}

/// The state.
#[derive(Default)]
pub(super) struct State {
    pub(super) tree: Arc<Tree>,
    handles: BTreeMap<u64, Handle>,
    last_handle: u64,
    feed: Feed,
    waiting: BTreeMap<u64, Waiting>,
    /// For each file with a write that had to wait: under which of its names it goes now.
    aliases: BTreeMap<u64, u64>,
}

/// A file that is being written is locked by the kernel until the write is answered, and whoever
/// else comes to it sleeps and cannot be killed. So from then on the file has another number for
/// the kernel (never for people), and nobody comes to the one that is locked.
const ALIAS_SHIFT: u32 = 48;

impl State {
    /// The node that the kernel means.
    pub(super) fn node_of(kernel: u64) -> u64 {
        kernel & ((1 << ALIAS_SHIFT) - 1)
    }

    /// The number by which the kernel shall know a node.
    pub(super) fn kernel_number(&self, node: u64) -> u64 {
        node | self.aliases.get(&node).map_or(0, |alias| alias << ALIAS_SHIFT)
    }

    fn give_handle(&mut self, handle: Handle) -> u64 {
        self.last_handle += 1;
        self.handles.insert(self.last_handle, handle);
        self.last_handle
    }

    /// Opens a file; `writes_only` where nothing will be read.
    pub(super) fn open(&mut self, node: Node, writes_only: bool) -> Option<(u64, Opening)> {
        let NodeKind::File(file, content) = node.kind else { return None };
        if file == File::Events {
            let cursor = self.feed.follow();
            let handle = self.give_handle(Handle::Events { cursor, polled: None });
            return Some((handle, Opening::STREAM));
        }
        let opening = if writes_only { Opening::STREAM } else { Opening::DIRECT };
        let value = ValueHandle { node: node.ino, file, content, read: false, polled: None };
        Some((self.give_handle(Handle::Value(value)), opening))
    }

    /// Opens a folder.
    pub(super) fn open_folder(&mut self, entries: Vec<(u64, bool, String)>) -> u64 {
        self.give_handle(Handle::Folder(entries))
    }

    /// Closes.
    pub(super) fn close(&mut self, handle: u64) {
        self.handles.remove(&handle);
    }

    /// The entries of an open folder from an offset on, as bytes; `entry` tells of a node what
    /// `LOOKUP` would, where that is wanted.
    pub(super) fn read_folder(
        &self,
        handle: u64,
        offset: u64,
        size: usize,
        entry: Option<impl Fn(&Self, &Node) -> Entry>,
    ) -> Option<Vec<u8>> {
        let Handle::Folder(entries) = self.handles.get(&handle)? else { return None };
        let mut list = Listing::new(size);
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(entries.len());
        for ((ino, is_folder, name), next) in entries[from..].iter().zip(offset + 1..) {
            let node = entry.as_ref().map(|entry| match self.tree.node(*ino) {
                Some(node) if name != "." && name != ".." => entry(self, &node),
                _ => Entry::NONE,
            });
            if !list.add(*ino, next, *is_folder, name, node.as_ref()) {
                break;
            }
        }
        Some(list.into_bytes())
    }

    /// How long the content is that an open file's reader sees.
    pub(super) fn open_size(&self, handle: u64) -> Option<u64> {
        match self.handles.get(&handle)? {
            Handle::Value(value) if value.read => Some(value.content.len() as u64),
            _ => None,
        }
    }

    /// Reads a value: from the start what is there now, further on the rest of that. `Err` where
    /// the file is no longer there, `None` where the handle is of no value.
    pub(super) fn read_value(
        &mut self,
        handle: u64,
        offset: u64,
        size: usize,
    ) -> Option<Result<Vec<u8>, Gone>> {
        let Handle::Value(value) = self.handles.get_mut(&handle)? else { return None };
        if offset == 0 {
            match self.tree.node(value.node).map(|node| node.kind) {
                Some(NodeKind::File(_, content)) => value.content = content,
                _ => return Some(Err(Gone)),
            }
            value.read = true;
        }
        let length = value.content.len();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(length);
        let to = from.saturating_add(size).min(length);
        Some(Ok(value.content[from..to].to_vec()))
    }

    /// Reads events: those that have come, or a place among those who wait. `None` where the handle
    /// is not of `events`.
    pub(super) fn read_events(
        &mut self,
        unique: u64,
        handle: u64,
        size: usize,
        may_wait: bool,
    ) -> Option<Events> {
        let Handle::Events { cursor, .. } = self.handles.get_mut(&handle)? else { return None };
        let bytes = self.feed.read(cursor, size);
        Some(match (bytes.is_empty(), may_wait) {
            (false, _) => Events::Come(bytes),
            (true, false) => Events::None,
            (true, true) => {
                self.waiting.insert(unique, Waiting::Read(handle, size));
                Events::Wait
            }
        })
    }

    /// What a handle is ready for. Where it is for nothing new and `notice` is asked for, it will be
    /// told when there is.
    pub(super) fn poll(&mut self, handle: u64, kernel_handle: u64, notice: bool) -> Option<u32> {
        let (tree, feed) = (&self.tree, &self.feed);
        let (ready, polled) = match self.handles.get_mut(&handle)? {
            Handle::Value(value) => (value.ready(tree), &mut value.polled),
            Handle::Events { cursor, polled } => {
                let ready = if feed.has_more(cursor) { POLLIN | POLLRDNORM } else { 0 };
                (ready, polled)
            }
            Handle::Folder(_) => return None,
        };
        if notice && ready & POLLIN == 0 {
            *polled = Some(kernel_handle);
        }
        Some(ready)
    }

    /// Serves another tree from now on.
    pub(super) fn publish(&mut self, tree: Arc<Tree>) -> Vec<Message> {
        self.tree = tree;
        self.aliases.retain(|&node, _| self.tree.node(node).is_some());
        let tree = &self.tree;
        let mut notices = Vec::new();
        for handle in self.handles.values_mut() {
            if let Handle::Value(value) = handle
                && let Some(kernel_handle) = value.polled
                && value.ready(tree) & POLLIN != 0
            {
                value.polled = None;
                notices.push(wire::poll_notice(kernel_handle));
            }
        }
        notices
    }

    /// Hands a line to everybody who follows.
    pub(super) fn tell(&mut self, line: Arc<[u8]>) -> Vec<Message> {
        self.feed.push(line);
        let (feed, handles) = (&self.feed, &mut self.handles);
        let mut messages = Vec::new();
        self.waiting.retain(|&unique, waiting| {
            let &mut Waiting::Read(handle, size) = waiting else { return true };
            let Some(Handle::Events { cursor, .. }) = handles.get_mut(&handle) else { return true };
            // Two may read from one handle: the first gets all that has come.
            let bytes = feed.read(cursor, size);
            if bytes.is_empty() {
                return true;
            }
            messages.push(wire::data(unique, &bytes));
            false
        });
        for handle in handles.values_mut() {
            if let Handle::Events { cursor, polled } = handle
                && feed.has_more(cursor)
                && let Some(kernel_handle) = polled.take()
            {
                messages.push(wire::poll_notice(kernel_handle));
            }
        }
        messages
    }

    /// A write's command goes on elsewhere.
    pub(super) fn wait_for_command(&mut self, unique: u64, node: u64) {
        self.waiting.insert(unique, Waiting::Command);
        let alias = self.aliases.entry(node).or_insert(0);
        *alias = (*alias + 1) % (1 << (u64::BITS - ALIAS_SHIFT));
    }

    /// Whether a request still waits; it does no longer.
    pub(super) fn stop_waiting(&mut self, unique: u64) -> bool {
        self.waiting.remove(&unique).is_some()
    }

    /// Whether a request still waits.
    pub(super) fn waits(&self, unique: u64) -> bool {
        self.waiting.contains_key(&unique)
    }
}

/// The file is no longer there.
#[derive(Debug)]
pub(super) struct Gone;

/// What came of reading events.
pub(super) enum Events {
    /// These have come.
    Come(Vec<u8>),
    /// None have, and the reader does not want to wait.
    None,
    /// It waits.
    Wait,
}

impl ValueHandle {
    fn ready(&self, tree: &Tree) -> u32 {
        let writable = if self.file.is_writable() { POLLOUT | POLLWRNORM } else { 0 };
        let readable = match tree.node(self.node).map(|node| node.kind) {
            Some(NodeKind::File(_, content)) if self.read && content == self.content => 0,
            Some(_) => POLLIN | POLLRDNORM | POLLPRI,
            None => POLLIN | POLLRDNORM | POLLPRI | POLLERR | POLLHUP,
        };
        writable | readable
    }
}
