//! A network namespace as it is: whose rules, whether they are complete, and what is different.

use std::path::{Path, PathBuf};

use iptables_rules::config::Group;
use iptables_rules::ruleset::{Match, Reason};
use iptables_rules::trace::{Chains, Condition};
use iptables_rules::{CaptureConfig, RuleSet, names};
use weir_kernel::live::{self, Live, LiveError, Standing};
use weir_kernel::netns;

use super::packet::Pod;
use crate::failure::Failure;

/// What was found in a namespace.
#[derive(Debug)]
pub(crate) struct Found {
    /// The rules.
    pub(crate) live: Live,
    /// What a person should know, one sentence each; the first one is the verdict.
    pub(crate) verdicts: Vec<String>,
    /// How it differs from what should be there; `None` where nobody knows what should be.
    pub(crate) differences: Option<Vec<String>>,
    /// Whether it was compared with what a pod should have.
    pub(crate) compared: bool,
    /// Whether all is well.
    pub(crate) fine: bool,
}

/// The namespace of a process.
///
/// # Errors
/// There is no such process.
pub(crate) fn of_process(pid: u32) -> Result<PathBuf, Failure> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    if process.is_dir() {
        return Ok(process.join("ns/net"));
    }
    Err(Failure::usage(format!("--pid {pid}: there is no such process")))
}

/// Reads a namespace, and compares it with what should be there.
///
/// # Errors
/// It cannot be entered or read.
pub(crate) fn look(path: &Path, expected: Option<&RuleSet>) -> Result<Found, Failure> {
    let look = || -> Result<Found, LiveError> {
        let live = live::read()?;
        let known = live.installed().filter(|_| expected.is_none());
        let differences = match expected.or(known.as_ref()) {
            Some(rules) => Some(live.differences(rules)?),
            None => None,
        };
        Ok(judge(live, differences, expected))
    };
    netns::within(path, look)
        .map_err(|error| Failure::usage(error.to_string()))?
        .map_err(|error| Failure::usage(format!("network namespace {}: {error}", path.display())))
}

fn judge(live: Live, differences: Option<Vec<String>>, expected: Option<&RuleSet>) -> Found {
    let standing = live.standing();
    let mut verdicts = vec![verdict(&live, standing, expected).to_owned()];
    if expected.is_some() && standing != Standing::None {
        verdicts.push(match differences.as_deref() {
            Some([]) => "They are exactly those that the pod should have.".to_owned(),
            _ => "They are not those that the pod should have.".to_owned(),
        });
    }
    if differences.is_none() && standing == Standing::Drifted {
        verdicts.push(
            "Which rules they were nobody has written down; -f or --annotations with the pod shows the difference."
                .to_owned(),
        );
    }
    let others = live.other_tables();
    if !others.is_empty() {
        verdicts.push(format!("There are other tables too, which are not looked at: {}.", others.join(", ")));
    }
    verdicts.extend(live.unread.iter().map(|what| format!("Not everything could be read: {what}.")));
    let wanted = expected.is_none_or(|rules| rules.is_empty() || standing != Standing::None);
    let sound = match standing {
        Standing::Both => false,
        Standing::Drifted => matches!(differences.as_deref(), Some([])),
        _ => true,
    };
    let fine = wanted && sound && differences.as_ref().is_none_or(Vec::is_empty) && live.unread.is_empty();
    Found { live, verdicts, differences, compared: expected.is_some(), fine }
}

fn verdict(live: &Live, standing: Standing, expected: Option<&RuleSet>) -> &'static str {
    match standing {
        Standing::None if expected.is_some_and(|rules| !rules.is_empty()) => {
            "There are no capture rules, although there should be: everything bypasses the proxy."
        }
        Standing::None => "There are no capture rules: nothing is captured here.",
        Standing::Ours => "The rules are Weir's, complete and exactly as they were installed.",
        Standing::Drifted if live.nft.stamp.is_none() => {
            "The table is called like Weir's, but the fingerprint is missing that Weir leaves beside its rules."
        }
        Standing::Drifted => {
            "The rules are Weir's, but they have drifted: somebody has changed them since they were installed."
        }
        Standing::OursInIptables => "The rules are Weir's, in the tables of iptables.",
        Standing::Foreign => {
            "The rules are foreign: chains of a mesh that Weir did not write, as Istio's own programs leave them."
        }
        Standing::Both => {
            "There are two sets of rules, Weir's and another one in the tables of iptables; both are met by every packet."
        }
    }
}

/// What rules tell about a pod: its addresses, and whom they take for the proxy.
pub(crate) fn pod(live: &Live, config: Option<&CaptureConfig>) -> Pod {
    let mut pod = config.map_or_else(|| Pod::of(&of_rules(live)), Pod::of);
    pod.addresses.extend(live.addresses.iter().copied().filter(|address| !is_link_local(*address)));
    // ::6 is on lo for the proxy's sake, and no address at which a pod is called.
    pod.addresses.retain(|address| *address != std::net::IpAddr::V6(names::address::PASSTHROUGH_V6));
    pod
}

fn is_link_local(address: std::net::IpAddr) -> bool {
    matches!(address, std::net::IpAddr::V6(address) if address.is_unicast_link_local())
}

/// As much of a configuration as tells the proxy.
fn of_rules(live: &Live) -> CaptureConfig {
    let mut config = CaptureConfig { proxy_uids: Vec::new(), proxy_gids: Vec::new(), ..CaptureConfig::default() };
    for chains in both(live) {
        let proxies = chains.chains.iter().flat_map(|chain| &chain.rules);
        for rule in proxies.filter(|rule| rule.reason == Some(Reason::ProxyTraffic)) {
            for condition in &rule.conditions {
                match condition {
                    Condition::Planned(Match::Uid { id, negated: false }) => config.proxy_uids.push(*id),
                    Condition::Planned(Match::Gid { group: Group::Id(id), negated: false }) => {
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

/// The rules of both families.
pub(crate) fn both(live: &Live) -> [Chains; 2] {
    [live.chains([0; 4].into()), live.chains([0_u16; 8].into())]
}
