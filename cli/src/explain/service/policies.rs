//! Decides which NetworkPolicies select a connection, and which of their rules allow it (`networking.k8s.io/v1`).

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Map, Value};
use weir_injector::selector::Selector;

/// One end of a connection.
#[derive(Debug, Clone)]
pub(super) struct PolicyPod<'a> {
    pub(super) namespace: &'a str,
    pub(super) labels: &'a Map<String, Value>,
    /// Labels of the namespace.
    pub(super) namespace_labels: Option<&'a Map<String, Value>>,
    pub(super) address: IpAddr,
}

/// Destination of a connection.
#[derive(Debug, Clone)]
pub(super) struct PolicyDestination {
    pub(super) port: u16,
    /// Names of the port in the destination's containers.
    pub(super) names: Vec<String>,
}

/// Direction in which policies restrict a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PolicyDirection {
    Egress,
    Ingress,
}

impl PolicyDirection {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// A policy that selects the pod in the direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SelectingPolicy {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Number of the first rule that allows the connection, from 1; `None` if none does.
    pub(super) allowed_by: Option<usize>,
}

/// Returns the policies that select `pod`, whose traffic with `other` is asked for. The connection is allowed if there are none, or if
/// one of them allows it.
pub(super) fn selecting(
    policies: &[NetworkPolicy],
    direction: PolicyDirection,
    (pod, other): (&PolicyPod<'_>, &PolicyPod<'_>),
    destination: &PolicyDestination,
) -> Vec<SelectingPolicy> {
    let mut found = Vec::new();
    for policy in policies {
        let Some(spec) = &policy.spec else { continue };
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        let kinds = spec.policy_types.as_deref().unwrap_or_default();
        let restricts = match direction {
            // Without types, a policy restricts what arrives, and what leaves if it has rules for that.
            PolicyDirection::Ingress => kinds.is_empty() || kinds.iter().any(|kind| kind == "Ingress"),
            PolicyDirection::Egress if kinds.is_empty() => spec.egress.is_some(),
            PolicyDirection::Egress => kinds.iter().any(|kind| kind == "Egress"),
        };
        if !restricts || namespace != pod.namespace || !matches(spec.pod_selector.as_ref(), pod.labels) {
            continue;
        }
        let rules: Vec<(&[NetworkPolicyPeer], &[NetworkPolicyPort])> = match direction {
            PolicyDirection::Ingress => spec
                .ingress
                .iter()
                .flatten()
                .map(|rule| (rule.from.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default()))
                .collect(),
            PolicyDirection::Egress => spec
                .egress
                .iter()
                .flatten()
                .map(|rule| (rule.to.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default()))
                .collect(),
        };
        let allows = |(peers, ports): &(&[NetworkPolicyPeer], &[NetworkPolicyPort])| {
            (peers.is_empty() || peers.iter().any(|peer| is_peer(peer, namespace, other)))
                && (ports.is_empty() || ports.iter().any(|port| is_port(port, destination)))
        };
        found.push(SelectingPolicy {
            namespace: namespace.to_owned(),
            name: policy.metadata.name.clone().unwrap_or_default(),
            allowed_by: rules.iter().position(allows).map(|position| position + 1),
        });
    }
    found
}

/// Returns whether a selector matches; an absent one matches everything, an invalid one nothing.
fn matches(selector: Option<&LabelSelector>, labels: &Map<String, Value>) -> bool {
    let Some(selector) = selector else { return true };
    let selector = serde_json::to_value(selector).ok().and_then(|value| Selector::parse(&value).ok());
    selector.is_some_and(|selector| selector.matches(Some(labels)))
}

fn is_peer(peer: &NetworkPolicyPeer, policy_namespace: &str, other: &PolicyPod<'_>) -> bool {
    if let Some(block) = &peer.ip_block {
        let within = |net: &str| net.parse::<IpNet>().is_ok_and(|net| net.contains(&other.address));
        return within(&block.cidr) && !block.except.iter().flatten().any(|net| within(net));
    }
    let in_namespace = match &peer.namespace_selector {
        None => other.namespace == policy_namespace,
        Some(selector) => other.namespace_labels.is_some_and(|labels| matches(Some(selector), labels)),
    };
    in_namespace && matches(peer.pod_selector.as_ref(), other.labels)
}

fn is_port(port: &NetworkPolicyPort, destination: &PolicyDestination) -> bool {
    let number = i32::from(destination.port);
    port.protocol.as_deref().unwrap_or("TCP") == "TCP"
        && match &port.port {
            None => true,
            Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&number),
            Some(IntOrString::String(name)) => destination.names.contains(name),
        }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn verdict(spec: &Value, direction: PolicyDirection, port: u16) -> Vec<Option<usize>> {
        let policy = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
        let policies = [serde_json::from_value(policy).unwrap()];
        let (shop, web, db) = (json!({"team": "a"}), json!({"app": "web"}), json!({"app": "db"}));
        let end = |labels: &'static str, address: &str| (labels, address.parse::<IpAddr>().unwrap());
        let pod = |(labels, address): (&'static str, IpAddr)| PolicyPod {
            namespace: "shop",
            labels: if labels == "web" { web.as_object().unwrap() } else { db.as_object().unwrap() },
            namespace_labels: shop.as_object(),
            address,
        };
        let (from, to) = (pod(end("web", "10.0.0.1")), pod(end("db", "10.0.0.2")));
        let ends = if direction == PolicyDirection::Egress { (&from, &to) } else { (&to, &from) };
        let destination = PolicyDestination { port, names: vec!["mysql".to_owned()] };
        selecting(&policies, direction, ends, &destination).into_iter().map(|policy| policy.allowed_by).collect()
    }

    #[test]
    fn policies_allow_by_peer_and_port() {
        use PolicyDirection::{Egress, Ingress};
        let db = json!({"matchLabels": {"app": "db"}});
        for (spec, direction, port, want) in [
            (json!({"podSelector": {"matchLabels": {"app": "other"}}}), Ingress, 1, vec![]),
            (json!({"podSelector": {}}), Ingress, 1, vec![None]),
            (json!({"podSelector": {}}), Egress, 1, vec![]),
            (json!({"podSelector": db, "ingress": [{}]}), Ingress, 1, vec![Some(1)]),
            (json!({"podSelector": {}, "policyTypes": ["Egress"]}), Egress, 1, vec![None]),
            (json!({"podSelector": {}, "policyTypes": ["Egress"]}), Ingress, 1, vec![]),
            (
                json!({"podSelector": {}, "egress": [{"ports": [{"port": 80}]}, {"to": [{"podSelector": db}]}]}),
                Egress,
                3306,
                vec![Some(2)],
            ),
            (json!({"podSelector": {}, "ingress": [{"ports": [{"port": "mysql"}]}]}), Ingress, 3306, vec![Some(1)]),
            (
                json!({"podSelector": {}, "ingress": [{"ports": [{"port": 3000, "endPort": 3305}]}]}),
                Ingress,
                3306,
                vec![None],
            ),
            (
                json!({"podSelector": {}, "ingress": [{"ports": [{"port": 3306, "protocol": "UDP"}]}]}),
                Ingress,
                3306,
                vec![None],
            ),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}]}]}),
                Ingress,
                1,
                vec![Some(1)],
            ),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "b"}}}]}]}),
                Ingress,
                1,
                vec![None],
            ),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/24"]}}]}]}),
                Ingress,
                1,
                vec![None],
            ),
            (
                json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]}),
                Ingress,
                1,
                vec![Some(1)],
            ),
        ] {
            assert_eq!(verdict(&spec, direction, port), want, "{direction:?} {port} {spec}");
        }
    }
}
