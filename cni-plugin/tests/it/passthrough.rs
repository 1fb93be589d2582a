//! ADD returns the previous result byte for byte.

use proptest::prelude::*;

use crate::call::{CAPABILITY, Call};

/// JSON text in any style: unusual numbers, escapes, spaces, duplicate and unknown keys.
fn json() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        Just("1e400".to_owned()),
        Just("-0.0".to_owned()),
        Just("123456789012345678901234567890".to_owned()),
        Just("1E-7".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(|n| format!("{n:e}")),
    ];
    let string = prop_oneof![
        "[a-z/<>&]{0,8}".prop_map(|text| format!("\"{text}\"")),
        Just(r#""\u00e9\ud83d\ude00\/\n""#.to_owned()),
        Just("\"é€😀\"".to_owned()),
    ];
    let leaf = prop_oneof![Just("null".to_owned()), Just("true".to_owned()), number, string.clone()];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        let space = prop_oneof![Just(""), Just(" "), Just("\n\t")];
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..4), space.clone())
                .prop_map(|(items, space)| format!("[{space}{}{space}]", items.join(&format!(",{space}")))),
            object(string.clone(), inner, space),
        ]
    })
}

fn object(
    key: impl Strategy<Value = String>,
    value: impl Strategy<Value = String>,
    space: impl Strategy<Value = &'static str>,
) -> impl Strategy<Value = String> {
    (prop::collection::vec((key, value), 0..5), space).prop_map(|(members, space)| {
        let members: Vec<String> = members.iter().map(|(key, value)| format!("{key}{space}:{space}{value}")).collect();
        format!("{{{space}{}{space}}}", members.join(&format!("{space},")))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn prev_result_comes_back_byte_for_byte(
        unknown in json(),
        version in prop::sample::select(vec!["0.3.1", "0.4.0", "1.0.0", "1.1.0"]),
        before in prop::bool::ANY,
    ) {
        let prev = format!(r#"{{ "cniVersion":"{version}", "ips":[] ,"x": {unknown}}}"#);
        let rest = format!(r#""cniVersion":"{version}","name":"n","runtimeConfig":{{"{CAPABILITY}":{{"a":"b"}}}}"#);
        let text = if before { format!(r#"{{"prevResult": {prev} ,{rest}}}"#) } else { format!(r#"{{{rest},"prevResult":{prev}}}"#) };
        let answer = Call::new("ADD").stdin(text).run();
        prop_assert_eq!(answer.code, Some(0), "{}", answer.stdout);
        prop_assert_eq!(answer.stdout, prev);
    }
}
