//! Whether the injector adds a sidecar to a pod that the API server has sent it.
//!
//! Rules are evaluated in the order of [`Rule`]; the first one that decides wins. A pod that would be injected is skipped after
//! all if it already has a sidecar without an injection record.

mod skip;

pub use skip::SkipReason;

use serde_json::Value;

use crate::containers::{ContainerList, PROXY_CONTAINER};
use crate::selector::Selector;
use crate::settings::Settings;

/// The administrator's settings that decide which pods are injected.
#[derive(Debug, Clone, Copy, Default)]
pub struct InjectionPolicy<'a> {
    /// `enabled` or `disabled`; with any other value nothing is injected.
    pub policy: &'a str,
    /// Label selectors of pods that are skipped unless their label says otherwise; invalid ones are ignored with a warning.
    pub never_inject: &'a [Result<Selector, String>],
    /// Label selectors of pods that are injected whatever the policy; invalid ones are ignored with a warning.
    pub always_inject: &'a [Result<Selector, String>],
}

impl<'a> InjectionPolicy<'a> {
    /// Returns the policy of an installation.
    pub fn of(settings: &'a Settings) -> Self {
        let injection = &settings.injection;
        Self {
            policy: &injection.policy,
            never_inject: &injection.never_inject,
            always_inject: &injection.always_inject,
        }
    }
}

/// Whether a pod is injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The pod gets a sidecar.
    Inject,
    /// The pod stays as it is.
    Skip(SkipReason),
}

/// A decision with the rules that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionTrace {
    /// The result.
    pub decision: Decision,
    /// The rules that were evaluated, in order; the last one with a decision won.
    pub evaluations: Vec<RuleEvaluation>,
    /// Labels, annotations and selectors that were ignored because they are invalid.
    pub warnings: Vec<String>,
}

/// Result of one rule for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleEvaluation {
    /// The rule that was evaluated.
    pub rule: Rule,
    /// `None` if the rule does not apply and left the pod to the next one.
    pub decision: Option<Decision>,
}

/// Label, or Istio's older annotation of the same name, by which a pod opts in to or out of injection.
pub const INJECT_LABEL: &str = "sidecar.istio.io/inject";

/// Annotation that marks the API server's mirror of a static pod (`k8s.io/api/core/v1`, `MirrorPodAnnotationKey`).
const STATIC_POD: &str = "kubernetes.io/config.mirror";
/// Label of nodes that names their operating system.
const NODE_SYSTEM: &str = "kubernetes.io/os";

/// Namespaces whose pods the cluster needs before it can run a mesh.
pub(crate) const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Init containers that an injection adds.
const INJECTED_INIT_CONTAINERS: [&str; 2] = ["istio-init", "istio-validation"];

/// Variables of the proxy that an injector computes for each pod.
const COMPUTED_VARIABLES: [&str; 2] = ["PROXY_CONFIG", "ISTIO_META_POD_PORTS"];

/// A rule that may decide about a pod, in order of evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Capture rules of a pod on the host network would capture the node's own traffic.
    HostNetwork,
    /// The cluster needs the pods of these namespaces before it can run a mesh.
    SystemNamespace,
    /// The kubelet runs a static pod from its file, without what a webhook adds.
    StaticPod,
    /// The sidecar needs Linux.
    Windows,
    /// With an unknown policy nothing is injected.
    UnknownPolicy,
    /// The pod's own label or annotation.
    PodLabel,
    /// The administrator's selectors of pods to skip.
    NeverSelector,
    /// The administrator's selectors of pods to inject.
    AlwaysSelector,
    /// The default for all other pods.
    Policy,
    /// Evaluated last, and only for pods that would be injected.
    UnrecordedSidecar,
}

impl Rule {
    /// The rules that are evaluated until one decides.
    const DECIDING: [Self; 9] = [
        Self::HostNetwork,
        Self::SystemNamespace,
        Self::StaticPod,
        Self::Windows,
        Self::UnknownPolicy,
        Self::PodLabel,
        Self::NeverSelector,
        Self::AlwaysSelector,
        Self::Policy,
    ];

    /// Returns the name in machine-readable output; stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::SystemNamespace => "system_namespace",
            Self::StaticPod => "static_pod",
            Self::Windows => "windows",
            Self::UnknownPolicy => "unknown_policy",
            Self::PodLabel => "own_word",
            Self::NeverSelector => "never_selector",
            Self::AlwaysSelector => "always_selector",
            Self::Policy => "policy",
            Self::UnrecordedSidecar => "unrecorded_sidecar",
        }
    }

    /// Returns the condition under which the rule decides, as a clause.
    pub const fn description(self) -> &'static str {
        match self {
            Self::HostNetwork => "the pod uses the host network",
            Self::SystemNamespace => "the pod is in a system namespace",
            Self::StaticPod => "the pod is a static pod",
            Self::Windows => "the pod is for Windows nodes",
            Self::UnknownPolicy => "the injector's policy is neither enabled nor disabled",
            Self::PodLabel => "label or annotation sidecar.istio.io/inject decides",
            Self::NeverSelector => "a neverInjectSelector matches the pod's labels",
            Self::AlwaysSelector => "an alwaysInjectSelector matches the pod's labels",
            Self::Policy => "default policy of the injector",
            Self::UnrecordedSidecar => "the pod has a sidecar without sidecar.istio.io/status",
        }
    }

    /// Applies the rule to a pod; returns `None` if it does not decide.
    fn evaluate(self, subject: &Subject<'_>, warnings: &mut Vec<String>) -> Option<Decision> {
        let skip = |applies: bool, reason| applies.then_some(Decision::Skip(reason));
        let Subject { pod, namespace, requested, policy } = *subject;
        match self {
            Self::HostNetwork => skip(pod["spec"]["hostNetwork"] == true, SkipReason::HostNetwork),
            Self::SystemNamespace => {
                let own = pod["metadata"]["namespace"].as_str().filter(|own| !own.is_empty());
                let system = own.or(namespace).is_some_and(|namespace| SYSTEM_NAMESPACES.contains(&namespace));
                skip(system, SkipReason::SystemNamespace)
            }
            Self::StaticPod => skip(pod["metadata"]["annotations"].get(STATIC_POD).is_some(), SkipReason::StaticPod),
            Self::Windows => {
                let system = &pod["spec"]["os"]["name"];
                let by_node = system.is_null() && pod["spec"]["nodeSelector"][NODE_SYSTEM] == "windows";
                skip(system == "windows" || by_node, SkipReason::Windows)
            }
            Self::UnknownPolicy => skip(!matches!(policy.policy, "enabled" | "disabled"), SkipReason::UnknownPolicy),
            Self::PodLabel => Some(if requested? { Decision::Inject } else { Decision::Skip(SkipReason::OptedOut) }),
            Self::NeverSelector => {
                let matches = any_matches("neverInjectSelector", policy.never_inject, pod, warnings);
                skip(matches, SkipReason::NeverSelector)
            }
            Self::AlwaysSelector => {
                any_matches("alwaysInjectSelector", policy.always_inject, pod, warnings).then_some(Decision::Inject)
            }
            Self::Policy if policy.policy == "enabled" => Some(Decision::Inject),
            Self::Policy => Some(Decision::Skip(SkipReason::PolicyDisabled)),
            Self::UnrecordedSidecar => skip(has_unrecorded_sidecar(pod), SkipReason::UnrecordedSidecar),
        }
    }
}

/// Facts that the rules look at.
#[derive(Clone, Copy)]
struct Subject<'a> {
    pod: &'a Value,
    namespace: Option<&'a str>,
    /// Whether the pod's label or annotation asks for injection; `None` if it does not say.
    requested: Option<bool>,
    policy: InjectionPolicy<'a>,
}

/// Decides whether a pod is injected. `namespace` is that of the request, for pods that do not name one.
pub fn decide(pod: &Value, namespace: Option<&str>, policy: InjectionPolicy<'_>) -> DecisionTrace {
    let mut warnings = Vec::new();
    // Read first: an invalid value is reported whichever rule decides.
    let requested = requested_injection(pod, &mut warnings);
    let subject = Subject { pod, namespace, requested, policy };
    let mut evaluations = Vec::with_capacity(Rule::DECIDING.len() + 1);
    let mut evaluate = |rule: Rule| {
        let decision = rule.evaluate(&subject, &mut warnings);
        evaluations.push(RuleEvaluation { rule, decision });
        decision
    };
    // `Rule::Policy` decides about every pod.
    let mut decision = Rule::DECIDING.into_iter().find_map(&mut evaluate).unwrap_or(Decision::Inject);
    if decision == Decision::Inject {
        decision = evaluate(Rule::UnrecordedSidecar).unwrap_or(decision);
    }
    DecisionTrace { decision, evaluations, warnings }
}

/// Returns whether the pod has an injected proxy without a record: a tool dropped the annotations, or somebody copied the
/// manifest of a running pod.
///
/// Which parts of such a pod are the user's is unknown, and injecting would take the old sidecar for the user's overrides.
/// `pod` is the uninjected pod: a recorded sidecar is already gone from it.
///
/// The names prove nothing, because users declare `istio-proxy` and `istio-init` to override what is injected. But nobody
/// writes the computed variables by hand, or runs `istio-iptables` in an init container of their own.
fn has_unrecorded_sidecar(pod: &Value) -> bool {
    let (containers, inits) = (ContainerList::Containers.of(pod), ContainerList::InitContainers.of(pod));
    let computed = |proxy: &Value| {
        let env = proxy["env"].as_array().map_or(&[][..], Vec::as_slice);
        COMPUTED_VARIABLES.iter().all(|computed| env.iter().any(|variable| variable["name"] == *computed))
    };
    let mut proxies =
        containers.iter().chain(inits).filter(|container| container["name"] == PROXY_CONTAINER).peekable();
    let captured = || {
        inits.iter().any(|init| {
            INJECTED_INIT_CONTAINERS.iter().any(|name| init["name"] == *name) && init["args"][0] == "istio-iptables"
        })
    };
    proxies.peek().is_some() && (captured() || proxies.any(computed))
}

/// Returns whether one of the selectors matches the pod's labels. Empty selectors match nothing.
fn any_matches(name: &str, selectors: &[Result<Selector, String>], pod: &Value, warnings: &mut Vec<String>) -> bool {
    let labels = pod["metadata"]["labels"].as_object();
    selectors.iter().enumerate().any(|(position, selector)| match selector {
        Ok(selector) => !selector.is_empty() && selector.matches(labels),
        Err(reason) => {
            warnings.push(format!("{name}[{position}] is ignored: {reason}"));
            false
        }
    })
}

/// Reads the pod's label, or its annotation if it has no such label; an empty label hides the annotation.
fn requested_injection(pod: &Value, warnings: &mut Vec<String>) -> Option<bool> {
    let metadata = &pod["metadata"];
    let found = ["labels", "annotations"].into_iter().find_map(|map| Some((map, metadata[map].get(INJECT_LABEL)?)));
    let (map, value) = found?;
    match value.as_str() {
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some("") => None,
        _ => {
            let kind = if map == "labels" { "label" } else { "annotation" };
            warnings.push(format!("{kind} '{INJECT_LABEL}' is ignored: {value} is neither \"true\" nor \"false\""));
            None
        }
    }
}

#[cfg(test)]
mod tests;
