//! The records of a search, taken out of bytes.
//!
//! Total: any bytes in, a record or an error out.

use lockwatch_common::search::{
    ContainerRecord, HoldRecord, InsideRecord, KIND_CONTAINER, KIND_HOLD, KIND_INSIDE,
};
use lockwatch_common::snapshot::Header;
use lockwatch_common::wire::{self, Wire};

use super::record::RecordError;

/// One record of the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A process holds a wanted description, or something that may hold one.
    Hold(HoldRecord),
    /// A socket or ring in which something was found.
    Container(ContainerRecord),
    /// What was found in it.
    Inside(InsideRecord),
}

/// Takes a record out of `bytes`.
///
/// # Errors
/// Where the bytes are not one record of a known kind.
pub fn parse(bytes: &[u8]) -> Result<Found, RecordError> {
    let broken = |what| RecordError { at: 0, what };
    let header: Header = wire::read(bytes).ok_or(broken("cut off in its header"))?;
    if header.len as usize != bytes.len() {
        return Err(broken("of another length than it says"));
    }
    fn exact<T: Wire>(bytes: &[u8]) -> Option<T> {
        (bytes.len() == size_of::<T>()).then(|| wire::read(bytes)).flatten()
    }
    let found = match header.kind {
        KIND_HOLD => exact(bytes).map(Found::Hold),
        KIND_CONTAINER => exact(bytes).map(Found::Container),
        KIND_INSIDE => exact(bytes).map(Found::Inside),
        _ => return Err(broken("unknown kind")),
    };
    found.ok_or(broken("wrong length for its kind"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_comes_out_as_it_went_in() {
        let words = [KIND_INSIDE, 40, 7, 0, 9, 0, 0, 0, 2, 5];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let Ok(Found::Inside(inside)) = parse(&bytes) else { panic!("{:?}", parse(&bytes)) };
        assert_eq!((inside.container, inside.address, inside.what, inside.slot), (7, 9, 2, 5));
        assert_eq!(parse(&bytes[..32]).unwrap_err().what, "of another length than it says");
        assert_eq!(parse(&bytes[..4]).unwrap_err().what, "cut off in its header");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_record_or_an_error(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            kind in 0u32..5,
        ) {
            if bytes.len() >= 8 {
                let len = bytes.len() as u32;
                bytes[..4].copy_from_slice(&kind.to_ne_bytes());
                bytes[4..8].copy_from_slice(&len.to_ne_bytes());
            }
            let _ = parse(&bytes);
        }
    }
}
