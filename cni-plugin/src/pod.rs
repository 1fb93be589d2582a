//! Decides what to install in a pod, from the annotations that the runtime passes, and from the node agent's answer where they do not
//! say enough.

use weir_protocol::agent::PodAnswer;
use weir_protocol::decision::{CaptureDecision, SkipReason, decide_capture};
use weir_protocol::entry::CAPABILITY;
pub use weir_protocol::pod_plan::PodPlan;
use weir_protocol::pod_plan::{self, PodFault};

use crate::agent::AgentError;
use crate::error::{CniError, QueryPurpose};
use crate::netconf::{NetConf, PodAnnotations};
use crate::request::PodArgs;

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
    let ask = |purpose, answer: Result<PodAnswer, AgentError>| {
        let unavailable = |reason| CniError::AgentUnavailable { pod: pod.full_name(), purpose, reason };
        pod_plan::decision_of_answer(answer.map_err(|error| unavailable(error.to_string()))?).map_err(unavailable)
    };
    let decision = match conf.annotations()? {
        PodAnnotations::Passed(annotations) => {
            let decision = decide_capture(&annotations, None);
            if conf.agent.is_some() && !pod_plan::is_final(&decision, &annotations) {
                ask(QueryPurpose::Specification, query())?
            } else {
                decision
            }
        }
        _ if conf.agent.is_some() => ask(QueryPurpose::Membership, query())?,
        PodAnnotations::NotPassed => return Err(CniError::NoAnnotations(pod.full_name())),
        PodAnnotations::NotDeclared => return Err(capability_not_declared()),
    };
    if matches!(decision, CaptureDecision::Capture(..)) {
        conf.require_valid()?;
    }
    pod_plan::plan_pod(decision, || conf.pod_addresses()).map_err(|fault| {
        let pod = pod.full_name();
        match fault {
            PodFault::NeedsSpec(hints) => CniError::NeedsSpec { pod, hints },
            PodFault::InvalidAnnotations(errors) => CniError::InvalidAnnotations { pod, errors },
            PodFault::InvalidSpec(faults) => CniError::InvalidSpec { pod, faults },
            PodFault::StatusContradicted(fault) => CniError::StatusContradicted { pod, fault },
            PodFault::Unsupported(settings) => CniError::Unsupported { pod, settings },
        }
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
