//! What a daemon has told, pinned for the next one.
//!
//! Refuses to keep more than fits: of what is too long names are left out, and of what is too much
//! the oldest.

use std::hash::Hasher as _;
use std::io;

use lockwatch_common::history::{Note, TOLD_MAP};
use siphasher::sip::SipHasher24;

use super::HistoryError;
use super::sys::{self, Write};
use super::tables::{Tables, fd};
use crate::engine::event::Event;
use crate::engine::id::LockId;
use crate::engine::memory::Memory;

impl Tables {
    /// Everything that was told and not taken back.
    ///
    /// # Errors
    /// Where the table cannot be read. What is no note is left out.
    pub fn told(&self) -> Result<Vec<Memory>, HistoryError> {
        let notes = sys::all::<u64, Note>(fd(&self.told)).map_err(failed("read"))?;
        let mut told: Vec<(u64, Memory)> =
            notes.iter().filter_map(|(key, note)| Some((*key, memory(note)?))).collect();
        // The table has no order.
        told.sort_by_key(|(key, _)| *key);
        Ok(told.into_iter().map(|(_, memory)| memory).collect())
    }

    /// Keeps what is to be remembered of an event, and forgets what ends with it.
    ///
    /// # Errors
    /// Where the table cannot be written.
    pub fn note(&self, event: &Event) -> Result<(), HistoryError> {
        if let Some(lock) = Memory::ended_by(event) {
            sys::remove(fd(&self.told), &of_lock(lock)).map_err(failed("write"))?;
        }
        let Some(memory) = Memory::of(event) else { return Ok(()) };
        let key = match memory.orphan() {
            Some(lock) => of_lock(lock),
            None => key(&text(&memory)?),
        };
        let Some(note) = note(memory)? else { return Ok(()) };
        sys::put(fd(&self.told), &key, &note, Write::Any).map_err(failed("write"))
    }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> HistoryError {
    move |why| HistoryError::Table { what, table: TOLD_MAP, why }
}

fn text(memory: &Memory) -> Result<Vec<u8>, HistoryError> {
    serde_json::to_vec(memory).map_err(|error| failed("write")(error.into()))
}

/// The key of a text: two that differ in it are two notes.
fn key(text: &[u8]) -> u64 {
    let mut hash = SipHasher24::new();
    hash.write(text);
    hash.finish()
}

/// The key of an orphan, whatever else was told of it.
fn of_lock(lock: LockId) -> u64 {
    key(lock.to_string().as_bytes()) ^ lock.hash
}

/// The note of a memory; `None` where not even the shortest form fits.
fn note(memory: Memory) -> Result<Option<Note>, HistoryError> {
    let mut note = Note { length: 0, reserved: 0, text: [0; 1016] };
    let mut text = text(&memory)?;
    if text.len() > note.text.len() {
        text = self::text(&memory.shortened())?;
    }
    let Some(room) = note.text.get_mut(..text.len()) else { return Ok(None) };
    room.copy_from_slice(&text);
    note.length = text.len() as u32;
    Ok(Some(note))
}

/// The memory of a note; `None` where it is none, as another version may have written.
fn memory(note: &Note) -> Option<Memory> {
    serde_json::from_slice(note.text.get(..note.length as usize)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::machine::tests::stories;

    #[test]
    fn every_event_that_lasts_survives_as_a_note() {
        for (name, kind) in [
            ("orphan", "orphaned"),
            ("pid_recycled", "pid_recycled"),
            ("lock_replaced", "lock_replaced"),
            ("deadlock", "deadlock"),
            ("long_wait", "long_wait"),
        ] {
            let (_, stage) = stories::all().into_iter().find(|(story, _)| *story == name).unwrap();
            let remembered = Memory::of(stage.last(kind)).unwrap();
            let note = note(remembered.clone()).unwrap().unwrap();
            assert_eq!(memory(&note), Some(remembered), "{name}");
        }
    }

    #[test]
    fn of_what_is_too_long_only_names_are_left_out() {
        let mut event = stories::orphan().last("orphaned").clone();
        event.lock.as_mut().unwrap().path = Some(vec![b'x'; 4096].into());
        let remembered = Memory::of(&event).unwrap();
        let kept = memory(&note(remembered.clone()).unwrap().unwrap()).unwrap();
        assert_eq!(kept, remembered.shortened());
    }

    #[test]
    fn what_is_no_note_is_none() {
        assert_eq!(memory(&Note { length: 2000, reserved: 0, text: [b'{'; 1016] }), None);
        assert_eq!(memory(&Note { length: 3, reserved: 0, text: [0; 1016] }), None);
    }
}
