//! Nodes, and the agent on each.

use std::collections::{BTreeMap, HashMap};

use super::cluster::minor_version;
use super::pod_health::{PodHealth, add_crash, is_starting};
use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings};
use crate::snapshot::cluster::Node;
use crate::snapshot::object::is_ready;
use crate::snapshot::own::{Controller, OwnPod};

/// Minor version of the first kubelet that runs native sidecars (`SidecarContainers`, on by default).
const NATIVE_SIDECARS_MINOR: u32 = 29;
/// Taints that keep pods from a new node until its agent is ready.
const TAINTS: [&str; 2] = ["weir.dev/not-ready", "cni.istio.io/not-ready"];

/// Checks kernel, runtime and kubelet of all nodes.
pub(super) fn analyze_platform(view: &ClusterView<'_>, findings: &mut Findings) {
    let mut settings = view.revisions.iter().filter_map(|installed| installed.settings.as_ref());
    let uses_native_sidecars = settings.any(|settings| settings.is_native_on(None));
    for node in linux_nodes(view) {
        let object = node.metadata.object("Node");
        let info = &node.status.node_info;
        if let Some(reason) = runtime_without_annotations(&info.container_runtime_version) {
            findings.add(&fault::RUNTIME_WITHOUT_ANNOTATIONS, object.clone(), reason);
        }
        let mut kernel = info.kernel_version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        if let (Some(major), Some(minor)) = (kernel.next(), kernel.next())
            && (major, minor) < (5, 2)
        {
            findings.add(&fault::KERNEL_OLD, object.clone(), format!("has kernel {}", info.kernel_version));
        }
        let kubelet = &info.kubelet_version;
        if uses_native_sidecars && minor_version(kubelet).is_some_and(|minor| minor < NATIVE_SIDECARS_MINOR) {
            findings.add(&fault::NATIVE_SIDECARS_NOT_RUN, object, format!("has kubelet {kubelet}"));
        }
    }
}

/// Returns why a runtime does not pass pod annotations to CNI plugins; `None` if it does, or is unknown.
fn runtime_without_annotations(runtime: &str) -> Option<String> {
    let (name, version) = runtime.split_once("://")?;
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = match name {
        "containerd" => (1, 5),
        "cri-o" => (1, 29),
        "docker" => return Some(format!("has runtime {runtime}, which does not pass pod annotations to CNI plugins")),
        _ => return None,
    };
    (version < (major, minor))
        .then(|| format!("has runtime {runtime}; {name} passes pod annotations to CNI plugins since {major}.{minor}"))
}

/// Returns the nodes on which meshed pods can run: Linux, and no virtual kubelet.
fn linux_nodes<'a>(view: &ClusterView<'a>) -> impl Iterator<Item = &'a Node> {
    let is_virtual = |node: &Node| {
        node.metadata.label("type") == Some("virtual-kubelet")
            || node.metadata.label("eks.amazonaws.com/compute-type") == Some("fargate")
    };
    let is_windows = |node: &Node| {
        let reported = Some(node.status.node_info.operating_system.as_str()).filter(|system| !system.is_empty());
        reported.or(node.metadata.label("kubernetes.io/os")) == Some("windows")
    };
    view.snapshot.nodes.iter().flatten().filter(move |node| !is_windows(node) && !is_virtual(node))
}

pub(super) fn agent_daemon_sets<'a>(view: &ClusterView<'a>) -> impl Iterator<Item = &'a Controller> {
    let all = view.snapshot.agent.controllers.iter().flatten();
    all.filter(|set| set.metadata.name.starts_with("weir-agent"))
}

/// Returns the environment of an agent's containers, including that from ConfigMaps.
pub(super) fn agent_environment<'a>(view: &ClusterView<'a>, agents: &'a Controller) -> BTreeMap<&'a str, &'a str> {
    let mut environment = BTreeMap::new();
    for container in &agents.spec.template.spec.containers {
        for reference in container.env_from.iter().filter_map(|source| source.config_map_ref.as_ref()) {
            let mut maps = view.snapshot.config_maps.iter().flatten();
            let map = maps
                .find(|map| map.metadata.namespace == agents.metadata.namespace && map.metadata.name == reference.name);
            let data = map.into_iter().flat_map(|map| &map.data);
            environment.extend(data.map(|(key, value)| (key.as_str(), value.as_str())));
        }
        let variables = container.env.iter();
        environment.extend(variables.filter_map(|variable| Some((variable.name.as_str(), variable.value.as_deref()?))));
    }
    environment
}

/// Checks that agents are installed where they are needed, and every agent.
pub(super) fn analyze_agents(view: &ClusterView<'_>, findings: &mut Findings) {
    let Some(daemon_sets) = &view.snapshot.agent.controllers else { return };
    let settings = view.revisions.iter().filter_map(|installed| installed.settings.as_ref());
    let cni_enabled: Vec<bool> = settings.map(|settings| settings.values.pilot.cni_enabled).collect();
    let is_needed = cni_enabled.contains(&true);
    let object = FindingObject::new("DaemonSet", &view.snapshot.install_namespaces.agent, "weir-agent");
    if agent_daemon_sets(view).next().is_none() {
        if is_needed {
            let others = if daemon_sets.is_empty() { "" } else { " (others do)" };
            let text = format!("does not exist{others}, but the values have pilot.cni.enabled: true");
            findings.add(&fault::AGENTS_NOT_INSTALLED, object, text);
        }
        return;
    }
    if !cni_enabled.is_empty() && !is_needed {
        let text = "exists, but the values have pilot.cni.enabled: false";
        findings.add(&fault::CNI_MODE_OFF, object, text);
    }
    let Some(pods) = &view.snapshot.agent.pods else { return };
    let agents = pods.iter().filter(|pod| !pod.is_terminating());
    let agents: HashMap<&str, &OwnPod> = agents.filter_map(|pod| Some((pod.node()?, pod))).collect();
    // Kubernetes reports a node that is not ready.
    for node in linux_nodes(view).filter(|node| is_ready(&node.status.conditions)) {
        match agents.get(node.metadata.name.as_str()) {
            Some(pod) => check_agent(view, node, pod, findings),
            None if is_starting(node.metadata.creation_timestamp, view.snapshot.now) => {}
            None => findings.add(&fault::AGENT_MISSING, node.metadata.object("Node"), "has no agent"),
        }
    }
}

fn check_agent(view: &ClusterView<'_>, node: &Node, pod: &OwnPod, findings: &mut Findings) {
    let object = node.metadata.object("Node");
    let name = &pod.metadata.name;
    let report = view.snapshot.reports.get(name);
    match PodHealth::new(pod, report, view.snapshot.now) {
        PodHealth::Healthy => {}
        PodHealth::Crashing(text) => add_crash(pod, text, findings),
        PodHealth::NotReady(text) => {
            findings.add(&fault::AGENT_NOT_READY, object.clone(), format!("agent {name} is {text}"));
        }
    }
    if let Some(readiness) = report.and_then(|report| report.readiness.as_ref()) {
        let advisories = [readiness.advisories(), readiness.rejected_changes()].concat();
        if !advisories.is_empty() {
            let text = format!("agent {name} reports: {}", advisories.join("; "));
            findings.add(&fault::AGENT_FINDING, object.clone(), text);
        }
    }
    let unhealthy = report.and_then(|report| report.metrics.as_ref()).map_or(0, |metrics| metrics.unhealthy_pods);
    if unhealthy > 0 {
        let fix = format!("weir check node {} lists them", node.metadata.name);
        let text = format!("{unhealthy} meshed pods lack capture rules");
        findings.add_with_fix(&fault::PODS_WITHOUT_RULES, object.clone(), text, fix);
    }
    let changed = report.and_then(|report| report.metrics.as_ref()).map_or(0, |metrics| metrics.changed_pods);
    if changed > 0 {
        let text = format!("the capture annotations of {changed} running pods have changed");
        findings.add(&fault::CAPTURE_ANNOTATIONS_CHANGED, object.clone(), text);
    }
    let taint = node.spec.taints.iter().find(|taint| TAINTS.contains(&taint.key.as_str()));
    if let Some(taint) = taint.filter(|_| pod.is_ready()) {
        let text = format!("has the taint {}, but its agent is ready", taint.key);
        findings.add(&fault::NODE_NOT_READY_TAINT, object, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_runtimes_that_do_not_pass_annotations() {
        for runtime in ["containerd://1.4.13", "cri-o://1.28.2", "docker://24.0.7"] {
            assert!(runtime_without_annotations(runtime).is_some(), "{runtime}");
        }
        for runtime in
            ["containerd://1.5.0", "containerd://2.1.0-rc.0", "cri-o://1.29.1", "cri-o://1.33", "something://1", ""]
        {
            assert_eq!(runtime_without_annotations(runtime), None, "{runtime}");
        }
    }
}
