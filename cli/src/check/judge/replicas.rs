//! The pods of the webhook: how many, where, and how they are.

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use weir_injector::inject::selector::Selector;

use super::view::{Installed, View, is_ready, selected};
use crate::check::fault;
use crate::check::finding::{Findings, Object};
use crate::check::snapshot::Report;

/// A pod younger than this may still be starting, in seconds.
const STARTING: i64 = 60;

/// Reasons for which a container waits that no waiting mends.
const STUCK: [&str; 7] = [
    "CrashLoopBackOff",
    "ImagePullBackOff",
    "ErrImagePull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    for installed in &view.installations {
        let Some(deployment) = installed.deployment else { continue };
        let object = installed.deployment_object(&view.snapshot.places.weir);
        let replicas = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let pods = selected(view.snapshot.weir.pods.as_ref(), &deployment["spec"]["selector"]);
        if replicas == 1 {
            let fix = format!("kubectl -n {} scale deployment/{} --replicas=2", object.namespace, object.name);
            findings.fixed(&fault::SINGLE_REPLICA, object.clone(), "it has one replica", fix);
        }
        if replicas > 1 {
            budgets(view, deployment, &object, replicas, findings);
            spread(view, &pods, &object, findings);
        }
        for pod in &pods {
            state(view, pod, &object, findings);
        }
        versions(view, installed, deployment, &pods, findings);
    }
}

fn budgets(view: &View<'_>, deployment: &Value, object: &Object, replicas: u64, findings: &mut Findings) {
    let Some(budgets) = &view.snapshot.weir.budgets else { return };
    let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object();
    let covers =
        |budget: &&Value| Selector::parse(&budget["spec"]["selector"]).is_ok_and(|selector| selector.matches(labels));
    let Some(budget) = budgets.iter().find(covers) else {
        findings.add(&fault::DISRUPTION_BUDGET_MISSING, object.clone(), "no PodDisruptionBudget selects its pods");
        return;
    };
    // What the budget demands, as its controller works it out; else by the numbers.
    let asked = budget["spec"]["minAvailable"].as_u64();
    let desired = budget["status"]["desiredHealthy"].as_u64().or(asked);
    let none_may_go = budget["spec"]["maxUnavailable"] == json!(0) || budget["spec"]["maxUnavailable"] == "0%";
    if none_may_go || desired.is_some_and(|desired| desired >= replicas) {
        let text = format!("it lets none of the {replicas} replicas go");
        findings.add(&fault::DISRUPTION_BUDGET_BLOCKS, Object::of("PodDisruptionBudget", budget), text);
    }
}

fn spread(view: &View<'_>, pods: &[&Value], object: &Object, findings: &mut Findings) {
    let places: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    let elsewhere = view.snapshot.nodes.iter().flatten().filter(|node| node["spec"]["unschedulable"] != true).count();
    if let (Some(node), 1) = (places.first(), places.len())
        && pods.len() > 1
        && elsewhere > 1
    {
        let text = format!("all {} replicas are on node {node}", pods.len());
        let fix = format!("kubectl -n {} rollout restart deployment/{}", object.namespace, object.name);
        findings.fixed(&fault::REPLICAS_ON_ONE_NODE, object.clone(), text, fix);
    }
}

fn state(view: &View<'_>, pod: &Value, deployment: &Object, findings: &mut Findings) {
    let object = Object::of("Pod", pod);
    let report = view.snapshot.reports.get(&object.name);
    if let Some(stuck) = stuck(pod) {
        let fix =
            format!("kubectl -n {} logs {} --previous; kubectl -n {0} describe pod {1}", object.namespace, object.name);
        findings.fixed(&fault::REPLICA_CRASHES, object, stuck, fix);
    } else if !is_ready(pod) && !is_young(pod, view.snapshot.now) {
        let why = why_not_ready(pod, report);
        let fix = format!("kubectl -n {} describe pod {}", object.namespace, object.name);
        findings.fixed(&fault::REPLICA_NOT_READY, object, why, fix);
    }
    let advice = bad_conditions(report, "[!]");
    if !advice.is_empty() {
        findings.add(&fault::REPLICA_FINDING, deployment.clone(), format!("a replica says: {}", advice.join("; ")));
    }
    // What is wrong with the documents themselves is said where they are.
    if findings.has(&fault::SETTINGS_REFUSED) {
        return;
    }
    let lines = report.and_then(|report| report.ready.as_deref()).unwrap_or_default().lines();
    for refused in lines.filter(|line| line.contains("change was refused")) {
        let text = format!("it says: {}", refused.trim_start_matches(['[', '+', '-', '!', ']']));
        findings.add(&fault::SETTINGS_CHANGE_REFUSED, deployment.clone(), text);
    }
}

/// Why a pod does not run, where waiting does not help.
pub(super) fn stuck(pod: &Value) -> Option<String> {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let statuses = lists.into_iter().flat_map(|list| pod["status"][list].as_array().into_iter().flatten());
    statuses.into_iter().find_map(|status| {
        let waiting = &status["state"]["waiting"];
        let reason = waiting["reason"].as_str().filter(|reason| STUCK.contains(reason))?;
        let last = &status["lastState"]["terminated"];
        let ended = match (last["reason"].as_str(), last["exitCode"].as_i64()) {
            (Some(why), Some(code)) => format!(", ended with {why}, exit status {code}"),
            _ => String::new(),
        };
        let restarts = status["restartCount"].as_u64().unwrap_or(0);
        let message = waiting["message"].as_str().map(|message| format!(": {message}")).unwrap_or_default();
        Some(format!("{reason}, {restarts} restarts{ended}{message}"))
    })
}

/// Whether a pod may still be starting.
pub(super) fn is_young(pod: &Value, now: i64) -> bool {
    let created = pod["metadata"]["creationTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    created.is_some_and(|created| now - created.as_second() < STARTING)
}

/// Why a pod is not ready: what it says itself, else what the cluster says.
pub(super) fn why_not_ready(pod: &Value, report: Option<&Report>) -> String {
    let said = bad_conditions(report, "[-]");
    if !said.is_empty() {
        return format!("not ready: {}", said.join("; "));
    }
    let conditions = pod["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let mut failed = conditions.iter().filter(|condition| condition["status"] == "False");
    let message = failed.find_map(|condition| condition["message"].as_str());
    format!("not ready: {}", message.unwrap_or("the cluster does not say why"))
}

/// The conditions of `/readyz` with this mark.
pub(super) fn bad_conditions<'a>(report: Option<&'a Report>, mark: &str) -> Vec<&'a str> {
    let lines = report.and_then(|report| report.ready.as_deref()).unwrap_or_default().lines();
    lines.filter_map(|line| line.strip_prefix(mark)).collect()
}

fn versions(view: &View<'_>, installed: &Installed<'_>, deployment: &Value, pods: &[&Value], findings: &mut Findings) {
    let status = &deployment["status"];
    let rolling = status["updatedReplicas"].as_u64() < status["replicas"].as_u64();
    if rolling {
        return;
    }
    let of = |pods: &mut dyn Iterator<Item = &Value>| -> BTreeSet<String> {
        let reports = pods.filter_map(|pod| view.snapshot.reports.get(pod["metadata"]["name"].as_str()?));
        reports.filter_map(|report| version(report.metrics.as_deref()?)).collect()
    };
    let webhook = of(&mut pods.iter().copied());
    let agents = of(&mut view.snapshot.node.pods.iter().flatten());
    let ours = env!("CARGO_PKG_VERSION").to_owned();
    let all: BTreeSet<&String> = webhook.iter().chain(&agents).chain([&ours]).collect();
    if all.len() > 1 && !(webhook.is_empty() && agents.is_empty()) {
        let told = |versions: &BTreeSet<String>| {
            let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
            if versions.is_empty() { "unknown".to_owned() } else { versions.join(" and ") }
        };
        let text =
            format!("the webhook is {}, the agents are {}, this program is {ours}", told(&webhook), told(&agents));
        findings.add(&fault::VERSIONS_DIFFER, installed.deployment_object(&view.snapshot.places.weir), text);
    }
}

/// The version in the metrics of a webhook or an agent.
fn version(metrics: &str) -> Option<String> {
    let line = metrics.lines().find(|line| line.contains("_build_info{"))?;
    line.split("version=\"").nth(1)?.split('"').next().map(str::to_owned)
}
