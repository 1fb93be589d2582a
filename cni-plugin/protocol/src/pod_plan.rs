//! Plans what is installed in a pod's network namespace. The plugin's ADD and the node agent, where it is an NRI plugin, both call it, so
//! that they install the same rules.

use std::collections::BTreeMap;
use std::net::IpAddr;

use iptables_rules::annotations::SettingError;
use iptables_rules::config::Ipv6Policy;
use iptables_rules::names::annotation;
use iptables_rules::plan::UnsupportedSetting;
use iptables_rules::{CaptureConfig, RuleSet, plan};

use crate::agent::PodAnswer;
use crate::decision::{CaptureDecision, ConfigSource, SkipReason, SpecFacts, decide_capture};

/// Plan for a pod's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodPlan {
    /// Install nothing.
    Skip(SkipReason),
    /// Install these rules.
    Capture {
        /// Capture rules of the pod.
        rules: RuleSet,
        /// Configuration that the rules were planned from.
        config: Box<CaptureConfig>,
        /// Origin of the configuration.
        source: ConfigSource,
    },
}

/// Fault for which a pod of the mesh gets no rules, and must not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodFault {
    /// Only the spec says what to capture; one line for each annotation that shows it.
    #[error("only its spec says what to capture: {}", .0.join("; "))]
    NeedsSpec(Vec<String>),
    /// Invalid annotations or environment variables.
    #[error("invalid settings: {}", join(.0))]
    InvalidAnnotations(Vec<SettingError>),
    /// An invalid spec, one line for each fault.
    #[error("invalid spec: {}", .0.join("; "))]
    InvalidSpec(Vec<String>),
    /// The record of the injection was removed or changed.
    #[error("it was injected, and the record of that was changed: {0}")]
    StatusContradicted(String),
    /// Settings that this version does not support.
    #[error("unsupported settings: {}", join(.0))]
    Unsupported(Vec<UnsupportedSetting>),
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Returns whether a decision from the annotations alone stands: the pod is not in the mesh, or our webhook saw its spec. Otherwise the
/// node agent, which sees the spec, knows better.
pub fn is_final(decision: &CaptureDecision, annotations: &BTreeMap<String, String>) -> bool {
    match decision {
        CaptureDecision::Skip(_)
        | CaptureDecision::Capture(_, ConfigSource::CaptureAnnotation)
        | CaptureDecision::StatusContradicted(_) => true,
        CaptureDecision::InvalidAnnotations(_) => annotations.contains_key(annotation::CAPTURE),
        _ => false,
    }
}

/// Predicts the decision of a plugin that has a node agent: from the annotations, and from the spec where they do not say enough.
pub fn predict_decision(annotations: &BTreeMap<String, String>, spec: &SpecFacts) -> CaptureDecision {
    let decision = decide_capture(annotations, None);
    if is_final(&decision, annotations) { decision } else { decide_capture(annotations, Some(spec)) }
}

/// Returns the decision in the agent's answer, whose configuration is validated like an annotation.
///
/// # Errors
/// The agent does not know the pod, for this reason.
pub fn decision_of_answer(answer: PodAnswer) -> Result<CaptureDecision, String> {
    Ok(match answer {
        PodAnswer::Skip { reason } => CaptureDecision::Skip(SkipReason::ReportedByAgent(reason)),
        PodAnswer::Capture { capture } => match CaptureConfig::from_capture_annotation(&capture) {
            Ok(config) => CaptureDecision::Capture(Box::new(config), ConfigSource::Agent),
            Err(errors) => CaptureDecision::InvalidAnnotations(errors),
        },
        PodAnswer::Refuse { findings } => CaptureDecision::InvalidSpec(findings),
        PodAnswer::Unknown { reason } => return Err(reason),
    })
}

/// Plans the rules that follow from a decision. `addresses` returns those of the pod; it is called where they decide about IPv6.
///
/// # Errors
/// See [`PodFault`].
pub fn plan_pod(decision: CaptureDecision, addresses: impl FnOnce() -> Vec<IpAddr>) -> Result<PodPlan, PodFault> {
    let (mut config, source) = match decision {
        CaptureDecision::Skip(reason) => return Ok(PodPlan::Skip(reason)),
        CaptureDecision::Capture(config, source) => (config, source),
        CaptureDecision::NeedsSpec(hints) => return Err(PodFault::NeedsSpec(hints)),
        CaptureDecision::InvalidAnnotations(errors) => return Err(PodFault::InvalidAnnotations(errors)),
        CaptureDecision::InvalidSpec(faults) => return Err(PodFault::InvalidSpec(faults)),
        CaptureDecision::StatusContradicted(fault) => return Err(PodFault::StatusContradicted(fault)),
    };
    if config.ipv6 == Ipv6Policy::Auto {
        let decided = config.ipv6.for_addresses(&addresses());
        // Without addresses IPv6 must not become a hole.
        config.ipv6 = if decided.is_captured() { Ipv6Policy::Capture } else { decided };
    }
    let rules = plan(&config).map_err(PodFault::Unsupported)?;
    Ok(PodPlan::Capture { rules, config, source })
}
