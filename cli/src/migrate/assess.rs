//! Decides about one workload: the rules that its pods have, those that they would get, and what needs a person.

use std::collections::HashMap;
use std::net::IpAddr;

use iptables_rules::restore::RestoreFamily;
use iptables_rules::{CaptureConfig, plan};
use serde_json::{Map, Value, json};
use weir_injector::settings::Settings;
use weir_injector::{InjectOutcome, InjectRequest, Workload, inject};
use weir_protocol::decision::ConfigSource;

use super::current::{self, Origin};
use super::object::{addresses, container};
use crate::diff::comparison::{self, ChangeKind, Verdict as Compared};
use crate::diff::input::WorkloadRules;
use crate::diff::pod_changes::{self, OldPod};
use crate::diff::text;
use crate::inject::denial_messages;
use crate::rules::planned::Planned;
use crate::rules::subject::{Capture, PROXY, Subject, of_pod};

/// Limit of sentences about one workload.
const MAX_SENTENCES: usize = 8;

/// Traffic after the migration, compared with traffic now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every packet is treated alike.
    Equal,
    /// Only the agent's port 15020 is no longer captured outbound, which istio-cni excludes by default, and istio-init does not.
    AgentPort(Vec<String>),
    /// Some traffic is no longer captured.
    CapturedLess(Vec<String>),
    /// Some traffic is newly captured.
    CapturedMore(Vec<String>),
    /// Captured traffic is treated in another way, such as by another port of the proxy.
    Different(Vec<String>),
    /// It cannot be decided.
    Unknown(Vec<String>),
    /// Weir has injected the pods already.
    Done,
}

impl Verdict {
    /// Returns the name in output.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::AgentPort(_) => "equal-but-15020",
            Self::CapturedLess(_) => "captured-less",
            Self::CapturedMore(_) => "captured-more",
            Self::Different(_) => "different",
            Self::Unknown(_) => "unknown",
            Self::Done => "done",
        }
    }

    /// Returns the sentences that say which traffic differs, or why it is not known.
    pub(super) fn sentences(&self) -> &[String] {
        match self {
            Self::Equal | Self::Done => &[],
            Self::AgentPort(all)
            | Self::CapturedLess(all)
            | Self::CapturedMore(all)
            | Self::Different(all)
            | Self::Unknown(all) => all,
        }
    }

    /// Returns whether it moves without a person's decision.
    pub(super) const fn is_safe(&self) -> bool {
        matches!(self, Self::Equal | Self::AgentPort(_) | Self::Done)
    }
}

/// The workload's side of an assessment.
pub(super) struct Subjects<'a> {
    /// The pod that its controller would create, before admission.
    pub(super) template: Value,
    /// True if the template is the controller's; else it is a running pod.
    pub(super) is_template: bool,
    pub(super) workload: Option<Workload>,
    pub(super) namespace: &'a str,
    /// A meshed pod of it that runs.
    pub(super) pod: &'a Value,
}

/// Result of an assessment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assessment {
    pub(super) verdict: Verdict,
    /// Differences of the injected pod.
    pub(super) changes: Vec<String>,
    /// Reasons for which a person has to act.
    pub(super) reasons: Vec<String>,
    /// Warnings of the injection.
    pub(super) warnings: Vec<String>,
}

/// Assesses workloads; remembers the proofs, because most workloads have the same rules.
pub(super) struct Assessor<'a> {
    pub(super) dns_servers: &'a [IpAddr],
    verdicts: HashMap<(String, String, Vec<u8>), Verdict>,
}

impl<'a> Assessor<'a> {
    pub(super) fn new(dns_servers: &'a [IpAddr]) -> Self {
        Self { dns_servers, verdicts: HashMap::new() }
    }

    /// Assesses a meshed workload. Without settings, the injector's configuration is not known.
    pub(super) fn assess(&mut self, subjects: &Subjects<'_>, settings: Option<&Settings>) -> Assessment {
        let mut assessment =
            Assessment { verdict: Verdict::Done, changes: Vec::new(), reasons: Vec::new(), warnings: Vec::new() };
        let origin = match Origin::of(subjects.pod) {
            None | Some(Origin::Weir) => return assessment,
            Some(origin) => origin,
        };
        let Some(settings) = settings else {
            assessment.verdict = Verdict::Unknown(vec!["the injector's configuration is not known".to_owned()]);
            return assessment;
        };
        let now = current::capture(subjects.pod, origin, self.dns_servers);
        let then = Self::injected(subjects, settings, &mut assessment);
        assessment.verdict = match (now, then) {
            (Ok(now), Some((pod, config))) => {
                assessment.changes = pod_changes::changes(subjects.pod, &pod, OldPod::Running);
                self.verdict(&now, &config, &addresses(subjects.pod))
            }
            (Err(unknown), _) => {
                assessment.reasons.extend(unknown.iter().cloned());
                Verdict::Unknown(unknown)
            }
            (Ok(_), None) => Verdict::Unknown(assessment.reasons.clone()),
        };
        assessment
    }

    /// Injects the template as Weir's webhook would; adds a reason if it would not.
    fn injected(
        subjects: &Subjects<'_>,
        settings: &Settings,
        assessment: &mut Assessment,
    ) -> Option<(Value, CaptureConfig)> {
        let sidecar = container(&subjects.template, PROXY).filter(|proxy| proxy["image"] != "auto");
        if sidecar.is_some() && subjects.is_template {
            let text = "its template has the sidecar already (istioctl kube-inject): apply the manifest without it (weir uninject)";
            assessment.reasons.push(text.to_owned());
        }
        let request = InjectRequest {
            pod: subjects.template.clone(),
            namespace: Some(subjects.namespace.to_owned()),
            namespace_annotations: settings.namespaces.annotations(subjects.namespace),
            workload: subjects.workload.clone(),
            ..InjectRequest::default()
        };
        let mut pod = match inject(&request, settings) {
            Ok(InjectOutcome::Injected { pod, warnings, .. }) => {
                assessment.warnings = warnings;
                pod
            }
            Ok(InjectOutcome::Skipped { reason, .. }) => {
                assessment.reasons.push(format!("Weir would not inject it: {}", reason.message()));
                return None;
            }
            Err(error) => {
                assessment
                    .reasons
                    .extend(denial_messages(error).iter().map(|why| format!("Weir would deny its pods: {why}")));
                return None;
            }
        };
        // The rules for IPv6 depend on the addresses, which a template does not have.
        pod["status"] = json!({"podIPs": subjects.pod.pointer("/status/podIPs")});
        match of_pod(&pod, false) {
            Ok(Capture::Configured { config, .. }) => Some((pod, *config)),
            Ok(Capture::NotInjected(_)) => None,
            Ok(Capture::Skipped(_)) => Some((pod, current::no_capture())),
            Err(errors) => {
                assessment.reasons.extend(errors);
                None
            }
        }
    }

    fn verdict(&mut self, now: &CaptureConfig, then: &CaptureConfig, addresses: &[IpAddr]) -> Verdict {
        let families: Vec<RestoreFamily> = RestoreFamily::ALL
            .into_iter()
            .filter(|family| {
                addresses.is_empty() || addresses.iter().any(|ip| ip.is_ipv6() == family.any_address().is_ipv6())
            })
            .collect();
        let key = families.iter().map(|family| u8::from(family.any_address().is_ipv6())).collect();
        let key = (now.to_capture_annotation(), then.to_capture_annotation(), key);
        self.verdicts.entry(key).or_insert_with(|| decide(now, then, &families)).clone()
    }
}

/// Compares the rules of two configurations, and recognizes the one difference that every move from istio-init to a plugin has.
fn decide(now: &CaptureConfig, then: &CaptureConfig, families: &[RestoreFamily]) -> Verdict {
    let default = CaptureConfig::default().outbound_ports_exclude;
    match compare(now, then, families) {
        Verdict::CapturedLess(sentences)
            if now.outbound_ports_exclude.is_empty() && then.outbound_ports_exclude == default =>
        {
            let as_plugin = CaptureConfig { outbound_ports_exclude: default, ..now.clone() };
            if compare(&as_plugin, then, families) == Verdict::Equal {
                Verdict::AgentPort(sentences)
            } else {
                Verdict::CapturedLess(sentences)
            }
        }
        other => other,
    }
}

fn compare(now: &CaptureConfig, then: &CaptureConfig, families: &[RestoreFamily]) -> Verdict {
    let rules = |config: &CaptureConfig| {
        let rules = plan(config).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let capture = Capture::configured(ConfigSource::CaptureAnnotation, config.clone());
        let reroute_annotation = iptables_rules::names::annotation::REROUTE_VIRTUAL_INTERFACES;
        let (name, namespace, labels) = (String::new(), String::new(), Map::new());
        let subject = Subject { name, namespace, labels, capture, reroute_annotation, line: 1, pod: None };
        let mut side = WorkloadRules::planned(Planned { subject, rules: Some(rules) }, None);
        side.families = families.to_vec();
        Ok(side)
    };
    let (now, then) = match (rules(now), rules(then)) {
        (Ok(now), Ok(then)) => (now, then),
        (Err(why), _) | (_, Err(why)) => return Verdict::Unknown(why),
    };
    match comparison::compare(&now, &then).verdict {
        Compared::Equal | Compared::Added | Compared::Removed => Verdict::Equal,
        Compared::Unknown(places) => {
            Verdict::Unknown(places.iter().map(|place| format!("not understood: {place}")).collect())
        }
        Compared::Different(found) => {
            let sentences = sentences(&found);
            let has = |kind| found.changes.iter().any(|change| change.kind == kind);
            if has(ChangeKind::Bypass) {
                Verdict::CapturedLess(sentences)
            } else if !found.unknown.is_empty() {
                Verdict::Unknown(sentences)
            } else if has(ChangeKind::Captured) {
                Verdict::CapturedMore(sentences)
            } else {
                Verdict::Different(sentences)
            }
        }
    }
}

/// Describes the traffic that differs, each with a packet as an example.
fn sentences(found: &comparison::FoundChanges) -> Vec<String> {
    let mut all = Vec::new();
    for change in &found.changes {
        for explained in &change.classes {
            let because = text::because(explained).map(|because| format!("; {because}")).unwrap_or_default();
            all.push(format!(
                "{} ({} -> {}): {}, such as {}{because}",
                change.kind.description(),
                change.before,
                change.after,
                explained.class,
                text::packet(&explained.class.witness)
            ));
        }
    }
    all.extend(found.unknown.iter().map(|place| format!("not understood: {place}")));
    let more = all.len().saturating_sub(MAX_SENTENCES);
    all.truncate(MAX_SENTENCES);
    if more > 0 {
        all.push(format!("and {more} more"));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(now: &CaptureConfig, then: &CaptureConfig, addresses: &[&str]) -> Verdict {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Assessor::new(&[]).verdict(now, then, &addresses)
    }

    #[test]
    fn verdict_names_the_traffic_that_differs() {
        let plain = CaptureConfig::default();
        let excluded = CaptureConfig { outbound_ports_exclude: vec![3306], ..CaptureConfig::default() };
        let base = CaptureConfig { outbound_ports_exclude: vec![], ..CaptureConfig::default() };
        assert_eq!(verdict(&plain, &plain, &["10.0.0.1"]), Verdict::Equal);
        let less = verdict(&base, &excluded, &["10.0.0.1"]);
        assert_eq!(less.name(), "captured-less");
        assert!(less.sentences()[0].contains("3306") && less.sentences()[0].contains("such as tcp"), "{less:?}");
        assert_eq!(verdict(&excluded, &base, &["10.0.0.1"]).name(), "captured-more");
        assert_eq!(verdict(&base, &plain, &["10.0.0.1"]).name(), "equal-but-15020");
        let both = CaptureConfig { inbound_ports_exclude: vec![8080], ..CaptureConfig::default() };
        assert_eq!(verdict(&base, &both, &["10.0.0.1"]).name(), "captured-less");
        let other = CaptureConfig { proxy_port: 15101, ..CaptureConfig::default() };
        assert_eq!(verdict(&plain, &other, &["10.0.0.1"]).name(), "different");
    }

    #[test]
    fn only_families_of_the_pod_count() {
        use iptables_rules::config::Ipv6Policy;
        let of = |ipv6| CaptureConfig { ipv6, ..CaptureConfig::default() };
        let (leave, capture) = (of(Ipv6Policy::Leave), of(Ipv6Policy::Capture));
        assert_eq!(verdict(&leave, &capture, &["10.0.0.1"]), Verdict::Equal);
        assert_eq!(verdict(&leave, &capture, &["10.0.0.1", "fd00::1"]).name(), "captured-more");
        assert_eq!(verdict(&capture, &leave, &["fd00::1"]).name(), "captured-less");
    }
}
