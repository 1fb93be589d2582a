use proptest::prelude::*;
use serde_json::json;

use super::*;

fn round_trip(from: &Value, to: &Value) -> Delta {
    let delta = diff(from, to);
    let mut result = from.clone();
    apply(&delta, &mut result);
    assert_eq!(result.to_string(), to.to_string(), "{delta:?}");
    delta
}

#[test]
fn identical_trees_have_no_difference() {
    let pod =
        json!({"spec": {"containers": [{"name": "a", "env": [{"name": "X"}, {"name": "X"}]}], "x": [1, {"a": 1}]}});
    assert_eq!(round_trip(&pod, &pod), Delta::new());
}

#[test]
fn a_change_of_one_field_is_one_path() {
    let pod = |port: Value| json!({"spec": {"containers": [{"name": "a", "readinessProbe": {"httpGet": {"path": "/", "port": port}}}]}});
    let delta = Value::Object(round_trip(&pod(json!(80)), &pod(json!("http"))));
    assert_eq!(
        delta.to_string(),
        r#"{".spec":{".containers":{".a":{".readinessProbe":{".httpGet":{"=":{"port":"http"}}}}}}}"#
    );
}

#[test]
fn only_what_moves_has_a_position() {
    let from = json!({"metadata": {"annotations": {"b": "1", "c": "2", "d": "3"}}});
    let to = json!({"metadata": {"annotations": {"a": "0", "d": "3", "b": "1", "c": "2"}}});
    let delta = Value::Object(round_trip(&from, &to));
    assert_eq!(delta.to_string(), r#"{".metadata":{".annotations":{"+":{"a":"0"},"@":{"a":0,"d":1}}}}"#);
}

#[test]
fn later_changes_are_kept() {
    let from = json!({"spec": {"containers": [{"name": "app", "env": [{"name": "OURS"}]}, {"name": "gone"}]}});
    let to = json!({"spec": {"containers": [{"name": "app", "image": "i"}]}});
    let delta = diff(&from, &to);
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
        prop::collection::vec((name, prop::collection::vec(("[a-c]", inner.clone()), 0..3)), 0..5).prop_map(|items| {
            let item = |(name, fields): (String, Vec<(String, Value)>)| {
                let mut item = object(fields);
                item["name"] = name.into();
                item
            };
            Value::Array(items.into_iter().map(item).collect())
        })
    };
    let container = (items("(A|B|A#2)"), inner.clone()).prop_map(|(env, other)| json!({"env": env, "other": other}));
    let spec = (items("(a|b|c)"), prop::collection::vec(container, 0..3), inner.clone(), any::<bool>());
    (spec, prop::collection::vec(("[a-d]", inner), 0..5)).prop_map(|((volumes, containers, other, first), labels)| {
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
    })
}

fn object(fields: Vec<(String, Value)>) -> Value {
    Value::Object(fields.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_leads_from_any_tree_to_any_other(from in tree(), to in tree()) {
        round_trip(&from, &to);
        round_trip(&from, &from);
    }
}
