//! A list that is found anew: as long as it is found as it was the time before, it is that one, and
//! takes no memory of its own.
//!
//! Refuses to judge what is alike: that says who finds.

use crate::engine::shared::Shared;

/// How far ahead in the list before it is looked for something that is not where it was.
const NEAR: usize = 1024;
/// How often something is compared so: where all is new, looking for it must not take long.
const LOOKS: usize = 1 << 22;

/// The list.
pub(super) struct Anew<T> {
    before: Shared<T>,
    /// Where the list before is expected to go on.
    at: usize,
    /// What was found, from the first difference on.
    own: Option<Vec<T>>,
    looks: usize,
}

impl<T: Clone> Anew<T> {
    /// One that was `before`.
    pub(super) fn after(before: Shared<T>) -> Self {
        Self { before, at: 0, own: None, looks: LOOKS }
    }

    /// How many were found.
    pub(super) fn len(&self) -> usize {
        self.own.as_ref().map_or(self.at, Vec::len)
    }

    /// One that was found.
    pub(super) fn get(&self, place: usize) -> &T {
        match &self.own {
            Some(own) => &own[place],
            None => &self.before[place],
        }
    }

    /// One that was found, to be changed.
    pub(super) fn get_mut(&mut self, place: usize) -> &mut T {
        &mut self.own()[place]
    }

    /// Finds what was next in the list before, if `is_it`; false where that is another or all is
    /// different already.
    pub(super) fn is_next(&mut self, is_it: impl FnOnce(&T) -> bool) -> bool {
        let is_next = self.own.is_none() && self.before.get(self.at).is_some_and(is_it);
        self.at += usize::from(is_next);
        is_next
    }

    /// One of the list before that was not far behind what was met there last.
    pub(super) fn near(&mut self, is_it: impl FnMut(&T) -> bool) -> Option<&T> {
        // From here on the two are at different places.
        self.own();
        let near = self.before.get(self.at..)?;
        let near = &near[..near.len().min(NEAR).min(self.looks)];
        let found = near.iter().position(is_it);
        self.looks -= found.map_or(near.len(), |found| found + 1);
        let found = self.at + found?;
        self.at = found + 1;
        self.before.get(found)
    }

    /// Finds something else.
    pub(super) fn push(&mut self, item: T) {
        self.own().push(item);
    }

    /// All that was found.
    pub(super) fn finish(mut self) -> Shared<T> {
        if self.own.is_none() && self.at == self.before.len() {
            return self.before;
        }
        let mut own = std::mem::take(self.own());
        own.shrink_to_fit();
        own.into()
    }

    fn own(&mut self) -> &mut Vec<T> {
        let (before, at) = (&self.before, self.at);
        self.own.get_or_insert_with(|| {
            let mut own = Vec::with_capacity(before.len());
            own.extend_from_slice(&before[..at]);
            own
        })
    }
}

impl<T: Clone> Default for Anew<T> {
    fn default() -> Self {
        Self::after(Shared::default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Finds `now` where it was `before`.
    fn found(before: &Shared<u8>, now: &[u8]) -> Shared<u8> {
        let mut list = Anew::after(before.clone());
        for (place, &item) in now.iter().enumerate() {
            if !list.is_next(|next| *next == item) {
                let known = list.near(|near| *near == item).copied();
                list.push(known.unwrap_or(item));
            }
            assert_eq!((list.len(), *list.get(place)), (place + 1, item));
        }
        list.finish()
    }

    #[test]
    fn what_is_as_before_is_the_list_before() {
        let before = Shared::from(vec![1, 2, 3]);
        assert!(found(&before, &[1, 2, 3]).is(&before));
        assert!(!found(&before, &[1, 2]).is(&before));
    }

    #[test]
    fn what_is_changed_later_leaves_the_list_before_alone() {
        let before = Shared::from(vec![1, 2]);
        let mut list = Anew::after(before.clone());
        assert!(list.is_next(|&next| next == 1));
        *list.get_mut(0) = 7;
        list.push(2);
        assert_eq!((&list.finish()[..], &before[..]), (&[7, 2][..], &[1, 2][..]));
    }

    proptest! {
        #[test]
        fn whatever_was_before_what_is_found_is_what_is_there(
            before in proptest::collection::vec(0..6_u8, 0..30),
            now in proptest::collection::vec(0..6_u8, 0..30),
        ) {
            let list = found(&before.clone().into(), &now);
            prop_assert_eq!(&list[..], &now[..]);
            prop_assert_eq!(&found(&list, &now)[..], &now[..]);
        }
    }
}
