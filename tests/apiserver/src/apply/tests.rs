use super::*;

fn by(manager: &str) -> Writer {
    Writer { manager: manager.to_owned(), api_version: "v1".to_owned(), subresource: String::new() }
}

fn hook(name: &str, bundle: &str) -> Value {
    json!({"name": name, "clientConfig": {"caBundle": bundle, "service": {"name": "s", "namespace": "n"}}, "sideEffects": "None"})
}

fn bundle_only(name: &str, bundle: &str) -> Value {
    json!({"webhooks": [{"name": name, "clientConfig": {"caBundle": bundle}}]})
}

#[test]
fn apply_of_one_field_leaves_the_rest() {
    let object = json!({"webhooks": [hook("a", "old"), hook("b", "old")]});
    let live = updated(&Value::Null, object.clone(), &by("kubectl-create"));
    let error = applied(&live, &bundle_only("b", "new"), &by("weir-webhook"), false).unwrap_err();
    assert_eq!(error.code, 409);
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-create\" using v1: .webhooks[name=\"b\"].clientConfig.caBundle"
    );
    let done = applied(&live, &bundle_only("b", "new"), &by("weir-webhook"), true).unwrap();
    let mut expected = object;
    expected["webhooks"][1]["clientConfig"]["caBundle"] = "new".into();
    assert_eq!(done["webhooks"], expected["webhooks"]);
    // Applied again there is no conflict, and a change by another manager takes the field over.
    let again = applied(&done, &bundle_only("b", "new"), &by("weir-webhook"), false).unwrap();
    assert_eq!(again, done);
    let taken = updated(&done, json!({"webhooks": [hook("a", "old"), hook("b", "theirs")]}), &by("argocd"));
    assert_eq!(applied(&taken, &bundle_only("b", "new"), &by("weir-webhook"), false).unwrap_err().code, 409);
}

#[test]
fn equal_value_is_shared_without_conflict() {
    let live = updated(&Value::Null, json!({"data": {"a": "1"}}), &by("one"));
    let shared = applied(&live, &json!({"data": {"a": "1"}}), &by("two"), false).unwrap();
    let gone = applied(&shared, &json!({}), &by("two"), false).unwrap();
    assert_eq!(gone["data"], json!({"a": "1"}), "the other still has it");
}

#[test]
fn field_no_longer_applied_is_removed_unless_shared() {
    let mine =
        json!({"data": {"a": "1", "b": "2"}, "spec": {"containers": [{"name": "x", "image": "i"}, {"name": "y"}]}});
    let live = applied(&Value::Null, &mine, &by("one"), false).unwrap();
    let theirs = json!({"spec": {"containers": [{"name": "x", "env": [{"name": "E", "value": "v"}]}]}});
    let both = applied(&live, &theirs, &by("two"), false).unwrap();
    let left = applied(&both, &json!({"data": {"b": "2"}}), &by("one"), false).unwrap();
    assert_eq!(left["data"], json!({"b": "2"}));
    assert_eq!(left["spec"]["containers"], json!([{"name": "x", "env": [{"name": "E", "value": "v"}]}]));
    let none = applied(&left, &json!({}), &by("two"), false).unwrap();
    assert_eq!(none.get("spec"), None, "{none}");
}

#[test]
fn keyed_lists_merge_and_others_are_replaced() {
    let port = |number: u16, name: &str| json!({"containerPort": number, "name": name});
    let live = updated(&Value::Null, json!({"ports": [port(80, "http")], "args": ["a", "b"]}), &by("one"));
    let more = json!({"ports": [port(443, "https")], "metadata": {"finalizers": ["x"]}});
    let done = applied(&live, &more, &by("two"), false).unwrap();
    assert_eq!(done["ports"], json!([port(80, "http"), port(443, "https")]));
    assert_eq!(done["args"], json!(["a", "b"]));
    assert_eq!(applied(&done, &json!({"args": ["c"]}), &by("two"), false).unwrap_err().code, 409);
    assert_eq!(applied(&done, &json!({"args": ["c"]}), &by("two"), true).unwrap()["args"], json!(["c"]));
}

#[test]
fn managed_fields_are_encoded_as_in_kubernetes() {
    let config = json!({"metadata": {"name": "x", "finalizers": ["f"]}, "webhooks": [{"name": "a", "clientConfig": {"caBundle": "c"}}]});
    let done = applied(&Value::Null, &config, &by("weir-webhook"), false).unwrap();
    assert_eq!(
        done["metadata"]["managedFields"],
        json!([{
            "manager": "weir-webhook", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:finalizers": {"v:\"f\"": {}}},
                "f:webhooks": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:clientConfig": {"f:caBundle": {}}}},
            },
        }])
    );
    let read = Fields::from_v1(&done["metadata"]["managedFields"][0]["fieldsV1"]);
    assert_eq!(read, Fields::of(&config));
}
