//! Prints the way of a connection.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::observe::{Observation, ObservationVerdict, ObservedPod};
use super::path::{EndpointPath, Leg, ServicePath};
use super::policies::{PolicyDirection, SelectingPolicy};

// Writing to a string does not fail, here and below.
pub(in crate::explain) fn text(path: &ServicePath, observation: Option<&Observation>) -> String {
    let mut out = format!("{} -> {}\n\n", path.from, path.service);
    let _ = writeln!(out, "name: {}", path.name);
    let _ = writeln!(out, "leaves {}: {}", path.from, path.leaves.sentence);
    let _ = writeln!(out, "    {}", path.leaves.origin);
    if path.endpoints.is_empty() {
        out.push_str("\nno endpoints: no pod is behind the Service\n");
    }
    for endpoint in &path.endpoints {
        self::endpoint(&mut out, endpoint);
    }
    if path.more_endpoints > 0 {
        let _ = writeln!(out, "\nand {} more endpoints", path.more_endpoints);
    }
    let reached = path.endpoints.iter().filter(|endpoint| endpoint.is_ready && endpoint.is_allowed());
    let captured = |endpoint: &&EndpointPath| endpoint.arrives.as_ref().is_some_and(|leg| leg.is_captured);
    let _ = writeln!(
        out,
        "\n=> {} at {}; captured at {} of {} endpoints that are ready and allowed",
        if path.leaves.is_captured { "captured" } else { "not captured" },
        path.from,
        reached.clone().filter(captured).count(),
        reached.count(),
    );
    if let Some(observation) = observation {
        let _ = writeln!(out, "\nobserved for {} s", observation.time.as_secs());
        for pod in &observation.pods {
            let _ = writeln!(out, "  {} to {}: {}", pod.pod, pod.destination, seen(pod));
        }
    }
    out
}

fn seen(pod: &ObservedPod) -> String {
    let counts = match (pod.captured, pod.not_captured) {
        (0, 0) => return "no connection".to_owned(),
        (0, passed) => format!("{passed} not captured"),
        (captured, passed) => {
            let others = if passed > 0 { format!(", {passed} not captured") } else { String::new() };
            format!("{captured} captured on port {}{others}", pod.port.unwrap_or_default())
        }
    };
    match pod.verdict {
        ObservationVerdict::Different => format!("{counts}, WHICH IS NOT PREDICTED"),
        ObservationVerdict::Untold => {
            format!("{} connections; TPROXY leaves no trace of the capture", pod.not_captured)
        }
        ObservationVerdict::AsPredicted | ObservationVerdict::Unseen => format!("{counts}, as predicted"),
    }
}

fn endpoint(out: &mut String, endpoint: &EndpointPath) {
    let address = SocketAddr::new(endpoint.address, endpoint.port);
    let pod = endpoint.pod.as_deref().unwrap_or("no pod of the namespace");
    let ready = if endpoint.is_ready { "ready" } else { "not ready" };
    let _ = writeln!(out, "\nendpoint {address}, {pod} ({ready})");
    if let Some(leg) = &endpoint.forwarded {
        let _ = writeln!(out, "  forwarded by the proxy: {}", leg.sentence);
    }
    for (direction, policies) in &endpoint.policies {
        let _ = writeln!(out, "  {}: {}", direction.name(), describe(policies));
    }
    if let Some(leg) = &endpoint.arrives {
        let _ = writeln!(out, "  arrives: {}", leg.sentence);
        let _ = writeln!(out, "      {}", leg.origin);
    }
}

fn describe(policies: &[SelectingPolicy]) -> String {
    if policies.is_empty() {
        return "allowed, no NetworkPolicy selects the pod".to_owned();
    }
    let name = |policy: &SelectingPolicy| format!("NetworkPolicy {}/{}", policy.namespace, policy.name);
    let allowing: Vec<String> =
        policies.iter().filter_map(|policy| Some(format!("{} (rule {})", name(policy), policy.allowed_by?))).collect();
    if allowing.is_empty() {
        let names: Vec<String> = policies.iter().map(name).collect();
        return format!("denied, by {}, no rule of which allows it", names.join(", "));
    }
    format!("allowed by {}", allowing.join(", "))
}

/// Prints the way as JSON. The format is stable: names stay, and fields are only added.
pub(in crate::explain) fn json(path: &ServicePath, observation: Option<&Observation>) -> String {
    let mut document = json!({
        "version": 1,
        "from": path.from,
        "service": path.service,
        "name": path.name,
        "leaves": leg(&path.leaves),
        "endpoints": path.endpoints.iter().map(endpoint_value).collect::<Vec<_>>(),
        "moreEndpoints": path.more_endpoints,
    });
    if let Some(observation) = observation {
        let pods: Vec<Value> = observation.pods.iter().map(observed_value).collect();
        document["observed"] = json!({ "seconds": observation.time.as_secs(), "pods": pods });
    }
    format!("{document:#}\n")
}

fn observed_value(pod: &ObservedPod) -> Value {
    let verdict = match pod.verdict {
        ObservationVerdict::AsPredicted => "as-predicted",
        ObservationVerdict::Different => "different",
        ObservationVerdict::Unseen => "unseen",
        ObservationVerdict::Untold => "untold",
    };
    json!({
        "pod": pod.pod,
        "destination": pod.destination,
        "captured": pod.captured,
        "port": pod.port,
        "notCaptured": pod.not_captured,
        "verdict": verdict,
    })
}

fn endpoint_value(endpoint: &EndpointPath) -> Value {
    let policies = |(direction, policies): &(PolicyDirection, Vec<SelectingPolicy>)| {
        let policy = |policy: &SelectingPolicy| json!({"namespace": policy.namespace, "name": policy.name, "allowedByRule": policy.allowed_by});
        json!({"direction": direction.name(), "selecting": policies.iter().map(policy).collect::<Vec<_>>()})
    };
    json!({
        "address": endpoint.address,
        "port": endpoint.port,
        "pod": endpoint.pod,
        "ready": endpoint.is_ready,
        "allowed": endpoint.is_allowed(),
        "forwarded": endpoint.forwarded.as_ref().map(leg),
        "policies": endpoint.policies.iter().map(policies).collect::<Vec<_>>(),
        "arrives": endpoint.arrives.as_ref().map(leg),
    })
}

fn leg(leg: &Leg) -> Value {
    json!({"captured": leg.is_captured, "sentence": leg.sentence, "rules": leg.origin})
}
