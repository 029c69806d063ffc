//! Sorting by comparisons that can fail, and that may contradict each other while the world
//! changes under them.
//!
//! Refuses to panic on an order that is none, which is why the standard library's sort will not
//! do: it asks for a true total order.

use std::cmp::Ordering;

/// From this many items on, two threads sort a half each: a comparison may be a system call.
const IN_HALVES_FROM: usize = 512;

/// Sorts by merging, in at most n log n comparisons, then calls `equal` for pairs that compared as
/// equal: enough to connect all that are, and of each run all but the first stand right in one.
///
/// # Errors
/// The first error of a comparison; the items are then in an unspecified order.
pub(super) fn pair_up<T: Copy + Send, E: Send>(
    items: &mut [T],
    compare: impl Fn(T, T) -> Result<Ordering, E> + Sync,
    mut equal: impl FnMut(T, T),
) -> Result<(), E> {
    let mut equals = Vec::new();
    if items.len() < IN_HALVES_FROM {
        sort(items, &compare, &mut equals)?;
    } else {
        let middle = items.len() / 2;
        let (left, right) = items.split_at_mut(middle);
        let half = |items: &mut [T]| {
            let mut equals = Vec::new();
            sort(items, &compare, &mut equals).map(|()| equals)
        };
        let (of_left, of_right) = std::thread::scope(|scope| {
            let helper = std::thread::Builder::new().spawn_scoped(scope, || half(right));
            let of_left = half(left);
            (of_left, helper.ok().map(std::thread::ScopedJoinHandle::join))
        });
        equals.extend(of_left?);
        equals.extend(match of_right {
            Some(Ok(of_right)) => of_right?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            // There was no thread to spare.
            None => half(&mut items[middle..])?,
        });
        merge(items, middle, &compare, &mut equals)?;
    }
    equals.into_iter().for_each(|(left, right)| equal(left, right));
    Ok(())
}

fn sort<T: Copy, E>(
    items: &mut [T],
    compare: &impl Fn(T, T) -> Result<Ordering, E>,
    equals: &mut Vec<(T, T)>,
) -> Result<(), E> {
    if items.len() < 2 {
        return Ok(());
    }
    let middle = items.len() / 2;
    let (left, right) = items.split_at_mut(middle);
    sort(left, compare, equals)?;
    sort(right, compare, equals)?;
    merge(items, middle, compare, equals)
}

/// Merges two sorted halves. The first of those that are equal in either half meet on the way.
fn merge<T: Copy, E>(
    items: &mut [T],
    middle: usize,
    compare: &impl Fn(T, T) -> Result<Ordering, E>,
    equals: &mut Vec<(T, T)>,
) -> Result<(), E> {
    let (left, right) = items.split_at(middle);
    let mut merged = Vec::with_capacity(items.len());
    let (mut l, mut r) = (0, 0);
    while l < left.len() && r < right.len() {
        match compare(right[r], left[l])? {
            Ordering::Less => {
                merged.push(right[r]);
                r += 1;
            }
            order => {
                if order == Ordering::Equal {
                    equals.push((left[l], right[r]));
                }
                merged.push(left[l]);
                l += 1;
            }
        }
    }
    merged.extend_from_slice(&left[l..]);
    merged.extend_from_slice(&right[r..]);
    items.copy_from_slice(&merged);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorts_as_the_standard_library_does_and_connects_all_that_are_equal(
            keys in prop::collection::vec(any::<u8>(), 0..1200),
        ) {
            let mut items: Vec<(u8, u16)> = keys.into_iter().zip(0..).collect();
            let mut expected = items.clone();
            expected.sort_by_key(|item| item.0);
            let mut pairs = Vec::new();
            let compare = |a: (u8, u16), b: (u8, u16)| Ok::<_, ()>(a.0.cmp(&b.0));
            pair_up(&mut items, compare, |left, right| pairs.push((left, right))).unwrap();
            prop_assert_eq!(&items, &expected);
            prop_assert!(pairs.iter().all(|(left, right)| left.0 == right.0));
            // All of a run but its first stand right in a pair, the first never.
            let twins: BTreeSet<_> = pairs.iter().map(|(_, right)| right.1).collect();
            for run in items.chunk_by(|a, b| a.0 == b.0) {
                prop_assert!(!twins.contains(&run[0].1));
                prop_assert!(run[1..].iter().all(|item| twins.contains(&item.1)));
            }
        }

        #[test]
        fn an_order_that_is_none_ends(
            mut items in prop::collection::vec(any::<u8>(), 0..600),
            noise in prop::collection::vec(0..3_u8, 1..9),
        ) {
            let at = AtomicUsize::new(0);
            let compare = |_, _| Ok::<_, ()>(match noise[at.fetch_add(1, Relaxed) % noise.len()] {
                0 => Ordering::Less,
                1 => Ordering::Equal,
                _ => Ordering::Greater,
            });
            pair_up(&mut items, compare, |_, _| ()).unwrap();
        }
    }

    #[test]
    fn an_error_is_handed_on() {
        let fails = |_, _| Err::<Ordering, _>("gone");
        assert_eq!(pair_up(&mut [1, 2, 3], fails, |_, _| ()), Err("gone"));
        assert_eq!(pair_up(&mut [1; 2 * IN_HALVES_FROM], fails, |_, _| ()), Err("gone"));
    }
}
