//! Whether a pod is injected: what the handler decides, after the API server's selectors have let the pod through.
//!
//! The first rule that decides wins: host network, system namespace, static pod, Windows, the pod's own word, never-selectors, always-selectors,
//! policy. A pod that would be injected is left alone if it carries a sidecar that nobody recorded.

use serde_json::Value;

use super::SkipReason;
use super::containers::List;
use super::context::PROXY;
use super::selector::Selector;
use crate::settings::Settings;

/// What the administrator wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct DecisionSettings<'a> {
    /// `enabled` or `disabled`; with any other text nothing is injected.
    pub policy: &'a str,
    /// Label selectors of pods that are left alone unless they ask; one that is not understood is passed over.
    pub never_inject: &'a [Result<Selector, String>],
    /// Label selectors of pods that are injected whatever the policy; likewise.
    pub always_inject: &'a [Result<Selector, String>],
}

impl<'a> DecisionSettings<'a> {
    /// Those of an installation.
    pub fn of(settings: &'a Settings) -> Self {
        let injection = &settings.injection;
        Self {
            policy: &injection.policy,
            never_inject: &injection.never_inject,
            always_inject: &injection.always_inject,
        }
    }
}

/// What is done with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It gets its sidecar.
    Inject,
    /// It is left alone.
    Skip(SkipReason),
}

/// A decision, and what somebody should hear about how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// What is done.
    pub decision: Decision,
    /// The rules that were asked, in order; the last one that had a word decided.
    pub steps: Vec<Step>,
    /// What could not be understood and was passed over.
    pub warnings: Vec<String>,
}

/// A rule that was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub rule: Rule,
    /// What it said; `None` where it left the pod to the next rule.
    pub verdict: Option<Decision>,
}

/// Label (or, as Istio knew it before, annotation) by which a pod asks for a sidecar or refuses it.
pub const INJECT: &str = "sidecar.istio.io/inject";

/// Annotation of the object by which the API server shows a static pod (`k8s.io/api/core/v1`, `MirrorPodAnnotationKey`).
const STATIC_POD: &str = "kubernetes.io/config.mirror";
/// Label of nodes that names their operating system.
const NODE_SYSTEM: &str = "kubernetes.io/os";

/// Namespaces whose pods the cluster needs before it can have a mesh.
pub(crate) const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// Init containers that an injection adds.
const INJECTED_INIT_CONTAINERS: [&str; 2] = ["istio-init", "istio-validation"];

/// Variables of the proxy that an injector works out for each pod.
const COMPUTED_VARIABLES: [&str; 2] = ["PROXY_CONFIG", "ISTIO_META_POD_PORTS"];

/// A rule that may decide about a pod. They are asked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Capture rules of a pod on the host network would take the node's own traffic.
    HostNetwork,
    /// The cluster needs the pods of some namespaces before it can have a mesh.
    SystemNamespace,
    /// Nobody runs what is added to a static pod.
    StaticPod,
    /// The sidecar needs Linux.
    Windows,
    /// With a policy that is not known nothing is injected.
    UnknownPolicy,
    /// What the pod says by label, or else by annotation.
    OwnWord,
    /// The administrator's selectors of pods that are left alone.
    NeverSelector,
    /// The administrator's selectors of pods that are injected.
    AlwaysSelector,
    /// What happens to all others.
    Policy,
    /// Asked last, about pods that would be injected.
    UnrecordedSidecar,
}

impl Rule {
    /// All that are asked until one decides.
    const DECIDING: [Self; 9] = [
        Self::HostNetwork,
        Self::SystemNamespace,
        Self::StaticPod,
        Self::Windows,
        Self::UnknownPolicy,
        Self::OwnWord,
        Self::NeverSelector,
        Self::AlwaysSelector,
        Self::Policy,
    ];

    /// Short name, stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HostNetwork => "host_network",
            Self::SystemNamespace => "system_namespace",
            Self::StaticPod => "static_pod",
            Self::Windows => "windows",
            Self::UnknownPolicy => "unknown_policy",
            Self::OwnWord => "own_word",
            Self::NeverSelector => "never_selector",
            Self::AlwaysSelector => "always_selector",
            Self::Policy => "policy",
            Self::UnrecordedSidecar => "unrecorded_sidecar",
        }
    }

    /// What it asks, as a clause; it decides where the answer is yes.
    pub const fn question(self) -> &'static str {
        match self {
            Self::HostNetwork => "the pod uses the host network",
            Self::SystemNamespace => "its namespace belongs to the system",
            Self::StaticPod => "it is a static pod",
            Self::Windows => "it is for Windows nodes",
            Self::UnknownPolicy => "the injector's policy is not known",
            Self::OwnWord => "its label, or else annotation, sidecar.istio.io/inject says so",
            Self::NeverSelector => "a neverInjectSelector matches its labels",
            Self::AlwaysSelector => "an alwaysInjectSelector matches its labels",
            Self::Policy => "the injector's policy is about all other pods",
            Self::UnrecordedSidecar => "it carries a sidecar that nobody recorded",
        }
    }

    /// The rule's word about a pod; `None` where it leaves it to the next.
    fn ask(self, asked: &Asked<'_>, warnings: &mut Vec<String>) -> Option<Decision> {
        let skip = |applies: bool, reason| applies.then_some(Decision::Skip(reason));
        let Asked { pod, namespace, wish, settings } = *asked;
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
            Self::UnknownPolicy => skip(!matches!(settings.policy, "enabled" | "disabled"), SkipReason::UnknownPolicy),
            Self::OwnWord => Some(if wish? { Decision::Inject } else { Decision::Skip(SkipReason::ExplicitlyOff) }),
            Self::NeverSelector => {
                let matches = any_matches("neverInjectSelector", settings.never_inject, pod, warnings);
                skip(matches, SkipReason::NeverSelector)
            }
            Self::AlwaysSelector => {
                any_matches("alwaysInjectSelector", settings.always_inject, pod, warnings).then_some(Decision::Inject)
            }
            Self::Policy if settings.policy == "enabled" => Some(Decision::Inject),
            Self::Policy => Some(Decision::Skip(SkipReason::PolicyDisabled)),
            Self::UnrecordedSidecar => skip(carries_unrecorded_sidecar(pod), SkipReason::UnrecordedSidecar),
        }
    }
}

/// What the rules are asked about.
#[derive(Clone, Copy)]
struct Asked<'a> {
    pod: &'a Value,
    namespace: Option<&'a str>,
    /// What the pod says itself.
    wish: Option<bool>,
    settings: DecisionSettings<'a>,
}

/// Decides about a pod. `namespace` is that of the request, for pods that do not name one.
pub fn decide(pod: &Value, namespace: Option<&str>, settings: DecisionSettings<'_>) -> Decided {
    let mut warnings = Vec::new();
    // Read first: what cannot be understood is told whatever decides.
    let wish = explicit(pod, &mut warnings);
    let asked = Asked { pod, namespace, wish, settings };
    let mut steps = Vec::with_capacity(Rule::DECIDING.len() + 1);
    let mut ask = |rule: Rule| {
        let verdict = rule.ask(&asked, &mut warnings);
        steps.push(Step { rule, verdict });
        verdict
    };
    // The policy has a word about every pod.
    let mut decision = Rule::DECIDING.into_iter().find_map(&mut ask).unwrap_or(Decision::Inject);
    if decision == Decision::Inject {
        decision = ask(Rule::UnrecordedSidecar).unwrap_or(decision);
    }
    Decided { decision, steps, warnings }
}

/// The pod carries a proxy that an injection made, but no record of it: a tool dropped the annotations, or the sidecar was copied
/// from a running pod. Which of its parts are the user's cannot be told, and injecting would take the old sidecar for what the
/// user wants, so the pod is left as it is. (The pod that is looked at is the original one: what is recorded is gone from it.)
///
/// The names alone prove nothing: users declare `istio-proxy` and `istio-init` to change settings of what is injected. But
/// nobody writes the variables by hand that an injector computes, or has an init container run the mesh's own program.
fn carries_unrecorded_sidecar(pod: &Value) -> bool {
    let (containers, inits) = (List::Containers.of(pod), List::InitContainers.of(pod));
    let computed = |proxy: &Value| {
        let env = proxy["env"].as_array().map_or(&[][..], Vec::as_slice);
        COMPUTED_VARIABLES.iter().all(|computed| env.iter().any(|variable| variable["name"] == *computed))
    };
    let mut proxies = containers.iter().chain(inits).filter(|container| container["name"] == PROXY).peekable();
    let captured = || {
        inits.iter().any(|init| {
            INJECTED_INIT_CONTAINERS.iter().any(|name| init["name"] == *name) && init["args"][0] == "istio-iptables"
        })
    };
    proxies.peek().is_some() && (captured() || proxies.any(computed))
}

/// Whether one of the selectors matches the labels of a pod. An empty one matches nothing.
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

/// The pod's own word; the label counts where it is present, even when it says nothing.
fn explicit(pod: &Value, warnings: &mut Vec<String>) -> Option<bool> {
    let metadata = &pod["metadata"];
    let found = ["labels", "annotations"].into_iter().find_map(|map| Some((map, metadata[map].get(INJECT)?)));
    let (map, value) = found?;
    match value.as_str() {
        Some("true") => Some(true),
        Some("false") => Some(false),
        Some("") => None,
        _ => {
            let kind = if map == "labels" { "label" } else { "annotation" };
            warnings.push(format!("{kind} '{INJECT}' is ignored: {value} is neither \"true\" nor \"false\""));
            None
        }
    }
}

#[cfg(test)]
mod tests;
