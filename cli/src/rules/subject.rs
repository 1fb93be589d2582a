//! Derives the [`CaptureConfig`] of a pod, or of annotations alone.

use std::collections::BTreeMap;
use std::fmt;

use iptables_rules::CaptureConfig;
use iptables_rules::names::annotation;
use serde_json::{Map, Value};
use weir_injector::pod_capture::{self, CaptureSource};
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, SkipReason, inject, yaml};

use crate::inject::denial_messages;
use crate::manifest::pods::PodHolder;

pub(crate) use weir_injector::PROXY_CONTAINER as PROXY;
pub(crate) use weir_injector::pod_capture::containers;

/// Name of the init container that installs rules without a plugin.
pub(crate) const INIT: &str = "istio-init";

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
}

/// Capture configuration of a pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Capture {
    Configured {
        origin: CaptureSource,
        /// Whether the pod was injected for this answer.
        injected_now: bool,
        /// Whether an init container installs the rules, so that the plugin skips the pod.
        init_container: bool,
        config: Box<CaptureConfig>,
    },
    /// The injector skips the pod.
    NotInjected(SkipReason),
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
            Self::Configured { origin, injected_now, init_container, config: _ } => {
                if *injected_now {
                    f.write_str("not injected yet; these are the rules it would get, ")?;
                }
                f.write_str(match origin {
                    CaptureSource::CaptureAnnotation => "from the annotation weir.dev/capture",
                    CaptureSource::IstioAnnotations => "from Istio's annotations",
                    CaptureSource::IstioAnnotationsAndProxy => "from Istio's annotations and the proxy container",
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
    let capture = if annotations.contains_key(annotation::STATUS) {
        of_pod(&request.pod, false)?
    } else {
        match inject(&request, settings) {
            Ok(InjectOutcome::Injected { pod, .. }) => of_pod(&pod, true)?,
            Ok(InjectOutcome::Skipped { reason, .. }) => Capture::NotInjected(reason),
            Err(error) => return Err(denial_messages(error)),
        }
    };
    Ok(Subject { name, namespace, labels, capture, reroute_annotation, line: 1 })
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
    let capture = Capture::Configured { origin, injected_now: false, init_container: false, config: Box::new(config) };
    let reroute_annotation = reroute_annotation(|key| annotations.contains_key(key));
    let (namespace, labels) = (String::new(), Map::new());
    Ok(Subject { name: format!("{name:?}"), namespace, labels, capture, reroute_annotation, line: 1 })
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

/// Derives the configuration of an injected pod from its annotations and its proxy container.
///
/// # Errors
/// Every invalid setting of the pod.
pub(crate) fn of_pod(pod: &Value, injected_now: bool) -> Result<Capture, Vec<String>> {
    let (origin, config) = pod_capture::of_pod(pod)?;
    let init_container = containers(pod).any(|container| container.get("name").is_some_and(|name| name == INIT));
    Ok(Capture::Configured { origin, injected_now, init_container, config: Box::new(config) })
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

    fn configured(text: &str) -> (CaptureSource, CaptureConfig) {
        match from_annotations("file", text).unwrap().capture {
            Capture::Configured { origin, config, .. } => (origin, *config),
            Capture::NotInjected(reason) => panic!("{reason:?}"),
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
        assert_eq!(configured(&both.to_string()), (CaptureSource::CaptureAnnotation, config));
        assert_eq!(configured(&capture.to_string()), (CaptureSource::IstioAnnotations, CaptureConfig::default()));
    }

    #[test]
    fn proxy_is_found_among_init_containers_too() {
        let proxy = json!({"name": "istio-proxy", "securityContext": {"runAsUser": 1400, "runAsGroup": 0},
            "env": [{"name": "INVALID_DROP", "value": "true"}, {"name": "POD_NAME", "valueFrom": {}}]});
        let native = json!({"spec": {"initContainers": [proxy], "containers": [{"name": "app"}]}});
        let classic = json!({"spec": {"containers": [{"name": "app"}, proxy]}});
        for pod in [native, classic] {
            let Capture::Configured { origin, config, .. } = of_pod(&pod, false).unwrap() else { panic!("{pod}") };
            assert_eq!(origin, CaptureSource::IstioAnnotationsAndProxy);
            assert_eq!((config.proxy_uids, config.proxy_gids, config.drop_invalid), (vec![1400], vec![1337], true));
        }
        let Capture::Configured { origin, .. } = of_pod(&json!({"spec": {}}), false).unwrap() else { panic!() };
        assert_eq!(origin, CaptureSource::IstioAnnotations);
    }

    #[test]
    fn invalid_ids_are_reported_together() {
        let context = json!({"runAsUser": "me", "runAsGroup": -1});
        let pod = json!({"spec": {"containers": [{"name": "istio-proxy", "securityContext": context}]}});
        let errors = of_pod(&pod, false).unwrap_err();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[1].ends_with("securityContext.runAsGroup must be an id from 0 to 4294967295, found -1"),
            "{errors:?}"
        );
    }
}
