//! Workloads that get no pods: what their controllers say, which is where such errors end up.

use k8s_openapi::jiff::Timestamp;

use super::hop;
use super::view::View;
use crate::check::fault;
use crate::check::finding::{Findings, Object};

/// A controller tries again after at most some 17 minutes; an event that is older tells of something that has passed.
const FRESH: i64 = 20 * 60;

pub(super) fn judge(view: &View<'_>, findings: &mut Findings) {
    for workload in view.snapshot.workloads.iter().flatten() {
        let object = Object::of(workload["kind"].as_str().unwrap_or_default(), workload);
        for failure in workload["failures"].as_array().into_iter().flatten() {
            say(object.clone(), failure["message"].as_str().unwrap_or_default(), findings);
        }
    }
    for event in view.snapshot.refusals.iter().flatten() {
        let about = &event["involvedObject"];
        let kind = about["kind"].as_str().unwrap_or_default();
        // A Deployment has a condition while that of its ReplicaSet lasts, and events stay when all is well again.
        if kind == "ReplicaSet" && view.snapshot.workloads.is_some() {
            continue;
        }
        let times = [&event["lastTimestamp"], &event["series"]["lastObservedTime"], &event["eventTime"]];
        let last = times.into_iter().filter_map(|time| time.as_str()?.parse::<Timestamp>().ok()).max();
        if last.is_some_and(|last| view.snapshot.now - last.as_second() < FRESH) {
            let text = |key: &str| about[key].as_str().unwrap_or_default();
            let object = Object::new(kind, text("namespace"), text("name"));
            say(object, event["message"].as_str().unwrap_or_default(), findings);
        }
    }
}

fn say(object: Object, message: &str, findings: &mut Findings) {
    if let Some((webhook, hop)) = hop::read(message) {
        if webhook.contains("sidecar-injector.weir.dev") {
            let text = format!("no pod can be made: {}", hop.text);
            findings.fixed(&fault::PODS_REFUSED, object, text, hop.fault.action);
        }
        return;
    }
    let injected =
        ["istio-proxy", "istio-init", "istio-validation"].iter().any(|name| message.contains(&format!("\"{name}\"")));
    if message.contains("violates PodSecurity") && injected {
        let namespace = Object::global("Namespace", &object.namespace);
        let text = format!("{object} gets no pods: {}", first_line(message));
        findings.add(&fault::POD_SECURITY_REFUSES, namespace, text);
    }
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}
