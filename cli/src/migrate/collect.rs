//! Reads the objects of a cluster that a migration concerns.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde_json::Value;

use super::inventory::{INJECTOR_MAP, Objects};
use super::object::{name, namespace};
use crate::agent;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::objects::{
    CONFIG_MAP, CONFIGURATION, CRON_JOB, DAEMON_SET, DEPLOYMENT, JOB, NAMESPACE, NODE, ObjectRef, POD, PROXY_CONFIG,
    SERVICE, STATEFUL_SET,
};

/// The cluster's DNS.
const DNS: (&str, &str) = ("kube-system", "kube-dns");

/// Reads everything; workloads and pods of these namespaces only, if any.
///
/// # Errors
/// The cluster rejects a request.
pub(super) async fn objects(cluster: &Cluster, istio: &str, namespaces: &[String]) -> Result<Objects, Failure> {
    let mut objects = Objects {
        namespaces: cluster.objects(NAMESPACE, "", "").await?,
        configurations: cluster.objects(CONFIGURATION, "", "").await?,
        nodes: cluster.objects(NODE, "", "").await?,
        proxy_configs: cluster.objects(PROXY_CONFIG, "", "").await?,
        ..Objects::default()
    };
    let missing: Vec<String> = namespaces
        .iter()
        .filter(|wanted| objects.namespaces.iter().all(|found| name(found) != wanted.as_str()))
        .map(|wanted| format!("{}: namespace {wanted} not found", cluster.server))
        .collect();
    if !missing.is_empty() {
        return Err(Failure::findings(missing));
    }
    let maps = cluster.objects(CONFIG_MAP, istio, "").await?;
    objects.config_maps =
        maps.into_iter().filter(|map| name(map).starts_with(INJECTOR_MAP) || name(map).starts_with("istio")).collect();
    let dns = cluster.object(&ObjectRef::new(SERVICE, DNS.0, DNS.1)).await.unwrap_or_default();
    objects.dns_servers = dns.as_ref().map(cluster_ips).unwrap_or_default();
    // Control planes and CNI plugins are read in any case.
    for (kind, labels) in [(DEPLOYMENT, "app=istiod"), (DAEMON_SET, "k8s-app=istio-cni-node")] {
        objects.controllers.extend(cluster.objects(kind, "", labels).await?);
    }
    let everywhere = [String::new()];
    for place in if namespaces.is_empty() { &everywhere[..] } else { namespaces } {
        for kind in [DEPLOYMENT, STATEFUL_SET, DAEMON_SET, JOB, CRON_JOB] {
            objects.controllers.extend(cluster.objects(kind, place, "").await?);
        }
        objects.pods.extend(cluster.objects(POD, place, "").await?);
    }
    // What ends with its namespace does not move.
    let is_ending = |namespace: &Value| !namespace["metadata"]["deletionTimestamp"].is_null();
    let ending: HashSet<String> =
        objects.namespaces.iter().filter(|found| is_ending(found)).map(|found| name(found).to_owned()).collect();
    objects.namespaces.retain(|found| !is_ending(found));
    objects.pods.retain(|pod| !ending.contains(namespace(pod)));
    let mut seen = HashSet::new();
    objects.controllers.retain(|object| {
        let metadata = &object["metadata"];
        !ending.contains(namespace(object))
            && seen.insert(format!("{} {} {}", object["kind"], metadata["namespace"], metadata["name"]))
    });
    Ok(objects)
}

fn cluster_ips(service: &Value) -> Vec<IpAddr> {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let one = service.pointer("/spec/clusterIP").into_iter();
    let all = list.map_or_else(|| one.cloned().collect(), Clone::clone);
    all.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// Returns the states of pods by `NAMESPACE/NAME`, as the agents of all nodes report them.
///
/// # Errors
/// No agent runs, or one does not answer.
pub(super) async fn live(cluster: &Cluster, node_namespace: &str) -> Result<HashMap<String, String>, Failure> {
    let answers = agent::ask(cluster, node_namespace, None).await?;
    let pods = answers.into_iter().flat_map(|(answer, _)| answer.pods);
    Ok(pods.map(|pod| (format!("{}/{}", pod.namespace, pod.name), pod.state)).collect())
}
