//! Merging one list: which item of the patch belongs to which of the original, and in what order the result stands.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// The items of a list, found by their identity in constant time.
///
/// Items of one identity (Kubernetes allows two variables of one name) are handed out one after the other, so none is
/// lost in its twin.
#[derive(Debug)]
pub(crate) struct Index<K> {
    heads: HashMap<K, usize>,
    /// For each item the next one of the same identity.
    next: Vec<Option<usize>>,
}

impl<K: Eq + Hash> Index<K> {
    /// An index of a list, given the identities in order.
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

    /// Position of the first item of that identity that was not taken yet.
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

/// Where an item of a patch belongs.
#[derive(Debug)]
pub(crate) struct Match {
    /// Position of the item of the original that it changes.
    pub(crate) was: Option<usize>,
    /// Positions of further items of this identity that no item of the patch changes: they stay right behind it, so
    /// merging again finds the same pairs.
    pub(crate) twins: Vec<usize>,
}

/// Finds for each item of a patch the one of the original that it is about.
pub(crate) fn matches<'a, K: Eq + Hash + 'a>(
    original: Vec<K>,
    patch: impl DoubleEndedIterator<Item = &'a K> + Clone,
) -> Vec<Match> {
    let mut index = Index::new(original);
    let mut matches: Vec<Match> =
        patch.clone().map(|identity| Match { was: index.take(identity), twins: Vec::new() }).collect();
    for (found, identity) in matches.iter_mut().rev().zip(patch.rev()) {
        found.twins = std::iter::from_fn(|| index.take(identity)).collect();
    }
    matches
}

/// An item of a result, with its position in the original list where it stood there.
#[derive(Debug)]
pub(crate) struct Placed<T> {
    pub(crate) item: T,
    pub(crate) was: Option<usize>,
}

/// Weaves the items that a patch is about (in its order) into those that it is not about (in theirs).
///
/// An item that the patch is not about goes first only where it already stood before the item of the patch that comes next,
/// so items that are new stand before those that were there, and items of both sides keep the order they had.
pub(crate) fn weave<T>(patched: Vec<Placed<T>>, rest: Vec<Placed<T>>) -> Vec<T> {
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
