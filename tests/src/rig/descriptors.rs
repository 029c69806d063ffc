//! The descriptors of the play, by name.
//!
//! They are plain numbers, not owners: forks, shared fd tables and execs are the matter of the
//! play, and nothing may be closed that the test did not ask to close.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, RawFd};

use anyhow::{Context, Result, ensure};

/// Names and numbers.
#[derive(Clone, Debug, Default)]
pub(super) struct Descriptors(BTreeMap<String, RawFd>);

impl Descriptors {
    /// Reads what [`Self::to_argument`] wrote.
    pub(super) fn from_argument(argument: &str) -> Result<Self> {
        let pairs = argument.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, fd) = pair.split_once('=').context("not NAME=FD")?;
            Ok((name.to_owned(), fd.parse()?))
        });
        let table: Result<_> = pairs.collect();
        Ok(Self(table.with_context(|| format!("--descriptors {argument:?}"))?))
    }

    /// For the argument list of the rig that follows after an exec: those that are still open
    /// then.
    pub(super) fn to_argument(&self) -> Result<String> {
        let mut words = Vec::new();
        for (name, &fd) in &self.0 {
            let flags = rustix::io::fcntl_getfd(borrow(fd)).with_context(|| name.clone())?;
            if !flags.contains(rustix::io::FdFlags::CLOEXEC) {
                words.push(format!("{name}={fd}"));
            }
        }
        Ok(words.join(","))
    }

    /// The number behind a name.
    pub(super) fn number(&self, name: &str) -> Result<RawFd> {
        self.0.get(name).copied().with_context(|| format!("no descriptor is named {name}"))
    }

    /// The descriptor behind a name.
    pub(super) fn get(&self, name: &str) -> Result<BorrowedFd<'static>> {
        self.number(name).map(borrow)
    }

    /// Gives a name to a new descriptor.
    pub(super) fn add(&mut self, name: String, fd: RawFd) -> Result<()> {
        ensure!(!self.0.contains_key(&name), "{name} is open already");
        self.0.insert(name, fd);
        Ok(())
    }

    /// Forgets a name; whoever calls closes the number or names it anew.
    pub(super) fn take(&mut self, name: &str) -> Result<RawFd> {
        self.0.remove(name).with_context(|| format!("no descriptor is named {name}"))
    }
}

/// A number as the system calls want it.
fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the number came from a call that opened it, and only `close` (which takes it out of
    // the table) closes it. Should an actor that shares the fd table have closed it, the kernel
    // says EBADF, and nothing here relies on more than that.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
