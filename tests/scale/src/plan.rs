//! Size of the cluster, and the objects in it.

use std::net::Ipv4Addr;

use serde::Serialize;
use serde_json::{Value, json};

/// Pods with the same owner.
const REPLICAS: usize = 10;
/// One namespace in so many is not opted in to injection.
const NOT_OPTED_IN: usize = 5;

/// Size of a run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Size {
    /// Nodes; the first ones have real agents.
    pub(crate) nodes: usize,
    /// Pods, spread over the nodes.
    pub(crate) pods: usize,
    /// Namespaces of the pods.
    pub(crate) namespaces: usize,
    /// Processes of the agent.
    pub(crate) agents: usize,
    /// Time for which the agents are observed while no pod changes, in seconds.
    pub(crate) idle_seconds: u64,
}

impl Size {
    /// Under a minute with unoptimized binaries.
    pub(crate) const SMALL: Self = Self { nodes: 50, pods: 1_000, namespaces: 10, agents: 2, idle_seconds: 10 };
    /// A large cluster.
    pub(crate) const FULL: Self = Self { nodes: 1_000, pods: 50_000, namespaces: 200, agents: 4, idle_seconds: 600 };

    /// Returns a pod by its number.
    pub(crate) fn pod(self, number: usize) -> PodSlot {
        // Shifted with each round over the nodes, so that a node has pods of both kinds of namespaces.
        let namespace = (number / REPLICAS + number / self.nodes) % self.namespaces;
        PodSlot { number, node: number % self.nodes, namespace }
    }
}

/// Returns the name of a node.
pub(crate) fn node_name(number: usize) -> String {
    format!("node-{number:05}")
}

/// Returns the address of a node.
pub(crate) fn node_ip(number: usize) -> Ipv4Addr {
    address(number / 250, number % 250 + 1)
}

/// Returns the address of a replica of the webhook.
pub(crate) fn replica_ip(number: usize) -> Ipv4Addr {
    address(254, number + 1)
}

fn address(third: usize, fourth: usize) -> Ipv4Addr {
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 77, byte(third), byte(fourth))
}

/// Returns the name of a namespace of pods.
pub(crate) fn namespace_name(number: usize) -> String {
    format!("team-{number:04}")
}

/// Returns whether pods of a namespace are to be injected.
pub(crate) fn is_opted_in(namespace: usize) -> bool {
    namespace % NOT_OPTED_IN != NOT_OPTED_IN - 1
}

/// Returns the namespace.
pub(crate) fn namespace(number: usize) -> Value {
    let labels = if is_opted_in(number) { json!({ "istio-injection": "enabled" }) } else { json!({}) };
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace_name(number), "labels": labels } })
}

/// Returns the node.
pub(crate) fn node(number: usize) -> Value {
    let labels = json!({ "kubernetes.io/os": "linux", "kubernetes.io/hostname": node_name(number) });
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node_name(number), "labels": labels } })
}

/// Returns the status of a node, about as large as a kubelet's with 40 images.
pub(crate) fn node_status(number: usize, heartbeat: &str) -> Value {
    let images: Vec<Value> = (0..40)
        .map(|n| json!({ "names": [format!("registry.example/team/image-{n}@sha256:{n:064}")], "sizeBytes": 1 << 28 }))
        .collect();
    json!({
        "addresses": [{ "type": "InternalIP", "address": node_ip(number) }],
        "capacity": { "cpu": "32", "memory": "128Gi", "pods": "110" },
        "allocatable": { "cpu": "32", "memory": "128Gi", "pods": "110" },
        "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": heartbeat }],
        "images": images,
        "nodeInfo": {
            "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.1.4", "kernelVersion": "6.12.0",
            "kubeProxyVersion": "", "kubeletVersion": "v1.34.0", "machineID": "m", "operatingSystem": "linux", "osImage": "Linux",
            "systemUUID": "s",
        },
    })
}

/// A pod before it is created.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodSlot {
    number: usize,
    /// Number of its node.
    pub(crate) node: usize,
    /// Number of its namespace.
    pub(crate) namespace: usize,
}

impl PodSlot {
    /// Returns the path of the pods of its namespace.
    pub(crate) fn collection(self) -> String {
        format!("/api/v1/namespaces/{}/pods", namespace_name(self.namespace))
    }

    /// Returns the name of a generation of the pod.
    pub(crate) fn name(self, generation: usize) -> String {
        format!("web-{:05}-{:02}-{generation}", self.number / REPLICAS, self.number % REPLICAS)
    }

    /// Returns the pod as a ReplicaSet creates it.
    pub(crate) fn object(self, generation: usize) -> Value {
        let owner = self.number / REPLICAS;
        let env: Vec<Value> =
            (0..10).map(|n| json!({ "name": format!("SETTING_{n}"), "value": format!("value {n}") })).collect();
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("web-{owner:05}"),
            "uid": format!("00000000-0000-4000-8000-{owner:012}"), "controller": true,
        });
        let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080 } });
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name(generation), "ownerReferences": [owner],
                "labels": { "app": "web", "version": "v1", "pod-template-hash": "6d4b75cb6d" },
            },
            "spec": { "containers": [{
                "name": "web", "image": "registry.example/shop/web:1", "env": env, "ports": [{ "containerPort": 8080 }],
                "readinessProbe": probe, "livenessProbe": probe,
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
            }] },
        })
    }

    /// Returns the status that a kubelet writes when all containers run.
    pub(crate) fn running(self, is_injected: bool, now: &str) -> Value {
        let status = |name: &str| {
            json!({
                "name": name, "ready": true, "started": true, "restartCount": 0, "image": "i", "imageID": "sha256:0",
                "containerID": format!("containerd://{:064x}", self.number), "state": { "running": { "startedAt": now } },
            })
        };
        let ip =
            Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + u32::try_from(self.number).unwrap_or_default());
        let (init, containers) = if is_injected {
            (vec![status("istio-validation"), status("istio-proxy")], vec![status("web")])
        } else {
            (Vec::new(), vec![status("web")])
        };
        let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": now });
        let conditions = ["Initialized", "ContainersReady", "Ready", "PodReadyToStartContainers"].map(condition);
        json!({
            "phase": "Running", "startTime": now, "hostIP": node_ip(self.node), "hostIPs": [{ "ip": node_ip(self.node) }],
            "podIP": ip, "podIPs": [{ "ip": ip }], "initContainerStatuses": init, "containerStatuses": containers,
            "conditions": conditions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_spread_over_nodes_and_namespaces() {
        let size = Size::SMALL;
        let pods: Vec<PodSlot> = (0..size.pods).map(|number| size.pod(number)).collect();
        assert!((0..size.nodes).all(|node| pods.iter().filter(|pod| pod.node == node).count() == 20));
        assert_eq!(pods.iter().filter(|pod| is_opted_in(pod.namespace)).count(), 800);
        let agents: std::collections::BTreeSet<bool> =
            pods.iter().filter(|pod| pod.node == 0).map(|pod| is_opted_in(pod.namespace)).collect();
        assert_eq!(agents.len(), 2, "each node has pods of both kinds");
    }

    #[test]
    fn addresses_of_nodes_are_distinct() {
        let all: std::collections::BTreeSet<Ipv4Addr> = (0..Size::FULL.nodes).map(node_ip).collect();
        assert_eq!(all.len(), Size::FULL.nodes);
        assert!(!all.contains(&replica_ip(0)));
    }
}
