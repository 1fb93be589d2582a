//! Who is this pod, and what is captured in it: a pure decision on what the runtime passed.

use std::collections::BTreeMap;
use std::fmt;

use iptables_rules::annotations::{self, AnnotationError, ProxySpec, SETTINGS};
use iptables_rules::config::InterceptionMode;
use iptables_rules::names::{annotation, variable};
use iptables_rules::{CaptureConfig, RuleSet, plan};
use serde_json::Value;

use crate::failure::Failure;
use crate::netconf::{CAPABILITY, NetConf, PodAnnotations};
use crate::request::PodArgs;

/// What is to be done in a pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Skip(SkipReason),
    /// These rules have to hold.
    Capture {
        /// The rules.
        rules: RuleSet,
        /// Where the configuration came from.
        source: Source,
    },
}

/// Why a pod is left alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SkipReason {
    /// `CNI_ARGS` names no pod and namespace: podman, or a call by hand.
    NotKubernetes,
    /// The namespace is in `exclude_namespaces`.
    ExcludedNamespace,
    /// No injector has seen the pod: the annotation `sidecar.istio.io/status` is absent.
    NotInjected,
    /// The injector added `istio-init`, which installs the rules itself.
    InitContainer,
    /// The injector added no `istio-proxy`: nobody would take the traffic.
    NoProxy,
    /// The proxy is no sidecar, but a gateway or an agent for proxyless gRPC; named by `inject.istio.io/templates`.
    OtherTemplate(String),
    /// The annotation `sidecar.istio.io/inject` is false.
    InjectionOff,
    /// `sidecar.istio.io/interceptionMode` is `NONE`.
    ModeNone,
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotKubernetes => {
                f.write_str("not a Kubernetes pod: CNI_ARGS has no K8S_POD_NAME and K8S_POD_NAMESPACE")
            }
            Self::ExcludedNamespace => f.write_str("its namespace is in exclude_namespaces"),
            Self::NotInjected => f.write_str("not in the mesh: no annotation sidecar.istio.io/status"),
            Self::InitContainer => f.write_str("its init container istio-init installs the rules"),
            Self::NoProxy => f.write_str("the injector added no container istio-proxy"),
            Self::OtherTemplate(name) => write!(f, "its proxy is no sidecar: injected by the template {name}"),
            Self::InjectionOff => f.write_str("annotation sidecar.istio.io/inject is false"),
            Self::ModeNone => f.write_str("interception mode is NONE"),
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
}

/// Templates of Istio whose proxy takes no captured traffic (a gateway is addressed directly, proxyless gRPC has no proxy).
const OTHER_TEMPLATES: [&str; 7] =
    ["gateway", "grpc-agent", "grpc-simple", "waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"];
/// Names the templates of the pod, separated by commas.
const TEMPLATES: &str = "inject.istio.io/templates";
/// The pod's own proxy configuration; its `proxyMetadata` become environment of the proxy.
const PROXY_CONFIG: &str = "proxy.istio.io/config";
/// What the author had changed on `istio-proxy` before the injection.
const OVERRIDES: &str = "proxy.istio.io/overrides";
/// Turns the proxy off, and with it the capture.
const DISABLE_ENVOY: &str = "DISABLE_ENVOY";
/// Fields of an overridden container that change what is captured.
const CAPTURE_FIELDS: [&str; 2] = ["runAsUser", "runAsGroup"];

/// Decides.
///
/// # Errors
/// Where a pod of the mesh cannot be served as it asks, and where nobody can tell whether it is in the mesh.
pub fn judge(pod: &PodArgs, conf: &NetConf<'_>) -> Result<Verdict, Failure> {
    let skip = |reason| Ok(Verdict::Skip(reason));
    if !pod.is_kubernetes() {
        return skip(SkipReason::NotKubernetes);
    }
    if conf.exclude_namespaces.contains(&pod.namespace) {
        return skip(SkipReason::ExcludedNamespace);
    }
    let annotations = match conf.annotations()? {
        PodAnnotations::Passed(annotations) => annotations,
        PodAnnotations::NotPassed => return Err(Failure::NoAnnotations(pod.full_name())),
        PodAnnotations::NotDeclared => return Err(not_declared()),
    };
    let Some(status) = annotations.get(annotation::STATUS) else {
        return skip(SkipReason::NotInjected);
    };
    let record = Record::parse(status);
    if record.init_containers.iter().any(|name| name == "istio-init") {
        return skip(SkipReason::InitContainer);
    }
    if record.complete && !record.names().any(|name| name == "istio-proxy") {
        return skip(SkipReason::NoProxy);
    }

    let (capture, source) = match annotations.get(annotation::CAPTURE) {
        Some(value) => (CaptureConfig::from_capture_annotation(value), Source::CaptureAnnotation),
        None => match from_istio(pod, &annotations)? {
            Derived::Skip(reason) => return skip(reason),
            Derived::Config(capture) => (*capture, Source::IstioAnnotations),
        },
    };
    let capture = capture.map_err(|errors| Failure::Annotations { pod: pod.full_name(), errors })?;
    if capture.mode == InterceptionMode::None {
        return skip(SkipReason::ModeNone);
    }
    conf.require_sound()?;
    let rules = plan(&capture).map_err(|settings| Failure::Unsupported { pod: pod.full_name(), settings })?;
    Ok(Verdict::Capture { rules, source })
}

/// The entry of the conflist does not ask for annotations.
pub fn not_declared() -> Failure {
    Failure::Config(vec![format!(
        "key capabilities: \"{CAPABILITY}\": true is missing, so the runtime passes no annotations"
    )])
}

/// What Istio's annotations amount to.
enum Derived {
    Skip(SkipReason),
    Config(Box<Result<CaptureConfig, Vec<AnnotationError>>>),
}

/// A pod of another injector: rules that only its annotations can tell, then the configuration.
fn from_istio(pod: &PodArgs, annotations: &BTreeMap<String, String>) -> Result<Derived, Failure> {
    if let Some(name) = other_template(annotations) {
        return Ok(Derived::Skip(SkipReason::OtherTemplate(name.to_owned())));
    }
    if annotations.get(annotation::INJECT).is_some_and(|value| is_false(value)) {
        return Ok(Derived::Skip(SkipReason::InjectionOff));
    }
    let capture = CaptureConfig::from_annotations(annotations, &ProxySpec::default());
    let captures = capture.as_ref().is_ok_and(|capture| capture.mode != InterceptionMode::None);
    let hints = hints_of_the_spec(annotations);
    if captures && !hints.is_empty() {
        return Err(Failure::NeedsSpec { pod: pod.full_name(), hints });
    }
    Ok(Derived::Config(Box::new(capture)))
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
fn capture_variables() -> impl Iterator<Item = &'static str> {
    let settings = SETTINGS.iter().filter(|setting| setting.source == annotations::Source::Variable);
    settings.map(|setting| setting.name).filter(|name| *name != variable::DUAL_STACK).chain([DISABLE_ENVOY])
}

/// `false` as Go's `strconv.ParseBool` reads it; everything else, also nonsense, is not false.
fn is_false(value: &str) -> bool {
    matches!(value, "0" | "f" | "F" | "FALSE" | "false" | "False")
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::version::Verb;

    const SIDECAR: &str =
        r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"],"volumes":[],"revision":"default"}"#;

    fn pod(namespace: &str) -> PodArgs {
        PodArgs { namespace: namespace.to_owned(), name: "web".to_owned() }
    }

    /// Judges a pod of namespace `shop` with these annotations under a configuration with `extra` keys.
    fn judge_with(extra: &str, annotations: &[(&str, &str)]) -> Result<Verdict, Failure> {
        let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        let text = serde_json::json!({ CAPABILITY: annotations });
        let text = format!(r#"{{"cniVersion":"1.0.0","runtimeConfig":{text}{extra}}}"#);
        judge(&pod("shop"), &NetConf::parse(text.as_bytes(), Verb::Add).unwrap())
    }

    fn skip_of(annotations: &[(&str, &str)]) -> SkipReason {
        match judge_with("", annotations) {
            Ok(Verdict::Skip(reason)) => reason,
            other => panic!("not skipped: {other:?}"),
        }
    }

    fn source_of(annotations: &[(&str, &str)]) -> Source {
        match judge_with("", annotations) {
            Ok(Verdict::Capture { source, .. }) => source,
            other => panic!("not captured: {other:?}"),
        }
    }

    #[test]
    fn leaves_alone_what_is_not_in_the_mesh() {
        let conf =
            NetConf::parse(br#"{"cniVersion":"1.0.0","exclude_namespaces":["kube-system"]}"#, Verb::Add).unwrap();
        assert_eq!(judge(&PodArgs::default(), &conf).unwrap(), Verdict::Skip(SkipReason::NotKubernetes));
        assert_eq!(judge(&pod("kube-system"), &conf).unwrap(), Verdict::Skip(SkipReason::ExcludedNamespace));
        assert_eq!(skip_of(&[]), SkipReason::NotInjected);
        assert_eq!(skip_of(&[("weir.dev/capture", "{}"), ("x", "y")]), SkipReason::NotInjected);
    }

    #[test]
    fn reads_the_record_of_the_injection() {
        let skip = |record| skip_of(&[(annotation::STATUS, record)]);
        assert_eq!(
            skip(r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#),
            SkipReason::InitContainer
        );
        assert_eq!(
            skip(r#"{"initContainers":["istio-init","istio-proxy"],"containers":null}"#),
            SkipReason::InitContainer
        );
        assert_eq!(skip(r#"{"initContainers":["grpc-bootstrap-init"],"containers":null}"#), SkipReason::NoProxy);
        assert_eq!(skip(r#"{"initContainers":null,"containers":null}"#), SkipReason::NoProxy);
        for record in [
            SIDECAR,
            r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null}"#,
            "",
            "true",
            "{}",
            "[1]",
        ] {
            assert_eq!(source_of(&[(annotation::STATUS, record)]), Source::IstioAnnotations, "{record}");
        }
    }

    #[test]
    fn knows_proxies_that_are_no_sidecars_by_their_template() {
        let with = |templates| judge_with("", &[(annotation::STATUS, SIDECAR), (TEMPLATES, templates)]).unwrap();
        for name in ["gateway", "grpc-agent", "mine, gateway"] {
            assert!(matches!(with(name), Verdict::Skip(SkipReason::OtherTemplate(_))), "{name}");
        }
        for name in ["sidecar", "sidecar,mine", "mine", ""] {
            assert!(matches!(with(name), Verdict::Capture { .. }), "{name}");
        }
    }

    #[test]
    fn honours_injection_switched_off_as_go_reads_it() {
        for (value, off) in [("false", true), ("F", true), ("0", true), ("no", false), ("true", false), ("", false)] {
            let verdict = judge_with("", &[(annotation::STATUS, SIDECAR), (annotation::INJECT, value)]).unwrap();
            assert_eq!(verdict == Verdict::Skip(SkipReason::InjectionOff), off, "{value}");
        }
    }

    #[test]
    fn capture_annotation_outweighs_what_only_its_writer_could_know() {
        let capture = CaptureConfig::default().to_capture_annotation();
        let annotations = [
            (annotation::STATUS, SIDECAR),
            (annotation::CAPTURE, capture.as_str()),
            (annotation::INJECT, "false"),
            (OVERRIDES, "runAsUser"),
        ];
        assert_eq!(source_of(&annotations), Source::CaptureAnnotation);
    }

    #[test]
    fn skips_mode_none() {
        assert_eq!(
            skip_of(&[(annotation::STATUS, SIDECAR), (annotation::INTERCEPTION_MODE, "NONE")]),
            SkipReason::ModeNone
        );
        let config = CaptureConfig { mode: InterceptionMode::None, ..CaptureConfig::default() };
        assert_eq!(
            skip_of(&[(annotation::STATUS, SIDECAR), (annotation::CAPTURE, &config.to_capture_annotation())]),
            SkipReason::ModeNone
        );
    }

    #[test]
    fn refuses_annotations_that_cannot_be_taken_all_at_once() {
        let failure = judge_with(
            "",
            &[
                (annotation::STATUS, SIDECAR),
                (annotation::EXCLUDE_INBOUND_PORTS, "80x"),
                (annotation::INTERCEPTION_MODE, "SIDEWAYS"),
            ],
        )
        .unwrap_err();
        assert_eq!(failure.code(), 100);
        let text = failure.to_string();
        assert!(text.contains("shop/web") && text.contains("80x") && text.contains("SIDEWAYS"), "{text}");
        let failure = judge_with("", &[(annotation::STATUS, SIDECAR), (annotation::CAPTURE, "{\"v\":")]).unwrap_err();
        assert_eq!(failure.code(), 100);
        assert!(failure.to_string().contains("weir.dev/capture"), "{failure}");
    }

    #[test]
    fn refuses_to_guess_what_only_the_specification_says() {
        for (key, value, hint) in [
            (PROXY_CONFIG, "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"true\"\n", "ISTIO_META_DNS_CAPTURE"),
            (OVERRIDES, r#"{"containers":[{"name":"istio-proxy","securityContext":{"runAsUser":1500}}]}"#, "runAsUser"),
        ] {
            let failure = judge_with("", &[(annotation::STATUS, SIDECAR), (key, value)]).unwrap_err();
            assert_eq!(failure.code(), 11);
            assert!(failure.to_string().contains(&format!("{key} sets {hint}")), "{failure}");
        }
        assert_eq!(
            source_of(&[(annotation::STATUS, SIDECAR), (PROXY_CONFIG, "concurrency: 2")]),
            Source::IstioAnnotations
        );
    }

    #[test]
    fn holds_a_broken_configuration_against_the_mesh_alone() {
        let broken = r#","exclude_namespace":["a"],"plugin_log_level":7"#;
        assert_eq!(judge_with(broken, &[]).unwrap(), Verdict::Skip(SkipReason::NotInjected));
        let failure = judge_with(broken, &[(annotation::STATUS, SIDECAR)]).unwrap_err();
        assert_eq!(failure.code(), 7);
        assert!(failure.to_string().contains("exclude_namespace") && failure.to_string().contains("plugin_log_level"));
    }

    proptest! {
        /// Whatever an author writes: a decision or an error with one of our codes, and a text of bounded size.
        #[test]
        fn never_panics_on_annotations(
            values in prop::collection::btree_map(
                prop::sample::select(vec![
                    annotation::CAPTURE, annotation::IPV6, annotation::INJECT, annotation::INTERCEPTION_MODE, TEMPLATES, PROXY_CONFIG,
                    OVERRIDES, annotation::EXCLUDE_INBOUND_PORTS, annotation::INCLUDE_OUTBOUND_IP_RANGES, annotation::EXCLUDE_INTERFACES,
                ]),
                prop_oneof![".{0,40}", r#"[\[\]{}":,a-z0-9*./-]{0,40}"#],
                0..6,
            ),
            status in prop_oneof![Just(SIDECAR.to_owned()), ".{0,40}", r#"[\[\]{}":,a-z-]{0,40}"#],
        ) {
            let mut annotations: Vec<(&str, &str)> = values.iter().map(|(key, value)| (*key, value.as_str())).collect();
            annotations.push((annotation::STATUS, &status));
            if let Err(failure) = judge_with("", &annotations) {
                prop_assert!(matches!(failure.code(), 11 | 100 | 101), "{failure}");
                prop_assert!(failure.message().len() < 5000);
            }
        }
    }

    #[test]
    fn says_which_side_keeps_the_annotations_back() {
        let judge_text =
            |text: &str| judge(&pod("shop"), &NetConf::parse(text.as_bytes(), Verb::Add).unwrap()).unwrap_err();
        let failure = judge_text(r#"{"cniVersion":"1.0.0","type":"weir-cni"}"#);
        assert_eq!(failure.code(), 7);
        assert!(failure.to_string().contains("key capabilities"), "{failure}");
        let failure = judge_text(r#"{"cniVersion":"1.0.0","capabilities":{"io.kubernetes.cri.pod-annotations":true}}"#);
        assert_eq!(failure.code(), 11);
        assert!(failure.advice().contains("exclude_namespaces"), "{}", failure.advice());
    }
}
