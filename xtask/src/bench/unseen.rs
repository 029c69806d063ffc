//! What a holder makes that no fd table shows: sockets and mappings to look through, and locks
//! whose descriptions are in flight.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::fs::FlockOperation;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    send, sendmsg, socketpair,
};

use super::holder::{self, Work, flocked, open};

/// Descriptors of one message (`SCM_MAX_FD` is 253).
const BATCH: usize = 250;

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .context("socketpair")
}

/// So many sockets, in pairs with a byte in flight.
pub(super) fn sockets(count: usize) -> Result<Vec<File>> {
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        let (one, other) = pair()?;
        send(&one, b"b", SendFlags::empty()).context("send")?;
        open.extend([File::from(one), File::from(other)]);
    }
    Ok(open)
}

/// So many mappings of one file; they end with the process.
pub(super) fn mappings(count: usize, path: &Path) -> Result<Vec<File>> {
    let file = open(path)?;
    for _ in 0..count {
        // SAFETY: a new mapping where the kernel likes, which nothing ever reads or writes.
        unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, &file, 0) }
            .with_context(|| format!("mapping {}", path.display()))?;
    }
    Ok(vec![file])
}

/// So many locks in flight, taken by a child that is dead.
pub(super) fn in_flight(count: usize, folder: &Path) -> Result<Vec<File>> {
    let (tx, rx) = pair()?;
    let program = std::env::current_exe().context("finding this program's file")?;
    let mut sender = Command::new(program);
    sender.args([holder::VERB, Work::Sender.name(), &count.to_string()]).arg(folder);
    let status = sender.stdin(Stdio::from(tx)).status().context("starting the sender")?;
    ensure!(status.success(), "the sender ended with {status}");
    Ok(vec![File::from(rx)])
}

/// The sender's whole life: locks, sends over standard input, and lets go.
pub(super) fn send_locked(count: usize, folder: &Path) -> Result<()> {
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    let lock = |number: usize| flocked(&folder.join(number.to_string()), exclusive);
    let files: Vec<File> = (0..count).map(lock).collect::<Result<_>>()?;
    for batch in files.chunks(BATCH) {
        let descriptors: Vec<_> = batch.iter().map(|file| file.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let pushed = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        ensure!(pushed, "no room for {} descriptors", descriptors.len());
        let byte = [std::io::IoSlice::new(b"d")];
        sendmsg(std::io::stdin(), &byte, &mut control, SendFlags::empty()).context("sendmsg")?;
    }
    Ok(())
}
