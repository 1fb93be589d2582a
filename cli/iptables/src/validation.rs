//! `--run-validation`: test connections that verify the capture rules of this network namespace.
//!
//! ```text
//! configuration, own identity ──plan──▶ checks ──connection──▶ results ─▶ verdict and advice
//! ```
//!
//! The connection that Istio's validation container makes is among them, with its answer: from the proxy's user to 127.0.0.6:15002,
//! which has to arrive at the inbound port. No packet leaves the node: those to outside have a TTL of 1.
//!
//! What can be verified depends on the user. Outbound traffic of the proxy's user is never captured, so that user verifies the proxy's
//! side, any other user the application's, and a process with `CAP_SETUID` both. Traffic from outside is traced through the kernel's
//! rules, which takes `CAP_NET_ADMIN`. What was not verified is logged.

mod check;
mod connection;
mod plan;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use iptables_rules::config::InterceptionMode;
use iptables_rules::trace::{ConntrackState, Packet, PacketOrigin, Transport};
use weir_kernel::backend::{self, RuleStore};
use weir_kernel::nft;

use self::check::{Check, ConnectionResult, Direction};
use self::connection::Listeners;
use self::plan::TestIdentities;
use crate::error::IptablesError;
use crate::identity::Identity;
use crate::log::Log;
use crate::request::Request;

const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Makes the test connections, and repeats failed ones until all pass or `--probe-timeout` is over.
///
/// # Errors
/// [`IptablesError::ValidationFailed`] with every connection that failed, and what to do.
pub(crate) fn run(request: &Request, log: Log) -> Result<(), IptablesError> {
    let config = &request.config;
    if config.mode == InterceptionMode::None {
        log.info("validation: mode NONE captures nothing");
        return Ok(());
    }
    let with_ipv6 = config.ipv6.is_captured() && !backend::is_ipv6_disabled();
    let identities = TestIdentities::new(
        config,
        Identity::current(),
        connection::can_change_user(),
        with_ipv6,
        request.options.probe_port,
    );
    let (mut pending, notes) = plan::checks(config, &identities);
    for note in notes {
        log.info(&format!("validation: {note}"));
    }
    let listeners = Listeners::bind(config).map_err(|problems| {
        IptablesError::ValidationFailed(problems.iter().map(|problem| format!("validation: {problem}")).collect())
    })?;
    let deadline = Instant::now() + request.options.probe_timeout;
    let mut passed = Vec::new();
    loop {
        let mut failed = Vec::new();
        for check in pending {
            match connection::connect(&check, &listeners, &config.exclude_interfaces) {
                ConnectionResult::NotTestable(why) => log.info(&format!("validation: {check}: not tested: {why}")),
                result => match check.mismatch(&result) {
                    None => {
                        log.info(&format!("validation: {check}: ok"));
                        passed.push(check);
                    }
                    Some(mismatch) => failed.push((check, mismatch)),
                },
            }
        }
        if failed.is_empty() || Instant::now() + RETRY_INTERVAL >= deadline {
            return verdict(request, log, &passed, &failed);
        }
        pending = failed.into_iter().map(|(check, _)| check).collect();
        std::thread::sleep(RETRY_INTERVAL);
    }
}

fn verdict(request: &Request, log: Log, passed: &[Check], failed: &[(Check, String)]) -> Result<(), IptablesError> {
    let mut messages: Vec<String> =
        failed.iter().map(|(check, mismatch)| format!("validation failed: {check}: {mismatch}")).collect();
    match from_outside(request) {
        Ok(findings) if findings.is_empty() => {
            log.info("validation: inbound, from outside: ok, by the kernel's rules");
        }
        Ok(findings) => messages.extend(findings.into_iter().map(|finding| format!("validation failed: {finding}"))),
        Err(why) => log.info(&format!("validation: inbound, from outside: not tested: {why}")),
    }
    if passed.is_empty() && failed.is_empty() && messages.is_empty() {
        messages.push("validation failed: nothing can be tested here".to_owned());
    }
    if messages.is_empty() {
        return Ok(());
    }
    messages.push(advice(passed, failed));
    Err(IptablesError::ValidationFailed(messages))
}

/// Returns the likely cause and what to do, by which connections passed and which failed.
fn advice(passed: &[Check], failed: &[(Check, String)]) -> String {
    // A check that passes without rules proves nothing; one that fails does.
    let of = |wanted: &dyn Fn(&Check) -> bool| {
        let works = passed.iter().any(|check| check.needs_rules() && wanted(check));
        (works, failed.iter().any(|(check, _)| wanted(check)))
    };
    let dns = of(&|check| check.direction == Direction::Dns);
    let others = of(&|check| check.direction != Direction::Dns);
    let v4 = of(&|check| check.to.is_ipv4());
    let v6 = of(&|check| check.to.is_ipv6());
    let text = match () {
        () if !v4.0 && !v6.0 && (v4.1 || v6.1) => {
            "no capture rules work here. If a CNI plugin installs them: is it in the CNI configuration of this node, and was it when the pod \
             was created? Its errors are in the events of the pod or in the log of the container runtime. Delete the pod to try again"
        }
        () if v4.0 && !v4.1 && v6.1 && !v6.0 => {
            "IPv4 is captured, IPv6 is not: the rules are for IPv4 only (Istio's plugin without ISTIO_DUAL_STACK; weir.dev/ipv6: leave), or lo \
             lacks the address ::6. Install rules for both, or validate with --ipv6 off"
        }
        () if dns.1 && !others.1 => {
            "everything but DNS is captured: the rules were made without DNS capture. Set ISTIO_META_DNS_CAPTURE where they are made, and \
             recreate the pod"
        }
        () => {
            "the rules are incomplete: they were changed, or made with other settings. Recreate the pod, or rewrite them with weir iptables \
             --force-apply"
        }
    };
    format!("validation: {text}")
}

/// Traces connections from outside through the rules in our table; the error says why that is not possible.
fn from_outside(request: &Request) -> Result<Vec<String>, String> {
    let used = RuleStore::Own.has_rules().map_err(|error| error.to_string())?;
    if !used {
        return Err("the rules cannot be read as this user, or are not in Weir's table".to_owned());
    }
    let held = nft::read_back().map_err(|error| error.to_string())?;
    let mut findings = Vec::new();
    let families: &[(&str, &str)] = &[("IPv4", "192.0.2.1"), ("IPv6", "2001:db8::1")];
    let families = if request.config.ipv6.is_captured() { families } else { &families[..1] };
    for (family, address) in families {
        let Ok(address) = address.parse::<IpAddr>() else { continue };
        let packet = arriving(address, request.options.probe_port);
        let (planned, found) =
            (request.rules.trace(&packet).disposition, nft::chains(&held, address).trace(&packet).disposition);
        if planned != found {
            findings
                .push(format!("inbound, from outside, {family}: the rules lead to {found:?} instead of {planned:?}"));
        }
    }
    Ok(findings)
}

/// Returns the first packet of a connection from outside.
fn arriving(address: IpAddr, port: u16) -> Packet {
    Packet {
        origin: PacketOrigin::Received { interface: "eth0".to_owned() },
        transport: Transport::Tcp,
        source: address,
        source_port: 40000,
        destination: address,
        destination_port: port,
        mark: 0,
        connection_mark: 0,
        state: ConntrackState::New,
    }
}

#[cfg(test)]
mod tests;
