//! The events that readers of `events` are behind with: one ring for all of them.
//!
//! Refuses to wait for a slow reader, and to keep more for its sake: it loses its own oldest
//! events, and the next thing it reads is how many.

use std::collections::VecDeque;
use std::sync::Arc;

/// Events that a reader may be behind before it loses the oldest.
const BEHIND: usize = 4096;

/// The ring.
#[derive(Debug, Default)]
pub(super) struct Feed {
    lines: VecDeque<Arc<[u8]>>,
    /// How many lines have left the ring.
    gone: u64,
}

/// How far one reader has come.
#[derive(Debug)]
pub(super) struct Cursor {
    /// The number of the next line.
    next: u64,
    /// What is left of the last line, which was longer than what was read at once.
    rest: Vec<u8>,
}

impl Feed {
    /// Adds a line, with its newline.
    pub(super) fn push(&mut self, line: Arc<[u8]>) {
        if self.lines.len() == BEHIND {
            self.lines.pop_front();
            self.gone += 1;
        }
        self.lines.push_back(line);
    }

    /// A reader who gets what comes from now on.
    pub(super) fn follow(&self) -> Cursor {
        Cursor { next: self.end(), rest: Vec::new() }
    }

    /// Whether there is anything to read.
    pub(super) fn has_more(&self, cursor: &Cursor) -> bool {
        !cursor.rest.is_empty() || cursor.next < self.end()
    }

    /// Reads on, at most `size` bytes; nothing where nothing has come.
    pub(super) fn read(&self, cursor: &mut Cursor, size: usize) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut cursor.rest);
        if cursor.next < self.gone {
            let skipped = self.gone - cursor.next;
            bytes.extend_from_slice(format!("{{\"skipped\":{skipped}}}\n").as_bytes());
            cursor.next = self.gone;
        }
        while bytes.len() < size && cursor.next < self.end() {
            let place = usize::try_from(cursor.next - self.gone).unwrap_or(usize::MAX);
            let Some(line) = self.lines.get(place) else { break };
            bytes.extend_from_slice(line);
            cursor.next += 1;
        }
        if bytes.len() > size {
            cursor.rest = bytes.split_off(size);
        }
        bytes
    }

    fn end(&self) -> u64 {
        self.gone + self.lines.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(feed: &mut Feed, count: usize) {
        for number in 0..count {
            feed.push(format!("line {number}\n").into_bytes().into());
        }
    }

    #[test]
    fn a_reader_gets_what_came_since_it_opened_in_pieces_of_any_size() {
        let mut feed = Feed::default();
        push(&mut feed, 3);
        let mut cursor = feed.follow();
        assert!(!feed.has_more(&cursor));
        assert_eq!(feed.read(&mut cursor, 100), b"");
        push(&mut feed, 2);
        let mut text = Vec::new();
        while feed.has_more(&cursor) {
            let piece = feed.read(&mut cursor, 3);
            assert!(!piece.is_empty() && piece.len() <= 3);
            text.extend(piece);
        }
        assert_eq!(text, b"line 0\nline 1\n");
    }

    #[test]
    fn a_slow_reader_is_told_what_it_lost_and_another_loses_nothing() {
        let mut feed = Feed::default();
        let (mut slow, mut quick) = (feed.follow(), feed.follow());
        push(&mut feed, BEHIND);
        assert_eq!(
            feed.read(&mut quick, usize::MAX).iter().filter(|&&b| b == b'\n').count(),
            BEHIND
        );
        push(&mut feed, 10);
        let text = String::from_utf8(feed.read(&mut slow, usize::MAX)).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("{\"skipped\":10}"));
        assert_eq!(lines.next(), Some("line 10"));
        assert_eq!(lines.count(), BEHIND - 1);
        assert_eq!(feed.read(&mut quick, usize::MAX).iter().filter(|&&b| b == b'\n').count(), 10);
    }
}
