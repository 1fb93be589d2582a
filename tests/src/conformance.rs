//! Istio's own injector cases: the data that lie beside the project, and what two objects look alike in.
//!
//! The same cases are run through the library and through the binaries, so they are read and compared in one place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Templates that cases bring along by name only; the texts are ours and mean what the expected outputs show.
const EXTRA_TEMPLATES: [(&str, &str); 2] =
    [("custom", include_str!("conformance/custom.gotmpl")), ("spire", include_str!("conformance/spire.gotmpl"))];

/// Cases whose expected output holds a defect, with what is done instead.
pub const BETTER: [(&str, &str); 5] = [
    ("cronjob.yaml.injected", "metadata goes to the template of the pod, not of the job, where no pod ever sees it"),
    ("cronjob-old-version.yaml.injected", "as cronjob.yaml.injected"),
    ("merge-probers.yaml.injected", "a stale proxy of a classic injection leaves nothing behind in a native one"),
    ("only-proxy-container.yaml.injected", "a pod never ends up without containers"),
    (
        "sidecar-spire.yaml.injected",
        "what a template says about the proxy reaches the proxy, also where that is an init container",
    ),
];

/// All cases and what they share.
#[derive(Debug)]
pub struct Suite {
    directory: PathBuf,
    /// What the cases share.
    pub harness: Harness,
    /// The cases.
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
struct File {
    harness: Harness,
    cases: Vec<Case>,
}

/// What the cases share.
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
    /// Whether the sidecar is native.
    pub native_sidecar: bool,
    /// `auto` where the nodes decide about that.
    pub native_sidecar_mode: String,
    /// Kubelets of the cluster.
    pub node_versions: Vec<String>,
    /// Compliance policy of the control plane; empty for none.
    #[serde(default)]
    pub compliance_policy: String,
    /// Kind of cluster; empty for any.
    #[serde(default)]
    pub platform: String,
    /// Part of the error that has to come, in lower case.
    #[serde(default)]
    pub expected_error: Option<String>,
    /// Part of what has to be said.
    #[serde(default)]
    pub expected_log: Option<String>,
    /// Whether the case means nothing for an admission.
    #[serde(default)]
    pub skip_webhook: bool,
    /// Whether the case means nothing for a file.
    #[serde(default)]
    pub skip_kube_inject: bool,
    /// Templates that the case brings along.
    #[serde(default)]
    pub extra_templates: Vec<String>,
}

impl Case {
    /// Its name: the file in `want`, or the input where an error is expected.
    pub fn name(&self) -> &str {
        self.want.as_deref().unwrap_or(&self.input)
    }

    /// Whether the expected output is met as it is; else the case is on the list above.
    pub fn is_met(&self) -> bool {
        !BETTER.iter().any(|(name, _)| *name == self.name())
    }
}

impl Suite {
    /// The data, or a printed note that they are absent.
    ///
    /// # Panics
    /// Where they are there in another form.
    pub fn load() -> Option<Self> {
        let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/conformance/inject");
        let Ok(text) = std::fs::read_to_string(directory.join("cases.json")) else {
            eprintln!("skipped: no conformance data at {}", directory.display());
            return None;
        };
        let File { harness, cases } =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("cases.json has another form: {error}"));
        Some(Self { directory, harness, cases })
    }

    /// Values document of a case, with the templates that it brings along.
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

    /// Mesh document of a case.
    pub fn mesh(&self, case: &Case) -> Value {
        patched(&self.harness.mesh_config, &case.mesh_patch)
    }

    /// Path of a file in `input` or `want`.
    pub fn path(&self, folder: &str, file: &str) -> PathBuf {
        self.directory.join(folder).join(file)
    }

    /// Text of a file in `input` or `want`.
    ///
    /// # Panics
    /// Where it cannot be read.
    pub fn text(&self, folder: &str, file: &str) -> String {
        let path = self.path(folder, file);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

fn patched(document: &Value, patch: &Value) -> Value {
    let mut document = document.clone();
    json_patch::merge(&mut document, patch);
    document
}

/// Texts of the documents of a stream, those of comments only left out.
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

/// An object without what Kubernetes' typed writers add or drop, quantities as numbers, embedded JSON parsed. Order of lists counts.
/// Of a List, every item by itself.
///
/// # Panics
/// Where an annotation or variable that has to be JSON is none.
pub fn normalised(mut object: Value) -> Value {
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
    normalise(&mut object, "");
    match items {
        Some(Value::Array(items)) => object["items"] = items.into_iter().map(normalised).collect(),
        Some(other) => object["items"] = other,
        None => {}
    }
    object
}

fn normalise(value: &mut Value, parent: &str) {
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
                // What we add to Istio's.
                object.retain(|key, _| !key.starts_with("weir.dev/"));
            }
            for (key, value) in &mut *object {
                if ["limits", "requests"].contains(&parent)
                    && let Some(number) = quantity(value)
                {
                    *value = json!(number);
                }
                normalise(value, key);
            }
            object.retain(|key, value| {
                let zero = key == "initialDelaySeconds" && *value == json!(0);
                !(zero || key == "creationTimestamp" || is_empty(value))
            });
            object.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(|item| normalise(item, parent)),
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
        *value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{key} is no JSON ({error}): {text}"));
    }
}

/// Kubernetes' quantities as far as the cases have them.
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

/// The lines in which two objects differ, with a few before them; `None` where they are equal.
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
    fn objects_that_mean_the_same_are_alike() {
        let a = json!({"status": {}, "metadata": {"creationTimestamp": null, "annotations": {"sidecar.istio.io/status": "{\"a\": 1}"}},
            "spec": {"resources": {"limits": {"cpu": "2000m", "memory": "1Gi"}}, "volumes": []}});
        let b = json!({"spec": {"resources": {"limits": {"memory": "1024Mi", "cpu": 2}}},
            "metadata": {"annotations": {"weir.dev/capture": "x", "sidecar.istio.io/status": "{\"a\":1}"}}});
        assert_eq!(difference(&normalised(a), &normalised(b)), None);
    }

    #[test]
    fn what_differs_is_shown() {
        let (a, b) = (json!({"args": ["x", "y"], "z": 1}), json!({"args": ["y", "x"], "z": 1}));
        let shown = difference(&normalised(a), &normalised(b)).expect("order of lists counts");
        assert!(shown.contains("-    \"y\",\n") && shown.contains("+    \"x\",\n"), "{shown}");
        assert!(!shown.contains("\"z\": 1\n  -"), "{shown}");
    }

    #[test]
    fn a_stream_is_split_and_comments_alone_are_left_out() {
        assert_eq!(documents("# head\n---\na: 1\n---\nb: 1\n---\n"), ["a: 1\n", "b: 1\n"]);
    }
}
