//! Who is this pod, and what is captured in it: a decision on what the runtime passed, and where that does not do, on what the node agent
//! answers.

use iptables_rules::{CaptureConfig, RuleSet, plan};

use weir_protocol::agent::Answer;
use weir_protocol::decision::{Decision, SkipReason, Source, decide};
use weir_protocol::entry::CAPABILITY;

use crate::agent::AskError;
use crate::failure::{Failure, Undecided};
use crate::netconf::{NetConf, PodAnnotations};
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

/// Decides. `ask` asks the node agent, once at most; it is called only where the configuration names one, and only for a pod about which
/// the annotations do not say everything.
///
/// # Errors
/// Where a pod of the mesh cannot be served as it asks, and where nobody can tell whether it is in the mesh.
pub fn judge(
    pod: &PodArgs,
    conf: &NetConf<'_>,
    ask: impl FnOnce() -> Result<Answer, AskError>,
) -> Result<Verdict, Failure> {
    if !pod.is_kubernetes() {
        return Ok(Verdict::Skip(SkipReason::NotKubernetes));
    }
    if conf.exclude_namespaces.contains(&pod.namespace) {
        return Ok(Verdict::Skip(SkipReason::ExcludedNamespace));
    }
    let decision = match conf.annotations()? {
        PodAnnotations::Passed(annotations) => match decide(&annotations, None) {
            // The one writer that saw the specification, or no pod of the mesh: nobody knows better.
            known @ (Decision::Skip(_) | Decision::Capture(_, Source::CaptureAnnotation)) => known,
            Decision::Refused(errors) if annotations.contains_key(iptables_rules::names::annotation::CAPTURE) => {
                Decision::Refused(errors)
            }
            _ if conf.agent.is_some() => answered(pod, Undecided::Specification, ask())?,
            guess => guess,
        },
        _ if conf.agent.is_some() => answered(pod, Undecided::Membership, ask())?,
        PodAnnotations::NotPassed => return Err(Failure::NoAnnotations(pod.full_name())),
        PodAnnotations::NotDeclared => return Err(not_declared()),
    };
    let (capture, source) = match decision {
        Decision::Skip(reason) => return Ok(Verdict::Skip(reason)),
        Decision::Capture(capture, source) => (capture, source),
        Decision::NeedsSpec(hints) => return Err(Failure::NeedsSpec { pod: pod.full_name(), hints }),
        Decision::Refused(errors) => return Err(Failure::Annotations { pod: pod.full_name(), errors }),
        Decision::BadSpec(findings) => return Err(Failure::Specification { pod: pod.full_name(), findings }),
    };
    conf.require_sound()?;
    let rules = plan(&capture).map_err(|settings| Failure::Unsupported { pod: pod.full_name(), settings })?;
    Ok(Verdict::Capture { rules, source })
}

/// The agent's answer as a decision; its configuration is validated like an annotation.
fn answered(pod: &PodArgs, undecided: Undecided, answer: Result<Answer, AskError>) -> Result<Decision, Failure> {
    let held = |reason: String| Failure::Agent { pod: pod.full_name(), undecided, reason };
    Ok(match answer {
        Ok(Answer::Skip { reason }) => Decision::Skip(SkipReason::Agent(reason)),
        Ok(Answer::Capture { capture }) => match CaptureConfig::from_capture_annotation(&capture) {
            Ok(config) => Decision::Capture(Box::new(config), Source::Agent),
            Err(errors) => Decision::Refused(errors),
        },
        Ok(Answer::Refuse { findings }) => Decision::BadSpec(findings),
        Ok(Answer::Unknown { reason }) => return Err(held(reason)),
        Err(error) => return Err(held(error.to_string())),
    })
}

/// The entry of the conflist does not ask for annotations.
pub fn not_declared() -> Failure {
    Failure::Config(vec![format!(
        "key capabilities: \"{CAPABILITY}\": true is missing, so the runtime passes no annotations"
    )])
}

#[cfg(test)]
mod tests;
