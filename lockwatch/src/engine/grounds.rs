//! What a verdict rests on: a list of evidence that mostly has one entry.
//!
//! Refuses to take room of its own for a single one: there may be very many verdicts.

use std::fmt;
use std::ops::Deref;

use super::evidence::Evidence;

/// Evidence, in the order in which it is told.
#[derive(Clone)]
pub struct Grounds(List);

#[derive(Clone)]
enum List {
    One(Evidence),
    Other(Box<[Evidence]>),
}

impl Grounds {
    /// Adds to the end.
    pub fn push(&mut self, more: Evidence) {
        let mut list = std::mem::take(self).into_vec();
        list.push(more);
        *self = list.into();
    }

    fn into_vec(self) -> Vec<Evidence> {
        match self.0 {
            List::One(evidence) => vec![evidence],
            List::Other(list) => list.into_vec(),
        }
    }
}

impl Default for Grounds {
    fn default() -> Self {
        Self(List::Other(Box::default()))
    }
}

impl Deref for Grounds {
    type Target = [Evidence];

    fn deref(&self) -> &[Evidence] {
        match &self.0 {
            List::One(evidence) => std::slice::from_ref(evidence),
            List::Other(list) => list,
        }
    }
}

impl From<Evidence> for Grounds {
    fn from(evidence: Evidence) -> Self {
        Self(List::One(evidence))
    }
}

impl From<Vec<Evidence>> for Grounds {
    fn from(mut list: Vec<Evidence>) -> Self {
        match list.pop() {
            Some(only) if list.is_empty() => only.into(),
            last => {
                list.extend(last);
                Self(List::Other(list.into()))
            }
        }
    }
}

impl PartialEq for Grounds {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Grounds {}

impl fmt::Debug for Grounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Evidence = Evidence::NoReference;
    const OTHER: Evidence = Evidence::Hidden;

    #[test]
    fn what_is_added_is_told_in_its_order() {
        let mut grounds = Grounds::default();
        assert_eq!(*grounds, []);
        for known in [&[ONE][..], &[ONE, OTHER], &[ONE, OTHER, ONE]] {
            grounds.push(known.last().unwrap().clone());
            assert_eq!(*grounds, *known);
            assert_eq!(grounds, Grounds::from(known.to_vec()));
        }
        assert_eq!(Grounds::from(ONE), Grounds::from(vec![ONE]));
    }

    #[test]
    fn a_single_one_takes_no_more_room_than_itself() {
        assert_eq!(size_of::<Grounds>(), size_of::<Evidence>());
        assert!(size_of::<Evidence>() <= 24);
    }
}
