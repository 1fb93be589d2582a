use proptest::prelude::*;
use serde_json::{Value, json};

use super::{diff, to_json};

/// Returns the operations as JSON, after checking that they turn `original` into `result`.
fn operations(original: &Value, result: &Value) -> Value {
    let operations = diff(original, result);
    let bytes = to_json(&operations).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).unwrap();
    let mut patched = original.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    assert_eq!(&patched, result);
    serde_json::from_slice(&bytes).unwrap()
}

fn containers(names: &[&str]) -> Value {
    let containers: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "image": format!("image-of-{name}"), "newer": {"x": 1}}))
        .collect();
    json!({"spec": {"containers": containers}})
}

#[test]
fn equal_pods_need_no_operations() {
    let pod = containers(&["a", "b"]);
    assert_eq!(operations(&pod, &pod), json!([]));
}

#[test]
fn inserting_a_container_first_is_one_addition() {
    let result = containers(&["istio-proxy", "a", "b"]);
    assert_eq!(
        operations(&containers(&["a", "b"]), &result),
        json!([{"op": "add", "path": "/spec/containers/0", "value": result["spec"]["containers"][0]}])
    );
}

#[test]
fn items_are_removed_from_the_end() {
    assert_eq!(
        operations(&containers(&["a", "b", "c", "d"]), &containers(&["b"])),
        json!([{"op": "remove", "path": "/spec/containers/3"}, {"op": "remove", "path": "/spec/containers/2"}, {"op": "remove", "path": "/spec/containers/0"}])
    );
}

#[test]
fn moved_item_is_removed_and_added_as_a_whole() {
    let result = containers(&["c", "a", "b"]);
    assert_eq!(
        operations(&containers(&["a", "b", "c"]), &result),
        json!([{"op": "remove", "path": "/spec/containers/2"},
               {"op": "add", "path": "/spec/containers/0", "value": result["spec"]["containers"][0]}])
    );
}

#[test]
fn change_behind_an_added_item_has_the_right_index() {
    let original = containers(&["a", "b"]);
    let mut result = containers(&["p", "a", "b"]);
    result["spec"]["containers"][2]["image"] = "other".into();
    let expected = json!([{"op": "add", "path": "/spec/containers/0", "value": result["spec"]["containers"][0]},
                          {"op": "replace", "path": "/spec/containers/2/image", "value": "other"}]);
    assert_eq!(operations(&original, &result), expected);
}

#[test]
fn absent_parents_are_added_as_a_whole() {
    assert_eq!(
        operations(
            &json!({"metadata": {"name": "p"}}),
            &json!({"metadata": {"name": "p", "annotations": {"a/b": "c"}}})
        ),
        json!([{"op": "add", "path": "/metadata/annotations", "value": {"a/b": "c"}}])
    );
}

#[test]
fn names_are_escaped_in_paths() {
    assert_eq!(
        operations(
            &json!({"metadata": {"annotations": {"a/b": "1", "x~y": "2"}}}),
            &json!({"metadata": {"annotations": {"a/b": "3", "~1": "4"}}})
        ),
        json!([{"op": "remove", "path": "/metadata/annotations/x~0y"},
               {"op": "replace", "path": "/metadata/annotations/a~1b", "value": "3"},
               {"op": "add", "path": "/metadata/annotations/~01", "value": "4"}])
    );
}

#[test]
fn lists_without_a_key_are_compared_by_content() {
    let pod = |args: Value| json!({"spec": {"containers": [{"name": "a", "args": args}]}});
    assert_eq!(
        operations(&pod(json!(["x", "y"])), &pod(json!(["x", "new", "y"]))),
        json!([{"op": "add", "path": "/spec/containers/0/args/1", "value": "new"}])
    );
    assert_eq!(
        operations(&pod(json!(["x"])), &pod(json!(["y"]))),
        json!([{"op": "replace", "path": "/spec/containers/0/args", "value": ["y"]}])
    );
    assert_eq!(
        operations(&pod(json!([])), &pod(json!(["y"]))),
        json!([{"op": "replace", "path": "/spec/containers/0/args", "value": ["y"]}])
    );
}

#[test]
fn items_without_their_key_are_compared_by_content() {
    assert_eq!(
        operations(&json!({"spec": {"volumes": [{}, 1]}}), &json!({"spec": {"volumes": [{"name": "a"}, {}, 1]}})),
        json!([{"op": "add", "path": "/spec/volumes/0", "value": {"name": "a"}}])
    );
}

#[test]
fn value_of_another_type_is_replaced() {
    assert_eq!(
        operations(&json!({"spec": {"containers": null, "a": {}}}), &json!({"spec": {"containers": [], "a": 1}})),
        json!([{"op": "replace", "path": "/spec/containers", "value": []}, {"op": "replace", "path": "/spec/a", "value": 1}])
    );
    assert_eq!(operations(&json!(1), &json!({})), json!([{"op": "replace", "path": "", "value": {}}]));
}

#[test]
fn json_is_compact() {
    let (original, result) = (json!({}), json!({"a": 1}));
    assert_eq!(to_json(&diff(&original, &result)).unwrap(), br#"[{"op":"add","path":"/a","value":1}]"#);
}

#[test]
fn number_of_operations_depends_on_the_difference() {
    let env = |first: &str| {
        let others = (0..2000).map(|n| json!({"name": format!("V{n}"), "value": "x"}));
        let all: Vec<Value> = std::iter::once(json!({"name": first})).chain(others).collect();
        json!({"spec": {"containers": [{"name": "a", "env": all}]}})
    };
    assert_eq!(diff(&env("A"), &env("B")).len(), 2);
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..3u8).prop_map(Value::from),
        "[a-b]{0,1}".prop_map(Value::from)
    ]
}

/// Returns any JSON, with names that need escaping.
fn unknown() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[ab/~0]{0,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn item(key: &'static str) -> impl Strategy<Value = Value> {
    ("[a-d]", prop::option::of(unknown()), prop::option::weighted(0.03, Just(()))).prop_map(
        move |(name, more, broken)| {
            let mut item = json!({});
            if broken.is_none() {
                item[key] = name.into();
            }
            if let Some(more) = more {
                item["more/~"] = more;
            }
            item
        },
    )
}

fn pod() -> impl Strategy<Value = Value> {
    let container = (
        item("name"),
        prop::option::of(prop::collection::vec(item("name"), 0..5)),
        prop::collection::vec((0..3u8, prop::option::of("(TCP|UDP)")), 0..4),
        prop::collection::vec("[ab]", 0..4),
    )
        .prop_map(|(mut container, env, ports, args)| {
            if let Some(env) = env {
                container["env"] = env.into();
            }
            let ports = ports.into_iter().map(|(port, protocol)| match protocol {
                Some(protocol) => json!({"containerPort": port, "protocol": protocol}),
                None => json!({"containerPort": port}),
            });
            container["ports"] = ports.collect();
            container["args"] = args.into();
            container
        });
    (
        prop::collection::vec(container, 0..5),
        prop::option::of(prop::collection::vec(item("name"), 0..5)),
        prop::collection::vec("[a-c]", 0..4),
        unknown(),
    )
        .prop_map(|(containers, volumes, finalizers, more)| {
            let mut pod = json!({"metadata": {"finalizers": finalizers, "annotations": more}, "spec": {"containers": containers}});
            if let Some(volumes) = volumes {
                pod["spec"]["volumes"] = volumes.into();
            }
            pod
        })
}

proptest! {
    #[test]
    fn patch_turns_any_pod_into_any_other(original in pod(), result in pod()) {
        operations(&original, &result);
    }

    #[test]
    fn pod_does_not_differ_from_itself(pod in pod()) {
        prop_assert!(diff(&pod, &pod).is_empty());
    }

    #[test]
    fn patch_reproduces_a_merge(original in pod(), overlay in pod()) {
        if let Ok(result) = crate::merge::merge_pod(original.clone(), overlay) {
            operations(&original, &result);
        }
    }

    #[test]
    fn adding_a_container_changes_no_other(pod in pod(), at in any::<prop::sample::Index>()) {
        let mut result = pod.clone();
        let containers = result["spec"]["containers"].as_array_mut().unwrap();
        // Items without a key are compared by content, for which this holds too.
        let index = at.index(containers.len() + 1);
        containers.insert(index, json!({"name": "istio-proxy"}));
        prop_assert_eq!(operations(&pod, &result), if pod["spec"]["containers"] == json!([]) {
            json!([{"op": "replace", "path": "/spec/containers", "value": [{"name": "istio-proxy"}]}])
        } else {
            json!([{"op": "add", "path": format!("/spec/containers/{index}"), "value": {"name": "istio-proxy"}}])
        });
    }
}
