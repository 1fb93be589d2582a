//! A packet and its fate in one sentence each.

use std::net::SocketAddr;

use iptables_rules::names::{LOOPBACK_INTERFACE, port};
use iptables_rules::ruleset::Reason;
use iptables_rules::trace::{Effect, Entry, Fate, Packet, State, Step, Trace, Transport, Verdict};

use super::packet::{Question, Sender};

/// Who sends what where.
pub(crate) fn packet(question: &Question) -> String {
    let packet = &question.packet;
    let state = match packet.state {
        State::New => "the first packet of a connection",
        State::Established => "a packet of a known connection",
        State::Related => "the first packet of a connection that was announced",
        State::Invalid => "a packet of no connection",
    };
    let way = match &packet.entry {
        Entry::Arrives { interface } => format!("arriving by {interface}"),
        Entry::Sent { interface, owner } => {
            let owner = owner.map_or_else(String::new, |owner| format!(" (uid {}, gid {})", owner.uid, owner.gid));
            format!("from {}{owner}, leaving by {interface}", sender(question.sender))
        }
    };
    let mark = if packet.mark == 0 { String::new() } else { format!(", mark {}", packet.mark) };
    let [from, to] = ends(packet);
    format!("{} {from} -> {to}: {state}, {way}{mark}", packet.transport)
}

/// Source and destination.
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

/// What becomes of the packet, and why.
pub(crate) fn outcome(question: &Question, trace: &Trace) -> String {
    let packet = &question.packet;
    let [_, to] = ends(packet);
    let mut sentence = match &trace.fate {
        Fate::Redirected { port } => {
            format!(
                "Captured: it goes to port {port} ({}), which can still ask for the original destination {to}",
                listener(*port)
            )
        }
        Fate::Tproxied { port, redirected: None } => {
            format!("Captured: the proxy gets it on port {port} with both addresses unchanged, as if it were {to}")
        }
        Fate::Tproxied { port, redirected: Some(other) } => format!(
            "Captured: the proxy gets it on port {port}, but sees port {other} as its destination, which NAT changed too; it can still \
             ask for the original destination {to}"
        ),
        Fate::Dropped => "Dropped: it gets nowhere and nobody answers".to_owned(),
        Fate::Passes { interface } => match interface.as_deref() {
            Some(LOOPBACK_INTERFACE) => format!("Not captured: it stays in the pod and reaches {to} itself"),
            Some(interface) if question.sender == Sender::Proxy => {
                format!("Not captured: the proxy reaches {to} by {interface}")
            }
            Some(interface) => format!("Not captured: it leaves by {interface} to {to}, past the proxy"),
            None => format!("Not captured: it reaches {to} in the pod, past the proxy"),
        },
    };
    match (decisive(trace), cause(trace)) {
        (_, Some(reason)) => {
            let setting = reason.setting().map(|setting| format!(", see {setting}")).unwrap_or_default();
            sentence.extend([" (", reason.explain(), &setting, ")"]);
        }
        (None, None) => sentence.push_str(why_not(trace, packet)),
        (Some(_), None) => {}
    }
    if trace.zone != 0 {
        sentence.extend(["; conntrack zone ", &trace.zone.to_string()]);
    }
    if trace.mark != packet.mark {
        sentence.extend(["; it carries the mark ", &trace.mark.to_string()]);
    }
    if !trace.doubts.is_empty() {
        sentence.push_str("; this is a guess, see below");
    }
    sentence + "."
}

/// Why the rule that decided is there. Chains that end in the proxy do not say it; the rule that led there does.
fn cause(trace: &Trace) -> Option<Reason> {
    let (stage, decided) = trace.decided_by?;
    let steps = trace.stages.get(stage)?.steps.get(..=decided)?;
    let mut depth = usize::MAX;
    for step in steps.iter().rev() {
        if step.depth >= depth || !matches!(step.verdict, Verdict::Match(_)) {
            continue;
        }
        depth = step.depth;
        let hands_over = matches!(&step.verdict, Verdict::Match(effects) if effects.iter().any(|effect| matches!(effect, Effect::Tproxy(_))));
        match step.reason {
            Some(Reason::Redirect) => {}
            Some(_) if hands_over => {}
            reason => return reason,
        }
    }
    None
}

fn decisive(trace: &Trace) -> Option<&Step> {
    let (stage, step) = trace.decided_by?;
    trace.stages.get(stage)?.steps.get(step)
}

fn why_not(trace: &Trace, packet: &Packet) -> &'static str {
    match packet.state {
        _ if trace.stages.is_empty() => " (there are no rules for it)",
        State::Established => " (its connection was settled by its first packet: ask about that one, --state new)",
        _ => " (no rule asks for it)",
    }
}

/// Who listens on a port of the data plane.
const fn listener(port: u16) -> &'static str {
    match port {
        port::OUTBOUND => "the proxy, outbound",
        port::INBOUND => "the proxy, inbound",
        port::DNS => "the agent's DNS",
        _ => "the proxy",
    }
}
