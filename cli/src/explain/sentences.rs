//! Describes a packet, and where it ends, in one sentence each.

use std::net::SocketAddr;

use iptables_rules::names::{LOOPBACK_INTERFACE, port};
use iptables_rules::ruleset::RuleReason;
use iptables_rules::trace::{
    ConntrackState, Disposition, Effect, Packet, PacketOrigin, RuleResult, RuleVisit, Trace, Transport,
};

use super::packet::{PacketQuery, Sender};

/// Describes sender, source and destination.
pub(crate) fn describe_packet(query: &PacketQuery) -> String {
    let packet = &query.packet;
    let state = match packet.state {
        ConntrackState::New => "the first packet of a connection",
        ConntrackState::Established => "a packet of a known connection",
        ConntrackState::Related => "the first packet of a related connection",
        ConntrackState::Invalid => "a packet of no known connection",
    };
    let way = match &packet.origin {
        PacketOrigin::Received { interface } => format!("arriving on {interface}"),
        PacketOrigin::Sent { interface, owner } => {
            let owner = owner.map_or_else(String::new, |owner| format!(" (uid {}, gid {})", owner.uid, owner.gid));
            format!("from {}{owner}, leaving on {interface}", sender(query.sender))
        }
    };
    let mark = if packet.mark == 0 { String::new() } else { format!(", mark {}", packet.mark) };
    let [from, to] = ends(packet);
    format!("{} {from} -> {to}: {state}, {way}{mark}", packet.transport)
}

fn ends(packet: &Packet) -> [String; 2] {
    [(packet.source, packet.source_port), (packet.destination, packet.destination_port)].map(|(address, port)| {
        if matches!(packet.transport, Transport::Other(_)) {
            address.to_string()
        } else {
            SocketAddr::new(address, port).to_string()
        }
    })
}

pub(crate) const fn sender(sender: Sender) -> &'static str {
    match sender {
        Sender::App => "the application",
        Sender::Proxy => "the proxy",
        Sender::Outside => "outside",
    }
}

/// Describes where the packet ends, and why.
pub(crate) fn describe_fate(query: &PacketQuery, trace: &Trace) -> String {
    let packet = &query.packet;
    let [_, to] = ends(packet);
    let mut sentence = match &trace.disposition {
        Disposition::Redirected { port } => {
            format!(
                "Captured: redirected to port {port} ({}), which can read the original destination {to}",
                listener(*port)
            )
        }
        Disposition::Tproxied { port, redirected: None } => {
            format!("Captured: delivered to the proxy on port {port} with unchanged addresses, as if it were {to}")
        }
        Disposition::Tproxied { port, redirected: Some(other) } => format!(
            "Captured: delivered to the proxy on port {port}, which sees destination port {other}, because NAT changed it too, and can read \
             the original destination {to}"
        ),
        Disposition::Dropped => "Dropped: it is discarded without an answer".to_owned(),
        Disposition::Passes { interface } => match interface.as_deref() {
            Some(LOOPBACK_INTERFACE) => format!("Not captured: it stays in the pod and reaches {to} itself"),
            Some(interface) if query.sender == Sender::Proxy => {
                format!("Not captured: the proxy reaches {to} over {interface}")
            }
            Some(interface) => format!("Not captured: it leaves over {interface} to {to}, bypassing the proxy"),
            None => format!("Not captured: it reaches {to} in the pod, bypassing the proxy"),
        },
    };
    match (deciding_rule(trace), deciding_reason(trace)) {
        (_, Some(reason)) => {
            let setting = reason.setting().map(|setting| format!(", see {setting}")).unwrap_or_default();
            sentence.extend([" (", reason.description(), &setting, ")"]);
        }
        (None, None) => sentence.push_str(why_not_captured(trace, packet)),
        (Some(_), None) => {}
    }
    if trace.zone != 0 {
        sentence.extend(["; conntrack zone ", &trace.zone.to_string()]);
    }
    if trace.mark != packet.mark {
        sentence.extend(["; it carries the mark ", &trace.mark.to_string()]);
    }
    if !trace.uncertain_rules.is_empty() {
        sentence.push_str("; not certain, see below");
    }
    sentence + "."
}

/// Returns the reason of the deciding rule. For a redirection, it is the reason of the rule that jumped to its chain.
pub(crate) fn deciding_reason(trace: &Trace) -> Option<RuleReason> {
    let (stage, decided) = trace.decided_by?;
    let steps = trace.tables.get(stage)?.rules.get(..=decided)?;
    let mut depth = usize::MAX;
    for step in steps.iter().rev() {
        if step.depth >= depth || !matches!(step.result, RuleResult::Match(_)) {
            continue;
        }
        depth = step.depth;
        let hands_over = matches!(&step.result, RuleResult::Match(effects) if effects.iter().any(|effect| matches!(effect, Effect::Tproxy(_))));
        match step.reason {
            Some(RuleReason::Redirect) => {}
            Some(_) if hands_over => {}
            reason => return reason,
        }
    }
    None
}

fn deciding_rule(trace: &Trace) -> Option<&RuleVisit> {
    let (stage, step) = trace.decided_by?;
    trace.tables.get(stage)?.rules.get(step)
}

fn why_not_captured(trace: &Trace, packet: &Packet) -> &'static str {
    match packet.state {
        _ if trace.tables.is_empty() => " (there are no rules for it)",
        ConntrackState::Established => {
            " (the first packet decides about its connection; trace that one with --state new)"
        }
        _ => " (no rule captures it)",
    }
}

/// Returns who listens on a port of the data plane.
const fn listener(port: u16) -> &'static str {
    match port {
        port::OUTBOUND => "the proxy, outbound",
        port::INBOUND => "the proxy, inbound",
        port::DNS => "the agent's DNS",
        _ => "the proxy",
    }
}
