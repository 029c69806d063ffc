//! The records of a snapshot window, taken out of bytes.
//!
//! Total: any bytes in, records or an error that names the offset out.

use lockwatch_common::snapshot::{
    Header, InodeRecord, KIND_INODE, KIND_LOCK, KIND_NAME, KIND_REFERENCE, KIND_TARGET, KIND_TASK,
    KIND_WAITER, LockRecord, NAME_MAX, NameRecord, ReferenceRecord, TargetRecord, TaskRecord,
};
use lockwatch_common::wire::{self, Wire};

/// One record of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// The task to which the following references belong.
    Task(TaskRecord),
    /// A file and its path (empty where the kernel gave none).
    Inode(InodeRecord, &'a [u8]),
    /// A component of the path of a file that no descriptor leads to; the last comes first.
    Name(u64, &'a [u8]),
    /// A granted lock.
    Lock(LockRecord),
    /// A queued request.
    Waiter(LockRecord),
    /// A descriptor.
    Reference(ReferenceRecord),
    /// A descriptor of the reader itself.
    Target(TargetRecord),
}

/// Bytes that are not a record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("snapshot record at byte {at}: {what}")]
pub struct RecordError {
    /// Offset in the window, bytes.
    pub at: usize,
    /// What is wrong.
    pub what: &'static str,
}

/// The records of `bytes`, in order; ends after the first error.
pub struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// Begins at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self) -> Result<Record<'a>, RecordError> {
        let at = self.at;
        let broken = |what| RecordError { at, what };
        let rest = &self.bytes[at..];
        let header: Header = wire::read(rest).ok_or(broken("cut off in its header"))?;
        let len = header.len as usize;
        if len < size_of::<Header>() || !len.is_multiple_of(8) {
            return Err(broken("impossible length"));
        }
        let body = rest.get(..len).ok_or(broken("longer than the window"))?;
        fn exact<T: Wire>(body: &[u8]) -> Option<T> {
            (body.len() == size_of::<T>()).then(|| wire::read(body)).flatten()
        }
        let record = match header.kind {
            KIND_TASK => exact(body).map(Record::Task),
            KIND_INODE => wire::read::<InodeRecord>(body).and_then(|inode| {
                let path = &body[size_of::<InodeRecord>()..];
                Some(Record::Inode(inode, path.get(..inode.path_len as usize)?))
            }),
            KIND_NAME => wire::read::<NameRecord>(body).and_then(|record| {
                let name = body.get(size_of::<NameRecord>() - NAME_MAX..)?;
                let end = name.iter().position(|&byte| byte == 0)?;
                Some(Record::Name(record.inode, &name[..end]))
            }),
            KIND_LOCK => exact(body).map(Record::Lock),
            KIND_WAITER => exact(body).map(Record::Waiter),
            KIND_REFERENCE => exact(body).map(Record::Reference),
            KIND_TARGET => exact(body).map(Record::Target),
            _ => return Err(broken("unknown kind")),
        };
        self.at += len;
        record.ok_or(broken("wrong length for its kind"))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let record = self.take();
        if record.is_err() {
            self.at = self.bytes.len();
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(kind: u32, len: u32) -> Vec<u8> {
        let words = [kind, len, 7, 0, 0x2b, 3];
        words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
    }

    #[test]
    fn records_come_out_as_they_went_in() {
        let mut bytes = target(KIND_TARGET, 24);
        bytes.extend(target(KIND_TARGET, 24));
        let records: Vec<_> = Records::new(&bytes).collect();
        assert_eq!(records.len(), 2);
        let Ok(Record::Target(target)) = records[1] else { panic!("{records:?}") };
        assert_eq!((target.ino, target.dev, target.fd), (7, 0x2b, 3));
    }

    #[test]
    fn an_error_names_its_offset_and_ends_the_reading() {
        let mut bytes = target(KIND_TARGET, 24);
        bytes.extend(target(99, 24));
        bytes.extend(target(KIND_TARGET, 24));
        let records: Vec<_> = Records::new(&bytes).collect();
        assert_eq!(records[1], Err(RecordError { at: 24, what: "unknown kind" }));
        assert_eq!(records.len(), 2);
        let (wrong, cut) = (target(KIND_LOCK, 24), target(KIND_TARGET, 32));
        let wrong = Records::new(&wrong).next();
        assert_eq!(wrong, Some(Err(RecordError { at: 0, what: "wrong length for its kind" })));
        let cut = Records::new(&cut).next();
        assert_eq!(cut, Some(Err(RecordError { at: 0, what: "longer than the window" })));
    }

    proptest! {
        #[test]
        fn any_bytes_give_records_or_one_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            kind in 0u32..9,
            len in 0u32..200,
        ) {
            let mut shaped = bytes.clone();
            if shaped.len() >= 8 {
                shaped[..4].copy_from_slice(&kind.to_ne_bytes());
                shaped[4..8].copy_from_slice(&len.to_ne_bytes());
            }
            for bytes in [&bytes, &shaped] {
                let records: Vec<_> = Records::new(bytes).collect();
                prop_assert!(records.len() <= bytes.len() / 8 + 1);
                let errors = records.iter().filter(|record| record.is_err()).count();
                prop_assert!(errors <= 1);
                if let Some(Err(error)) = records.last() {
                    prop_assert!(error.at < bytes.len());
                }
            }
        }
    }
}
