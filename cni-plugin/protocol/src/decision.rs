//! Decides whether a pod is in the mesh, and what is captured in it.
//!
//! The plugin decides from the annotations alone, the node agent from annotations and spec. Both call [`decide_capture`], so that they
//! cannot disagree.

use std::collections::BTreeMap;
use std::fmt;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::{self, ProxySpec, SETTINGS, SettingError};
use iptables_rules::config::InterceptionMode;
use iptables_rules::names::{annotation, variable};
use iptables_rules::text::parse_bool;
use serde_json::Value;

/// Reason for which a pod is not captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipReason {
    /// `CNI_ARGS` names no pod and namespace: podman, or a call by hand.
    NotKubernetes,
    /// The namespace is in `exclude_namespaces`.
    ExcludedNamespace,
    /// The pod uses the host network.
    HostNetwork,
    /// The pod was not injected: it has no annotation `sidecar.istio.io/status`.
    NotInjected,
    /// The injector added `istio-init`, which installs the rules itself.
    InitContainer,
    /// The pod has no container `istio-proxy`, so captured traffic would have no receiver.
    NoProxy,
    /// The proxy has `DISABLE_ENVOY=true`: proxyless gRPC.
    EnvoyDisabled,
    /// The proxy runs in another role, such as `router` or `waypoint`, according to its arguments.
    NotSidecarRole(String),
    /// The proxy was injected by a template for something else, such as a gateway or proxyless gRPC (`inject.istio.io/templates`).
    NotSidecarTemplate(String),
    /// The label or annotation `sidecar.istio.io/inject` is false.
    InjectionOff,
    /// `sidecar.istio.io/interceptionMode` is `NONE`.
    ModeNone,
    /// The reason given by the node agent, which sees the pod's spec.
    ReportedByAgent(String),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKubernetes => {
                f.write_str("not a Kubernetes pod: CNI_ARGS has no K8S_POD_NAME and K8S_POD_NAMESPACE")
            }
            Self::ExcludedNamespace => f.write_str("namespace is in exclude_namespaces"),
            Self::HostNetwork => f.write_str("pod uses the host network"),
            Self::NotInjected => f.write_str("not in the mesh: no annotation sidecar.istio.io/status"),
            Self::InitContainer => f.write_str("init container istio-init installs the rules"),
            Self::NoProxy => f.write_str("the injector added no container istio-proxy"),
            Self::EnvoyDisabled => f.write_str("proxy has DISABLE_ENVOY=true"),
            Self::NotSidecarRole(role) => write!(f, "proxy is not a sidecar: role {role}"),
            Self::NotSidecarTemplate(name) => write!(f, "proxy is not a sidecar: template {name}"),
            Self::InjectionOff => f.write_str("sidecar.istio.io/inject is false"),
            Self::ModeNone => f.write_str("interception mode is NONE"),
            Self::ReportedByAgent(reason) => write!(f, "{reason} (according to the node agent)"),
        }
    }
}

impl SkipReason {
    /// Returns the name in machine-readable output; stable.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NotKubernetes => "not_kubernetes",
            Self::ExcludedNamespace => "excluded_namespace",
            Self::HostNetwork => "host_network",
            Self::NotInjected => "not_injected",
            Self::InitContainer => "init_container",
            Self::NoProxy => "no_proxy",
            Self::EnvoyDisabled => "envoy_disabled",
            Self::NotSidecarRole(_) => "not_sidecar_role",
            Self::NotSidecarTemplate(_) => "not_sidecar_template",
            Self::InjectionOff => "injection_off",
            Self::ModeNone => "mode_none",
            Self::ReportedByAgent(_) => "reported_by_agent",
        }
    }
}

/// Origin of a capture configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigSource {
    /// Annotation `weir.dev/capture`, written by the webhook.
    CaptureAnnotation,
    /// Istio's annotations, with the default uid, gid and environment of the proxy.
    IstioAnnotations,
    /// Istio's annotations and the pod's spec.
    Specification,
    /// The node agent, which sees the spec.
    Agent,
}

impl ConfigSource {
    /// Returns the name in machine-readable output; stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CaptureAnnotation => "capture-annotation",
            Self::IstioAnnotations => "istio-annotations",
            Self::Specification => "istio-annotations-and-proxy",
            Self::Agent => "agent",
        }
    }
}

/// The part of a pod's spec that decides about capture.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecFacts {
    /// The pod has a container `istio-init`.
    pub istio_init: bool,
    /// The container `istio-proxy`, where the pod has one.
    pub proxy: Option<ProxyFacts>,
    /// Value of the label `sidecar.istio.io/inject`, which takes precedence over the annotation.
    pub inject_label: Option<String>,
}

/// The part of the container `istio-proxy` that decides about capture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyFacts {
    /// Its second argument, where the first one is `proxy`.
    pub role: Option<String>,
    /// Its user, group and environment; or one line for each that is invalid.
    pub spec: Result<ProxySpec, Vec<String>>,
}

impl ProxyFacts {
    /// Reads the container `istio-proxy`, in JSON.
    pub fn from_container(container: &Value) -> Self {
        let args = container["args"].as_array();
        let arg = |index: usize| args.and_then(|args| args.get(index)).and_then(Value::as_str);
        let role = if arg(0) == Some("proxy") { arg(1).map(str::to_owned) } else { None };
        Self { role, spec: ProxySpec::from_container(container) }
    }
}

/// Decision that follows from the annotations and the spec of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptureDecision {
    /// The pod is not captured.
    Skip(SkipReason),
    /// The pod is captured with this configuration.
    Capture(Box<CaptureConfig>, ConfigSource),
    /// Only the spec says what to capture; one line for each annotation that shows it.
    NeedsSpec(Vec<String>),
    /// Invalid annotations or environment variables.
    InvalidAnnotations(Vec<SettingError>),
    /// An invalid spec, one line for each fault.
    InvalidSpec(Vec<String>),
    /// The pod was injected, but its annotation `sidecar.istio.io/status` was removed or contradicts that; the text says what shows it.
    /// Such a pod waits.
    StatusContradicted(String),
}

/// Templates of Istio whose proxy takes no captured traffic: a gateway is addressed directly, proxyless gRPC has no Envoy.
const OTHER_TEMPLATES: [&str; 7] =
    ["gateway", "grpc-agent", "grpc-simple", "waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"];
/// Annotation with the templates of the pod, separated by commas.
pub const TEMPLATES: &str = "inject.istio.io/templates";
/// Annotation with the pod's proxy configuration; its `proxyMetadata` become environment variables of the proxy.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// Annotation with the author's own settings of `istio-proxy`.
pub const OVERRIDES: &str = "proxy.istio.io/overrides";
/// Variable of the proxy that turns Envoy off, and with it the capture.
pub const DISABLE_ENVOY: &str = "DISABLE_ENVOY";
/// Fields of [`OVERRIDES`] that change what is captured.
const CAPTURE_FIELDS: [&str; 2] = ["runAsUser", "runAsGroup"];

/// Decides whether a pod is captured, and with which configuration; without `spec`, from the annotations alone.
pub fn decide_capture(annotations: &BTreeMap<String, String>, spec: Option<&SpecFacts>) -> CaptureDecision {
    let Some(status) = annotations.get(annotation::STATUS) else {
        return without_status(annotations, spec);
    };
    let status = InjectionStatus::parse(status);
    // A spec cannot be changed; the annotation can. A pod with weir.dev/capture is captured by the plugin, even if its author has added a
    // container with the name istio-init.
    let skip = match spec {
        Some(spec) if spec.istio_init && !annotations.contains_key(annotation::CAPTURE) => {
            Some((SkipReason::InitContainer, ""))
        }
        Some(spec) if spec.proxy.is_none() => Some((SkipReason::NoProxy, "")),
        None if status.init_containers.iter().any(|name| name == "istio-init") => {
            Some((SkipReason::InitContainer, "names the container istio-init"))
        }
        None if status.is_complete && !status.names().any(|name| name == "istio-proxy") => {
            Some((SkipReason::NoProxy, "names no container istio-proxy"))
        }
        _ => None,
    };
    if let Some((reason, claim)) = skip {
        // The webhook writes weir.dev/capture only for pods that have a proxy and no istio-init.
        return if spec.is_none() && annotations.contains_key(annotation::CAPTURE) {
            let fault = format!("annotation {} {claim}, but there is {}", annotation::STATUS, annotation::CAPTURE);
            CaptureDecision::StatusContradicted(fault)
        } else {
            CaptureDecision::Skip(reason)
        };
    }
    let decision = match annotations.get(annotation::CAPTURE) {
        Some(value) => match CaptureConfig::from_capture_annotation(value) {
            Ok(config) => CaptureDecision::Capture(Box::new(config), ConfigSource::CaptureAnnotation),
            Err(errors) => CaptureDecision::InvalidAnnotations(errors),
        },
        None => from_istio_annotations(annotations, spec),
    };
    match decision {
        CaptureDecision::Capture(config, _) if config.mode == InterceptionMode::None => {
            CaptureDecision::Skip(SkipReason::ModeNone)
        }
        decision => decision,
    }
}

/// Decides about a pod without the annotation of its injection: it is outside the mesh, unless something else shows that it was injected.
fn without_status(annotations: &BTreeMap<String, String>, spec: Option<&SpecFacts>) -> CaptureDecision {
    if spec.is_some_and(|spec| spec.istio_init) {
        return CaptureDecision::Skip(SkipReason::NotInjected);
    }
    let has_sidecar = || {
        let sidecar = |proxy: &ProxyFacts| proxy.role.as_deref() == Some("sidecar");
        let inject = spec.and_then(|spec| spec.inject_label.as_ref()).or_else(|| annotations.get(annotation::INJECT));
        spec.and_then(|spec| spec.proxy.as_ref()).is_some_and(sidecar)
            && inject.is_none_or(|value| parse_bool(value) != Some(false))
            && other_template(annotations).is_none()
    };
    let evidence = if annotations.contains_key(annotation::CAPTURE) {
        format!("there is {}", annotation::CAPTURE)
    } else if has_sidecar() {
        "container istio-proxy runs as a sidecar".to_owned()
    } else {
        return CaptureDecision::Skip(SkipReason::NotInjected);
    };
    CaptureDecision::StatusContradicted(format!("annotation {} is missing, but {evidence}", annotation::STATUS))
}

/// Decides about a pod that Istio's injector has injected.
fn from_istio_annotations(annotations: &BTreeMap<String, String>, spec: Option<&SpecFacts>) -> CaptureDecision {
    if let Some(name) = other_template(annotations) {
        return CaptureDecision::Skip(SkipReason::NotSidecarTemplate(name.to_owned()));
    }
    let inject = spec.and_then(|spec| spec.inject_label.as_ref()).or_else(|| annotations.get(annotation::INJECT));
    if inject.is_some_and(|value| parse_bool(value) == Some(false)) {
        return CaptureDecision::Skip(SkipReason::InjectionOff);
    }
    let proxy = match spec.and_then(|spec| spec.proxy.as_ref()) {
        None => None,
        Some(ProxyFacts { role: Some(role), .. }) if role != "sidecar" => {
            return CaptureDecision::Skip(SkipReason::NotSidecarRole(role.clone()));
        }
        Some(ProxyFacts { spec: Err(findings), .. }) => return CaptureDecision::InvalidSpec(findings.clone()),
        Some(ProxyFacts { spec: Ok(proxy), .. }) => Some(proxy),
    };
    if proxy.and_then(|proxy| proxy.env.get(DISABLE_ENVOY)).is_some_and(|value| parse_bool(value) == Some(true)) {
        return CaptureDecision::Skip(SkipReason::EnvoyDisabled);
    }
    let (config, source) = match proxy {
        Some(proxy) => (CaptureConfig::from_annotations(annotations, proxy), ConfigSource::Specification),
        None => (CaptureConfig::from_annotations(annotations, &ProxySpec::default()), ConfigSource::IstioAnnotations),
    };
    match config {
        Err(errors) => CaptureDecision::InvalidAnnotations(errors),
        Ok(config) => {
            let hints = if proxy.is_none() { spec_hints(annotations) } else { Vec::new() };
            if config.mode == InterceptionMode::None || hints.is_empty() {
                CaptureDecision::Capture(Box::new(config), source)
            } else {
                CaptureDecision::NeedsSpec(hints)
            }
        }
    }
}

/// Returns the template that makes the proxy something else than a sidecar.
fn other_template(annotations: &BTreeMap<String, String>) -> Option<&str> {
    let templates = || annotations.get(TEMPLATES).into_iter().flat_map(|list| list.split(',')).map(str::trim);
    if templates().any(|name| name == "sidecar") {
        return None;
    }
    templates().find(|name| OTHER_TEMPLATES.contains(name))
}

/// Returns a line for each annotation which shows that the spec of the proxy decides what is captured: by its user, its group or a variable.
fn spec_hints(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let mut hints = Vec::new();
    for key in [PROXY_CONFIG, OVERRIDES] {
        let Some(value) = annotations.get(key) else { continue };
        let fields: &[&str] = if key == OVERRIDES { &CAPTURE_FIELDS } else { &[] };
        let names = capture_env_vars().chain(fields.iter().copied()).filter(|name| value.contains(name));
        hints.extend(names.map(|name| format!("{key} sets {name}")));
    }
    hints
}

/// Variables of the proxy that decide_capture what is captured. Dual stack is not among them: both families are captured anyway.
pub fn capture_env_vars() -> impl Iterator<Item = &'static str> {
    let settings = SETTINGS.iter().filter(|setting| setting.source == annotations::SettingSource::Variable);
    settings.map(|setting| setting.name).filter(|name| *name != variable::DUAL_STACK).chain([DISABLE_ENVOY])
}

/// The annotation `sidecar.istio.io/status`: names of the containers that the injector added.
#[derive(Debug, Default)]
struct InjectionStatus {
    init_containers: Vec<String>,
    containers: Vec<String>,
    /// Whether it lists containers. A pod with an unreadable annotation is in the mesh all the same.
    is_complete: bool,
}

impl InjectionStatus {
    /// Parses the annotation. Injectors write different keys, so nothing is an error.
    fn parse(status: &str) -> Self {
        let Ok(record) = serde_json::from_str::<BTreeMap<String, Value>>(status) else {
            return Self::default();
        };
        let names = |key: &str| -> Vec<String> {
            let list = record.get(key).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            init_containers: names("initContainers"),
            containers: names("containers"),
            is_complete: record.contains_key("containers") || record.contains_key("initContainers"),
        }
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.init_containers.iter().chain(&self.containers)
    }
}
