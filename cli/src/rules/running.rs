//! The rules that a running pod asks for by its annotations.

use std::net::IpAddr;

use iptables_rules::names::annotation;
use iptables_rules::restore::RestoreFamily;
use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::{Map, Value};
use weir_injector::pod_capture::SharedIds;

use super::subject::{self, Capture};

/// A pod of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct RunningPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: Map<String, Value>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether it has the network of its node.
    pub(crate) has_host_network: bool,
    /// Source of the rules, or why there are none.
    pub(crate) origin: String,
    /// The default configuration without rules.
    pub(crate) config: CaptureConfig,
    /// No rules if the pod is not injected.
    pub(crate) rules: RuleSet,
    /// True if an init container installs the rules, so that the plugin skips the pod.
    pub(crate) has_init_container: bool,
    /// Ids of the proxy that other containers have too.
    pub(crate) shared_ids: SharedIds,
    /// Errors in its annotations, for which the plugin rejects it.
    pub(crate) errors: Vec<String>,
}

impl RunningPod {
    /// Reads a pod.
    pub(crate) fn of(pod: &Value) -> Self {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let addresses = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
        let mut running = Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            labels: pod.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default(),
            addresses: addresses.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect(),
            has_host_network: pod["spec"]["hostNetwork"] == true,
            origin: "no rules: the pod is not injected".to_owned(),
            config: CaptureConfig::default(),
            rules: RuleSet::default(),
            has_init_container: false,
            shared_ids: SharedIds::default(),
            errors: Vec::new(),
        };
        if pod["metadata"]["annotations"].get(annotation::STATUS).is_some() {
            running.read_rules(pod);
        }
        running
    }

    fn read_rules(&mut self, pod: &Value) {
        let capture = subject::of_pod(pod, false);
        if let Ok(capture) = &capture {
            self.origin = capture.to_string();
        }
        let rules = capture.and_then(|capture| {
            let Capture::Configured { config, init_container, shared_ids, .. } = capture else { return Ok(None) };
            match plan(&config) {
                Ok(rules) => Ok(Some((*config, rules, init_container, shared_ids))),
                Err(errors) => Err(errors.iter().map(ToString::to_string).collect()),
            }
        });
        match rules {
            Ok(None) => {}
            Ok(Some((config, rules, init_container, shared_ids))) => {
                (self.config, self.rules) = (config, rules);
                (self.has_init_container, self.shared_ids) = (init_container, shared_ids);
            }
            Err(errors) => {
                self.origin = format!("no rules: its annotations are invalid: {}", errors.join("; "));
                self.errors = errors;
            }
        }
    }

    /// Returns the name in messages.
    pub(crate) fn title(&self) -> String {
        format!("Pod {:?}", format!("{}/{}", self.namespace, self.name))
    }

    /// Returns the families of its addresses; both if it has none yet.
    pub(crate) fn families(&self) -> Vec<RestoreFamily> {
        let has = |family: &RestoreFamily| {
            let mut addresses = self.addresses.iter();
            self.addresses.is_empty() || addresses.any(|ip| ip.is_ipv4() == (*family == RestoreFamily::V4))
        };
        RestoreFamily::ALL.into_iter().filter(has).collect()
    }
}
