//! Derives the [`CaptureConfig`] of a pod, or of annotations alone.

use std::collections::BTreeMap;
use std::fmt;

use iptables_rules::CaptureConfig;
use iptables_rules::names::annotation;
use serde_json::{Map, Value};
use weir_injector::pod_capture::{self, PodCapture, SharedIds};
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, SkipReason, inject, yaml};
use weir_protocol::decision::{self as protocol, ConfigSource};

use super::init_container;
use crate::inject::denial_messages;
use crate::manifest::pods::PodHolder;

pub(crate) use weir_injector::PROXY_CONTAINER as PROXY;
pub(crate) use weir_injector::pod_capture::{INIT_CONTAINER as INIT, containers};

/// A pod, or a set of annotations.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subject {
    /// Name for messages.
    pub(crate) name: String,
    /// Empty if the manifest names none.
    pub(crate) namespace: String,
    /// Labels of the pod.
    pub(crate) labels: Map<String, Value>,
    pub(crate) capture: Capture,
    /// The annotation that sets rerouted interfaces: the deprecated one, if the pod has only that.
    pub(crate) reroute_annotation: &'static str,
    /// First line of its document in the file.
    pub(crate) line: usize,
    /// The injected pod; `None` without one.
    pub(crate) pod: Option<Value>,
}

/// Capture configuration of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Capture {
    Configured {
        origin: ConfigSource,
        /// Whether the pod was injected for this answer.
        injected_now: bool,
        /// Whether an init container installs the rules, so that the plugin skips the pod.
        init_container: bool,
        config: Box<CaptureConfig>,
        shared_ids: SharedIds,
    },
    /// The injector skips the pod.
    NotInjected(SkipReason),
    /// The plugin skips the pod.
    Skipped(protocol::SkipReason),
}

impl Capture {
    /// Returns the capture of a configuration that needs no pod.
    pub(crate) fn configured(origin: ConfigSource, config: CaptureConfig) -> Self {
        Self::Configured {
            origin,
            injected_now: false,
            init_container: false,
            config: Box::new(config),
            shared_ids: SharedIds::default(),
        }
    }

    /// Returns the configuration of a pod that is captured.
    pub(crate) fn config(&self) -> Option<&CaptureConfig> {
        match self {
            Self::Configured { config, .. } => Some(config),
            Self::NotInjected(_) | Self::Skipped(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.capture)
    }
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInjected(reason) => write!(f, "no rules: {}", reason.message()),
            Self::Skipped(reason) => write!(f, "no rules: {reason}"),
            Self::Configured { origin, injected_now, init_container, .. } => {
                if *injected_now {
                    f.write_str("not injected yet; these are the rules it would get, ")?;
                }
                f.write_str(match origin {
                    ConfigSource::CaptureAnnotation => "from the annotation weir.dev/capture",
                    ConfigSource::IstioAnnotations => "from Istio's annotations",
                    ConfigSource::Specification => "from Istio's annotations and the proxy container",
                    ConfigSource::Agent => "from the node agent",
                })?;
                if *init_container {
                    write!(f, "; its init container {INIT} installs the rules, and the plugin skips the pod")?;
                }
                Ok(())
            }
        }
    }
}

/// Derives the configuration of a pod of a manifest, which is injected first if it is not.
///
/// # Errors
/// Every invalid setting of the pod.
pub(crate) fn from_holder(holder: &PodHolder<'_>, settings: &Settings) -> Result<Subject, Vec<String>> {
    let request = holder.request().map_err(|errors| texts(&errors))?;
    let (name, namespace) = (holder.name.to_string(), holder.name.namespace.clone());
    let labels = request.pod.pointer("/metadata/labels").and_then(Value::as_object).cloned().unwrap_or_default();
    let annotations = pod_annotations(&request.pod);
    let reroute_annotation = reroute_annotation(|key| annotations.contains_key(key));
    let (capture, pod) = if annotations.contains_key(annotation::STATUS) {
        (of_pod(&request.pod, false)?, Some(request.pod))
    } else {
        match inject(&request, settings) {
            Ok(InjectOutcome::Injected { pod, .. }) => {
                let mut capture = of_pod(&pod, true)?;
                if let Capture::Configured { config, shared_ids, .. } = &mut capture
                    && pod_capture::chooses_proxy_ids(&request.pod)
                {
                    *shared_ids = SharedIds::all(config);
                }
                (capture, Some(pod))
            }
            Ok(InjectOutcome::Skipped { reason, .. }) => (Capture::NotInjected(reason), None),
            Err(error) => return Err(denial_messages(error)),
        }
    };
    Ok(Subject { name, namespace, labels, capture, reroute_annotation, line: 1, pod })
}

fn reroute_annotation(has: impl Fn(&str) -> bool) -> &'static str {
    let is_deprecated = has(annotation::KUBEVIRT_INTERFACES) && !has(annotation::REROUTE_VIRTUAL_INTERFACES);
    if is_deprecated { annotation::KUBEVIRT_INTERFACES } else { annotation::REROUTE_VIRTUAL_INTERFACES }
}

/// Derives the configuration of a file of annotations: a map, or an object with `metadata.annotations`.
///
/// # Errors
/// The file has another form, or invalid settings.
pub(crate) fn from_annotations(name: &str, text: &str) -> Result<Subject, Vec<String>> {
    let value = yaml::from_str(text).map_err(|error| vec![error.to_string()])?;
    let (path, map) = match value.pointer("/metadata/annotations") {
        Some(inner) => ("metadata.annotations", inner),
        None => ("annotations", &value),
    };
    let annotations = match map {
        // A Kubernetes object without annotations.
        Value::Object(map) if map.contains_key("kind") || map.contains_key("metadata") => BTreeMap::new(),
        Value::Object(map) => strings(path, map)?,
        Value::Null => BTreeMap::new(),
        _ => return Err(vec![format!("{path}: must be a map of names to values")]),
    };
    let (origin, config) = pod_capture::of_annotations(&annotations, None)?;
    let capture = Capture::configured(origin, config);
    let reroute_annotation = reroute_annotation(|key| annotations.contains_key(key));
    let (namespace, labels) = (String::new(), Map::new());
    Ok(Subject { name: format!("{name:?}"), namespace, labels, capture, reroute_annotation, line: 1, pod: None })
}

fn strings(path: &str, map: &serde_json::Map<String, Value>) -> Result<BTreeMap<String, String>, Vec<String>> {
    let mut strings = BTreeMap::new();
    let mut errors = Vec::new();
    for (name, value) in map {
        match value {
            Value::String(text) => _ = strings.insert(name.clone(), text.clone()),
            other => errors.push(format!("{path}[{name}] must be a string, found {other} (quote it)")),
        }
    }
    if errors.is_empty() { Ok(strings) } else { Err(errors) }
}

/// Derives what is captured in an injected pod.
///
/// # Errors
/// The plugin rejects the pod: everything that is wrong with it.
pub(crate) fn of_pod(pod: &Value, injected_now: bool) -> Result<Capture, Vec<String>> {
    let (origin, config, init_container) = match pod_capture::predict(pod)? {
        PodCapture::Captured { source, config } => (source, config, false),
        PodCapture::Skipped(protocol::SkipReason::InitContainer) => {
            let (source, mut config) = pod_capture::configured(pod)?;
            let init = containers(pod).find(|container| container["name"] == INIT);
            // Where an argument is not understood, or depends on the pod's resolv.conf, the annotations stand in.
            if let Some(of_arguments) = init.and_then(|init| init_container::capture_config(init, &[]).ok()) {
                config = CaptureConfig { ipv6: config.ipv6, ..of_arguments };
            }
            (source, Box::new(config), true)
        }
        PodCapture::Skipped(reason) => return Ok(Capture::Skipped(reason)),
    };
    let shared_ids = SharedIds::find(pod, &config);
    Ok(Capture::Configured { origin, injected_now, init_container, config, shared_ids })
}

fn texts<E: ToString>(errors: &[E]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn pod_annotations(pod: &Value) -> BTreeMap<String, String> {
    let map = pod.pointer("/metadata/annotations").and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configured(text: &str) -> (ConfigSource, CaptureConfig) {
        match from_annotations("file", text).unwrap().capture {
            Capture::Configured { origin, config, .. } => (origin, *config),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn annotations_may_be_bare_or_in_an_object() {
        let bare = "traffic.sidecar.istio.io/excludeOutboundPorts: \"9000\"\n";
        let object = format!("kind: Pod\nmetadata:\n  annotations:\n    {bare}");
        assert_eq!(configured(bare), configured(&object));
        assert_ne!(configured(bare).1, CaptureConfig::default());
        for nothing in ["", "{}", "kind: Pod\nmetadata:\n  name: web\n", "metadata: {annotations: null}\n"] {
            assert_eq!(configured(nothing).1, CaptureConfig::default(), "{nothing:?}");
        }
    }

    #[test]
    fn all_non_string_values_are_reported() {
        let errors = from_annotations("file", "a: 80\nb: true\nc: \"x\"\n").unwrap_err();
        assert_eq!(
            errors,
            [
                "annotations[a] must be a string, found 80 (quote it)",
                "annotations[b] must be a string, found true (quote it)",
            ]
        );
        let errors = from_annotations("file", "[1]").unwrap_err();
        assert_eq!(errors, ["annotations: must be a map of names to values"]);
    }

    #[test]
    fn capture_annotation_needs_the_status_annotation() {
        let config = CaptureConfig { outbound_ports_exclude: vec![7], ..CaptureConfig::default() };
        let capture = json!({annotation::CAPTURE: config.to_capture_annotation()});
        let mut both = capture.clone();
        both[annotation::STATUS] = "{}".into();
        assert_eq!(configured(&both.to_string()), (ConfigSource::CaptureAnnotation, config));
        assert_eq!(configured(&capture.to_string()), (ConfigSource::IstioAnnotations, CaptureConfig::default()));
    }

    #[test]
    fn proxy_is_found_among_init_containers_too() {
        let proxy = json!({"name": "istio-proxy", "securityContext": {"runAsUser": 1400, "runAsGroup": 0},
            "env": [{"name": "INVALID_DROP", "value": "true"}, {"name": "POD_NAME", "valueFrom": {}}]});
        let metadata = json!({"annotations": {annotation::STATUS: "{}"}});
        let native =
            json!({"metadata": metadata, "spec": {"initContainers": [proxy], "containers": [{"name": "app"}]}});
        let classic = json!({"metadata": metadata, "spec": {"containers": [{"name": "app"}, proxy]}});
        for pod in [native, classic] {
            let Capture::Configured { origin, config, .. } = of_pod(&pod, false).unwrap() else { panic!("{pod}") };
            assert_eq!(origin, ConfigSource::Specification);
            assert_eq!((config.proxy_uids, config.proxy_gids, config.drop_invalid), (vec![1400], vec![1337], true));
        }
        let bare = json!({"metadata": metadata, "spec": {}});
        assert_eq!(of_pod(&bare, false), Ok(Capture::Skipped(protocol::SkipReason::NoProxy)));
    }

    #[test]
    fn invalid_ids_are_reported_together() {
        let context = json!({"runAsUser": "me", "runAsGroup": -1});
        let pod = json!({
            "metadata": {"annotations": {annotation::STATUS: "{}"}},
            "spec": {"containers": [{"name": "istio-proxy", "securityContext": context}]},
        });
        let errors = of_pod(&pod, false).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[1].ends_with("securityContext.runAsGroup must be an id from 0 to 4294967295, found -1"),
            "{errors:?}"
        );
    }
}
