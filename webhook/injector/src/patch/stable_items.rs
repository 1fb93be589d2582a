//! Finds the items of a list that keep their relative order.

use std::hash::Hash;

use crate::merge::list::Index;

/// Positions of an item in the original and the new list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) before: usize,
    pub(crate) after: usize,
}

/// Returns the largest set of items of both lists whose order is the same, in that order.
pub(crate) fn stable_items<K: Eq + Hash>(before: Vec<K>, after: &[K]) -> Vec<Pair> {
    let mut index = Index::new(before);
    let found = after.iter().enumerate();
    let found = found.filter_map(|(after, identity)| Some(Pair { before: index.take(identity)?, after }));
    longest_ascending(&found.collect::<Vec<_>>())
}

/// Returns the longest subsequence of pairs (ascending in `after`) that ascends in `before` as well, in O(n log n) by patience
/// sorting.
fn longest_ascending(pairs: &[Pair]) -> Vec<Pair> {
    // For each length, the pair with the lowest position that ends a run of that length.
    let mut ends: Vec<usize> = Vec::new();
    let mut previous: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (position, pair) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| pairs[*end].before < pair.before);
        previous.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        if length == ends.len() {
            ends.push(position);
        } else {
            ends[length] = position;
        }
    }
    let mut run = Vec::with_capacity(ends.len());
    let mut next = ends.last().copied();
    while let Some(position) = next {
        run.push(pairs[position]);
        next = previous[position];
    }
    run.reverse();
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(before: &[u8], after: &[u8]) -> Vec<u8> {
        let kept = stable_items(before.to_vec(), after);
        assert!(kept.iter().all(|pair| before[pair.before] == after[pair.after]));
        assert!(kept.windows(2).all(|two| two[0].before < two[1].before && two[0].after < two[1].after));
        kept.into_iter().map(|pair| before[pair.before]).collect()
    }

    #[test]
    fn as_many_items_as_possible_stay() {
        assert_eq!(kept(&[1, 2, 3], &[9, 1, 2, 3]), [1, 2, 3]);
        assert_eq!(kept(&[1, 2, 3, 4], &[4, 1, 2, 3]), [1, 2, 3]);
        assert_eq!(kept(&[1, 2, 3], &[3, 2, 1]).len(), 1);
        assert!(kept(&[1, 2], &[3]).is_empty());
        assert_eq!(kept(&[1, 1, 2], &[1, 2, 1]).len(), 2);
    }
}
