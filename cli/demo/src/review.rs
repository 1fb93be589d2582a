//! The review of one pod and the patch of the answer, as pure functions on JSON.

use anyhow::Context as _;
use base64::Engine as _;
use serde::Serialize;
use serde_json::{Map, Value, json};
use weir_lab::User;

/// The manifest that is injected.
pub(crate) const MANIFEST: &str = include_str!("../../../manifests/examples/nginx.yaml");
pub(crate) const MANIFEST_PATH: &str = "manifests/examples/nginx.yaml";

/// Suffix that the Deployment controller adds to the names of ReplicaSets.
const TEMPLATE_HASH: &str = "5d8c7b9f6c";

/// The pod to be injected, with the facts that the demo needs.
#[derive(Debug)]
pub(crate) struct PodUnderTest {
    pub(crate) deployment: String,
    pub(crate) namespace: String,
    pub(crate) pod: Value,
    /// Name of its container.
    pub(crate) app: String,
    pub(crate) port: u16,
    pub(crate) user: User,
}

impl PodUnderTest {
    /// Creates the pod that controllers would create from a Deployment.
    pub(crate) fn from_deployment(manifest: &str) -> anyhow::Result<Self> {
        let deployment: Value = serde_saphyr::from_str(manifest)?;
        let text = |pointer: &str| {
            deployment
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .with_context(|| format!("the Deployment has no {pointer}"))
        };
        let (name, namespace) = (text("/metadata/name")?, text("/metadata/namespace")?);
        let container =
            deployment.pointer("/spec/template/spec/containers/0").context("the Deployment has no container")?;
        let number = |pointer: &str| {
            container
                .pointer(pointer)
                .and_then(Value::as_u64)
                .and_then(|number| u32::try_from(number).ok())
                .with_context(|| format!("the container has no {pointer}"))
        };
        let mut pod = deployment.pointer("/spec/template").cloned().context("the Deployment has no template")?;
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["generateName"] = json!(format!("{name}-{TEMPLATE_HASH}-"));
        pod["metadata"]["namespace"] = json!(namespace);
        pod["metadata"]["labels"]["pod-template-hash"] = json!(TEMPLATE_HASH);
        // The demo's sidecar accepts both families.
        pod["metadata"]["annotations"]["proxy.istio.io/config"] = "proxyMetadata: {ISTIO_DUAL_STACK: 'true'}".into();
        pod["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-{TEMPLATE_HASH}"),
            "uid": "5e8c1f0a-6d5b-4c39-9d0e-0d6a3a1c7f11", "controller": true, "blockOwnerDeletion": true,
        }]);
        Ok(Self {
            app: text("/spec/template/spec/containers/0/name")?,
            port: u16::try_from(number("/ports/0/containerPort")?)?,
            user: User { uid: number("/securityContext/runAsUser")?, gid: number("/securityContext/runAsGroup")? },
            deployment: name,
            namespace,
            pod,
        })
    }
}

/// Changes of the webhook's patch.
#[derive(Debug, Serialize)]
pub(crate) struct AppliedPatch {
    pub(crate) allowed: bool,
    pub(crate) warnings: Vec<String>,
    /// Operations of the JSON patch.
    pub(crate) operations: usize,
    /// Containers that the patch added, in the pod's order; native sidecars are marked.
    pub(crate) added_containers: Vec<String>,
    pub(crate) added_volumes: Vec<String>,
    /// Annotations that the patch added.
    pub(crate) added_annotations: Map<String, Value>,
    #[serde(skip)]
    pub(crate) pod: Value,
}

impl AppliedPatch {
    /// Parses the response and applies its patch, as the API server does.
    pub(crate) fn read(answer: &Value, uid: &Value, pod_under_test: &PodUnderTest) -> anyhow::Result<Self> {
        let response = &answer["response"];
        anyhow::ensure!(&response["uid"] == uid, "the response is for another request: {}", response["uid"]);
        anyhow::ensure!(response["allowed"] == true, "the webhook denied the pod: {}", response["status"]);
        let warnings = strings(&response["warnings"]);
        let patch = response["patch"]
            .as_str()
            .with_context(|| format!("the webhook skipped the pod: {}", warnings.join("; ")))?;
        let patch: json_patch::Patch =
            serde_json::from_slice(&base64::engine::general_purpose::STANDARD.decode(patch)?)?;
        let mut pod = pod_under_test.pod.clone();
        json_patch::patch(&mut pod, &patch).context("cannot apply the patch to the pod")?;

        let added = |list: &str| -> Vec<&Value> {
            let before = names(&pod_under_test.pod["spec"][list]);
            let after = pod["spec"][list].as_array().map(Vec::as_slice).unwrap_or_default();
            after.iter().filter(|item| !before.contains(&&item["name"])).collect()
        };
        let name = |item: &Value| item["name"].as_str().unwrap_or_default().to_owned();
        let containers = |list: &str, plain: &str| -> Vec<String> {
            let kind =
                |item: &Value| if item["restartPolicy"] == "Always" { "native sidecar" } else { plain }.to_owned();
            added(list).into_iter().map(|item| format!("{} ({})", name(item), kind(item))).collect()
        };
        let before = pod_under_test.pod.pointer("/metadata/annotations").and_then(Value::as_object);
        let after = pod.pointer("/metadata/annotations").and_then(Value::as_object).cloned().unwrap_or_default();
        Ok(Self {
            allowed: true,
            warnings,
            operations: patch.0.len(),
            added_containers: [containers("initContainers", "init container"), containers("containers", "container")]
                .concat(),
            added_volumes: added("volumes").into_iter().map(name).collect(),
            added_annotations: after
                .into_iter()
                .filter(|(key, _)| !before.is_some_and(|old| old.contains_key(key)))
                .collect(),
            pod,
        })
    }

    /// Returns all annotations of the patched pod, which a container runtime passes to CNI plugins.
    pub(crate) fn annotations(&self) -> Value {
        self.pod.pointer("/metadata/annotations").cloned().unwrap_or_else(|| json!({}))
    }

    /// Returns the user of the sidecar.
    pub(crate) fn sidecar_user(&self) -> anyhow::Result<User> {
        let lists = ["/spec/initContainers", "/spec/containers"];
        let sidecar = lists
            .iter()
            .filter_map(|list| self.pod.pointer(list)?.as_array())
            .flatten()
            .find(|container| container["name"] == "istio-proxy")
            .context("the patched pod has no container istio-proxy")?;
        let id = |field: &str| {
            let id = sidecar["securityContext"][field].as_u64().and_then(|id| u32::try_from(id).ok());
            id.with_context(|| format!("istio-proxy has no {field}"))
        };
        Ok(User { uid: id("runAsUser")?, gid: id("runAsGroup")? })
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn names(list: &Value) -> Vec<&Value> {
    list.as_array().into_iter().flatten().map(|item| &item["name"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(uid: u32, patch: &Value) -> Value {
        let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
        json!({ "response": { "uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": patch } })
    }

    #[test]
    fn deployment_becomes_a_pod_with_port_and_user() {
        let pod_under_test = PodUnderTest::from_deployment(MANIFEST).unwrap();
        assert_eq!(
            (pod_under_test.app.as_str(), pod_under_test.port, pod_under_test.user),
            ("nginx", 8080, User::with_id(1000))
        );
        assert_eq!(pod_under_test.pod["kind"], "Pod");
        assert_eq!(pod_under_test.pod["metadata"]["ownerReferences"][0]["name"], format!("nginx-{TEMPLATE_HASH}"));
    }

    #[test]
    fn additions_of_the_patch_are_listed() {
        let pod_under_test = PodUnderTest::from_deployment(MANIFEST).unwrap();
        let sidecar = json!({
            "name": "istio-proxy", "restartPolicy": "Always", "securityContext": { "runAsUser": 1337, "runAsGroup": 1337 },
        });
        let patch = json!([
            { "op": "add", "path": "/spec/initContainers", "value": [sidecar] },
            { "op": "add", "path": "/metadata/annotations", "value": { "a": "b" } },
        ]);
        let admission = AppliedPatch::read(&answer(1, &patch), &json!(1), &pod_under_test).unwrap();
        assert_eq!(admission.added_containers, ["istio-proxy (native sidecar)"]);
        assert_eq!(admission.annotations(), json!({ "a": "b" }));
        assert_eq!(admission.sidecar_user().unwrap(), User::PROXY);
    }

    #[test]
    fn other_uids_denials_and_skips_are_errors() {
        let pod_under_test = PodUnderTest::from_deployment(MANIFEST).unwrap();
        let wrong_uid = AppliedPatch::read(&answer(2, &json!([])), &json!(1), &pod_under_test).unwrap_err();
        assert!(wrong_uid.to_string().contains("another request"), "{wrong_uid}");
        let denied = json!({ "response": { "uid": 1, "allowed": false, "status": { "message": "no such port" } } });
        let denied = AppliedPatch::read(&denied, &json!(1), &pod_under_test).unwrap_err();
        assert!(denied.to_string().contains("no such port"), "{denied}");
        let skipped = json!({ "response": { "uid": 1, "allowed": true, "warnings": ["host network"] } });
        let skipped = AppliedPatch::read(&skipped, &json!(1), &pod_under_test).unwrap_err();
        assert!(skipped.to_string().contains("host network"), "{skipped}");
    }
}
