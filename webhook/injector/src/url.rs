//! Parses the proxy environment in the webhook's URL, by which one injector serves several clusters and networks.

use std::collections::BTreeMap;

/// Parses `/inject/<key>/<value>/<key>/<value>...`, or the older form `/inject/:ENV:<key>=<value>:ENV:...`, in which values
/// may contain slashes.
///
/// `cluster` and `net` stand for `ISTIO_META_CLUSTER_ID` and `ISTIO_META_NETWORK`; any other key is converted to upper case.
/// `--slash--` in a value stands for a slash. The last of equal keys wins. Returns the variables, and a warning for every
/// part that is ignored.
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
                _ => warnings.push(format!("`{pair}` in the URL is ignored: expected `name=value`")),
            }
        }
        return (env, warnings);
    }
    let mut segments = rest.split('/');
    while let Some(key) = segments.next() {
        match segments.next() {
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
mod tests;
