//! Environment of the proxy that the webhook's URL asks for: one injector serves several clusters and networks by it.

use std::collections::BTreeMap;

/// Reads the parameters of `/inject/<key>/<value>/<key>/<value>...` (or of the older `/inject/:ENV:<key>=<value>:ENV:...`,
/// in which values may contain slashes).
///
/// `cluster` and `net` stand for `ISTIO_META_CLUSTER_ID` and `ISTIO_META_NETWORK`; any other key is the name of a variable
/// in upper case. `--slash--` in a value stands for a slash. Of two equal keys the last counts. Gives back the variables
/// and a warning for every part that means nothing.
pub fn parse_inject_path(path: &str) -> (BTreeMap<String, String>, Vec<String>) {
    let mut env = BTreeMap::new();
    let mut warnings = Vec::new();
    let path = path.strip_suffix('/').unwrap_or(path);
    let rest = path.strip_prefix("/inject").unwrap_or(path);
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    if rest.is_empty() {
        return (env, warnings);
    }
    if rest.starts_with(LEGACY) {
        for pair in rest.split(LEGACY).filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some((name, value)) if !name.is_empty() => {
                    env.insert(variable(name), value.to_owned());
                }
                _ => warnings.push(format!("`{pair}` in the URL is ignored: it is no `name=value`")),
            }
        }
        return (env, warnings);
    }
    let mut parts = rest.split('/');
    while let Some(key) = parts.next() {
        match parts.next() {
            Some(_) if key.is_empty() => warnings.push("a parameter without a name in the URL is ignored".to_owned()),
            Some(value) => {
                env.insert(variable(key), value.replace("--slash--", "/"));
            }
            None => warnings.push(format!("the parameter `{key}` of the URL is ignored: it has no value")),
        }
    }
    (env, warnings)
}

const LEGACY: &str = ":ENV:";

fn variable(key: &str) -> String {
    match key {
        "cluster" => "ISTIO_META_CLUSTER_ID".to_owned(),
        "net" => "ISTIO_META_NETWORK".to_owned(),
        other => other.to_uppercase(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn env(path: &str) -> Vec<(String, String)> {
        parse_inject_path(path).0.into_iter().collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn cluster_and_network_have_names_of_their_own() {
        let expected = pairs(&[("ISTIO_META_CLUSTER_ID", "c1"), ("ISTIO_META_NETWORK", "n1")]);
        assert_eq!(env("/inject/cluster/c1/net/n1"), expected);
        assert_eq!(env("/inject/cluster/c1/net/n1/"), expected);
        assert_eq!(env("/inject/:ENV:cluster=c1:ENV:net=n1"), expected);
    }

    #[test]
    fn other_keys_are_variables_in_upper_case() {
        assert_eq!(env("/inject/my_var/x"), pairs(&[("MY_VAR", "x")]));
    }

    #[test]
    fn a_slash_can_be_written_in_both_forms() {
        assert_eq!(env("/inject/a/x--slash--y"), pairs(&[("A", "x/y")]));
        assert_eq!(env("/inject/:ENV:a=/x/y"), pairs(&[("A", "/x/y")]));
        assert_eq!(env("/inject/:ENV:a=b=c"), pairs(&[("A", "b=c")]));
    }

    #[test]
    fn what_means_nothing_is_named_in_a_warning() {
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
    fn no_parameters_are_no_warning() {
        for path in ["", "/", "/inject", "/inject/"] {
            assert_eq!(parse_inject_path(path), (BTreeMap::new(), Vec::new()), "{path}");
        }
    }

    #[test]
    fn agrees_with_the_recorded_cases() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/conformance/inject/cases.json");
        let Ok(text) = std::fs::read_to_string(file) else {
            eprintln!("skipped: the conformance data is not here");
            return;
        };
        let cases: Value = serde_json::from_str(&text).unwrap();
        let cases = cases["stringCases"]["parseInjectPath"].as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let path = case[0].as_str().unwrap();
            assert_eq!(serde_json::to_value(parse_inject_path(path).0).unwrap(), case[1], "{path}");
        }
    }
}
