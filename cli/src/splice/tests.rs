use proptest::prelude::*;
use serde_json::json;

use super::*;

/// The text after a change of its value.
fn changed(text: &str, change: impl FnOnce(&mut Value)) -> Option<String> {
    let old = yaml::from_str(text).unwrap();
    let mut new = old.clone();
    change(&mut new);
    splice(text, &old, &new).map(|(text, _)| text)
}

const POD: &str = "\
# The front.
apiVersion: v1   # the first
kind: Pod
metadata:
    name: 'web'
    # Labels follow.
    labels: {app: web} # a flow map
spec:
    # The one that matters.
    containers:
    # It serves.
    - name: app
      image: nginx # pinned elsewhere
      args: [\"-c\",
             '/etc/x']
      env:
        # Why not.
        - name: A
          value: |
            # no comment
            text
        - {name: B, value: b}
    - name: other
      image: x
    # At the end.
# The last word.
";

#[test]
fn additions_leave_other_text_unchanged() {
    let got = changed(POD, |pod| {
        pod["metadata"]["labels"]["mesh"] = "yes".into();
        pod["metadata"]["annotations"] = json!({"a": "1"});
        let spec = pod["spec"].as_object_mut().unwrap();
        spec.insert("volumes".to_owned(), json!([{"name": "v", "emptyDir": {}}]));
        let containers = spec["containers"].as_array_mut().unwrap();
        containers[0]["env"].as_array_mut().unwrap().push(json!({"name": "C", "value": "c"}));
        containers.insert(0, json!({"name": "proxy", "image": "p"}));
        containers.push(json!({"name": "last"}));
    });
    assert_eq!(
        got.unwrap(),
        "\
# The front.
apiVersion: v1   # the first
kind: Pod
metadata:
    name: 'web'
    # Labels follow.
    labels: # a flow map
      app: web
      mesh: \"yes\"
    annotations:
      a: \"1\"
spec:
    # The one that matters.
    containers:
    - name: proxy
      image: p
    # It serves.
    - name: app
      image: nginx # pinned elsewhere
      args: [\"-c\",
             '/etc/x']
      env:
        # Why not.
        - name: A
          value: |
            # no comment
            text
        - {name: B, value: b}
        - name: C
          value: c
    - name: other
      image: x
    - name: last
    volumes:
    - name: v
      emptyDir: {}
    # At the end.
# The last word.
"
    );
}

#[test]
fn removals_and_changes_touch_only_their_lines() {
    let got = changed(POD, |pod| {
        pod["spec"]["containers"][0]["image"] = "caddy".into();
        pod["spec"]["containers"][0].as_object_mut().unwrap().shift_remove("args");
        pod["spec"]["containers"][0]["env"][0]["value"] = "one line".into();
        pod["spec"]["containers"].as_array_mut().unwrap().pop();
        pod["metadata"].as_object_mut().unwrap().shift_insert(0, "namespace".to_owned(), "shop".into());
    });
    assert_eq!(
        got.unwrap(),
        "\
# The front.
apiVersion: v1   # the first
kind: Pod
metadata:
    namespace: shop
    name: 'web'
    # Labels follow.
    labels: {app: web} # a flow map
spec:
    # The one that matters.
    containers:
    # It serves.
    - name: app
      image: caddy # pinned elsewhere
      env:
        # Why not.
        - name: A
          value: one line
        - {name: B, value: b}
    # At the end.
# The last word.
"
    );
}

#[test]
fn items_without_names_are_paired_by_position() {
    let text = "items:\n- kind: A # one\n  spec:\n    a: 1 # two\n- kind: B # three\n";
    let got = changed(text, |list| list["items"][0]["spec"]["b"] = 2.into()).unwrap();
    assert_eq!(got, "items:\n- kind: A # one\n  spec:\n    a: 1 # two\n    b: 2\n- kind: B # three\n");
}

#[test]
fn unusual_yaml_is_edited_correctly_or_not_at_all() {
    for (text, change) in [
        ("a:\nb: 1\n", json!({"a": {"x": 1}, "b": 1})),
        ("a: # why\nb: 1", json!({"a": [1, {"x": "y"}], "b": 1})),
        ("a: 1", json!({"a": 1, "b": 2})),
        ("a:\n- 1\n- 2", json!({"a": [1, 2, 3]})),
        ("a:\n  -\n    x: 1\n", json!({"a": [{"x": 1}, {"x": 2}]})),
        ("a:\n- - 1\n  - 2\n- - 3\n", json!({"a": [[1, 2, 9], [3]]})),
        ("a: &x {b: 1}\nc: *x\n", json!({"a": {"b": 2}, "c": {"b": 1}})),
        ("a: &x\n  b: 1\nc: *x\n", json!({"a": {"b": 2}, "c": {"b": 2}})),
        ("base: &x {b: 1}\nc:\n  <<: *x\n  d: 1\n", json!({"base": {"b": 1}, "c": {"b": 1, "d": 2}})),
        ("a: 1\na: 2\nb: 3\n", json!({"a": 2, "b": 4})),
        ("\"a\": 'x'\r\nb:\r\n- c\r\n", json!({"a": "x", "b": ["c", "d"], "e": {"f": 1}})),
        ("a: >\n  folded\n  text\n\nb: |+\n  kept\n\nc: 1\n", json!({"a": "other", "b": "kept\n\n", "c": 1, "d": 2})),
        ("a: |\n  # text\n  more\n", json!({"a": "# text\nmore\n", "b": "x\ny\n"})),
        ("a: !!str 1\nb: 1\n", json!({"a": "1", "b": {"c": "d"}})),
        ("? a\n: 1\nb: 2\n", json!({"a": 1, "b": 3})),
        ("a:\n  b: \"two\n    lines\"\n  c: 1\n", json!({"a": {"b": "two lines", "c": 1, "d": 1}})),
        ("a:\n    b: 1\n", json!({"a": {"c": 1}})),
        ("é: {ü: 1}\na: 1\n", json!({"é": {"ü": 1, "ö": 2}, "a": 1})),
    ] {
        let old = yaml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        if let Some((got, _)) = splice(text, &old, &change) {
            assert_eq!(yaml::from_str(&got).unwrap(), change, "{got}");
            assert!(!got.contains('\r') || !got.replace("\r\n", "").contains('\n'), "{got:?}");
        }
    }
    assert_eq!(splice("{\"a\": 1}", &json!({"a": 1}), &json!({"a": 2})), None, "JSON is rewritten");
    assert_eq!(lost_comments("a: 1 # x\n# y\n# x\n", "# x\na: 2\n"), ["y", "x"]);
}

/// A document, and the same with additions.
fn grown() -> impl Strategy<Value = (Value, Value)> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z ]{0,6}".prop_map(Value::from)
    ];
    let pair = leaf.prop_map(|value| (value.clone(), value));
    let pair = pair.prop_recursive(4, 40, 4, |inner| {
        let named = ("[a-z]{1,4}", inner.clone(), any::<bool>());
        let map = prop::collection::vec(named, 1..5).prop_map(|fields| {
            let (mut old, mut new) = (Map::new(), Map::new());
            for (name, (before, after), is_old) in fields {
                if is_old && !new.contains_key(&name) {
                    old.insert(name.clone(), before);
                    new.insert(name, after);
                } else if !old.contains_key(&name) {
                    new.insert(name, after);
                }
            }
            (Value::Object(old), Value::Object(new))
        });
        let list = prop::collection::vec((inner, any::<bool>()), 1..4).prop_map(|items| {
            let old = items.iter().filter(|(_, is_old)| *is_old).map(|((before, _), _)| before.clone()).collect();
            (Value::Array(old), Value::Array(items.into_iter().map(|((_, after), _)| after).collect()))
        });
        prop_oneof![map, list]
    });
    pair.prop_map(|(old, new)| (json!({"first": 1, "rest": old}), json!({"first": 1, "rest": new})))
}

/// The document with a comment above each line and one behind it.
fn commented(value: &Value) -> String {
    let text = yaml::to_string(value).unwrap();
    let line = |(number, line): (usize, &str)| {
        let pad = line.len() - line.trim_start().len();
        format!("{:pad$}# above {number}\n{line} # behind {number}\n", "")
    };
    text.lines().enumerate().map(line).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spliced_text_parses_as_the_new_value((old, new) in grown(), other in grown()) {
        let text = commented(&old);
        prop_assert_eq!(&yaml::from_str(&text).unwrap(), &old, "{}", text);
        for new in [&new, &other.0, &other.1] {
            if let Some((spliced, _)) = splice(&text, &old, new) {
                prop_assert_eq!(&yaml::from_str(&spliced).unwrap(), new, "{}", spliced);
            }
        }
        let Some((spliced, _)) = splice(&text, &old, &new) else { panic!("given up:\n{text}\n{new}") };
        // Ambiguous items of lists are rewritten; mappings that only grow keep their comments.
        if !text.contains("- ") {
            prop_assert_eq!(lost_comments(&text, &spliced), Vec::<String>::new(), "{}\n{}", text, spliced);
        }
    }
}
