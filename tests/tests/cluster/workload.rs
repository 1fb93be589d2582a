//! What controllers do: pods of Deployments, tried until they are stored.

use serde_json::{Value, json};

use super::cluster::{Cluster, Said, until};

/// A small pod.
pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
    })
}

/// Whether a pod has the sidecar, and says so.
pub(crate) fn injected(pod: &Value) -> bool {
    let has = |list: &str| {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.into_iter().any(|container| container["name"] == "istio-proxy")
    };
    let says = pod["metadata"]["annotations"].get("sidecar.istio.io/status").is_some();
    let found = has("containers") || has("initContainers");
    assert_eq!(found, says, "a pod that says one thing and is another: {pod}");
    found
}

/// The pod that the controllers of a Deployment make: by way of a ReplicaSet, with a name that the server completes.
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

/// Makes the pods of every Deployment of a namespace and tells the Deployments; what was said to the controllers.
pub(crate) fn roll_out(cluster: &Cluster, namespace: &str) -> Vec<Said> {
    let deployments = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let mut said = Vec::new();
    for deployment in cluster.get(&deployments).good()["items"].as_array().unwrap() {
        let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let pod = pod_of(deployment);
        for _ in 0..replicas {
            said.push(until("a pod is stored", || {
                let said = cluster.post(&format!("/api/v1/namespaces/{namespace}/pods"), &pod);
                if said.code == 201 { Ok(said) } else { Err(said.message().to_owned()) }
            }));
        }
        let generation = &deployment["metadata"]["generation"];
        let status = json!({"status": {
            "observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas,
            "availableReplicas": replicas,
        }});
        let name = deployment["metadata"]["name"].as_str().unwrap();
        cluster.merge(&format!("{deployments}/{name}/status"), &status).good();
    }
    said
}
