//! What controllers do: they create the pods of Deployments, and retry until they are stored.

use serde_json::{Value, json};
use weir_tests::wait_until;

use super::api_server::{Cluster, Response};

/// Returns a small pod.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    })
}

/// Returns whether a pod has the sidecar, and the status annotation with it.
pub(crate) fn is_injected(pod: &Value) -> bool {
    let has = |list: &str| {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.into_iter().any(|container| container["name"] == "istio-proxy")
    };
    let has_status = pod["metadata"]["annotations"].get("sidecar.istio.io/status").is_some();
    let found = has("containers") || has("initContainers");
    assert_eq!(found, has_status, "sidecar and status annotation do not match: {pod}");
    found
}

/// Returns the pod of a Deployment, as the controller of its ReplicaSet creates it.
pub(crate) fn pod_of(deployment: &Value) -> Value {
    let name = deployment["metadata"]["name"].as_str().unwrap();
    let template = &deployment["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["generateName"] = format!("{name}-5d4f8c7b9-").into();
    metadata["labels"]["pod-template-hash"] = "5d4f8c7b9".into();
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-5d4f8c7b9"), "controller": true,
        "blockOwnerDeletion": true, "uid": "7d7a5a5e-0000-4000-8000-000000000000",
    }]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Makes the pods of every Deployment of a namespace and tells the Deployments; what was response to the controllers.
pub(crate) fn roll_out(cluster: &Cluster, namespace: &str) -> Vec<Response> {
    let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let mut responses = Vec::new();
    for deployment in cluster.get(&deployments).expect_ok()["items"].as_array().unwrap() {
        let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let pod = pod_of(deployment);
        for _ in 0..replicas {
            responses.push(wait_until("a pod is stored", || {
                let response = cluster.post(&format!("/api/v1/namespaces/{namespace}/pods"), &pod);
                if response.code == 201 { Ok(response) } else { Err(response.message().to_owned()) }
            }));
        }
        let generation = &deployment["metadata"]["generation"];
        let status = json!({"status": {
            "observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas,
            "availableReplicas": replicas,
        }});
        let name = deployment["metadata"]["name"].as_str().unwrap();
        cluster.merge_patch(&format!("{deployments}/{name}/status"), &status).expect_ok();
    }
    responses
}
