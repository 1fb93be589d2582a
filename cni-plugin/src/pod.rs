//! Decides what to install in a pod, from the annotations that the runtime passes, and from the node agent's answer where they do not
//! say enough.

use iptables_rules::config::Ipv6Policy;
use iptables_rules::{CaptureConfig, RuleSet, plan};

use weir_protocol::agent::PodAnswer;
use weir_protocol::decision::{CaptureDecision, ConfigSource, SkipReason, decide_capture};
use weir_protocol::entry::CAPABILITY;

use crate::agent::AgentError;
use crate::error::{CniError, QueryPurpose};
use crate::netconf::{NetConf, PodAnnotations};
use crate::request::PodArgs;

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

/// Decides what to do in a pod's network namespace. `query` asks the node agent; it is called at most once, only where the configuration
/// names an agent and the annotations do not say enough.
///
/// # Errors
/// The pod is in the mesh and has invalid or unsupported settings, or nothing tells whether it is in the mesh.
pub fn plan_pod(
    pod: &PodArgs,
    conf: &NetConf<'_>,
    query: impl FnOnce() -> Result<PodAnswer, AgentError>,
) -> Result<PodPlan, CniError> {
    if !pod.is_kubernetes() {
        return Ok(PodPlan::Skip(SkipReason::NotKubernetes));
    }
    if conf.exclude_namespaces.contains(&pod.namespace) {
        return Ok(PodPlan::Skip(SkipReason::ExcludedNamespace));
    }
    let decision = match conf.annotations()? {
        PodAnnotations::Passed(annotations) => match decide_capture(&annotations, None) {
            // The agent knows no better: the pod is not in the mesh, or our webhook saw its spec.
            known @ (CaptureDecision::Skip(_)
            | CaptureDecision::Capture(_, ConfigSource::CaptureAnnotation)
            | CaptureDecision::StatusContradicted(_)) => known,
            CaptureDecision::InvalidAnnotations(errors)
                if annotations.contains_key(iptables_rules::names::annotation::CAPTURE) =>
            {
                CaptureDecision::InvalidAnnotations(errors)
            }
            _ if conf.agent.is_some() => decision_from_agent(pod, QueryPurpose::Specification, query())?,
            guess => guess,
        },
        _ if conf.agent.is_some() => decision_from_agent(pod, QueryPurpose::Membership, query())?,
        PodAnnotations::NotPassed => return Err(CniError::NoAnnotations(pod.full_name())),
        PodAnnotations::NotDeclared => return Err(capability_not_declared()),
    };
    let (mut config, source) = match decision {
        CaptureDecision::Skip(reason) => return Ok(PodPlan::Skip(reason)),
        CaptureDecision::Capture(config, source) => (config, source),
        CaptureDecision::NeedsSpec(hints) => return Err(CniError::NeedsSpec { pod: pod.full_name(), hints }),
        CaptureDecision::InvalidAnnotations(errors) => {
            return Err(CniError::InvalidAnnotations { pod: pod.full_name(), errors });
        }
        CaptureDecision::InvalidSpec(faults) => return Err(CniError::InvalidSpec { pod: pod.full_name(), faults }),
        CaptureDecision::StatusContradicted(fault) => {
            return Err(CniError::StatusContradicted { pod: pod.full_name(), fault });
        }
    };
    conf.require_valid()?;
    if config.ipv6 == Ipv6Policy::Auto {
        let decided = config.ipv6.for_addresses(&conf.pod_addresses());
        // Without addresses, as with NRI, IPv6 must not become a hole.
        config.ipv6 = if decided.is_captured() { Ipv6Policy::Capture } else { decided };
    }
    let rules = plan(&config).map_err(|settings| CniError::Unsupported { pod: pod.full_name(), settings })?;
    Ok(PodPlan::Capture { rules, config, source })
}

/// Returns the decision in the agent's answer, whose configuration is validated like an annotation.
fn decision_from_agent(
    pod: &PodArgs,
    purpose: QueryPurpose,
    answer: Result<PodAnswer, AgentError>,
) -> Result<CaptureDecision, CniError> {
    let unavailable = |reason: String| CniError::AgentUnavailable { pod: pod.full_name(), purpose, reason };
    Ok(match answer {
        Ok(PodAnswer::Skip { reason }) => CaptureDecision::Skip(SkipReason::ReportedByAgent(reason)),
        Ok(PodAnswer::Capture { capture }) => match CaptureConfig::from_capture_annotation(&capture) {
            Ok(config) => CaptureDecision::Capture(Box::new(config), ConfigSource::Agent),
            Err(errors) => CaptureDecision::InvalidAnnotations(errors),
        },
        Ok(PodAnswer::Refuse { findings }) => CaptureDecision::InvalidSpec(findings),
        Ok(PodAnswer::Unknown { reason }) => return Err(unavailable(reason)),
        Err(error) => return Err(unavailable(error.to_string())),
    })
}

/// Returns the error for an entry that does not declare the capability for annotations.
pub fn capability_not_declared() -> CniError {
    CniError::InvalidConfig(vec![format!(
        "key capabilities: \"{CAPABILITY}\": true is missing, so the runtime passes no annotations"
    )])
}

#[cfg(test)]
mod tests;
