//! Sorting by comparisons that can fail, and that may contradict each other while the world
//! changes under them.
//!
//! Refuses to panic on an order that is none, which is why the standard library's sort will not
//! do: it asks for a true total order.

use std::cmp::Ordering;

/// Sorts by merging, in at most n log n comparisons.
///
/// # Errors
/// The first error of a comparison; the items are then in an unspecified order.
pub(super) fn sort<T: Copy, E>(
    items: &mut [T],
    compare: &mut impl FnMut(T, T) -> Result<Ordering, E>,
) -> Result<(), E> {
    if items.len() < 2 {
        return Ok(());
    }
    let (left, right) = items.split_at_mut(items.len() / 2);
    sort(left, compare)?;
    sort(right, compare)?;
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut l, mut r) = (0, 0);
    while l < left.len() && r < right.len() {
        if compare(right[r], left[l])? == Ordering::Less {
            merged.push(right[r]);
            r += 1;
        } else {
            merged.push(left[l]);
            l += 1;
        }
    }
    merged.extend_from_slice(&left[l..]);
    merged.extend_from_slice(&right[r..]);
    items.copy_from_slice(&merged);
    Ok(())
}

/// Sorts, then calls `equal` for each neighbouring pair that compares as equal.
///
/// # Errors
/// The first error of a comparison.
pub(super) fn pair_up<T: Copy, E>(
    items: &mut [T],
    mut compare: impl FnMut(T, T) -> Result<Ordering, E>,
    mut equal: impl FnMut(T, T),
) -> Result<(), E> {
    sort(items, &mut compare)?;
    for pair in items.windows(2) {
        if compare(pair[0], pair[1])? == Ordering::Equal {
            equal(pair[0], pair[1]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorts_as_the_standard_library_does(mut items in prop::collection::vec(any::<u8>(), 0..99)) {
            let mut expected = items.clone();
            expected.sort_unstable();
            sort(&mut items, &mut |a, b| Ok::<_, ()>(a.cmp(&b))).unwrap();
            prop_assert_eq!(items, expected);
        }

        #[test]
        fn an_order_that_is_none_ends(
            mut items in prop::collection::vec(any::<u8>(), 0..99),
            noise in prop::collection::vec(0..3_u8, 1..9),
        ) {
            let mut noise = noise.into_iter().cycle();
            let mut compare = |_, _| Ok::<_, ()>(match noise.next() {
                Some(0) => Ordering::Less,
                Some(1) => Ordering::Equal,
                _ => Ordering::Greater,
            });
            sort(&mut items, &mut compare).unwrap();
        }
    }

    #[test]
    fn an_error_is_handed_on() {
        assert_eq!(sort(&mut [1, 2, 3], &mut |_, _| Err::<Ordering, _>("gone")), Err("gone"));
    }
}
