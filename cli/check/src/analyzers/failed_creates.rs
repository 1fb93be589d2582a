//! Workloads whose pods cannot be created, as their controllers report it.

use super::call_error::parse_message;
use super::view::ClusterView;
use crate::fault;
use crate::finding::{FindingObject, Findings};

/// Age of an event in seconds up to which it counts. A controller retries after 17 minutes at most.
const MAX_EVENT_AGE: i64 = 20 * 60;

pub(super) fn analyze(view: &ClusterView<'_>, findings: &mut Findings) {
    for workload in view.snapshot.workloads.iter().flatten() {
        for message in &workload.failures {
            check_message(&workload.object, message, findings);
        }
    }
    for event in view.snapshot.failed_creates.iter().flatten() {
        let object = &event.involved_object;
        // A Deployment has a condition for as long as its ReplicaSet fails; the event stays longer.
        if object.kind == "ReplicaSet" && view.snapshot.workloads.is_some() {
            continue;
        }
        if event.last_seen().is_some_and(|seen| view.snapshot.now - seen.as_second() < MAX_EVENT_AGE) {
            let object = FindingObject::new(&object.kind, &object.namespace, &object.name);
            check_message(&object, &event.message, findings);
        }
    }
}

fn check_message(object: &FindingObject, message: &str, findings: &mut Findings) {
    if let Some((webhook, error)) = parse_message(message) {
        if webhook.contains("sidecar-injector.weir.dev") {
            let text = format!("its pods cannot be created: {}", error.text);
            findings.add_with_fix(&fault::PODS_REFUSED, object.clone(), text, error.fault.action);
        }
        return;
    }
    let names_injected =
        ["istio-proxy", "istio-init", "istio-validation"].iter().any(|name| message.contains(&format!("\"{name}\"")));
    if message.contains("violates PodSecurity") && names_injected {
        let namespace = FindingObject::cluster_scoped("Namespace", &object.namespace);
        let reason = message.lines().next().unwrap_or_default();
        findings.add(
            &fault::POD_SECURITY_REFUSES,
            namespace,
            format!("{object}: its pods cannot be created: {reason}"),
        );
    }
}
