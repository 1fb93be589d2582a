//! `--run-validation`: connections that show whether the capture rules of this namespace do their work.
//!
//! ```text
//! configuration, who we are ──checks.rs──▶ checks ──probe.rs──▶ outcomes ─▶ verdict, in words
//! ```
//!
//! The one connection that Istio's own container makes is among them, with its answer: from the proxy's user to 127.0.0.6:15002, which
//! has to arrive on the inbound port. No packet leaves the node: destinations outside get a time to live of one hop.
//!
//! What can be shown depends on who asks. The traffic of the proxy's user is never captured on its way out, so as that user, without
//! capabilities, the proxy's side can be shown and the application's cannot; any other user shows the other side; with `CAP_SETUID` both
//! are. What arrives from outside takes the rules themselves, to be read with `CAP_NET_ADMIN`. What was not shown is said.

mod checks;
mod probe;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use iptables_rules::config::{InterceptionMode, Ipv6Policy};
use iptables_rules::trace::{Entry, Packet, State, Transport};
use weir_kernel::backend::{self, Place};
use weir_kernel::nft;
use weir_lab::User;

use self::checks::{Check, Direction, Situation};
use self::probe::{Listeners, Outcome};
use super::log::Log;
use super::request::Request;
use crate::failure::Failure;

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Makes the connections, again and again until all went their way or the time is over.
///
/// # Errors
/// [`Failure::validation`] with every connection that did not go its way, and what to do.
pub(crate) fn run(request: &Request, log: Log) -> Result<(), Failure> {
    let config = &request.config;
    if config.mode == InterceptionMode::None {
        log.info("validation: mode NONE captures nothing");
        return Ok(());
    }
    let with_ipv6 = config.ipv6 == Ipv6Policy::Capture && !backend::ipv6_is_off();
    let situation = Situation::new(config, probe::user(), probe::can_be_anybody(), with_ipv6, request.draft.probe_port);
    let (mut pending, notes) = checks::checks(config, &situation);
    for note in notes {
        log.info(&format!("validation: {note}"));
    }
    let listeners = Listeners::bind(config).map_err(|problems| {
        Failure::validation(problems.iter().map(|problem| format!("validation: {problem}")).collect())
    })?;
    let deadline = Instant::now() + request.draft.probe_timeout;
    let mut shown = Vec::new();
    loop {
        let mut failed = Vec::new();
        for check in pending {
            match probe::attempt(&check, &listeners, &config.exclude_interfaces) {
                Outcome::NotPossible(why) => log.info(&format!("validation: {check}: not tested: {why}")),
                outcome => match check.objection(&outcome) {
                    None => {
                        log.info(&format!("validation: {check}: ok"));
                        shown.push(check);
                    }
                    Some(objection) => failed.push((check, objection)),
                },
            }
        }
        if failed.is_empty() || Instant::now() + PAUSE >= deadline {
            return verdict(request, log, &shown, &failed);
        }
        pending = failed.into_iter().map(|(check, _)| check).collect();
        std::thread::sleep(PAUSE);
    }
}

fn verdict(request: &Request, log: Log, shown: &[Check], failed: &[(Check, String)]) -> Result<(), Failure> {
    let mut messages: Vec<String> =
        failed.iter().map(|(check, objection)| format!("validation failed: {check}: {objection}")).collect();
    match from_outside(request) {
        Ok(findings) if findings.is_empty() => {
            log.info("validation: inbound, from outside: ok, as the kernel's rules say");
        }
        Ok(findings) => messages.extend(findings.into_iter().map(|finding| format!("validation failed: {finding}"))),
        Err(why) => log.info(&format!("validation: inbound, from outside: not tested: {why}")),
    }
    if shown.is_empty() && failed.is_empty() && messages.is_empty() {
        messages.push("validation failed: nothing could be tested here".to_owned());
    }
    if messages.is_empty() {
        return Ok(());
    }
    messages.push(advice(shown, failed));
    Err(Failure::validation(messages))
}

/// What is likely wrong, and what to do, from which connections went their way and which did not.
fn advice(shown: &[Check], failed: &[(Check, String)]) -> String {
    // What holds without any rule says nothing about whether there are some; that it does not hold says a lot.
    let of = |wanted: &dyn Fn(&Check) -> bool| {
        let works = shown.iter().any(|check| check.needs_rules() && wanted(check));
        (works, failed.iter().any(|(check, _)| wanted(check)))
    };
    let dns = of(&|check| check.direction == Direction::Dns);
    let others = of(&|check| check.direction != Direction::Dns);
    let v4 = of(&|check| check.to.is_ipv4());
    let v6 = of(&|check| check.to.is_ipv6());
    let text = match () {
        () if !v4.0 && !v6.0 && (v4.1 || v6.1) => {
            "no capture rules work here. If a CNI plugin makes them: is it in the CNI configuration of this node, and was it there when the \
             pod was created? Its message stands in the events of the pod or in the log of the container runtime. Delete the pod to try again"
        }
        () if v4.0 && !v4.1 && v6.1 && !v6.0 => {
            "IPv4 is captured, IPv6 is not: the rules were made for IPv4 alone (Istio's plugin does so without ISTIO_DUAL_STACK; weir.dev/ipv6: leave), \
             or ::6 is missing on lo. Make them for both, or validate with --ipv6 off"
        }
        () if dns.1 && !others.1 => {
            "everything but DNS is captured: the rules were made without DNS capture. Set ISTIO_META_DNS_CAPTURE where they are made, \
             and create the pod again"
        }
        () => {
            "the rules are incomplete: somebody has changed them, or they were made with other settings than these. Create the pod again, \
             or write them anew with weir iptables --force-apply"
        }
    };
    format!("validation: {text}")
}

/// What becomes of connections from outside by the rules that the kernel holds in our table; the reason why that cannot be told.
fn from_outside(request: &Request) -> Result<Vec<String>, String> {
    let used = Place::Own.is_used().map_err(|error| error.to_string())?;
    if !used {
        return Err("the rules cannot be read as this user, or are not in a table of our own".to_owned());
    }
    let held = nft::read_back().map_err(|error| error.to_string())?;
    let mut findings = Vec::new();
    let families: &[(&str, &str)] = match request.config.ipv6 {
        Ipv6Policy::Capture => &[("IPv4", "192.0.2.1"), ("IPv6", "2001:db8::1")],
        Ipv6Policy::Leave => &[("IPv4", "192.0.2.1")],
    };
    for (family, address) in families {
        let Ok(address) = address.parse::<IpAddr>() else { continue };
        let packet = arriving(address, request.draft.probe_port);
        let (planned, found) = (request.rules.trace(&packet).fate, nft::chains(&held, address).trace(&packet).fate);
        if planned != found {
            findings
                .push(format!("inbound, from outside, {family}: the rules lead to {found:?} instead of {planned:?}"));
        }
    }
    Ok(findings)
}

/// The first packet of a connection from outside.
fn arriving(address: IpAddr, port: u16) -> Packet {
    Packet {
        entry: Entry::Arrives { interface: "eth0".to_owned() },
        transport: Transport::Tcp,
        source: address,
        source_port: 40000,
        destination: address,
        destination_port: port,
        mark: 0,
        connection_mark: 0,
        state: State::New,
    }
}

/// A user in words.
fn user_text(user: User) -> String {
    format!("uid {} gid {}", user.uid, user.gid)
}

#[cfg(test)]
mod tests;
