//! Inspects a network namespace: whose rules it has, whether they are complete, and how they differ.

use std::path::{Path, PathBuf};

use iptables_rules::config::Group;
use iptables_rules::ruleset::{Match, RuleReason};
use iptables_rules::trace::{Chains, Predicate};
use iptables_rules::{CaptureConfig, RuleSet, names};
use weir_kernel::netns;
use weir_kernel::netns_state::{self, NetnsState, NetnsStateError, Ownership};

use super::packet::PodIdentity;
use crate::failure::Failure;

/// The state of a network namespace.
#[derive(Debug)]
pub(crate) struct NetnsReport {
    pub(crate) state: NetnsState,
    /// The assessment, one sentence each; the first one is about ownership.
    pub(crate) sentences: Vec<String>,
    /// Differences from the expected rules; `None` if those are unknown.
    pub(crate) differences: Option<Vec<String>>,
    pub(crate) is_healthy: bool,
}

/// Returns the path of a process's network namespace.
///
/// # Errors
/// The process does not exist.
pub(crate) fn of_process(pid: u32) -> Result<PathBuf, Failure> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    if process.is_dir() {
        return Ok(process.join("ns/net"));
    }
    Err(Failure::usage(format!("--pid {pid}: process not found")))
}

/// Reads a network namespace, and compares its rules with the expected ones.
///
/// # Errors
/// The namespace cannot be entered or read.
pub(crate) fn inspect(path: &Path, expected: Option<&RuleSet>) -> Result<NetnsReport, Failure> {
    let inspect = || -> Result<NetnsReport, NetnsStateError> {
        let state = netns_state::read()?;
        let known = state.infer_installed().filter(|_| expected.is_none());
        let differences = match expected.or(known.as_ref()) {
            Some(rules) => Some(state.differences(rules)?),
            None => None,
        };
        Ok(assess(state, differences, expected))
    };
    netns::run_in(path, inspect)
        .map_err(|error| Failure::usage(error.to_string()))?
        .map_err(|error| Failure::usage(format!("network namespace {}: {error}", path.display())))
}

fn assess(state: NetnsState, differences: Option<Vec<String>>, expected: Option<&RuleSet>) -> NetnsReport {
    let ownership = state.ownership();
    let mut sentences = vec![ownership_sentence(&state, ownership, expected).to_owned()];
    if expected.is_some() && ownership != Ownership::None {
        sentences.push(match differences.as_deref() {
            Some([]) => "They are exactly those that the pod should have.".to_owned(),
            _ => "They are not those that the pod should have.".to_owned(),
        });
    }
    if differences.is_none() && ownership == Ownership::OursDrifted {
        sentences.push(
            "The original rules are unknown; pass -f or --annotations with the pod to see the difference.".to_owned(),
        );
    }
    let others = state.other_tables();
    if !others.is_empty() {
        sentences.push(format!("Other tables exist and are not inspected: {}.", others.join(", ")));
    }
    sentences.extend(state.unreadable.iter().map(|what| format!("Could not read everything: {what}.")));
    let has_expected_rules = expected.is_none_or(|rules| rules.is_empty() || ownership != Ownership::None);
    let is_intact = match ownership {
        Ownership::Mixed => false,
        Ownership::OursDrifted => matches!(differences.as_deref(), Some([])),
        _ => true,
    };
    let is_healthy = has_expected_rules
        && is_intact
        && differences.as_ref().is_none_or(Vec::is_empty)
        && state.unreadable.is_empty();
    NetnsReport { state, sentences, differences, is_healthy }
}

fn ownership_sentence(state: &NetnsState, ownership: Ownership, expected: Option<&RuleSet>) -> &'static str {
    match ownership {
        Ownership::None if expected.is_some_and(|rules| !rules.is_empty()) => {
            "There are no capture rules, although the pod should have some: all traffic bypasses the proxy."
        }
        Ownership::None => "There are no capture rules: nothing is captured.",
        Ownership::Ours => "The rules are Weir's, complete and exactly as they were installed.",
        Ownership::OursDrifted if state.nft.fingerprint.is_none() => {
            "The table has Weir's name, but not the fingerprint chain that Weir adds."
        }
        Ownership::OursDrifted => {
            "The rules are Weir's, but they have drifted: they were changed after they were installed."
        }
        Ownership::OursInIptables => "The rules are Weir's, in the tables of iptables.",
        Ownership::Foreign => {
            "The rules are foreign: chains of a mesh that Weir did not install, such as those of Istio's own programs."
        }
        Ownership::Mixed => {
            "There are two sets of rules, Weir's and another one in the tables of iptables; every packet traverses both."
        }
    }
}

/// Derives addresses and proxy identity of the pod from the state of its network namespace.
pub(crate) fn pod_identity(state: &NetnsState, config: Option<&CaptureConfig>) -> PodIdentity {
    let mut pod = config.map_or_else(|| PodIdentity::of(&config_from_rules(state)), PodIdentity::of);
    pod.addresses.extend(state.addresses.iter().copied().filter(|address| !is_link_local(*address)));
    // ::6 is on lo for the proxy, not an address of the pod.
    pod.addresses.retain(|address| *address != std::net::IpAddr::V6(names::address::PASSTHROUGH_V6));
    pod
}

fn is_link_local(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Reads the identity of the proxy from the rules.
fn config_from_rules(state: &NetnsState) -> CaptureConfig {
    let mut config = CaptureConfig { proxy_uids: Vec::new(), proxy_gids: Vec::new(), ..CaptureConfig::default() };
    for chains in chains_of_both_families(state) {
        let proxies = chains.chains.iter().flat_map(|chain| &chain.rules);
        for rule in proxies.filter(|rule| rule.reason == Some(RuleReason::ProxyTraffic)) {
            for condition in &rule.conditions {
                match condition {
                    Predicate::Planned(Match::Uid { id, negated: false }) => config.proxy_uids.push(*id),
                    Predicate::Planned(Match::Gid { group: Group::Id(id), negated: false }) => {
                        config.proxy_gids.push(*id);
                    }
                    _ => {}
                }
            }
        }
    }
    if config.proxy_uids.is_empty() && config.proxy_gids.is_empty() {
        return CaptureConfig::default();
    }
    config
}

/// Returns the rules for IPv4 and IPv6 packets.
pub(crate) fn chains_of_both_families(state: &NetnsState) -> [Chains; 2] {
    [state.chains([0; 4].into()), state.chains([0_u16; 8].into())]
}
