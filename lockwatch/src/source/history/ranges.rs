//! The operations of an owner done again in their order: which bytes it has, since when each.
//!
//! Refuses to believe itself: where what the kernel did does not fit what is known, the bytes
//! concerned are of unknown age.

/// Shared or exclusive, or given up: `F_RDLCK`, `F_WRLCK`, `F_UNLCK`.
type Access = u32;

use lockwatch_common::history::{F_UNLCK, MERGED, Operation, RESTORED};

/// Neighbouring bytes of one access that were taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: i64,
    end: i64,
    access: Access,
    /// Which operation took them; `None` where that is not known.
    by: Option<usize>,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// First byte.
    pub(super) start: i64,
    /// Last byte.
    pub(super) end: i64,
    /// What was done.
    pub(super) access: Access,
    /// [`MERGED`]: what is set is what the kernel made of the request and what the owner had.
    /// [`RESTORED`]: it is what earlier operations came to.
    pub(super) merged: u32,
    /// Whatever names the operation to the caller; `None` where its taking is not known.
    pub(super) by: Option<usize>,
}

impl Step {
    /// As it was written down; `by` names it to the caller.
    pub(super) fn of(start: i64, operation: &Operation, by: Option<usize>) -> Self {
        Self {
            start,
            end: operation.end,
            access: operation.access,
            merged: operation.merged,
            by: by.filter(|_| operation.taken_at != 0),
        }
    }
}

/// The bytes of one owner on one file.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// In order, apart from each other.
    pieces: Vec<Piece>,
}

impl Ranges {
    /// Does one operation.
    pub(super) fn apply(&mut self, step: &Step) {
        if step.access == F_UNLCK {
            self.cut(step.start, step.end);
            return;
        }
        if step.merged == RESTORED {
            self.cut(step.start, step.end);
            let Step { start, end, access, by, .. } = *step;
            let place = self.pieces.partition_point(|piece| piece.start < start);
            self.pieces.insert(place, Piece { start, end, access, by });
            return;
        }
        let merged = step.merged == MERGED;
        let within = |piece: &Piece| piece.start <= step.end && piece.end >= step.start;
        let touches = |piece: &Piece| {
            piece.start <= step.end.saturating_add(1) && piece.end.saturating_add(1) >= step.start
        };
        let same: Vec<Piece> = (self.pieces.iter().copied())
            .filter(|piece| piece.access == step.access && touches(piece))
            .collect();
        // What the kernel says fits what is known: a request that met nothing of its kind shows
        // itself; one that did shows the whole of both.
        let fits = if merged {
            let inside = same.iter().all(&within);
            let whole = same.iter().all(|piece| {
                self.run(piece).is_none_or(|(start, end)| start >= step.start && end <= step.end)
            });
            let replaced = self.pieces.iter().any(|piece| {
                piece.access != step.access && piece.start >= step.start && piece.end <= step.end
            });
            inside && whole && (!same.is_empty() || replaced)
        } else {
            same.is_empty()
        };
        let by = if fits || !merged { step.by } else { None };
        if !fits && !merged {
            // It would have met these, so they are not what they seem.
            for piece in self.pieces.iter_mut().filter(|piece| same.contains(piece)) {
                piece.by = None;
            }
        }
        let kept: Vec<Piece> = if merged {
            same.into_iter().filter(|piece| within(piece)).collect()
        } else {
            Vec::new()
        };
        self.cut(step.start, step.end);
        let mut at = step.start;
        let mut fresh = Vec::new();
        for piece in kept {
            let piece = Piece {
                start: piece.start.max(step.start),
                end: piece.end.min(step.end),
                by: if fits { piece.by } else { None },
                ..piece
            };
            if piece.start > at {
                fresh.push(Piece { start: at, end: piece.start - 1, access: step.access, by });
            }
            fresh.push(piece);
            match piece.end.checked_add(1) {
                Some(next) => at = next,
                None => {
                    at = i64::MAX;
                    break;
                }
            }
        }
        let covered = fresh.last().is_some_and(|piece: &Piece| piece.end >= step.end);
        if !covered {
            fresh.push(Piece { start: at, end: step.end, access: step.access, by });
        }
        let place = self.pieces.partition_point(|piece| piece.start < step.start);
        self.pieces.splice(place..place, fresh);
    }

    /// The first and last byte of the neighbours of one access that a piece is among.
    fn run(&self, piece: &Piece) -> Option<(i64, i64)> {
        let place = self.pieces.iter().position(|other| other == piece)?;
        let (mut first, mut last) = (place, place);
        let joined =
            |a: &Piece, b: &Piece| a.access == b.access && a.end.checked_add(1) == Some(b.start);
        while first > 0 && joined(&self.pieces[first - 1], &self.pieces[first]) {
            first -= 1;
        }
        while last + 1 < self.pieces.len() && joined(&self.pieces[last], &self.pieces[last + 1]) {
            last += 1;
        }
        Some((self.pieces[first].start, self.pieces[last].end))
    }

    /// Takes bytes out.
    fn cut(&mut self, start: i64, end: i64) {
        let mut left = Vec::with_capacity(self.pieces.len() + 1);
        for piece in self.pieces.drain(..) {
            if piece.end < start || piece.start > end {
                left.push(piece);
                continue;
            }
            if piece.start < start {
                left.push(Piece { end: start - 1, ..piece });
            }
            if piece.end > end {
                left.push(Piece { start: end + 1, ..piece });
            }
        }
        self.pieces = left;
    }

    /// Every piece: first and last byte, access, and the operation that took it.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (i64, i64, Access, Option<usize>)> {
        self.pieces.iter().map(|piece| (piece.start, piece.end, piece.access, piece.by))
    }

    /// Which operations took the bytes of a range that the kernel has; `None` where the range is not
    /// what is known here, or a byte's taking is not known.
    pub(super) fn takers(&self, start: i64, end: i64, access: Access) -> Option<Vec<usize>> {
        let first = self.pieces.partition_point(|piece| piece.end < start);
        let mut takers = Vec::new();
        let mut at = start;
        for piece in &self.pieces[first..] {
            if piece.start != at || piece.access != access || piece.end > end {
                return None;
            }
            takers.push(piece.by?);
            if piece.end == end {
                return Some(takers);
            }
            at = piece.end + 1;
        }
        None
    }
}
