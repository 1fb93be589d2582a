//! Differences between two injected pods: what an injection writes, without the defaults of the API server that a running pod has.

use std::collections::BTreeMap;

use iptables_rules::names::annotation;
use serde_json::Value;
use weir_injector::quantity::Quantity;

use crate::rules::subject::PROXY;

/// Limit of a value in a text, in characters.
const MAX_VALUE: usize = 60;
/// Containers that an injection adds.
const INJECTED: [&str; 4] = [PROXY, "istio-init", "istio-validation", "enable-core-dump"];
/// Volumes of the API server, of which every pod has another one.
const TOKEN_VOLUME: &str = "kube-api-access-";
/// Place of their mount.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Annotations that every injection and every restart writes anew.
const VOLATILE: [&str; 2] = [annotation::STATUS, "kubectl.kubernetes.io/restartedAt"];
/// Annotation with what the injection has replaced; two planned pods of one manifest differ in it as they differ elsewhere.
const ORIGINAL: &str = "weir.dev/original";
/// Fields of a container that are compared as a whole.
const WHOLE_FIELDS: [&str; 9] = [
    "image",
    "args",
    "command",
    "resources",
    "securityContext",
    "lifecycle",
    "startupProbe",
    "readinessProbe",
    "restartPolicy",
];

/// Origin of the old pod, which decides what an absent field of the new one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldPod {
    /// Nothing: it is injected for the comparison.
    Planned,
    /// Defaults of the API server: it runs.
    Running,
}

impl OldPod {
    /// Returns whether a value of the old pod is that of the new one.
    fn is_same(self, now: &Value, then: &Value) -> bool {
        covers(now, then) && (self == Self::Running || covers(then, now))
    }
}

/// Returns the differences of an old pod to a new one; one line each, grouped by what differs.
pub(crate) fn changes(now: &Value, then: &Value, old: OldPod) -> Vec<String> {
    let mut lines = Vec::new();
    for name in INJECTED {
        match (find(now, name), find(then, name)) {
            (Some((_, _)), None) => lines.push(format!("container {name}: removed")),
            (None, Some((_, _))) => lines.push(format!("container {name}: added")),
            (Some((list, now)), Some((new_list, then))) => {
                if list != new_list {
                    let kind = if new_list == "initContainers" { "native sidecar" } else { "ordinary container" };
                    lines.push(format!("container {name}: becomes a {kind}"));
                }
                container(name, now, then, old, &mut lines);
            }
            (None, None) => {}
        }
    }
    let volumes = |pod: &Value| keyed(&pod["spec"]["volumes"], |volume| text(volume, "name"));
    named("volume", &volumes(now), &volumes(then), old, &mut lines, is_token);
    for kind in ["label", "annotation"] {
        let map = |pod: &Value| {
            let map = pod["metadata"][format!("{kind}s")].as_object();
            map.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect::<BTreeMap<_, _>>()
        };
        // A controller adds labels to pods, and CNI plugins and others annotations: only what an injection writes counts.
        let ours = |key: &str| {
            kind == "label" && !key.contains("istio.io")
                || VOLATILE.contains(&key)
                || old == OldPod::Planned && key == ORIGINAL
                || !is_mesh_key(key)
        };
        named(kind, &map(now), &map(then), old, &mut lines, ours);
    }
    lines
}

fn is_mesh_key(key: &str) -> bool {
    ["istio.io", "weir.dev", "prometheus.io"].iter().any(|part| key.contains(part))
}

fn is_token(name: &str) -> bool {
    name.starts_with(TOKEN_VOLUME) || name == TOKEN_PATH
}

fn find<'a>(pod: &'a Value, name: &str) -> Option<(&'static str, &'a Value)> {
    ["initContainers", "containers"].into_iter().find_map(|list| {
        let containers = pod["spec"][list].as_array()?;
        Some((list, containers.iter().find(|container| container["name"] == name)?))
    })
}

fn container(name: &str, now: &Value, then: &Value, old: OldPod, lines: &mut Vec<String>) {
    // Beside what an injection writes there are only defaults.
    let is_covered = |now: &Value, then: &Value| old.is_same(now, then) && (now.is_null() || !is_empty(then));
    for field in WHOLE_FIELDS {
        let (now, then) = (&now[field], &then[field]);
        let same = match field {
            "args" | "command" => equal(now, then),
            "resources" => is_covered(&amounts(now), &amounts(then)),
            _ => is_covered(now, then),
        };
        if !(same || is_empty(now) && is_empty(then)) {
            lines.push(format!("container {name}: {field}: {} -> {}", shown(now), shown(then)));
        }
    }
    for (what, key) in [("env", "name"), ("volumeMounts", "mountPath")] {
        let items = |container: &Value| keyed(&container[what], |item| text(item, key));
        named(&format!("container {name}: {what}"), &items(now), &items(then), old, lines, is_token);
    }
    let port = |item: &Value| format!("{}/{}", item["containerPort"], item["protocol"].as_str().unwrap_or("TCP"));
    let ports = |container: &Value| keyed(&container["ports"], |item| Some(port(item)));
    named(&format!("container {name}: port"), &ports(now), &ports(then), old, lines, |_| false);
}

fn text(item: &Value, key: &str) -> Option<String> {
    item[key].as_str().map(str::to_owned)
}

fn keyed(list: &Value, key: impl Fn(&Value) -> Option<String>) -> BTreeMap<String, Value> {
    list.as_array().into_iter().flatten().filter_map(|item| Some((key(item)?, item.clone()))).collect()
}

/// Compares named items.
fn named(
    what: &str,
    now: &BTreeMap<String, Value>,
    then: &BTreeMap<String, Value>,
    old: OldPod,
    lines: &mut Vec<String>,
    is_ignored: impl Fn(&str) -> bool,
) {
    for name in now.keys().filter(|name| !then.contains_key(*name) && !is_ignored(name)) {
        lines.push(format!("{what} {name}: removed"));
    }
    for (name, then) in then.iter().filter(|(name, _)| !is_ignored(name)) {
        match now.get(name) {
            None => lines.push(format!("{what} {name}: added")),
            Some(now) if old.is_same(now, then) => {}
            Some(now) => lines.push(format!("{what} {name}: {} -> {}", shown(value(now)), shown(value(then)))),
        }
    }
}

/// Returns the value of a variable, and other items as they are.
fn value(item: &Value) -> &Value {
    item.get("value").unwrap_or(item)
}

/// Returns whether `now` has everything of `then`, and beside it only members that the API server may have added.
fn covers(now: &Value, then: &Value) -> bool {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            then.iter().all(|(key, value)| now.get(key).map_or_else(|| is_empty(value), |now| covers(now, value)))
        }
        (Value::Array(now), Value::Array(then)) => {
            now.len() == then.len() && now.iter().zip(then).all(|(now, then)| covers(now, then))
        }
        _ => equal(now, then) || is_empty(now) && is_empty(then),
    }
}

/// Compares values; texts that hold JSON by what they mean.
fn equal(now: &Value, then: &Value) -> bool {
    let (Value::String(a), Value::String(b)) = (now, then) else { return now == then };
    if a.trim() == b.trim() {
        return true;
    }
    let json =
        |text: &str| serde_json::from_str::<Value>(text).ok().filter(|value| value.is_object() || value.is_array());
    matches!((json(a), json(b)), (Some(a), Some(b)) if a == b)
}

/// Returns resources with one spelling of every amount: the API server writes `2` for `2000m`, and `1Gi` for `1024Mi`.
fn amounts(resources: &Value) -> Value {
    match resources {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), amounts(value))).collect(),
        other => Quantity::of(other).map_or_else(|| other.clone(), |amount| format!("{amount:?}").into()),
    }
}

/// Returns whether a value is the zero value of its type, which the API server leaves out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_u64() == Some(0),
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => return "none".to_owned(),
        Value::String(text) => format!("{:?}", text.trim()),
        other => other.to_string(),
    };
    if text.chars().count() <= MAX_VALUE {
        return text;
    }
    text.chars().take(MAX_VALUE).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "metadata": {"labels": {"app": "web", "istio.io/rev": "default"}, "annotations": {annotation::STATUS: "{}"}},
            "spec": {
                "initContainers": [{"name": "istio-init", "args": ["istio-iptables"]}],
                "containers": [
                    {"name": "app", "image": "nginx"},
                    {"name": "istio-proxy", "image": "proxyv2:1", "args": ["proxy", "sidecar"],
                        "env": [{"name": "A", "value": "{}\n"}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                        "ports": [{"containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP"}],
                        "securityContext": {"runAsUser": 1337}},
                ],
                "volumes": [{"name": "istio-data", "emptyDir": {}}],
            },
        })
    }

    #[test]
    fn defaults_of_the_api_server_are_no_difference() {
        let mut then = pod();
        let then_proxy = &mut then["spec"]["containers"][1];
        let mut now = pod();
        now["metadata"]["labels"]["pod-template-hash"] = "abc".into();
        now["metadata"]["annotations"]["cni.projectcalico.org/podIP"] = "10.0.0.1/32".into();
        now["spec"]["volumes"].as_array_mut().unwrap().push(json!({"name": "kube-api-access-x7x7x", "projected": {}}));
        let proxy = &mut now["spec"]["containers"][1];
        proxy["terminationMessagePath"] = "/dev/termination-log".into();
        proxy["env"][0]["value"] = "{}".into();
        then_proxy["resources"] = json!({"limits": {"cpu": "2000m", "memory": "1024Mi"}});
        proxy["resources"] = json!({"limits": {"cpu": "2", "memory": "1Gi"}});
        then_proxy["readinessProbe"] =
            json!({"httpGet": {"path": "/healthz/ready", "port": 15021}, "initialDelaySeconds": 0});
        proxy["readinessProbe"] =
            json!({"httpGet": {"path": "/healthz/ready", "port": 15021, "scheme": "HTTP"}, "timeoutSeconds": 3});
        proxy["env"][1]["valueFrom"]["fieldRef"]["apiVersion"] = "v1".into();
        proxy["volumeMounts"] = json!([{"name": "kube-api-access-x7x7x", "mountPath": TOKEN_PATH}]);
        assert_eq!(changes(&now, &then, OldPod::Running), [""; 0]);
    }

    #[test]
    fn differences_of_the_sidecar_are_listed() {
        let now = pod();
        let mut then = pod();
        then["metadata"]["labels"]["istio.io/rev"] = "weir".into();
        then["metadata"]["annotations"]["weir.dev/capture"] = "{}".into();
        then["spec"]["initContainers"] = json!([{"name": "istio-validation"}]);
        let mut proxy = then["spec"]["containers"].as_array_mut().unwrap().remove(1);
        proxy["image"] = "proxyv2:2".into();
        proxy["args"] = json!(["proxy", "sidecar", "--log_as_json"]);
        proxy["env"] = json!([{"name": "A", "value": "{\"a\": 1}"}, {"name": "B", "value": "1"}]);
        proxy["ports"] = json!([]);
        then["spec"]["initContainers"].as_array_mut().unwrap().push(proxy);
        insta::assert_snapshot!(changes(&now, &then, OldPod::Running).join("\n"), @r#"
        container istio-proxy: becomes a native sidecar
        container istio-proxy: image: "proxyv2:1" -> "proxyv2:2"
        container istio-proxy: args: ["proxy","sidecar"] -> ["proxy","sidecar","--log_as_json"]
        container istio-proxy: env POD: removed
        container istio-proxy: env A: "{}" -> "{\"a\": 1}"
        container istio-proxy: env B: added
        container istio-proxy: port 15090/TCP: removed
        container istio-init: removed
        container istio-validation: added
        label istio.io/rev: "default" -> "weir"
        annotation weir.dev/capture: added
        "#);
    }
}
