//! What an injected pod captures: from its annotations, and from its proxy's container where they do not say enough.

use std::collections::BTreeMap;
use std::net::IpAddr;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::ProxySpec;
use iptables_rules::names::annotation;
use serde_json::Value;

use crate::containers::PROXY_CONTAINER;

/// Source of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureSource {
    /// `weir.dev/capture`.
    CaptureAnnotation,
    /// Istio's annotations.
    IstioAnnotations,
    /// Istio's annotations, and the user, group and environment of the proxy container.
    IstioAnnotationsAndProxy,
}

impl CaptureSource {
    /// Returns its name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CaptureAnnotation => "capture-annotation",
            Self::IstioAnnotations => "istio-annotations",
            Self::IstioAnnotationsAndProxy => "istio-annotations-and-proxy",
        }
    }
}

/// Derives the configuration of an injected pod. Its addresses decide about IPv6, where it has some already.
///
/// # Errors
/// Every invalid setting of the pod.
pub fn of_pod(pod: &Value) -> Result<(CaptureSource, CaptureConfig), Vec<String>> {
    let proxy = containers(pod).find(|container| container.get("name").is_some_and(|name| name == PROXY_CONTAINER));
    let proxy = proxy.map(ProxySpec::from_container).transpose()?;
    let annotations = pod.pointer("/metadata/annotations").and_then(Value::as_object).into_iter().flatten();
    let annotations = annotations.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    let (source, mut config) = of_annotations(&annotations.collect(), proxy)?;
    let addresses = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
    let addresses: Vec<IpAddr> = addresses.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect();
    config.ipv6 = config.ipv6.for_addresses(&addresses);
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
) -> Result<(CaptureSource, CaptureConfig), Vec<String>> {
    let injected = annotations.contains_key(annotation::STATUS);
    if let Some(value) = annotations.get(annotation::CAPTURE).filter(|_| injected) {
        let config = CaptureConfig::from_capture_annotation(value).map_err(|errors| texts(&errors))?;
        return Ok((CaptureSource::CaptureAnnotation, config));
    }
    let source =
        if proxy.is_some() { CaptureSource::IstioAnnotationsAndProxy } else { CaptureSource::IstioAnnotations };
    let config =
        CaptureConfig::from_annotations(annotations, &proxy.unwrap_or_default()).map_err(|errors| texts(&errors))?;
    Ok((source, config))
}

fn texts<E: ToString>(errors: &[E]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

/// Returns the init containers and the containers of a pod.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/initContainers", "/spec/containers"]
        .into_iter()
        .filter_map(|path| pod.pointer(path).and_then(Value::as_array))
        .flatten()
}
