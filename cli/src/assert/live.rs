//! Reads the running pods of a cluster, the rules that their annotations ask for, and what the agents of their nodes found in the kernel.

use std::collections::HashMap;
use std::time::Duration;

use iptables_rules::config::Ipv6Policy;
use iptables_rules::names::annotation;
use serde_json::Value;

use super::input::{Evidence, Workload, Workloads};
use crate::agent::{AgentArgs, AgentTarget};
use crate::cluster::ConnectArgs;
use crate::failure::Failure;
use crate::manifest::namespaces;
use crate::objects::{NAMESPACE, POD};
use crate::rules::running::RunningPod;

const TIMEOUT: Duration = Duration::from_mins(2);
/// Limit of pods of one run; a larger cluster is checked by namespace.
const MAX_PODS: usize = 20_000;

/// Reads the pods of a namespace, or of all if it is empty.
///
/// # Errors
/// The cluster cannot be read, or has too many pods.
pub(super) fn load(namespace: &str, connect: &ConnectArgs, agent: &AgentArgs) -> Result<Workloads, Failure> {
    let (server, pods, labels) = connect.run(TIMEOUT, async |cluster| {
        let pods = cluster.objects(POD, namespace, "").await?;
        let namespaces = cluster.objects(NAMESPACE, "", "").await?;
        Ok((cluster.server, pods, namespaces))
    })?;
    if pods.len() > MAX_PODS {
        let text = format!("{server}: {} pods; at most {MAX_PODS} are checked in one run: pass -n", pods.len());
        return Err(Failure::usage(text));
    }
    let mut workloads = Workloads::default();
    for object in &labels {
        namespaces::collect(object, &mut workloads.namespaces);
    }
    workloads.complete_labels();
    let running = pods.iter().filter(|pod| is_running(pod)).map(RunningPod::of);
    workloads.all = running.map(workload).collect();
    if workloads.all.iter().any(|workload| !workload.rules.rules.is_empty()) {
        add_evidence(&mut workloads, connect, agent);
    }
    Ok(workloads)
}

fn is_running(pod: &Value) -> bool {
    !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn workload(pod: RunningPod) -> Workload {
    let evidence = match &pod.errors[..] {
        [] if pod.has_init_container => Evidence::of_init_container(),
        [] => Evidence::None,
        errors => Evidence::NotInPlace(errors.join("; ")),
    };
    Workload {
        name: pod.title(),
        families: pod.families(),
        assumes_one_family: pod.addresses.is_empty()
            && !pod.rules.rules.is_empty()
            && pod.config.ipv6 == Ipv6Policy::Auto,
        namespace: pod.namespace,
        labels: pod.labels,
        origin: pod.origin,
        rules: pod.rules,
        config: pod.config,
        shared_ids: pod.shared_ids,
        reroute_annotation: annotation::REROUTE_VIRTUAL_INTERFACES,
        place: None,
        evidence,
    }
}

/// Adds what the agents report. Without it, the annotations alone are judged, which a note says.
fn add_evidence(workloads: &mut Workloads, connect: &ConnectArgs, agent: &AgentArgs) {
    let answers = match agent.fetch_direct(connect) {
        Some(answer) => answer.map(|answer| vec![answer]),
        None => agent.fetch_from_cluster(connect, &AgentTarget::All),
    };
    let answers = match answers {
        Ok(answers) => answers,
        Err(failure) => {
            let text = failure.to_string();
            let reason: Vec<&str> = text.lines().map(|line| line.trim_start_matches("weir: ")).collect();
            let reason = reason.join("; ");
            workloads
                .notes
                .push(format!("no evidence from the kernel, pods are judged by their annotations: {reason}"));
            return;
        }
    };
    let mut states = HashMap::new();
    for (listing, _) in answers {
        for pod in listing.pods {
            let evidence = match pod.state.as_str() {
                "ok" => Evidence::InPlace { node: listing.node.clone() },
                "pending" => Evidence::Missing,
                state => {
                    let state = format!("{state} on node {}", listing.node);
                    Evidence::NotInPlace([&[state], &pod.detail[..]].concat().join("; "))
                }
            };
            states.insert(format!("Pod {:?}", format!("{}/{}", pod.namespace, pod.name)), evidence);
        }
    }
    let is_asked = |workload: &&mut Workload| !workload.rules.rules.is_empty() && workload.evidence == Evidence::None;
    for workload in workloads.all.iter_mut().filter(is_asked) {
        workload.evidence = states.remove(&workload.name).unwrap_or(Evidence::Missing);
    }
}
