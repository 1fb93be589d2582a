use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn parses_what_templates_render() {
    let text = "\
metadata:
  annotations: { # comment
    a.b/c: \"x: 1\",

    d: 'it''s', e: [1, \"2\", x], f: {}
  }
spec:
  list:
  - name: one # comment
    value: |

      {\"a\": 1}
        # not a comment

    other: |-
      text
  -   - 1
      - -x
  - 100m
  -
    deep: {\"a\":1, b: /x}
  # comment
  empty:
  flag: true
  none: null
  text: a:b c#d
";
    let want = json!({
        "metadata": {"annotations": {"a.b/c": "x: 1", "d": "it's", "e": [1, "2", "x"], "f": {}}},
        "spec": {
            "list": [
                {"name": "one", "value": "\n{\"a\": 1}\n  # not a comment\n", "other": "text"},
                [1, "-x"],
                "100m",
                {"deep": {"a": 1, "b": "/x"}},
            ],
            "empty": null, "flag": true, "none": null, "text": "a:b c#d",
        },
    });
    assert_eq!(parse(text), Some(want));
    assert_eq!(crate::yaml::from_str(text).ok(), parse(text));
    assert_eq!(parse("# nothing\n\n"), Some(Value::Null));
}

#[test]
fn gives_up_at_everything_else() {
    for text in [
        "a: b",
        "a: &x 1\n",
        "a: *x\n",
        "a: !t x\n",
        "a: 1.5\n",
        "a: 012\n",
        "a: yes\n",
        "a: 12:30\n",
        "a: >\n  x\n",
        "a: |2\n    x\n",
        "a: x\n  y\n",
        "a: b: c\n",
        "a: 1\na: 2\n",
        "- a\n b: 1\n",
        "a\n",
        "? a\n",
        "a: {b}\n",
        "a: [1,, 2]\n",
        "a: {b: 1\n",
        "a: \"x\n",
        "---\na: 1\n",
        "a:\tb\n",
        "a: \"\\x41\"\n",
        "a: 'x' y\n",
        "yes: 1\n",
        "1: x\n",
        "a:\n   b: 1\n  c: 1\n",
        "a: {b: c d: e}\n",
        "a: - b\n",
    ] {
        assert_eq!(parse(text), None, "{text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_full_parser(lines in prop::collection::vec((0usize..6, prop_oneof![
        Just("a: 1"), Just("b: x"), Just("c:"), Just("- d: 1"), Just("- e"), Just("-"), Just("- - f"), Just("g: |"), Just("h: |-"), Just("# i"),
        Just(""), Just("j: {"), Just("k: [1, x],"), Just("}"), Just("]"), Just("l: {m: n, \"o\": p}"), Just("q: 'r' # s"), Just("t: \"u\\n\""),
        Just("v: w: x"), Just("- [y"), Just("z: -a"), Just("text"), Just("a: b #c"), Just("b: 1.5"), Just("c: {d: e}, f: g"), Just("  "),
        Just("- |"), Just("h: on"), Just("- {i: j}"), Just("\"k\": l"), Just("m: {}"), Just("- \"n\": 1"), Just("o: [p, q"), Just(","),
    ]), 0..9)) {
        let lines: Vec<String> = lines.iter().map(|(indent, line)| format!("{}{line}\n", " ".repeat(*indent))).collect();
        let text = lines.concat();
        if let Some(value) = parse(&text) {
            prop_assert_eq!(crate::yaml::from_str(&text), Ok(value), "{:?}", text);
        }
    }
}
