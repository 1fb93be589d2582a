//! A cluster as it was at one moment, in plain values. What could not be read is `None`, and said in `unread`.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};
use weir_injector::inject::finish::status::{InjectionStatus, STATUS};

/// The namespaces of an installation.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// Of the webhook.
    pub(crate) weir: String,
    /// Of the agents.
    pub(crate) node: String,
    /// Of the control plane.
    pub(crate) istio: String,
}

/// Everything that is judged.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Where things are.
    pub(crate) places: Places,
    /// Seconds since 1970.
    pub(crate) now: i64,
    /// The revision that is to be installed, for a check before an installation.
    pub(crate) before: Option<String>,
    /// `GET /version`.
    pub(crate) version: Value,
    /// What could not be read, and why.
    pub(crate) unread: Vec<Unread>,
    /// MutatingWebhookConfigurations, of anybody.
    pub(crate) configurations: Option<Vec<Value>>,
    /// Namespaces.
    pub(crate) namespaces: Option<Vec<Value>>,
    /// Nodes, without their images.
    pub(crate) nodes: Option<Vec<Value>>,
    /// ProxyConfig resources.
    pub(crate) proxy_configs: Option<Vec<Value>>,
    /// Services of the control plane's namespace.
    pub(crate) istio_services: Option<Vec<Value>>,
    /// What is in the namespace of the webhook.
    pub(crate) weir: Home,
    /// What is in the namespace of the agents.
    pub(crate) node: Home,
    /// ConfigMaps of the two namespaces of webhook and control plane that hold configuration.
    pub(crate) config_maps: Option<Vec<Value>>,
    /// Secrets of the webhook.
    pub(crate) secrets: Option<Vec<Value>>,
    /// What the service accounts of webhook and agent may do.
    pub(crate) rights: Option<Vec<Right>>,
    /// Workloads with a label about injection, or that get no pods.
    pub(crate) workloads: Option<Vec<Value>>,
    /// Events about pods that were refused.
    pub(crate) refusals: Option<Vec<Value>>,
    /// Pods that have to do with the mesh.
    pub(crate) pods: Option<Vec<Pod>>,
    /// What the pods of webhook and agents say of themselves, by name of the pod.
    pub(crate) reports: BTreeMap<String, Report>,
    /// What came of pods that were created on trial.
    pub(crate) probes: Vec<Probe>,
    /// What the user may not do of what an installation needs.
    pub(crate) denied: Vec<String>,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unread {
    /// What: `pods of all namespaces`.
    pub(crate) what: String,
    /// The API server's reason.
    pub(crate) why: String,
}

/// A namespace of ours.
#[derive(Debug, Default)]
pub(crate) struct Home {
    /// Deployments, or DaemonSets.
    pub(crate) controllers: Option<Vec<Value>>,
    /// Pods.
    pub(crate) pods: Option<Vec<Value>>,
    /// Services.
    pub(crate) services: Option<Vec<Value>>,
    /// EndpointSlices.
    pub(crate) slices: Option<Vec<Value>>,
    /// NetworkPolicies.
    pub(crate) policies: Option<Vec<Value>>,
    /// PodDisruptionBudgets.
    pub(crate) budgets: Option<Vec<Value>>,
}

/// A rule of RBAC that holds for a service account.
#[derive(Debug, Clone)]
pub(crate) struct Right {
    /// `NAMESPACE/NAME` of the service account; `*` for all.
    pub(crate) account: String,
    /// Where it holds; `None` for everywhere.
    pub(crate) namespace: Option<String>,
    /// The rule as a Role has it.
    pub(crate) rule: Value,
}

/// A pod that has to do with the mesh, and how many more there are like it.
#[derive(Debug)]
pub(crate) struct Pod {
    /// What decides about it.
    pub(crate) slim: Value,
    /// All of it, where it carries a recorded sidecar.
    pub(crate) whole: Option<Box<str>>,
    /// Further pods of the same owner with the same sidecar.
    pub(crate) alike: usize,
}

/// What a pod of ours says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// `/readyz`.
    pub(crate) ready: Option<String>,
    /// `/metrics`.
    pub(crate) metrics: Option<String>,
}

/// A pod that was created on trial, for one revision.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// For which.
    pub(crate) revision: String,
    /// Where.
    pub(crate) namespace: String,
    /// Status of the answer.
    pub(crate) code: u16,
    /// The pod, or the API server's message.
    pub(crate) answer: Value,
}

/// Which pods are kept.
#[derive(Debug)]
pub(crate) struct Interest {
    /// Namespaces whose pods may be injected without saying anything; `None` for all.
    pub(crate) namespaces: Option<std::collections::HashSet<String>>,
}

/// Annotations of a pod that decide or tell something about it.
const ANNOTATIONS: [&str; 4] = ["sidecar.istio.io/inject", "kubernetes.io/config.mirror", STATUS, "weir.dev/capture"];
/// Labels about injection.
const LABELS: [&str; 3] = ["sidecar.istio.io/inject", "istio.io/rev", "istio-injection"];

/// Keeps pods page by page: of pods with the same owner and the same sidecar one, and the number of the others.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    kept: Vec<Pod>,
    places: HashMap<(String, String), usize>,
}

impl Keeper {
    /// Looks at one pod.
    pub(crate) fn look(&mut self, pod: &Value, interest: &Interest) {
        let metadata = &pod["metadata"];
        let spec = &pod["spec"];
        let namespace = metadata["namespace"].as_str().unwrap_or_default();
        let over = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if over || !metadata["deletionTimestamp"].is_null() {
            return;
        }
        let about = |map: &str, keys: &[&str]| keys.iter().any(|key| metadata[map].get(*key).is_some());
        let asked = interest.namespaces.as_ref().is_none_or(|names| names.contains(namespace));
        if !asked && !about("labels", &LABELS) && !about("annotations", &ANNOTATIONS) {
            return;
        }
        let annotations = || -> Map<String, Value> {
            let all = metadata["annotations"].as_object();
            let kept = all.into_iter().flatten().filter(|(key, _)| ANNOTATIONS.contains(&key.as_str()));
            kept.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let containers = |list: &str| -> Vec<Value> {
            let all = spec[list].as_array().map_or(&[][..], Vec::as_slice);
            all.iter().map(slim_container).collect()
        };
        let slim = json!({
            "metadata": {
                "namespace": namespace, "name": metadata["name"], "labels": metadata["labels"], "annotations": annotations(),
                "creationTimestamp": metadata["creationTimestamp"], "ownerReferences": metadata["ownerReferences"],
            },
            "spec": {
                "hostNetwork": spec["hostNetwork"], "os": spec["os"], "nodeSelector": spec["nodeSelector"],
                "nodeName": spec["nodeName"],
                "containers": containers("containers"), "initContainers": containers("initContainers"),
            },
        });
        let owner = metadata["ownerReferences"][0]["uid"].as_str().or(metadata["name"].as_str()).unwrap_or_default();
        let kind = json!([
            slim["metadata"]["labels"],
            slim["metadata"]["annotations"],
            slim["spec"]["containers"],
            slim["spec"]["initContainers"],
            spec["hostNetwork"]
        ]);
        match self.places.entry((format!("{namespace}/{owner}"), kind.to_string())) {
            std::collections::hash_map::Entry::Occupied(found) => self.kept[*found.get()].alike += 1,
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(self.kept.len());
                let whole = InjectionStatus::of_pod(pod).map(|_| whole(pod));
                self.kept.push(Pod { slim, whole, alike: 0 });
            }
        }
    }

    /// What was kept.
    pub(crate) fn into_pods(self) -> Vec<Pod> {
        self.kept
    }
}

/// What tells one sidecar from another.
fn slim_container(container: &Value) -> Value {
    let mut slim = json!({"name": container["name"], "image": container["image"]});
    // The variables that an injector computes tell a sidecar that nobody recorded.
    if container["name"] == "istio-proxy" {
        let env = container["env"].as_array().map_or(&[][..], Vec::as_slice);
        let names = ["PROXY_CONFIG", "ISTIO_META_POD_PORTS"];
        let found = env.iter().filter(|variable| names.iter().any(|name| variable["name"] == *name));
        slim["env"] = found.cloned().collect();
    }
    if container["name"] == "istio-init" || container["name"] == "istio-validation" {
        slim["args"] = json!([container["args"][0]]);
    }
    slim
}

/// A pod as text, without what the cluster says about it.
fn whole(pod: &Value) -> Box<str> {
    let mut pod = pod.clone();
    if let Some(object) = pod.as_object_mut() {
        object.remove("status");
    }
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    pod.to_string().into_boxed_str()
}
