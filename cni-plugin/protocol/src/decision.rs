//! Is a pod in the mesh, and what is captured in it: from its annotations alone, as the plugin sees it, or with its specification, as the
//! node agent sees it. One function for both, so that they cannot come to different ends.

use std::collections::BTreeMap;
use std::fmt;

use iptables_rules::CaptureConfig;
use iptables_rules::annotations::{self, AnnotationError, ProxySpec, SETTINGS};
use iptables_rules::config::InterceptionMode;
use iptables_rules::names::{annotation, variable};
use serde_json::Value;

/// Why a pod is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipReason {
    /// `CNI_ARGS` names no pod and namespace: podman, or a call by hand.
    NotKubernetes,
    /// The namespace is in `exclude_namespaces`.
    ExcludedNamespace,
    /// It shares the node's network namespace.
    HostNetwork,
    /// No injector has seen the pod: the annotation `sidecar.istio.io/status` is absent.
    NotInjected,
    /// The injector added `istio-init`, which installs the rules itself.
    InitContainer,
    /// The injector added no `istio-proxy`: nobody would take the traffic.
    NoProxy,
    /// The variable `DISABLE_ENVOY` of the proxy is true: proxyless gRPC.
    EnvoyDisabled,
    /// The proxy is no sidecar, but a gateway or a waypoint: the first arguments of its container.
    OtherRole(String),
    /// The proxy is no sidecar, but a gateway or an agent for proxyless gRPC; named by `inject.istio.io/templates`.
    OtherTemplate(String),
    /// The label or annotation `sidecar.istio.io/inject` is false.
    InjectionOff,
    /// `sidecar.istio.io/interceptionMode` is `NONE`.
    ModeNone,
    /// What the node agent says, which sees more of the pod.
    Agent(String),
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKubernetes => {
                f.write_str("not a Kubernetes pod: CNI_ARGS has no K8S_POD_NAME and K8S_POD_NAMESPACE")
            }
            Self::ExcludedNamespace => f.write_str("its namespace is in exclude_namespaces"),
            Self::HostNetwork => f.write_str("it shares the network of the node"),
            Self::NotInjected => f.write_str("not in the mesh: no annotation sidecar.istio.io/status"),
            Self::InitContainer => f.write_str("its init container istio-init installs the rules"),
            Self::NoProxy => f.write_str("the injector added no container istio-proxy"),
            Self::EnvoyDisabled => f.write_str("its proxy has DISABLE_ENVOY set"),
            Self::OtherRole(role) => write!(f, "its proxy is no sidecar: it runs as {role}"),
            Self::OtherTemplate(name) => write!(f, "its proxy is no sidecar: injected by the template {name}"),
            Self::InjectionOff => f.write_str("sidecar.istio.io/inject is false"),
            Self::ModeNone => f.write_str("interception mode is NONE"),
            Self::Agent(reason) => write!(f, "{reason} (says the node agent)"),
        }
    }
}

/// Where the capture configuration was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `weir.dev/capture`, written by our webhook, which sees the whole pod.
    CaptureAnnotation,
    /// Istio's annotations, with the default uid, gid and environment of the proxy.
    IstioAnnotations,
    /// Istio's annotations and the pod's specification.
    Specification,
    /// The node agent, which saw the specification.
    Agent,
}

/// What only the pod's specification says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecFacts {
    /// It has a container `istio-init`.
    pub istio_init: bool,
    /// The container `istio-proxy`; `None` where there is none.
    pub proxy: Option<ProxyFacts>,
    /// The label `sidecar.istio.io/inject`, which outweighs the annotation.
    pub inject_label: Option<String>,
}

/// What the container `istio-proxy` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyFacts {
    /// Its second argument, where the first one is `proxy`.
    pub role: Option<String>,
    /// Its user, group and environment; or what is wrong with them, one line each.
    pub spec: Result<ProxySpec, Vec<String>>,
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The pod is left alone.
    Skip(SkipReason),
    /// This is captured.
    Capture(Box<CaptureConfig>, Source),
    /// The annotations show that the specification says more than they do, and it is not known.
    NeedsSpec(Vec<String>),
    /// Annotations or variables that cannot be taken.
    Refused(Vec<AnnotationError>),
    /// A specification that cannot be taken, one line for each finding.
    BadSpec(Vec<String>),
}

/// Templates of Istio whose proxy takes no captured traffic (a gateway is addressed directly, proxyless gRPC has no proxy).
const OTHER_TEMPLATES: [&str; 7] =
    ["gateway", "grpc-agent", "grpc-simple", "waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"];
/// Names the templates of the pod, separated by commas.
pub const TEMPLATES: &str = "inject.istio.io/templates";
/// The pod's own proxy configuration; its `proxyMetadata` become environment of the proxy.
pub const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// What the author had changed on `istio-proxy` before the injection.
pub const OVERRIDES: &str = "proxy.istio.io/overrides";
/// Turns the proxy off, and with it the capture.
pub const DISABLE_ENVOY: &str = "DISABLE_ENVOY";
/// Fields of an overridden container that change what is captured.
const CAPTURE_FIELDS: [&str; 2] = ["runAsUser", "runAsGroup"];

/// Decides. Without `spec` it is the annotations alone that say what the pod is.
pub fn decide(annotations: &BTreeMap<String, String>, spec: Option<&SpecFacts>) -> Decision {
    let Some(status) = annotations.get(annotation::STATUS) else {
        return Decision::Skip(SkipReason::NotInjected);
    };
    let record = Record::parse(status);
    if record.init_containers.iter().any(|name| name == "istio-init") || spec.is_some_and(|spec| spec.istio_init) {
        return Decision::Skip(SkipReason::InitContainer);
    }
    let no_proxy = match spec {
        Some(spec) => spec.proxy.is_none(),
        None => record.complete && !record.names().any(|name| name == "istio-proxy"),
    };
    if no_proxy {
        return Decision::Skip(SkipReason::NoProxy);
    }
    let decision = match annotations.get(annotation::CAPTURE) {
        Some(value) => match CaptureConfig::from_capture_annotation(value) {
            Ok(config) => Decision::Capture(Box::new(config), Source::CaptureAnnotation),
            Err(errors) => Decision::Refused(errors),
        },
        None => from_istio(annotations, spec),
    };
    match decision {
        Decision::Capture(config, _) if config.mode == InterceptionMode::None => Decision::Skip(SkipReason::ModeNone),
        decision => decision,
    }
}

/// A pod of another injector: what makes it no sidecar, then the configuration.
fn from_istio(annotations: &BTreeMap<String, String>, spec: Option<&SpecFacts>) -> Decision {
    if let Some(name) = other_template(annotations) {
        return Decision::Skip(SkipReason::OtherTemplate(name.to_owned()));
    }
    let inject = spec.and_then(|spec| spec.inject_label.as_ref()).or_else(|| annotations.get(annotation::INJECT));
    if inject.is_some_and(|value| is_false(value)) {
        return Decision::Skip(SkipReason::InjectionOff);
    }
    let proxy = match spec.and_then(|spec| spec.proxy.as_ref()) {
        None => None,
        Some(ProxyFacts { role: Some(role), .. }) if role != "sidecar" => {
            return Decision::Skip(SkipReason::OtherRole(role.clone()));
        }
        Some(ProxyFacts { spec: Err(findings), .. }) => return Decision::BadSpec(findings.clone()),
        Some(ProxyFacts { spec: Ok(proxy), .. }) => Some(proxy),
    };
    if proxy.and_then(|proxy| proxy.env.get(DISABLE_ENVOY)).is_some_and(|value| is_true(value)) {
        return Decision::Skip(SkipReason::EnvoyDisabled);
    }
    let (config, source) = match proxy {
        Some(proxy) => (CaptureConfig::from_annotations(annotations, proxy), Source::Specification),
        None => (CaptureConfig::from_annotations(annotations, &ProxySpec::default()), Source::IstioAnnotations),
    };
    match config {
        Err(errors) => Decision::Refused(errors),
        Ok(config) => {
            let hints = if proxy.is_none() { hints_of_the_spec(annotations) } else { Vec::new() };
            if config.mode == InterceptionMode::None || hints.is_empty() {
                Decision::Capture(Box::new(config), source)
            } else {
                Decision::NeedsSpec(hints)
            }
        }
    }
}

/// The template that makes the proxy something else than a sidecar.
fn other_template(annotations: &BTreeMap<String, String>) -> Option<&str> {
    let templates = || annotations.get(TEMPLATES).into_iter().flat_map(|list| list.split(',')).map(str::trim);
    if templates().any(|name| name == "sidecar") {
        return None;
    }
    templates().find(|name| OTHER_TEMPLATES.contains(name))
}

/// Annotations which show that the proxy's container sets what the plugin would have to know: its user, or a variable that decides
/// what is captured.
fn hints_of_the_spec(annotations: &BTreeMap<String, String>) -> Vec<String> {
    let mut hints = Vec::new();
    for key in [PROXY_CONFIG, OVERRIDES] {
        let Some(value) = annotations.get(key) else { continue };
        let fields: &[&str] = if key == OVERRIDES { &CAPTURE_FIELDS } else { &[] };
        let names = capture_variables().chain(fields.iter().copied()).filter(|name| value.contains(name));
        hints.extend(names.map(|name| format!("{key} sets {name}")));
    }
    hints
}

/// Variables of the proxy that decide what is captured. Dual stack is none of them: both families are captured anyway.
pub fn capture_variables() -> impl Iterator<Item = &'static str> {
    let settings = SETTINGS.iter().filter(|setting| setting.source == annotations::Source::Variable);
    settings.map(|setting| setting.name).filter(|name| *name != variable::DUAL_STACK).chain([DISABLE_ENVOY])
}

/// `false` as Go's `strconv.ParseBool` reads it; everything else, also nonsense, is not false.
fn is_false(value: &str) -> bool {
    matches!(value, "0" | "f" | "F" | "FALSE" | "false" | "False")
}

/// `true` by the same rule.
fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "TRUE" | "true" | "True")
}

/// The record of an injection: names of what the template brought.
#[derive(Debug, Default)]
struct Record {
    init_containers: Vec<String>,
    containers: Vec<String>,
    /// Whether it lists containers at all; the presence of the annotation means "in the mesh" even if it cannot be read.
    complete: bool,
}

impl Record {
    /// Reads a record; every injector writes what it likes, so that nothing is an error.
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
            complete: record.contains_key("containers") || record.contains_key("initContainers"),
        }
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.init_containers.iter().chain(&self.containers)
    }
}
