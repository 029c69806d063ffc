//! What a program writes, kept within bounds: the beginning and the end.
//!
//! Refuses to grow with what is written, and to make the writer wait.

use std::collections::VecDeque;

use crate::engine::reclaim::outcome::Captured;

/// Bytes that are kept of the beginning, and again of the end.
pub(super) const KEPT: usize = 32 * 1024;

/// An output as it is being written.
#[derive(Default)]
pub(super) struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    bytes: u64,
}

impl Capture {
    pub(super) fn take(&mut self, piece: &[u8]) {
        self.bytes += piece.len() as u64;
        let (head, rest) = piece.split_at(piece.len().min(KEPT - self.head.len()));
        self.head.extend_from_slice(head);
        let rest = &rest[rest.len().saturating_sub(KEPT)..];
        let surplus = (self.tail.len() + rest.len()).saturating_sub(KEPT);
        self.tail.drain(..surplus);
        self.tail.extend(rest);
    }

    pub(super) fn finish(self) -> Captured {
        Captured { head: self.head, tail: self.tail.into(), bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_kept_and_every_byte_is_counted() {
        let mut capture = Capture::default();
        capture.take(b"begin");
        for _ in 0..1000 {
            capture.take(&[b'.'; 1000]);
        }
        capture.take(b"end");
        let Captured { head, tail, bytes } = capture.finish();
        assert!(head.starts_with(b"begin...") && tail.ends_with(b"...end"));
        assert_eq!((head.len(), tail.len(), bytes), (KEPT, KEPT, 1_000_008));
    }

    #[test]
    fn what_is_short_is_kept_whole() {
        let mut capture = Capture::default();
        capture.take(b"one ");
        capture.take(b"two");
        assert_eq!(
            capture.finish(),
            Captured { head: b"one two".to_vec(), tail: Vec::new(), bytes: 7 }
        );
    }

    #[test]
    fn one_piece_that_is_longer_than_all_room_is_cut_in_its_middle() {
        let mut capture = Capture::default();
        let piece: Vec<u8> = (0..3 * KEPT).map(|at| (at % 251) as u8).collect();
        capture.take(&piece);
        let captured = capture.finish();
        assert_eq!(captured.head, piece[..KEPT]);
        assert_eq!(captured.tail, piece[2 * KEPT..]);
    }
}
