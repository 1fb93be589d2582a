use proptest::prelude::*;
use serde_json::json;

use super::*;

fn entry() -> Map<String, Value> {
    json!({"type": "weir-cni", "capabilities": {"a": true}, "exclude_namespaces": ["kube-system"]})
        .as_object()
        .cloned()
        .unwrap()
}

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in\n{text}"))
}

#[test]
fn entry_is_formatted_like_the_others() {
    let text = "{\n\t\"name\": \"n\",\n\t\"mtu\": 1.50e3,\n\t\"plugins\": [\n\t\t{\n\t\t\t\"type\": \"a\"\n\t\t},\n\t\t{\n\t\t\t\"type\": \"b\"\n\t\t}\n\t]\n}";
    let edited = append_entry(text, &entry()).unwrap();
    let expected = text.replace(
        "\"b\"\n\t\t}",
        "\"b\"\n\t\t},\n\t\t{\n\t\t\t\"type\": \"weir-cni\",\n\t\t\t\"capabilities\": {\n\t\t\t\t\"a\": true\n\t\t\t},\n\
         \t\t\t\"exclude_namespaces\": [\n\t\t\t\t\"kube-system\"\n\t\t\t]\n\t\t}",
    );
    assert_eq!(edited, expected);
}

#[test]
fn single_lines_and_line_ends_are_kept() {
    let edited = append_entry(r#"{"name":"n","plugins":[{"type":"a"}],"x":1}"#, &entry()).unwrap();
    assert!(edited.starts_with(r#"{"name":"n","plugins":[{"type":"a"},{"type":"weir-cni","#), "{edited}");
    assert!(edited.ends_with(r#"}],"x":1}"#), "{edited}");
    let edited = append_entry("{\"plugins\": [\r\n {\r\n  \"type\": \"a\"\r\n }\r\n]}", &entry()).unwrap();
    assert!(!edited.replace("\r\n", "").contains('\n'), "{edited:?}");
    let same_line =
        append_entry("{\"plugins\": [{\n  \"type\": \"a\"\n}, {\n  \"type\": \"b\"\n}]}", &entry()).unwrap();
    assert!(same_line.contains("}, {\n  \"type\": \"weir-cni\""), "{same_line}");
}

#[test]
fn every_own_entry_is_removed() {
    let text = r#"{"plugins":[{"type":"weir-cni"}, {"type":"a"},{"type":"weir-cni","x":[1]},{"type":"b"} , {"type":"weir-cni"}]}"#;
    assert_eq!(remove_entry(text).unwrap(), r#"{"plugins":[{"type":"a"},{"type":"b"}]}"#);
    assert_eq!(remove_entry(r#"{"plugins":[ {"type":"weir-cni"} ]}"#).unwrap(), r#"{"plugins":[  ]}"#);
    assert_eq!(remove_entry(r#"{"plugins":[{"type":"a"}]}"#), None);
}

#[test]
fn an_empty_list_gets_no_entry() {
    for text in [r#"{"plugins":[]}"#, r#"{"plugins":{}}"#, r#"{"name":"n"}"#, "[]", "", "\"x\""] {
        assert_eq!(append_entry(text, &entry()), None, "{text}");
        assert_eq!(remove_entry(text), None, "{text}");
    }
}

#[test]
fn a_single_plugin_is_converted_with_its_name() {
    let text = "{\n  \"cniVersion\": \"0.4.0\",\n  \"name\": \"dbnet\",\n  \"type\": \"bridge\",\n  \"big\": 12345678901234567890123\n}\n";
    let list = to_conflist(text).unwrap();
    assert_eq!(value(&list)["name"], "dbnet");
    assert_eq!(value(&list)["cniVersion"], "0.4.0");
    assert!(list.contains("12345678901234567890123"), "{list}");
    assert_eq!(value(&list)["plugins"][0]["type"], "bridge");
    assert!(to_conflist(r#"{"name":"n","type":"t"}"#).unwrap().starts_with("{\n  \"name\": \"n\",\n  \"plugins\""));
}

#[test]
fn version_is_replaced_or_added_first() {
    assert_eq!(
        with_version(r#"{"name":"n","cniVersion":"0.2.0","plugins":[]}"#, "0.3.1").unwrap(),
        r#"{"name":"n","cniVersion":"0.3.1","plugins":[]}"#
    );
    let text = with_version("{\n  \"name\": \"n\"\n}", "0.3.1").unwrap();
    assert_eq!(text, "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"n\"\n}");
}

#[test]
fn the_last_of_repeated_keys_counts() {
    let text = r#"{"plugins":[{"type":"old"}],"plugins":[{"type":"new"}]}"#;
    assert!(
        append_entry(text, &entry()).unwrap().starts_with(r#"{"plugins":[{"type":"old"}],"plugins":[{"type":"new"},"#)
    );
}

/// Any JSON value without our entry.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~é\\n\"]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"]{1,6}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// A list with one or more plugins, in one of several formats.
fn any_list() -> impl Strategy<Value = String> {
    let plugin = ("[a-z]{1,8}", any_json()).prop_map(|(kind, extra)| json!({"type": kind, "extra": extra}));
    (prop::collection::vec(plugin, 1..4), any_json(), 0..5usize, "[ \n\t]{0,3}").prop_map(
        |(plugins, extra, style, space)| {
            let list = json!({"cniVersion": "1.0.0", "name": "n", "before": extra, "plugins": plugins, "after": extra});
            let text = match style {
                0 => serde_json::to_string(&list).unwrap(),
                1 => serde_json::to_string_pretty(&list).unwrap(),
                2 => serde_json::to_string_pretty(&list).unwrap().replace('\n', "\r\n"),
                3 => serde_json::to_string(&list).unwrap().replace("},{", "} ,\n {"),
                _ => pretty(list.as_object().unwrap(), "\t"),
            };
            format!("{space}{text}{space}")
        },
    )
}

proptest! {
    #[test]
    fn adding_and_removing_the_entry_changes_nothing(text in any_list()) {
        let edited = append_entry(&text, &entry()).unwrap();
        let mut expected = value(&text);
        expected["plugins"].as_array_mut().unwrap().push(Value::Object(entry()));
        prop_assert_eq!(value(&edited), expected);
        prop_assert_eq!(remove_entry(&edited).unwrap(), text);
    }

    #[test]
    fn never_panics(text in r#"[\[\]{}":,a-z0-9 \\.eE+-]{0,60}"#) {
        let _ = (append_entry(&text, &entry()), remove_entry(&text), to_conflist(&text), with_version(&text, "1.0.0"));
    }
}
