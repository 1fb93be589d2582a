//! What the CNI plugin captures in a pod: predicted from its annotations and its spec, by the functions that the plugin and the node
//! agent call.

use std::collections::BTreeMap;
use std::net::IpAddr;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::ProxySpec;
use iptables_rules::names::annotation;
use serde_json::Value;
use weir_protocol::decision::{CaptureDecision, ConfigSource, ProxyFacts, SkipReason, SpecFacts};
use weir_protocol::pod_plan;

use crate::containers::PROXY_CONTAINER;

/// Init container that installs rules without a plugin.
pub const INIT_CONTAINER: &str = "istio-init";

/// User and group of Istio's proxy.
const PROXY_ID: u32 = 1337;
/// Init container that verifies the rules of the plugin.
const VALIDATION_CONTAINER: &str = "istio-validation";

/// What the plugin does in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodCapture {
    /// It installs nothing.
    Skipped(SkipReason),
    /// It installs the rules of this configuration.
    Captured {
        /// Origin of the configuration.
        source: ConfigSource,
        /// The addresses of the pod have decided about IPv6, where it has some already.
        config: Box<CaptureConfig>,
    },
}

/// Predicts what a plugin with a node agent does in a pod of a namespace that it does not exclude.
///
/// # Errors
/// The plugin rejects the pod: every invalid setting, or what contradicts the record of the injection.
pub fn predict(pod: &Value) -> Result<PodCapture, Vec<String>> {
    // The runtime calls no plugin for such a pod.
    if pod["spec"]["hostNetwork"] == true {
        return Ok(PodCapture::Skipped(SkipReason::HostNetwork));
    }
    let labels = pod.pointer("/metadata/labels");
    let spec = SpecFacts {
        istio_init: container(pod, INIT_CONTAINER).is_some(),
        proxy: container(pod, PROXY_CONTAINER).map(ProxyFacts::from_container),
        inject_label: labels.and_then(|labels| labels.get(annotation::INJECT)?.as_str()).map(str::to_owned),
    };
    match pod_plan::predict_decision(&annotations(pod), &spec) {
        CaptureDecision::Skip(reason) => Ok(PodCapture::Skipped(reason)),
        CaptureDecision::Capture(mut config, source) => {
            config.ipv6 = config.ipv6.for_addresses(&addresses(pod));
            Ok(PodCapture::Captured { source, config })
        }
        CaptureDecision::InvalidAnnotations(errors) => Err(texts(&errors)),
        CaptureDecision::NeedsSpec(faults) | CaptureDecision::InvalidSpec(faults) => Err(faults),
        CaptureDecision::StatusContradicted(fault) => Err(vec![fault]),
    }
}

/// Derives the configuration that the annotations and the proxy of a pod ask for, whether or not a plugin installs it: `istio-init` has
/// arguments that say the same.
///
/// # Errors
/// Every invalid setting of the pod.
pub fn configured(pod: &Value) -> Result<(ConfigSource, CaptureConfig), Vec<String>> {
    let proxy = container(pod, PROXY_CONTAINER).map(ProxySpec::from_container).transpose()?;
    let (source, mut config) = of_annotations(&annotations(pod), proxy)?;
    config.ipv6 = config.ipv6.for_addresses(&addresses(pod));
    Ok((source, config))
}

/// Derives the configuration of annotations. As for the plugin, `weir.dev/capture` counts only with `sidecar.istio.io/status`, because only
/// an injector may set it.
///
/// # Errors
/// Every invalid setting.
pub fn of_annotations(
    annotations: &BTreeMap<String, String>,
    proxy: Option<ProxySpec>,
) -> Result<(ConfigSource, CaptureConfig), Vec<String>> {
    let injected = annotations.contains_key(annotation::STATUS);
    if let Some(value) = annotations.get(annotation::CAPTURE).filter(|_| injected) {
        let config = CaptureConfig::from_capture_annotation(value).map_err(|errors| texts(&errors))?;
        return Ok((ConfigSource::CaptureAnnotation, config));
    }
    let source = if proxy.is_some() { ConfigSource::Specification } else { ConfigSource::IstioAnnotations };
    let config =
        CaptureConfig::from_annotations(annotations, &proxy.unwrap_or_default()).map_err(|errors| texts(&errors))?;
    Ok((source, config))
}

/// Users and groups that the rules exempt, and that containers other than the proxy have, or may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedIds {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups.
    pub gids: Vec<u32>,
}

impl SharedIds {
    /// Returns all ids that a configuration exempts: nobody knows who has them.
    pub fn all(config: &CaptureConfig) -> Self {
        Self { uids: config.proxy_uids.clone(), gids: config.proxy_gids.clone() }
    }

    /// Finds the ids that other containers of a captured pod have; all of them if it has no proxy. The user that an image names is not
    /// known here.
    pub fn find(pod: &Value, config: &CaptureConfig) -> Self {
        if container(pod, PROXY_CONTAINER).is_none() {
            return Self::all(config);
        }
        let own = [PROXY_CONTAINER, INIT_CONTAINER, VALIDATION_CONTAINER];
        let others = || containers(pod).filter(|it| it["name"].as_str().is_none_or(|name| !own.contains(&name)));
        let shared = |ids: &[u32], field: &str| -> Vec<u32> {
            let runs_as = |id: u32| others().any(|it| security_id(pod, it, field) == Some(id.into()));
            ids.iter().copied().filter(|id| runs_as(*id)).collect()
        };
        Self { uids: shared(&config.proxy_uids, "runAsUser"), gids: shared(&config.proxy_gids, "runAsGroup") }
    }
}

/// Returns whether a pod, as its author wrote it, gives the proxy another user or group than Istio's.
pub fn chooses_proxy_ids(pod: &Value) -> bool {
    let security = container(pod, PROXY_CONTAINER).map(|proxy| &proxy["securityContext"]);
    let is_other = |id: &Value| !id.is_null() && *id != PROXY_ID;
    security.is_some_and(|context| is_other(&context["runAsUser"]) || is_other(&context["runAsGroup"]))
}

/// Returns `runAsUser` or `runAsGroup` of a container, else of its pod.
pub(crate) fn security_id(pod: &Value, container: &Value, field: &str) -> Option<i64> {
    let own = container["securityContext"][field].as_i64();
    own.or_else(|| pod["spec"]["securityContext"][field].as_i64())
}

fn texts<E: ToString>(errors: &[E]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn annotations(pod: &Value) -> BTreeMap<String, String> {
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten();
    annotations.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn addresses(pod: &Value) -> Vec<IpAddr> {
    let addresses = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    addresses.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect()
}

/// Returns the init containers and the containers of a pod.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/initContainers", "/spec/containers"]
        .into_iter()
        .filter_map(|path| pod.pointer(path).and_then(Value::as_array))
        .flatten()
}

fn container<'a>(pod: &'a Value, wanted: &str) -> Option<&'a Value> {
    containers(pod).find(|container| container["name"] == wanted)
}

#[cfg(test)]
mod tests {
    use iptables_rules::config::Ipv6Policy;
    use serde_json::json;

    use super::*;

    /// An injected pod, changed by a JSON merge patch.
    fn pod(change: &Value) -> Value {
        let proxy = json!({ "name": "istio-proxy", "args": ["proxy", "sidecar"] });
        let mut pod = json!({
            "metadata": { "annotations": { "sidecar.istio.io/status": "{}" }, "labels": {} },
            "spec": { "containers": [{ "name": "app" }, proxy] },
        });
        json_patch::merge(&mut pod, change);
        pod
    }

    fn skipped(change: &Value) -> SkipReason {
        match predict(&pod(change)) {
            Ok(PodCapture::Skipped(reason)) => reason,
            other => panic!("{change}: {other:?}"),
        }
    }

    #[test]
    fn pods_that_the_plugin_skips_are_not_captured() {
        let annotation = |key: &str, value: &str| json!({ "metadata": { "annotations": { key: value } } });
        let template = |name: &str| SkipReason::NotSidecarTemplate(name.to_owned());
        let proxy = |proxy: Value| json!({ "spec": { "containers": [proxy] } });
        for (change, reason) in [
            (json!({ "metadata": { "annotations": null } }), SkipReason::NotInjected),
            (json!({ "spec": { "hostNetwork": true } }), SkipReason::HostNetwork),
            (json!({ "spec": { "containers": [{ "name": "app" }] } }), SkipReason::NoProxy),
            (annotation("sidecar.istio.io/status", r#"{"containers":["app"]}"#), SkipReason::NoProxy),
            (annotation("sidecar.istio.io/inject", "false"), SkipReason::InjectionOff),
            (json!({ "metadata": { "labels": { "sidecar.istio.io/inject": "false" } } }), SkipReason::InjectionOff),
            (annotation("sidecar.istio.io/interceptionMode", "NONE"), SkipReason::ModeNone),
            (annotation("inject.istio.io/templates", "grpc-agent"), template("grpc-agent")),
            (annotation("inject.istio.io/templates", "grpc-simple"), template("grpc-simple")),
            (annotation("inject.istio.io/templates", "gateway"), template("gateway")),
            (json!({ "spec": { "initContainers": [{ "name": "istio-init" }] } }), SkipReason::InitContainer),
            (
                proxy(json!({ "name": "istio-proxy", "args": ["proxy", "router"] })),
                SkipReason::NotSidecarRole("router".to_owned()),
            ),
            (
                proxy(json!({ "name": "istio-proxy", "env": [{ "name": "DISABLE_ENVOY", "value": "true" }] })),
                SkipReason::EnvoyDisabled,
            ),
        ] {
            assert_eq!(skipped(&change), reason, "{change}");
        }
    }

    #[test]
    fn injected_pods_are_captured() {
        let captured = |change: &Value| match predict(&pod(change)) {
            Ok(PodCapture::Captured { source, config }) => (source, *config),
            other => panic!("{change}: {other:?}"),
        };
        let default = CaptureConfig { ipv6: Ipv6Policy::Auto, ..CaptureConfig::default() };
        assert_eq!(captured(&json!({})), (ConfigSource::Specification, default));
        let config = CaptureConfig { outbound_ports_exclude: vec![7], ..CaptureConfig::default() };
        let record = json!({ "metadata": { "annotations": { "weir.dev/capture": config.to_capture_annotation() } } });
        assert_eq!(captured(&record), (ConfigSource::CaptureAnnotation, config));
    }

    #[test]
    fn pods_that_the_plugin_rejects_are_errors() {
        let removed =
            json!({ "metadata": { "annotations": { "sidecar.istio.io/status": null, "weir.dev/capture": "{}" } } });
        let [fault] = &predict(&pod(&removed)).unwrap_err()[..] else { panic!("not one fault") };
        assert!(fault.contains("sidecar.istio.io/status is missing"), "{fault}");
        let invalid =
            json!({ "metadata": { "annotations": { "traffic.sidecar.istio.io/excludeOutboundPorts": "http" } } });
        assert!(predict(&pod(&invalid)).is_err());
    }
}
