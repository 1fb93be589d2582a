//! Which items of a list stay where they are, and which have to move.

use std::hash::Hash;

use crate::inject::merge::list::Index;

/// An item that is in both lists, with its positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::inject) struct Pair {
    pub(in crate::inject) before: usize,
    pub(in crate::inject) after: usize,
}

/// As many items of both lists as can stay in their order, ascending on both sides.
pub(in crate::inject) fn pairs<K: Eq + Hash>(before: Vec<K>, after: &[K]) -> Vec<Pair> {
    let mut index = Index::new(before);
    let found = after.iter().enumerate();
    let found = found.filter_map(|(after, identity)| Some(Pair { before: index.take(identity)?, after }));
    longest_ascending(&found.collect::<Vec<_>>())
}

/// The longest part of pairs (ascending in `after`) that ascends in `before` as well: patience sorting, `n log n`.
fn longest_ascending(pairs: &[Pair]) -> Vec<Pair> {
    // For each length the pair that ends a run of that length at the lowest position.
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
        let kept = pairs(before.to_vec(), after);
        assert!(kept.iter().all(|pair| before[pair.before] == after[pair.after]));
        assert!(kept.windows(2).all(|two| two[0].before < two[1].before && two[0].after < two[1].after));
        kept.into_iter().map(|pair| before[pair.before]).collect()
    }

    #[test]
    fn all_that_can_stay_stays() {
        assert_eq!(kept(&[1, 2, 3], &[9, 1, 2, 3]), [1, 2, 3]);
        assert_eq!(kept(&[1, 2, 3, 4], &[4, 1, 2, 3]), [1, 2, 3]);
        assert_eq!(kept(&[1, 2, 3], &[3, 2, 1]).len(), 1);
        assert!(kept(&[1, 2], &[3]).is_empty());
        assert_eq!(kept(&[1, 1, 2], &[1, 2, 1]).len(), 2);
    }
}
