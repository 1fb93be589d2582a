use proptest::prelude::*;
use serde_json::{Value, json};

use super::{merge, merge_pod};

fn merged(pod: Value, overlay: Value) -> Value {
    merge_pod(pod, overlay).unwrap()
}

fn rejection(pod: Value, overlay: Value) -> String {
    merge_pod(pod, overlay).unwrap_err().to_string()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

#[test]
fn maps_are_merged_and_scalars_replaced() {
    let pod = json!({"spec": {"a": 1, "newer": {"x": [1], "y": 2}, "s": "old"}});
    let patch = json!({"spec": {"newer": {"y": 3, "z": 4}, "s": {"now": "a map"}}});
    assert_eq!(
        merged(pod, patch),
        json!({"spec": {"a": 1, "newer": {"x": [1], "y": 3, "z": 4}, "s": {"now": "a map"}}})
    );
}

#[test]
fn null_deletes_and_is_dropped_from_new_values() {
    let pod = json!({"spec": {"a": 1, "b": 2}});
    let patch =
        json!({"spec": {"a": null, "absent": null, "new": {"x": null, "y": {"z": null}}, "list": [{"n": null}]}});
    assert_eq!(merged(pod, patch), json!({"spec": {"b": 2, "new": {"y": {}}, "list": [{}]}}));
}

#[test]
fn null_deletes_a_field_of_an_item_of_a_keyed_list() {
    let pod = json!({"spec": {"containers": [{"name": "a", "image": "i", "args": ["x"]}]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "args": null}]}});
    assert_eq!(merged(pod, patch), json!({"spec": {"containers": [{"name": "a", "image": "i"}]}}));
}

#[test]
fn new_items_come_before_existing_ones() {
    let pod = json!({"spec": {"volumes": [{"name": "mine"}, {"name": "other"}]}});
    let patch = json!({"spec": {"volumes": [{"name": "t1"}, {"name": "t2"}]}});
    assert_eq!(names(&merged(pod, patch)["spec"]["volumes"]), ["t1", "t2", "mine", "other"]);
}

#[test]
fn items_of_both_sides_keep_their_order() {
    let pod = json!({"spec": {"containers": [{"name": "u1"}, {"name": "both"}, {"name": "u2"}]}});
    let patch = json!({"spec": {"containers": [{"name": "t1"}, {"name": "both"}, {"name": "t2"}]}});
    assert_eq!(names(&merged(pod, patch)["spec"]["containers"]), ["t1", "u1", "both", "t2", "u2"]);
}

#[test]
fn lists_without_a_key_are_replaced() {
    let pod = json!({"spec": {"containers": [{"name": "a", "args": ["1", "2"], "envFrom": [{"a": 1}]}], "tolerations": [{"key": "x"}]}});
    let patch =
        json!({"spec": {"containers": [{"name": "a", "args": ["3"], "envFrom": []}], "tolerations": [{"key": "y"}]}});
    assert_eq!(
        merged(pod, patch),
        json!({"spec": {"containers": [{"name": "a", "args": ["3"], "envFrom": []}], "tolerations": [{"key": "y"}]}})
    );
}

#[test]
fn every_keyed_list_of_a_pod_is_merged_by_its_key() {
    for (path, key) in [
        ("/metadata/ownerReferences", "uid"),
        ("/spec/containers", "name"),
        ("/spec/initContainers", "name"),
        ("/spec/ephemeralContainers", "name"),
        ("/spec/volumes", "name"),
        ("/spec/imagePullSecrets", "name"),
        ("/spec/schedulingGates", "name"),
        ("/spec/resourceClaims", "name"),
        ("/spec/evictionResponders", "name"),
        ("/spec/hostAliases", "ip"),
        ("/spec/topologySpreadConstraints", "topologyKey"),
    ] {
        let fields: Vec<&str> = path.split('/').skip(1).collect();
        let doc = |extra: &str| json!({fields[0]: {fields[1]: [{key: "k", extra: true}]}});
        let result = merged(doc("theirs"), doc("ours"));
        assert_eq!(result.pointer(path), Some(&json!([{key: "k", "theirs": true, "ours": true}])), "{path}");
    }
    for (field, key) in [("env", "name"), ("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")] {
        let doc = |extra: &str| json!({"spec": {"initContainers": [{"name": "c", field: [{key: "k", extra: true}]}]}});
        let result = merged(doc("theirs"), doc("ours"));
        assert_eq!(
            result["spec"]["initContainers"][0][field],
            json!([{key: "k", "theirs": true, "ours": true}]),
            "{field}"
        );
    }
}

#[test]
fn same_names_elsewhere_are_not_keyed_lists() {
    let pod = json!({"spec": {"volumes": [{"name": "v", "projected": {"containers": [{"name": "a"}]}}]}});
    let patch = json!({"spec": {"volumes": [{"name": "v", "projected": {"containers": [{"x": 1}]}}]}});
    assert_eq!(merged(pod, patch.clone()), patch);
}

#[test]
fn ports_differ_by_protocol() {
    let pod = json!({"spec": {"containers": [{"name": "a", "ports": [
        {"containerPort": 53, "protocol": "UDP", "name": "dns"}, {"containerPort": 53, "name": "dns-tcp"}]}]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "ports": [
        {"containerPort": 53, "protocol": "TCP", "hostPort": 1}]}]}});
    assert_eq!(
        merged(pod, patch)["spec"]["containers"][0]["ports"],
        json!([{"containerPort": 53, "protocol": "UDP", "name": "dns"},
               {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP", "hostPort": 1}])
    );
}

#[test]
fn finalizers_become_a_union() {
    let pod = json!({"metadata": {"finalizers": ["a", "b"]}});
    let patch = json!({"metadata": {"finalizers": ["c", "b"]}});
    assert_eq!(merged(pod, patch), json!({"metadata": {"finalizers": ["c", "a", "b"]}}));
}

#[test]
fn items_with_the_same_key_are_merged_one_by_one() {
    let pod = json!({"spec": {"containers": [{"name": "a", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "env": [
        {"name": "A", "value": "x"}, {"name": "A", "value": "y"}, {"name": "A", "value": "z"}]}]}});
    let values = |pod: &Value| pod["spec"]["containers"][0]["env"].as_array().unwrap().len();
    let once = merged(pod, patch.clone());
    assert_eq!(values(&once), 3);
    assert_eq!(merged(once.clone(), patch), once);
}

#[test]
fn item_without_its_key_is_rejected_with_its_path() {
    let pod = json!({"spec": {"containers": [{"name": "a", "env": [{"name": "x"}]}]}});
    let patch =
        json!({"spec": {"containers": [{"name": "a", "env": [{"name": "y"}, {"value": "1"}]}, {"image": "i"}]}});
    assert_eq!(rejection(pod.clone(), patch), "spec.containers[1]: the merge key `name` is missing");
    let patch = json!({"spec": {"containers": [{"name": "a", "env": [{"name": "y"}, {"value": "1"}], "ports": ["80"]}],
                                "volumes": [{"name": null}]}});
    assert_eq!(
        rejection(pod, patch),
        "spec.containers[a].env[1]: the merge key `name` is missing; \
         spec.containers[a].ports[0]: must be an object with the merge key `containerPort`, found a string; \
         spec.volumes[0]: the merge key `name` is missing"
    );
}

#[test]
fn original_item_without_its_key_is_rejected() {
    let pod = json!({"spec": {"volumes": [{}]}});
    assert_eq!(merged(pod.clone(), json!({"spec": {"volumes": []}})), pod);
    assert!(rejection(pod, json!({"spec": {"volumes": [{"name": "a"}]}})).starts_with("spec.volumes[0]: "));
}

#[test]
fn pod_or_overlay_must_be_an_object() {
    assert_eq!(rejection(json!({}), json!([])), ".: the overlay is not an object");
    assert_eq!(rejection(json!("pod"), json!({})), ".: the pod is not an object");
}

#[test]
fn patch_replace_and_delete_work_on_maps() {
    let pod = json!({"spec": {"securityContext": {"a": 1, "b": 2}, "x": {"y": 1}}});
    let patch = json!({"spec": {"securityContext": {"$patch": "replace", "c": 3, "n": null}, "x": {"$patch": "delete"}, "absent": {"$patch": "delete"}}});
    assert_eq!(merged(pod, patch), json!({"spec": {"securityContext": {"c": 3}, "x": {}}}));
}

#[test]
fn patch_replace_and_delete_work_on_items() {
    let pod = json!({"spec": {"volumes": [{"name": "a", "x": 1}, {"name": "b"}, {"name": "c"}]}});
    let delete = json!({"spec": {"volumes": [{"$patch": "delete", "name": "a"}, {"name": "z"}]}});
    assert_eq!(names(&merged(pod.clone(), delete)["spec"]["volumes"]), ["z", "b", "c"]);
    let again = json!({"spec": {"volumes": [{"$patch": "delete", "name": "a"}, {"name": "a", "y": 1}]}});
    assert_eq!(merged(pod.clone(), again)["spec"]["volumes"][0], json!({"name": "a", "y": 1}));
    let replace = json!({"spec": {"volumes": [{"name": "b", "y": 1}, {"$patch": "replace"}]}});
    assert_eq!(merged(pod, replace)["spec"]["volumes"], json!([{"name": "b", "y": 1}]));
}

#[test]
fn retain_keys_drops_the_other_fields() {
    let pod = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}});
    let patch =
        json!({"spec": {"volumes": [{"$retainKeys": ["name", "secret"], "name": "v", "secret": {"secretName": "s"}}]}});
    assert_eq!(merged(pod.clone(), patch)["spec"]["volumes"], json!([{"name": "v", "secret": {"secretName": "s"}}]));
    let patch = json!({"spec": {"volumes": [{"$retainKeys": ["name"], "name": "v", "secret": {}}]}});
    assert_eq!(rejection(pod, patch), "spec.volumes[v]: field `secret` is set but not listed in $retainKeys");
}

#[test]
fn delete_from_primitive_list_removes_scalars() {
    let pod = json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"args": ["x", "y"]}});
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]},
                       "spec": {"$deleteFromPrimitiveList/args": ["y"], "$deleteFromPrimitiveList/none": ["y"]}});
    assert_eq!(merged(pod, patch), json!({"metadata": {"finalizers": ["c", "b"]}, "spec": {"args": ["x"]}}));
    let patch = json!({"spec": {"$deleteFromPrimitiveList/volumes": ["a"]}});
    assert_eq!(
        rejection(json!({"spec": {"volumes": []}}), patch),
        "spec.volumes: $deleteFromPrimitiveList needs a list of scalars"
    );
}

#[test]
fn set_element_order_orders_what_it_lists() {
    let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}, "metadata": {"finalizers": ["x", "y"]}});
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "new"}, {"name": "c"}, {"name": "a"}], "containers": [{"name": "new"}]},
                       "metadata": {"$setElementOrder/finalizers": ["y", "x"]}});
    let result = merged(pod.clone(), patch);
    assert_eq!(names(&result["spec"]["containers"]), ["new", "b", "c", "a"]);
    assert_eq!(result["metadata"]["finalizers"], json!(["y", "x"]));
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "new"}]}});
    assert_eq!(rejection(pod, patch), "spec.containers: item \"new\" of the patch is not listed in $setElementOrder");
}

#[test]
fn invalid_directives_are_rejected_by_name() {
    let pod = json!({"spec": {"args": ["a"]}});
    let patch = json!({"spec": {"$setElementOrder/args": ["a"], "$patch": "remove", "$unknown": [], "$retainKeys": "x"},
                       "x": [{"$patch": "delete"}]});
    let text = rejection(pod, patch);
    for part in [
        "$setElementOrder needs a list with a merge key",
        "found \"remove\"",
        "unknown directive `$unknown`",
        "`$retainKeys` must be a list",
        "x[0]: $patch: delete needs a list with a merge key",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn merging_in_place_gives_the_same_result() {
    let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
    let patch = json!({"spec": {"containers": [{"name": "p"}]}});
    let expected = merged(pod.clone(), patch.clone());
    merge(&mut pod, &patch).unwrap();
    assert_eq!(pod, expected);
}

/// Returns pods whose containers, variables and volumes often have the same names, also within a list.
fn pod() -> impl Strategy<Value = Value> {
    let name = "[a-e]";
    let variable = (name, prop::option::of("[0-9]")).prop_map(|(name, value)| match value {
        Some(value) => json!({"name": name, "value": value}),
        None => json!({"name": name}),
    });
    let port = (1..4u16, prop::option::of(prop::sample::select(vec!["TCP", "UDP"]))).prop_map(|(port, protocol)| {
        protocol.map_or_else(|| json!({"containerPort": port}), |it| json!({"containerPort": port, "protocol": it}))
    });
    let container = (
        name,
        prop::collection::vec(variable, 0..5),
        prop::collection::vec(port, 0..4),
        prop::collection::btree_map("[a-c/~]{1,2}", any::<u8>(), 0..3),
    )
        .prop_map(|(name, env, ports, unknown)| json!({"name": name, "env": env, "ports": ports, "unknown": unknown}));
    (
        prop::collection::vec(container, 0..5),
        prop::collection::vec(name.prop_map(|name| json!({"name": name})), 0..4),
        prop::collection::vec(name, 0..4),
    )
        .prop_map(|(containers, volumes, finalizers)| {
            json!({"metadata": {"finalizers": finalizers}, "spec": {"containers": containers, "volumes": volumes}})
        })
}

proptest! {
    #[test]
    fn merging_nothing_changes_nothing(pod in pod()) {
        prop_assert_eq!(merged(pod.clone(), json!({})), pod);
    }

    #[test]
    fn merging_is_idempotent(pod in pod(), patch in pod()) {
        let once = merged(pod, patch.clone());
        prop_assert_eq!(merged(once.clone(), patch), once);
    }

    #[test]
    fn no_item_is_lost(pod in pod(), patch in pod()) {
        let result = merged(pod.clone(), patch.clone());
        for list in ["containers", "volumes"] {
            for name in ["a", "b", "c", "d", "e"] {
                let count = |doc: &Value| names(&doc["spec"][list]).iter().filter(|it| **it == name).count();
                prop_assert_eq!(count(&result), count(&pod).max(count(&patch)));
            }
        }
    }
}
