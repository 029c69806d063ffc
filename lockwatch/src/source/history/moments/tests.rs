//! Records in, inputs or errors out.

use lockwatch_common::history::{Party, ProcessKey};
use proptest::prelude::*;

use super::*;

const KEY: IdKey = IdKey(*b"0123456789abcdef");

const NOBODY: Looker = Looker { pid: 0, exe_ino: 0 };

fn bytes<T: Wire>(record: &T) -> Vec<u8> {
    // SAFETY: a `Wire` is integers without padding.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(record).cast(), size_of::<T>()) }.into()
}

fn told(bytes: &[u8]) -> Result<Input, RecordError> {
    let mut told = Told { key: &KEY, names: &mut Names::default(), boot_unix: 0, looker: NOBODY };
    match parse(bytes, &mut told)? {
        Parsed::Input(input) => Ok(input),
        Parsed::Cleared(record) => panic!("not without tables: {record:?}"),
    }
}

fn died(status: i32) -> Vec<u8> {
    let record = DiedRecord {
        header: Header { kind: KIND_DIED, len: size_of::<DiedRecord>() as u32, at: 9 },
        process: ProcessKey { start: 5, tgid: 7, reserved: 0 },
        ending: Ending { at: 9, status, dead: 1 },
    };
    bytes(&record)
}

/// An end whose file was stamped at 1 s, of a lock that was taken at `taken_at`.
pub(crate) fn ended(taken_at: u64, stamp_after: u32) -> MomentRecord {
    MomentRecord {
        header: Header { kind: KIND_ENDED, len: size_of::<MomentRecord>() as u32, at: 2 },
        key: Key { inode: 1, owner: 2, start: 0, class: CLASS_FLOCK, reserved: 0 },
        entry: Entry {
            taken_at,
            written_at: taken_at,
            end: i64::MAX,
            ino: 3,
            mtime_sec: 1,
            mtime_nsec: 0,
            access: F_WRLCK,
            flags: 0,
            recorded: 7,
            dev: 0,
            merged: 0,
            by: Party { tgid: 7, start: 5, ..Party::NOBODY },
            sealed_at: taken_at,
        },
        ending: Ending { at: 1, status: 9, dead: 1 },
        mtime_sec: 1,
        mtime_nsec: stamp_after,
        access: 0,
        generation: 0,
        reserved: 0,
        start: 0,
        end: 0,
        by: Party::NOBODY,
    }
}

#[test]
fn a_death_is_told_as_wait_tells_it() {
    let death = |status| match told(&died(status)) {
        Ok(Input::Died(death)) => (death.code, death.signal),
        other => panic!("{other:?}"),
    };
    assert_eq!(death(0), (Some(0), None));
    assert_eq!(death(3 << 8), (Some(3), None));
    assert_eq!(death(9), (None, Some(9)));
    assert_eq!(death(11 | 0x80), (None, Some(11)), "with a core dump");
}

#[test]
fn a_write_within_the_tick_of_the_stamp_before_is_not_known() {
    let written = |record: &MomentRecord| written(record, 0);
    let second = 1_000_000_000;
    assert_eq!(written(&ended(second + 1, 0)), None);
    assert_eq!(written(&ended(second + 2 * LONGEST_TICK, 0)), Some(false));
    assert_eq!(written(&ended(second + 1, 4_000_000)), Some(true));
    assert_eq!(written(&ended(0, 4_000_000)), None, "nobody saw the taking");
}

#[test]
fn an_end_without_a_death_is_an_error() {
    let record = MomentRecord { ending: Ending::NONE, ..ended(5, 0) };
    assert_eq!(told(&bytes(&record)).err().map(|error| error.kind), Some(KIND_ENDED));
}

#[test]
fn a_record_that_is_not_as_long_as_it_says_is_an_error() {
    let whole = died(0);
    assert!(told(&whole[..whole.len() - 1]).is_err());
    assert!(told(&[]).is_err());
}

#[test]
fn what_a_looker_gives_back_by_name_it_has_given_back() {
    let by = Party { tgid: 5, ..Party::NOBODY };
    let told_by = |kind| {
        let record = ended(0, 0);
        let header = Header { kind, ..record.header };
        let record = MomentRecord { header, by, ..record };
        let looker = Looker { pid: 5, exe_ino: 0 };
        let mut told = Told { key: &KEY, names: &mut Names::default(), boot_unix: 0, looker };
        match parse(&bytes(&record), &mut told) {
            Ok(Parsed::Input(Input::Ended(ended))) => ended.ended_by.id.pid,
            Ok(Parsed::Input(Input::Released(released))) => released.by.id.pid,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told_by(KIND_ENDED), 7, "it was the last to close it, and only looked");
    assert_eq!(told_by(KIND_RELEASED), 5, "it asked for it");
}

proptest! {
    #[test]
    fn any_bytes_give_an_input_or_an_error(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..400),
        kind in 0u32..9,
        honest in any::<bool>(),
    ) {
        if honest && bytes.len() >= 8 {
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&kind.to_ne_bytes());
            bytes[4..8].copy_from_slice(&length.to_ne_bytes());
        }
        let mut told =
            Told { key: &KEY, names: &mut Names::default(), boot_unix: 0, looker: NOBODY };
        let _ = parse(&bytes, &mut told);
    }
}
