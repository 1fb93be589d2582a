//! Istio's own injector test cases, and the comparison of objects.
//!
//! The data is not part of this repository. The library and the binaries are both tested with it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Templates that cases refer to by name only. The texts are written to match the expected outputs.
const EXTRA_TEMPLATES: [(&str, &str); 2] =
    [("custom", include_str!("conformance/custom.gotmpl")), ("spire", include_str!("conformance/spire.gotmpl"))];

/// Cases whose expected output has a bug, with what Weir does instead.
pub const DEVIATIONS: [(&str, &str); 5] = [
    ("cronjob.yaml.injected", "metadata goes to the template of the pod, not of the job, where no pod ever sees it"),
    ("cronjob-old-version.yaml.injected", "as cronjob.yaml.injected"),
    ("merge-probers.yaml.injected", "a stale proxy of a classic injection leaves nothing behind in a native one"),
    ("only-proxy-container.yaml.injected", "a pod never ends up without containers"),
    (
        "sidecar-spire.yaml.injected",
        "what a template says about the proxy reaches the proxy, also where that is an init container",
    ),
];

/// All cases, with the settings they share.
#[derive(Debug)]
pub struct Suite {
    directory: PathBuf,
    /// Settings that the cases share.
    pub harness: Harness,
    /// The test cases.
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
struct File {
    harness: Harness,
    cases: Vec<Case>,
}

/// Settings that the cases share.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Harness {
    default_values: Value,
    mesh_config: Value,
    /// Annotations of the namespaces.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

/// One case.
#[derive(Debug, Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    /// File in `input`.
    pub input: String,
    want: Option<String>,
    values_patch: Value,
    mesh_patch: Value,
    /// Whether native sidecars are enabled.
    pub native_sidecar: bool,
    /// `auto` where the versions of the nodes decide.
    pub native_sidecar_mode: String,
    /// Kubelet versions of the cluster.
    pub node_versions: Vec<String>,
    /// Compliance policy of the control plane; empty for none.
    #[serde(default)]
    pub compliance_policy: String,
    /// Platform of the cluster; empty for any.
    #[serde(default)]
    pub platform: String,
    /// Part of the expected error, in lower case.
    #[serde(default)]
    pub expected_error: Option<String>,
    /// Part of an expected log message.
    #[serde(default)]
    pub expected_log: Option<String>,
    /// Whether the case does not apply to admission.
    #[serde(default)]
    pub skip_webhook: bool,
    /// Whether the case does not apply to `weir inject`.
    #[serde(default)]
    pub skip_kube_inject: bool,
    /// Further templates of the case.
    #[serde(default)]
    pub extra_templates: Vec<String>,
}

impl Case {
    /// Returns its name: the file in `want`, or the input where an error is expected.
    pub fn name(&self) -> &str {
        self.want.as_deref().unwrap_or(&self.input)
    }

    /// Returns whether the output must be the expected one; else the case is one of [`DEVIATIONS`].
    pub fn matches_upstream(&self) -> bool {
        !DEVIATIONS.iter().any(|(name, _)| *name == self.name())
    }
}

impl Suite {
    /// Reads the data; without it the test is [skipped](weir_lab::skip_or_fail).
    ///
    /// # Panics
    /// When the data has an unknown format.
    pub fn load() -> Option<Self> {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/inject");
        let Ok(text) = std::fs::read_to_string(directory.join("cases.json")) else {
            weir_lab::skip_or_fail(format_args!("no conformance data at {}", directory.display()));
            return None;
        };
        let File { harness, cases } =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("cannot parse cases.json: {error}"));
        Some(Self { directory, harness, cases })
    }

    /// Returns the values document of a case, with its further templates.
    pub fn values(&self, case: &Case) -> Value {
        let mut values = patched(&self.harness.default_values, &case.values_patch);
        for name in &case.extra_templates {
            let templates = &mut values["sidecarInjectorWebhook"]["templates"];
            if let (Some((_, text)), None) =
                (EXTRA_TEMPLATES.iter().find(|(known, _)| known == name), templates.get(name))
            {
                templates[name] = (*text).into();
            }
        }
        values
    }

    /// Returns the mesh document of a case.
    pub fn mesh(&self, case: &Case) -> Value {
        patched(&self.harness.mesh_config, &case.mesh_patch)
    }

    /// Returns the path of a file in `input` or `want`.
    pub fn path(&self, dir: &str, file: &str) -> PathBuf {
        self.directory.join(dir).join(file)
    }

    /// Reads a file in `input` or `want`.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn text(&self, dir: &str, file: &str) -> String {
        let path = self.path(dir, file);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn patched(document: &Value, patch: &Value) -> Value {
    let mut document = document.clone();
    json_patch::merge(&mut document, patch);
    document
}

/// Splits a YAML stream into documents, without those that have only comments.
pub fn documents(stream: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in stream.lines() {
        if line.starts_with("---") {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            *document += line;
            document.push('\n');
        }
    }
    documents.retain(|document| document.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')));
    documents
}

/// Returns an object without what Kubernetes' typed clients add or drop, with quantities as numbers and embedded JSON parsed. The order of
/// lists is kept. Items of a `List` are normalized one by one.
///
/// # Panics
/// When an annotation or variable that must be JSON is not.
pub fn normalized(mut object: Value) -> Value {
    let items = object.as_object_mut().and_then(|fields| fields.remove("items"));
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if fields.get("kind").is_some_and(|kind| kind == "DeploymentConfig")
            && let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut)
        {
            let zero = [("minReadySeconds", json!(0)), ("paused", json!(false)), ("test", json!(false))];
            spec.retain(|key, value| !zero.contains(&(key, value.clone())));
        }
    }
    normalize(&mut object, "");
    match items {
        Some(Value::Array(items)) => object["items"] = items.into_iter().map(normalized).collect(),
        Some(other) => object["items"] = other,
        None => {}
    }
    object
}

fn normalize(value: &mut Value, parent: &str) {
    match value {
        Value::Object(object) => {
            let variable = object.get("name").and_then(Value::as_str).unwrap_or_default();
            if parent == "env"
                && ["PROXY_CONFIG", "ISTIO_KUBE_APP_PROBERS", "ISTIO_PROMETHEUS_ANNOTATIONS"].contains(&variable)
            {
                parse_in_place(object, "value");
            }
            if parent == "annotations" {
                parse_in_place(object, "sidecar.istio.io/status");
                parse_in_place(object, "proxy.istio.io/overrides");
                // Annotations that Weir adds.
                object.retain(|key, _| !key.starts_with("weir.dev/"));
            }
            for (key, value) in &mut *object {
                if ["limits", "requests"].contains(&parent)
                    && let Some(number) = quantity(value)
                {
                    *value = json!(number);
                }
                normalize(value, key);
            }
            object.retain(|key, value| {
                let zero =
                    (key == "initialDelaySeconds" && *value == json!(0)) || (key == "divisor" && *value == json!("0"));
                !(zero || key == "creationTimestamp" || is_empty(value))
            });
            object.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(|item| normalize(item, parent)),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn parse_in_place(object: &mut Map<String, Value>, key: &str) {
    if let Some(value) = object.get_mut(key) {
        let text = value.as_str().unwrap_or_default();
        *value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{key} is not JSON ({error}): {text}"));
    }
}

/// Parses the kinds of Kubernetes quantities that the cases use.
fn quantity(value: &Value) -> Option<f64> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let scale = match &text[end..] {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    Some(text[..end].parse::<f64>().ok()? * scale)
}

/// Returns the lines in which two objects differ, with some context; `None` where they are equal.
pub fn difference(got: &Value, want: &Value) -> Option<String> {
    if got == want {
        return None;
    }
    let (got, want) = (format!("{got:#}"), format!("{want:#}"));
    let (want, got): (Vec<&str>, Vec<&str>) = (want.lines().collect(), got.lines().collect());
    let head = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let tail = want[head..].iter().rev().zip(got[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let show = |mark: &str, lines: &[&str]| {
        lines.iter().take(25).fold(String::new(), |text, line| text + "  " + mark + line + "\n")
    };
    let context = show(" ", &want[head.saturating_sub(4)..head]);
    Some(context + &show("-", &want[head..want.len() - tail]) + &show("+", &got[head..got.len() - tail]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_objects_are_equal_when_normalized() {
        let a = json!({"status": {}, "metadata": {"creationTimestamp": null, "annotations": {"sidecar.istio.io/status": "{\"a\": 1}"}},
            "spec": {"resources": {"limits": {"cpu": "2000m", "memory": "1Gi"}}, "volumes": []}});
        let b = json!({"spec": {"resources": {"limits": {"memory": "1024Mi", "cpu": 2}}},
            "metadata": {"annotations": {"weir.dev/capture": "x", "sidecar.istio.io/status": "{\"a\":1}"}}});
        assert_eq!(difference(&normalized(a), &normalized(b)), None);
    }

    #[test]
    fn difference_shows_changed_lines_only() {
        let (a, b) = (json!({"args": ["x", "y"], "z": 1}), json!({"args": ["y", "x"], "z": 1}));
        let shown = difference(&normalized(a), &normalized(b)).expect("order of lists counts");
        assert!(shown.contains("-    \"y\",\n") && shown.contains("+    \"x\",\n"), "{shown}");
        assert!(!shown.contains("\"z\": 1\n  -"), "{shown}");
    }

    #[test]
    fn documents_of_comments_only_are_left_out() {
        assert_eq!(documents("# head\n---\na: 1\n---\nb: 1\n---\n"), ["a: 1\n", "b: 1\n"]);
    }
}
