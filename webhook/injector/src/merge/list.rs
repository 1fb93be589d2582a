//! Matches the items of two lists by identity, and orders the merged result.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// An index of the items of a list by identity.
///
/// Items with the same identity (Kubernetes allows two variables of one name) are taken one after the other, so none is
/// lost.
#[derive(Debug)]
pub(crate) struct Index<K> {
    heads: HashMap<K, usize>,
    /// For each item, the next one with the same identity.
    next: Vec<Option<usize>>,
}

impl<K: Eq + Hash> Index<K> {
    /// Builds the index from the identities in order.
    pub(crate) fn new(identities: Vec<K>) -> Self {
        let mut next = vec![None; identities.len()];
        let mut heads = HashMap::with_capacity(identities.len());
        for (position, identity) in identities.into_iter().enumerate().rev() {
            match heads.entry(identity) {
                Entry::Occupied(mut head) => next[position] = Some(head.insert(position)),
                Entry::Vacant(empty) => {
                    empty.insert(position);
                }
            }
        }
        Self { heads, next }
    }

    /// Takes the first remaining item with that identity, and returns its position.
    pub(crate) fn take(&mut self, identity: &K) -> Option<usize> {
        let head = self.heads.get_mut(identity)?;
        let position = *head;
        if let Some(next) = self.next[position] {
            *head = next;
        } else {
            self.heads.remove(identity);
        }
        Some(position)
    }
}

/// The items of the original list that an item of a patch matches.
#[derive(Debug)]
pub(crate) struct Match {
    /// Position of the original item that it changes.
    pub(crate) was: Option<usize>,
    /// Positions of further items with this identity that no item of the patch changes: they stay right behind it, so
    /// that merging again finds the same matches.
    pub(crate) duplicates: Vec<usize>,
}

/// Finds the original item for each item of a patch.
pub(crate) fn matches<'a, K: Eq + Hash + 'a>(
    original: Vec<K>,
    patch: impl DoubleEndedIterator<Item = &'a K> + Clone,
) -> Vec<Match> {
    let mut index = Index::new(original);
    let mut matches: Vec<Match> =
        patch.clone().map(|identity| Match { was: index.take(identity), duplicates: Vec::new() }).collect();
    for (found, identity) in matches.iter_mut().rev().zip(patch.rev()) {
        found.duplicates = std::iter::from_fn(|| index.take(identity)).collect();
    }
    matches
}

/// An item of a result, with its position in the original list, if it was there.
#[derive(Debug)]
pub(crate) struct Placed<T> {
    pub(crate) item: T,
    pub(crate) was: Option<usize>,
}

/// Merges the patched items, in the patch's order, with the other items, in their original order.
///
/// Another item comes before a patched one only if it was before it in the original. So new items come before existing ones,
/// and the items of each side keep their order.
pub(crate) fn interleave<T>(patched: Vec<Placed<T>>, rest: Vec<Placed<T>>) -> Vec<T> {
    let mut result = Vec::with_capacity(patched.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for next in patched {
        while let Some(other) = rest.next_if(|other| next.was.is_some_and(|was| other.was < Some(was))) {
            result.push(other.item);
        }
        result.push(next.item);
    }
    result.extend(rest.map(|other| other.item));
    result
}
