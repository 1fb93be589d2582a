//! Nodes, and the agent of each.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::cluster::minor;
use super::replicas::{bad_conditions, is_young, stuck, why_not_ready};
use super::view::{View, is_ready};
use crate::agent::BAD;
use crate::check::fault;
use crate::check::finding::{Findings, Object};

/// Kubelets that run init containers beside the others (`SidecarContainers`, on by default).
const NATIVE: u32 = 29;
/// The taint that a node is born with until its agent is ready.
const TAINTS: [&str; 2] = ["weir.dev/not-ready", "cni.istio.io/not-ready"];

/// What nodes are, whatever is installed on them.
pub(super) fn platform(view: &View<'_>, findings: &mut Findings) {
    let native = view
        .installations
        .iter()
        .any(|installed| installed.settings.as_ref().is_some_and(|settings| settings.native_for(None)));
    for node in linux(view) {
        let object = Object::of("Node", node);
        let info = &node["status"]["nodeInfo"];
        let text = |key: &str| info[key].as_str().unwrap_or_default();
        if let Some(why) = no_annotations(text("containerRuntimeVersion")) {
            findings.add(&fault::RUNTIME_WITHOUT_ANNOTATIONS, object.clone(), why);
        }
        let mut kernel = text("kernelVersion").split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        if let (Some(major), Some(second)) = (kernel.next(), kernel.next())
            && (major, second) < (5, 2)
        {
            findings.add(&fault::KERNEL_OLD, object.clone(), format!("its kernel is {}", text("kernelVersion")));
        }
        let kubelet = text("kubeletVersion");
        if native && minor(kubelet).is_some_and(|minor| minor < NATIVE) {
            findings.add(&fault::NATIVE_SIDECARS_NOT_RUN, object, format!("its kubelet is of version {kubelet}"));
        }
    }
}

/// Why a runtime hands no annotations to CNI plugins; `None` where it does, or is not known.
fn no_annotations(runtime: &str) -> Option<String> {
    let (name, version) = runtime.split_once("://")?;
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let first = match name {
        "containerd" => (1, 5),
        "cri-o" => (1, 29),
        "docker" => return Some(format!("its runtime is {runtime}, which hands no annotations to CNI plugins")),
        _ => return None,
    };
    (version < first).then(|| {
        format!("its runtime is {runtime}; {name} hands annotations to CNI plugins since {}.{}", first.0, first.1)
    })
}

/// Nodes on which pods of the mesh may run: Linux, and real.
fn linux<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Value> {
    let virtual_node = |node: &Value| {
        let labels = &node["metadata"]["labels"];
        labels["type"] == "virtual-kubelet" || labels["eks.amazonaws.com/compute-type"] == "fargate"
    };
    let nodes = view.snapshot.nodes.iter().flatten();
    nodes.filter(move |node| {
        let system = node["status"]["nodeInfo"]["operatingSystem"]
            .as_str()
            .or(node["metadata"]["labels"]["kubernetes.io/os"].as_str());
        system != Some("windows") && !virtual_node(node)
    })
}

/// The DaemonSets of our agent.
pub(super) fn daemon_sets<'a>(view: &View<'a>) -> impl Iterator<Item = &'a Value> {
    let all = view.snapshot.node.controllers.iter().flatten();
    all.filter(|set| set["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("weir-agent")))
}

/// The environment of the agent: what is written, and what ConfigMaps give.
pub(super) fn environment(view: &View<'_>, workload: &Value) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    let containers = workload["spec"]["template"]["spec"]["containers"].as_array().map_or(&[][..], Vec::as_slice);
    for container in containers {
        for source in container["envFrom"].as_array().into_iter().flatten() {
            let maps = view.snapshot.config_maps.iter().flatten();
            let mut named = maps.filter(|map| {
                map["metadata"]["namespace"] == workload["metadata"]["namespace"]
                    && map["metadata"]["name"] == source["configMapRef"]["name"]
            });
            let data = named.next().and_then(|map| map["data"].as_object());
            let pairs = data.into_iter().flatten();
            environment.extend(pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))));
        }
        let written = container["env"].as_array().into_iter().flatten();
        environment.extend(
            written.filter_map(|item| Some((item["name"].as_str()?.to_owned(), item["value"].as_str()?.to_owned()))),
        );
    }
    environment
}

/// The agents, and what they say.
pub(super) fn agents(view: &View<'_>, findings: &mut Findings) {
    let Some(sets) = &view.snapshot.node.controllers else { return };
    let installed = daemon_sets(view).next().is_some();
    let needed = view.installations.iter().filter_map(|installed| installed.settings.as_ref());
    let needed: Vec<bool> = needed.map(|settings| settings.values.pilot.cni_enabled).collect();
    let places = &view.snapshot.places;
    if !installed {
        if needed.contains(&true) {
            let there = if sets.is_empty() { "" } else { ", though there are others" };
            let text = format!("it is not there{there}, and the values have pilot.cni.enabled on");
            findings.add(&fault::AGENTS_NOT_INSTALLED, Object::new("DaemonSet", &places.node, "weir-agent"), text);
        }
        return;
    }
    if !needed.is_empty() && !needed.contains(&true) {
        let text = "it is there, and the values have pilot.cni.enabled off";
        findings.add(&fault::CNI_MODE_OFF, Object::new("DaemonSet", &places.node, "weir-agent"), text);
    }
    let Some(pods) = &view.snapshot.node.pods else { return };
    let alive = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let by_node: HashMap<&str, &Value> =
        alive.filter_map(|pod| Some((pod["spec"]["nodeName"].as_str()?, pod))).collect();
    for node in linux(view) {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let reachable = is_ready(node);
        match by_node.get(name) {
            None if reachable && !is_young(node, view.snapshot.now) => {
                findings.add(&fault::AGENT_MISSING, Object::of("Node", node), "no agent is on it");
            }
            Some(pod) if reachable && pod["metadata"]["deletionTimestamp"].is_null() => {
                agent(view, node, pod, findings);
            }
            // A node that is away has other troubles, which Kubernetes tells.
            _ => {}
        }
    }
}

fn agent(view: &View<'_>, node: &Value, pod: &Value, findings: &mut Findings) {
    let object = Object::of("Node", node);
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let namespace = &view.snapshot.places.node;
    let report = view.snapshot.reports.get(pod_name);
    let ready = is_ready(pod);
    if let Some(stuck) = stuck(pod) {
        let fix = format!(
            "kubectl -n {namespace} logs {pod_name} --previous; kubectl -n {namespace} describe pod {pod_name}"
        );
        findings.fixed(&fault::REPLICA_CRASHES, Object::of("Pod", pod), stuck, fix);
    } else if !ready && !is_young(pod, view.snapshot.now) {
        findings.add(
            &fault::AGENT_NOT_READY,
            object.clone(),
            format!("agent {pod_name} is {}", why_not_ready(pod, report)),
        );
    }
    let advice = bad_conditions(report, "[!]");
    if !advice.is_empty() {
        findings.add(&fault::AGENT_FINDING, object.clone(), format!("agent {pod_name} says: {}", advice.join("; ")));
    }
    let bad = report.and_then(|report| report.metrics.as_deref()).map_or(0, without_rules);
    if bad > 0 {
        let port = 15034;
        let fix = format!(
            "kubectl -n {namespace} port-forward {pod_name} {port} & weir check node --agent-url http://127.0.0.1:{port}"
        );
        findings.fixed(
            &fault::PODS_WITHOUT_RULES,
            object.clone(),
            format!("{bad} pods of the mesh are without their rules"),
            fix,
        );
    }
    let taints = node["spec"]["taints"].as_array().map_or(&[][..], Vec::as_slice);
    let taint = taints.iter().filter_map(|taint| taint["key"].as_str()).find(|key| TAINTS.contains(key));
    if let (Some(taint), true) = (taint, ready) {
        findings.add(&fault::NODE_NOT_READY_TAINT, object, format!("it has the taint {taint}, and its agent is ready"));
    }
}

/// Pods in a bad state, by the metrics of an agent.
fn without_rules(metrics: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with("weir_agent_meshed_pods{"));
    let bad = lines.filter(|line| BAD.iter().any(|state| line.contains(&format!("state=\"{state}\""))));
    bad.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_runtimes_that_hand_no_annotations_on() {
        for bad in ["containerd://1.4.13", "cri-o://1.28.2", "docker://24.0.7"] {
            assert!(no_annotations(bad).is_some(), "{bad}");
        }
        for good in
            ["containerd://1.5.0", "containerd://2.1.0-rc.0", "cri-o://1.29.1", "cri-o://1.33", "something://1", ""]
        {
            assert_eq!(no_annotations(good), None, "{good}");
        }
    }

    #[test]
    fn counts_pods_in_bad_states() {
        let metrics = "weir_agent_meshed_pods{state=\"ok\"} 7\nweir_agent_meshed_pods{state=\"missing\"} 2\nweir_agent_meshed_pods{state=\"drifted\"} 1\n";
        assert_eq!(without_rules(metrics), 3);
    }
}
