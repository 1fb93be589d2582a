//! Values written as YAML, which every parser reads as the same value, also those of YAML 1.1 (kubectl).

use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_injector::yaml;
use weir_injector::yaml::to_string;

/// Strings that some YAML parser reads as another type without quotes.
const TRICKY: &[&str] = &[
    "",
    " ",
    "~",
    "null",
    "Null",
    "NULL",
    "true",
    "True",
    "yes",
    "Yes",
    "y",
    "Y",
    "n",
    "no",
    "on",
    "On",
    "off",
    "OFF",
    "0",
    "1",
    "-1",
    "+1",
    "0644",
    "0o17",
    "0x1f",
    "0b1",
    "1_000",
    "1e3",
    "1E5",
    "12e03",
    "1.5",
    ".5",
    "5.",
    "1:30",
    "12:30:45",
    "190:20:30",
    "2001-01-01",
    "2001-12-14t21:59:43.10-05:00",
    ".inf",
    "-.inf",
    ".nan",
    "nan",
    "inf",
    "=",
    "<<",
    "!x",
    "&a",
    "*a",
    "@a",
    "`a",
    "%a",
    "{a",
    "[a",
    "]",
    "}",
    ",",
    "a,b",
    "#a",
    "a #b",
    "a#b",
    "- a",
    "-",
    "-a",
    "?",
    "? a",
    ":",
    "a:",
    "a: b",
    "a:b",
    ":a",
    "|",
    ">",
    "'",
    "\"",
    "a'b",
    "a\"b",
    "\\",
    "---",
    "--- a",
    "...",
    " a",
    "a ",
    "\ta",
    "a\t",
    "a\tb",
    "a\nb",
    "a\nb\n",
    "a\n\n",
    "\n",
    "\n a",
    "  a\nb",
    "a \nb",
    "a\n\tb",
    "a\n  b\n",
    "a\n---\nb",
    "a\r\nb",
    "a\u{85}b",
    "\u{2028}",
    "\u{feff}a",
    "\u{0}",
    "\u{1b}[0m",
    "é",
    "😀",
    "#!/bin/sh\nset -e\n",
];

fn tricky() -> Value {
    let map = TRICKY.iter().map(|text| ((*text).to_owned(), Value::from(*text))).collect();
    json!({"list": TRICKY, "map": Value::Object(map), "nested": [[TRICKY, {}], {"a": []}]})
}

#[test]
fn common_values_are_written_as_people_write_them() {
    let value = json!({
        "apiVersion": "apps/v1",
        "args": ["--domain", "$(POD_NAMESPACE).svc.cluster.local", "yes", "0644"],
        "annotations": {"on": "true", "port": "80", "script": "set -e\nrun\n", "json": "{\"a\":[1]}"},
        "replicas": 2, "ratio": 0.5, "none": null, "empty": {}, "list": [],
    });
    let text = r#"apiVersion: apps/v1
args:
- --domain
- $(POD_NAMESPACE).svc.cluster.local
- "yes"
- "0644"
annotations:
  "on": "true"
  port: "80"
  script: |
    set -e
    run
  json: "{\"a\":[1]}"
replicas: 2
ratio: 0.5
none: null
empty: {}
list: []
"#;
    assert_eq!(to_string(&value).unwrap(), text);
}

#[test]
fn long_lines_are_not_folded() {
    let long = "word ".repeat(60) + "end";
    assert_eq!(to_string(&json!({"a": long})).unwrap(), format!("a: {long}\n"));
}

#[test]
fn tricky_strings_survive_our_parser() {
    assert_eq!(yaml::from_str(&to_string(&tricky()).unwrap()).unwrap(), tricky());
}

#[test]
fn tricky_strings_survive_a_yaml_1_1_parser() {
    let probe = Command::new("python3").args(["-c", "import yaml"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        return weir_lab::skip_or_fail("python3 with PyYAML is not installed");
    }
    let script = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer), sys.stdout)";
    let mut python =
        Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(to_string(&tricky()).unwrap().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), tricky());
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(TRICKY).prop_map(str::to_owned),
        any::<String>(),
        "[ -~\\n\\t]{0,40}",
        "[-+._:0-9eExob]{1,8}",
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let finite = any::<f64>().prop_filter("JSON has finite numbers only", |number| number.is_finite());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        finite.prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((text(), inner), 0..6).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn written_values_are_parsed_back(value in value()) {
        let text = to_string(&value).unwrap();
        prop_assert_eq!(yaml::from_str(&text).unwrap(), value, "{}", text);
    }
}
