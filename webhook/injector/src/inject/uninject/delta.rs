//! What has to be changed in one tree to get another, order of keys and items included, as a small JSON object.
//!
//! | key | meaning |
//! |---|---|
//! | `-` | names that go |
//! | `=` | names with another value, set in place |
//! | `+` | names with their value, put at the end; where one is there by now, that one stays |
//! | `@` | names with the position to which they move, after all else |
//! | `.name` | the same for what is inside |
//!
//! Names are keys of a map, or of a list that Kubernetes merges what tells its items apart (`name`, `mountPath`, ...): whatever
//! else happened to a tree in the meantime, a change finds what it is about, or nothing.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use crate::inject::merge::keys::{Field, Kind};
use crate::inject::patch::pairs::pairs;

/// A change, as it is written down.
pub(super) type Delta = Map<String, Value>;

const DROPPED: &str = "-";
const SET: &str = "=";
const ADDED: &str = "+";
const MOVED: &str = "@";

/// What makes `to` of `from`; empty where they are the same to the letter.
pub(super) fn between(from: &Value, to: &Value) -> Delta {
    match (Node::of(from, Field::Plain(Kind::Pod)), Node::of(to, Field::Plain(Kind::Pod))) {
        (Some(from), Some(to)) => from.until(&to),
        _ => Delta::new(),
    }
}

/// Carries a change out, as far as what it is about is there.
pub(super) fn apply(delta: &Delta, tree: &mut Value) {
    apply_to(delta, tree, Field::Plain(Kind::Pod));
}

/// The named parts of a map or of a keyed list.
struct Node<'a> {
    parts: Vec<(Cow<'a, str>, &'a Value)>,
    is_list: bool,
    field: Field,
}

impl<'a> Node<'a> {
    /// `None` for what has no named parts.
    fn of(value: &'a Value, field: Field) -> Option<Self> {
        let parts = match value {
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.as_str().into(), value)).collect(),
            Value::Array(items) => names(items, field)?.into_iter().zip(items).collect(),
            _ => return None,
        };
        Some(Self { parts, is_list: value.is_array(), field })
    }

    fn until(&self, to: &Self) -> Delta {
        let before: HashMap<&str, &Value> = self.parts.iter().map(|(name, value)| (&**name, *value)).collect();
        let after: HashSet<&str> = to.parts.iter().map(|(name, _)| &**name).collect();
        let (kept, dropped): (Vec<&str>, Vec<&str>) =
            self.parts.iter().map(|(name, _)| &**name).partition(|name| after.contains(name));
        let (mut set, mut added, mut inside, mut order) = (Map::new(), Map::new(), Vec::new(), kept);
        for (name, value) in &to.parts {
            let Some(was) = before.get(&**name) else {
                added.insert(name.clone().into_owned(), (*value).clone());
                order.push(name);
                continue;
            };
            // Most of a pod is: its names need not be looked at.
            if identical(was, value) {
                continue;
            }
            let field = part(self.field, name);
            match (Node::of(was, field), Node::of(value, field)) {
                (Some(was), Some(value)) if was.is_list == value.is_list => {
                    let change = was.until(&value);
                    if !change.is_empty() {
                        inside.push((format!(".{name}"), Value::Object(change)));
                    }
                }
                _ => drop(set.insert(name.clone().into_owned(), (*value).clone())),
            }
        }
        let wanted: Vec<&str> = to.parts.iter().map(|(name, _)| &**name).collect();
        let staying: HashSet<usize> = pairs(order, &wanted).into_iter().map(|pair| pair.after).collect();
        let moved = wanted.iter().enumerate().filter(|(position, _)| !staying.contains(position));
        let moved: Map<String, Value> = moved.map(|(position, name)| ((*name).to_owned(), position.into())).collect();

        let mut delta = Delta::new();
        if !dropped.is_empty() {
            delta.insert(DROPPED.to_owned(), dropped.into());
        }
        for (key, names) in [(SET, set), (ADDED, added), (MOVED, moved)] {
            if !names.is_empty() {
                delta.insert(key.to_owned(), Value::Object(names));
            }
        }
        delta.extend(inside);
        delta
    }
}

/// What a part of a tree is to a merge.
fn part(field: Field, name: &str) -> Field {
    match field {
        Field::Plain(kind) => kind.field(name),
        Field::Keyed(_, item) => Field::Plain(item),
        Field::Union => Field::Plain(Kind::Other),
    }
}

/// Names of the items of a keyed list, of twins with a number; `None` for other lists.
fn names(items: &[Value], field: Field) -> Option<Vec<Cow<'_, str>>> {
    let Field::Keyed(key, _) = field else { return None };
    let mut seen: HashMap<Cow<'_, str>, usize> = HashMap::with_capacity(items.len());
    let mut names = Vec::with_capacity(items.len());
    let mut twins = false;
    for item in items {
        let name = key.identity(item.as_object()?)?;
        let times = seen.entry(name.clone()).or_default();
        *times += 1;
        twins |= *times > 1;
        names.push(if *times == 1 { name } else { Cow::Owned(format!("{name}#{times}")) });
    }
    // Only the number of a twin can make its name that of another item.
    let unique = !twins || names.iter().collect::<HashSet<_>>().len() == names.len();
    unique.then_some(names)
}

/// Equal, order of keys included.
fn identical(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| k == l && identical(v, w))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| identical(a, b)),
        _ => a == b,
    }
}

fn apply_to(delta: &Delta, tree: &mut Value, field: Field) {
    let mut parts: Vec<(String, Value)> = match tree {
        Value::Object(fields) => std::mem::take(fields).into_iter().collect(),
        Value::Array(items) => match names(items, field) {
            Some(names) => {
                let names: Vec<String> = names.into_iter().map(Cow::into_owned).collect();
                names.into_iter().zip(std::mem::take(items)).collect()
            }
            None => return,
        },
        _ => return,
    };
    let dropped = delta.get(DROPPED).and_then(Value::as_array);
    let dropped: HashSet<&str> = dropped.into_iter().flatten().filter_map(Value::as_str).collect();
    parts.retain(|(name, _)| !dropped.contains(name.as_str()));

    let mut places: HashMap<String, usize> =
        parts.iter().enumerate().map(|(place, (name, _))| (name.clone(), place)).collect();
    let named = |key: &str| delta.get(key).and_then(Value::as_object).into_iter().flatten();
    for (name, value) in named(SET) {
        if let Some(place) = places.get(name) {
            parts[*place].1 = value.clone();
        }
    }
    for (name, value) in named(ADDED) {
        if !places.contains_key(name) {
            places.insert(name.clone(), parts.len());
            parts.push((name.clone(), value.clone()));
        }
    }
    for (key, change) in delta {
        if let (Some(name), Value::Object(change)) = (key.strip_prefix('.'), change)
            && let Some(place) = places.get(name)
        {
            apply_to(change, &mut parts[*place].1, part(field, name));
        }
    }
    let parts = moved(parts, delta);
    match tree {
        Value::Object(fields) => fields.extend(parts),
        Value::Array(items) => items.extend(parts.into_iter().map(|(_, value)| value)),
        _ => {}
    }
}

/// Puts parts where they belong. Positions beyond the end are the end: parts may have gone since.
fn moved(parts: Vec<(String, Value)>, delta: &Delta) -> Vec<(String, Value)> {
    let Some(positions) = delta.get(MOVED).and_then(Value::as_object) else { return parts };
    let position = |name: &str| positions.get(name).and_then(Value::as_u64);
    let (mut movers, stay): (Vec<_>, Vec<_>) = parts.into_iter().partition(|(name, _)| position(name).is_some());
    movers.sort_by_key(|(name, _)| position(name));
    let (mut movers, mut stay) = (movers.into_iter().peekable(), stay.into_iter());
    let mut result = Vec::new();
    loop {
        let due = |(name, _): &(String, Value)| position(name).is_some_and(|position| position <= result.len() as u64);
        if let Some(mover) = movers.next_if(due) {
            result.push(mover);
        } else if let Some(next) = stay.next() {
            result.push(next);
        } else {
            result.extend(movers);
            return result;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn round(from: &Value, to: &Value) -> Delta {
        let delta = between(from, to);
        let mut result = from.clone();
        apply(&delta, &mut result);
        assert_eq!(result.to_string(), to.to_string(), "{delta:?}");
        delta
    }

    #[test]
    fn nothing_is_written_down_for_what_is_the_same() {
        let pod =
            json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X"}, {"name": "X"}]}], "x": [1, {"a": 1}]}});
        assert_eq!(round(&pod, &pod), Delta::new());
    }

    #[test]
    fn a_change_of_one_field_is_one_path() {
        let pod = |port: Value| json!({"spec": {"containers": [{"name": "a", "readinessProbe": {"httpGet": {"path": "/", "port": port}}}]}});
        let delta = Value::Object(round(&pod(json!(80)), &pod(json!("http"))));
        assert_eq!(
            delta.to_string(),
            r#"{".spec":{".containers":{".a":{".readinessProbe":{".httpGet":{"=":{"port":"http"}}}}}}}"#
        );
    }

    #[test]
    fn order_is_part_of_it_and_only_what_moves_is_named() {
        let from = json!({"metadata": {"annotations": {"b": "1", "c": "2", "d": "3"}}});
        let to = json!({"metadata": {"annotations": {"a": "0", "d": "3", "b": "1", "c": "2"}}});
        let delta = Value::Object(round(&from, &to));
        assert_eq!(delta.to_string(), r#"{".metadata":{".annotations":{"+":{"a":"0"},"@":{"a":0,"d":1}}}}"#);
    }

    #[test]
    fn what_happened_in_the_meantime_stays() {
        let from = json!({"spec": {"containers": [{"name": "app", "env": [{"name": "OURS"}]}, {"name": "gone"}]}});
        let to = json!({"spec": {"containers": [{"name": "app", "image": "i"}]}});
        let delta = between(&from, &to);
        let mut later = json!({"spec": {"more": 1, "containers": [{"name": "new"}, {"name": "app", "args": []}]}});
        apply(&delta, &mut later);
        assert_eq!(
            later,
            json!({"spec": {"more": 1, "containers": [{"name": "new"}, {"name": "app", "args": [], "image": "i"}]}})
        );
        let mut odd = json!({"spec": {"containers": "none"}});
        apply(&delta, &mut odd);
        assert_eq!(odd, json!({"spec": {"containers": "none"}}));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![Just(json!(null)), Just(json!(1)), Just(json!("x")), Just(json!({})), Just(json!([]))];
        let inner = leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[-=@.ab#]{1,2}", inner.clone()), 0..4).prop_map(object),
            ]
        });
        let items = |name: &'static str| {
            prop::collection::vec((name, prop::collection::vec(("[a-c]", inner.clone()), 0..3)), 0..5).prop_map(
                |items| {
                    let item = |(name, fields): (String, Vec<(String, Value)>)| {
                        let mut item = object(fields);
                        item["name"] = name.into();
                        item
                    };
                    Value::Array(items.into_iter().map(item).collect())
                },
            )
        };
        let container =
            (items("(A|B|A#2)"), inner.clone()).prop_map(|(env, other)| json!({"env": env, "other": other}));
        let spec = (items("(a|b|c)"), prop::collection::vec(container, 0..3), inner.clone(), any::<bool>());
        (spec, prop::collection::vec(("[a-d]", inner), 0..5)).prop_map(
            |((volumes, containers, other, first), labels)| {
                let containers: Vec<Value> = containers
                    .into_iter()
                    .enumerate()
                    .map(|(number, mut container)| {
                        container["name"] = format!("c{}", number % 2).into();
                        container
                    })
                    .collect();
                let spec = if first {
                    json!({"volumes": volumes, "containers": containers, "other": other})
                } else {
                    json!({"other": other, "containers": containers, "volumes": volumes})
                };
                json!({"metadata": {"labels": object(labels)}, "spec": spec})
            },
        )
    }

    fn object(fields: Vec<(String, Value)>) -> Value {
        Value::Object(fields.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_change_leads_from_any_tree_to_any_other(from in tree(), to in tree()) {
            round(&from, &to);
            round(&from, &from);
        }
    }
}
