use serde_json::Value;

use super::*;

fn env(path: &str) -> Vec<(String, String)> {
    parse_inject_path(path).0.into_iter().collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn cluster_and_network_keys_are_mapped() {
    let expected = pairs(&[("ISTIO_META_CLUSTER_ID", "c1"), ("ISTIO_META_NETWORK", "n1")]);
    assert_eq!(env("/inject/cluster/c1/net/n1"), expected);
    assert_eq!(env("/inject/cluster/c1/net/n1/"), expected);
    assert_eq!(env("/inject/:ENV:cluster=c1:ENV:net=n1"), expected);
}

#[test]
fn other_keys_become_upper_case() {
    assert_eq!(env("/inject/my_var/x"), pairs(&[("MY_VAR", "x")]));
}

#[test]
fn values_may_contain_slashes() {
    assert_eq!(env("/inject/a/x--slash--y"), pairs(&[("A", "x/y")]));
    assert_eq!(env("/inject/:ENV:a=/x/y"), pairs(&[("A", "/x/y")]));
    assert_eq!(env("/inject/:ENV:a=b=c"), pairs(&[("A", "b=c")]));
}

#[test]
fn ignored_parts_are_reported() {
    let (env, warnings) = parse_inject_path("/inject/cluster/c1/net");
    assert_eq!(env.len(), 1);
    assert_eq!(warnings, ["the parameter `net` of the URL is ignored: it has no value"]);
    let (env, warnings) = parse_inject_path("/inject/:ENV:=x:ENV:y");
    assert_eq!(env.len(), 0);
    assert_eq!(warnings.len(), 2);
    let (env, warnings) = parse_inject_path("/inject//x/net/n");
    assert_eq!(env.len(), 1);
    assert_eq!(warnings, ["a parameter without a name in the URL is ignored"]);
}

#[test]
fn path_without_parameters_has_no_warnings() {
    for path in ["", "/", "/inject", "/inject/"] {
        assert_eq!(parse_inject_path(path), (BTreeMap::new(), Vec::new()), "{path}");
    }
}

#[test]
fn matches_the_conformance_cases() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance/inject/cases.json");
    let Ok(text) = std::fs::read_to_string(file) else {
        return weir_lab::skip_or_fail(format_args!("no conformance data at {file}"));
    };
    let cases: Value = serde_json::from_str(&text).unwrap();
    let cases = cases["stringCases"]["parseInjectPath"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let path = case[0].as_str().unwrap();
        assert_eq!(serde_json::to_value(parse_inject_path(path).0).unwrap(), case[1], "{path}");
    }
}
