//! Groups workloads for which the same is to be said, so that reports say it once.

use std::collections::HashMap;

/// Names that are listed; the rest is counted.
const MAX_NAMES: usize = 12;

/// Items with equal keys, in their order.
#[derive(Debug)]
pub(crate) struct Group<'a, T> {
    pub(crate) first: &'a T,
    others: Vec<&'a T>,
}

/// Groups items by their keys, in the order of the first ones.
pub(crate) fn of<T>(items: &[T], key: impl Fn(&T) -> String) -> Vec<Group<'_, T>> {
    let mut groups: Vec<Group<'_, T>> = Vec::new();
    let mut known: HashMap<String, usize> = HashMap::new();
    for item in items {
        let next = groups.len();
        let index = *known.entry(key(item)).or_insert(next);
        match groups.get_mut(index) {
            Some(group) => group.others.push(item),
            None => groups.push(Group { first: item, others: Vec::new() }),
        }
    }
    groups
}

impl<T> Group<'_, T> {
    pub(crate) fn len(&self) -> usize {
        1 + self.others.len()
    }

    /// Returns the name of the first item, and how many more there are.
    pub(crate) fn title(&self, first: &str) -> String {
        match self.others.len() {
            0 => first.to_owned(),
            more => format!("{first} and {more} more"),
        }
    }

    /// Returns a sentence with the names; `None` for a single item.
    pub(crate) fn names(&self, name: impl Fn(&T) -> &str) -> Option<String> {
        if self.others.is_empty() {
            return None;
        }
        let all = std::iter::once(self.first).chain(self.others.iter().copied());
        let listed: Vec<&str> = all.take(MAX_NAMES).map(name).collect();
        let more = self.len().saturating_sub(MAX_NAMES);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        Some(format!("{} workloads share this: {}{more}.", self.len(), listed.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_items_are_one_group_in_the_order_of_the_first() {
        let words: Vec<String> = ["b1", "a1", "b2", "c1", "a2", "b3"].map(str::to_owned).to_vec();
        let groups = of(&words, |word| word[..1].to_owned());
        let titles: Vec<String> = groups.iter().map(|group| group.title(group.first)).collect();
        assert_eq!(titles, ["b1 and 2 more", "a1 and 1 more", "c1"]);
        assert_eq!(groups[0].names(|word| word).unwrap(), "3 workloads share this: b1, b2, b3.");
        assert_eq!(groups[2].names(|word| word), None);
        let many = vec!["x".to_owned(); 30];
        assert!(of(&many, String::clone)[0].names(|word| word).unwrap().ends_with("x, x, and 18 more."));
    }
}
