//! One explanation: what a pod or a network namespace captures, and optionally the trace of a packet.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use iptables_rules::CaptureConfig;
use iptables_rules::names::annotation;
use iptables_rules::trace::{Chains, Trace};

use super::netns::{self, NetnsReport};
use super::packet::{PacketArgs, PacketQuery, PodIdentity};
use super::probe;
use super::summary::Summary;
use crate::failure::Failure;
use crate::rules::planned::Planned;

/// Any IPv4 address, to select the rules of that family.
const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// Explanation of what a pod or a network namespace captures.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// Name for messages.
    pub(crate) name: String,
    /// Source of the rules, or why there are none.
    pub(crate) origin: String,
    /// State of the network namespace, if one is explained.
    pub(crate) netns_report: Option<NetnsReport>,
    /// `None` for a pod that is not injected.
    pub(crate) summary: Option<Summary>,
    /// The annotation that sets rerouted interfaces.
    pub(crate) reroute_annotation: &'static str,
    /// The rules for IPv4 packets.
    pub(crate) chains: Chains,
    /// The packet and its trace, if one is given.
    pub(crate) packet_trace: Option<(PacketQuery, Trace)>,
}

impl Explanation {
    /// Returns a text that is the same for explanations that differ by their names only.
    pub(crate) fn key(&self) -> String {
        let Self { name: _, origin, netns_report, summary, reroute_annotation, chains, packet_trace } = self;
        let sentences = netns_report.as_ref().map(|report| &report.sentences);
        format!("{origin}{sentences:?}{summary:?}{reroute_annotation}{chains:?}{packet_trace:?}")
    }
}

/// Explains the rules in a network namespace, compared with those of its pod if that is given.
///
/// # Errors
/// The namespace cannot be read, or the packet is invalid.
pub(super) fn explain_namespace(
    path: &Path,
    expected: Option<&Planned>,
    packet: &PacketArgs,
) -> Result<Explanation, Failure> {
    let config = expected.and_then(config_of);
    let rules = expected.map(|planned| planned.rules.clone().unwrap_or_default());
    let report = netns::inspect(path, rules.as_ref())?;
    let query = packet.query(&netns::pod_identity(&report.state, config)).map_err(Failure::findings)?;
    let reroute_annotation =
        expected.map_or(annotation::REROUTE_VIRTUAL_INTERFACES, |planned| planned.subject.reroute_annotation);
    // Of rules that are the pod's, the configuration says more; of any others, only the rules say what happens.
    let summary = if let Some(config) = config.filter(|_| report.is_healthy) {
        Summary::of(config)
    } else {
        let pod = netns::pod_identity(&report.state, config);
        let is_foreign = probe::foreign_tables(report.state.ownership());
        probe::summarize(&netns::chains_of_both_families(&report.state), &pod, is_foreign)
    };
    Ok(Explanation {
        name: format!("network namespace {}", path.display()),
        origin: expected.map_or_else(
            || "the rules in the kernel".to_owned(),
            |planned| format!("the rules in the kernel, compared with those of {}", planned.subject),
        ),
        summary: Some(summary.with_reroute_annotation(reroute_annotation)),
        reroute_annotation,
        chains: report.state.chains(IPV4),
        packet_trace: query.map(|query| {
            let trace = report.state.chains(query.packet.destination).trace(&query.packet);
            (query, trace)
        }),
        netns_report: Some(report),
    })
}

/// Explains the planned rules of every pod.
///
/// # Errors
/// Everything that is wrong with the packet.
pub(super) fn explain_planned(planned: &[Planned], packet: &PacketArgs) -> Result<Vec<Explanation>, Vec<String>> {
    let mut explanations = Vec::new();
    let mut findings = Vec::new();
    for planned in planned {
        match explain_pod(planned, packet) {
            Ok(explanation) => explanations.push(explanation),
            Err(errors) => findings.extend(errors),
        }
    }
    // An invalid packet is invalid for every pod.
    findings.sort();
    findings.dedup();
    if findings.is_empty() { Ok(explanations) } else { Err(findings) }
}

fn explain_pod(planned: &Planned, packet: &PacketArgs) -> Result<Explanation, Vec<String>> {
    let config = config_of(planned);
    let query = packet.query(&PodIdentity::of(config.unwrap_or(&CaptureConfig::default())))?;
    let rules = planned.rules.clone().unwrap_or_default();
    Ok(Explanation {
        name: planned.subject.name.clone(),
        origin: planned.subject.capture.to_string(),
        netns_report: None,
        summary: config.map(|config| Summary::of(config).with_reroute_annotation(planned.subject.reroute_annotation)),
        reroute_annotation: planned.subject.reroute_annotation,
        chains: Chains::from_rule_set(&rules, IPV4),
        packet_trace: query.map(|query| {
            let trace = rules.trace(&query.packet);
            (query, trace)
        }),
    })
}

fn config_of(planned: &Planned) -> Option<&CaptureConfig> {
    planned.subject.capture.config()
}
