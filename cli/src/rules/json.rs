//! Prints planned rules as JSON. The format is stable: names stay, and fields are only added.

use iptables_rules::RuleSet;
use iptables_rules::ruleset::{Action, Families, Family, Match, Position, Protocol, Rule, RuleReason};
use serde_json::{Value, json};

use super::planned::Planned;
use super::subject::Capture;

pub(crate) fn print(planned: &[Planned]) -> String {
    let subjects: Vec<Value> = planned.iter().map(subject).collect();
    format!("{:#}\n", json!({"version": 1, "subjects": subjects}))
}

fn subject(planned: &Planned) -> Value {
    let name = &planned.subject.name;
    match &planned.subject.capture {
        Capture::NotInjected(reason) => json!({"name": name, "skipped": reason.name(), "ruleSet": null}),
        Capture::Skipped(reason) => json!({"name": name, "skipped": reason.name(), "ruleSet": null}),
        Capture::Configured { origin, injected_now, init_container, .. } => json!({
            "name": name,
            "source": origin.name(),
            "injectedFirst": injected_now,
            "initContainer": init_container,
            "ruleSet": planned.rules.as_ref().map(rule_set),
        }),
    }
}

fn rule_set(rules: &RuleSet) -> Value {
    let families: &[&str] = match rules.families {
        Families::V4 => &["IPv4"],
        Families::V4AndV6 => &["IPv4", "IPv6"],
    };
    let addresses: Vec<String> = rules.routing.lo_addresses.iter().map(ToString::to_string).collect();
    let delivery = rules.routing.local_delivery.map(|delivery| json!({"mark": delivery.mark, "table": delivery.table}));
    json!({
        "families": families,
        "loAddresses": addresses,
        "localDelivery": delivery,
        "rules": rules.rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn rule(rule: &Rule) -> Value {
    let family = match rule.family {
        Family::Any => "any",
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let position = match rule.position {
        Position::Append => json!("append"),
        Position::Insert(at) => json!({"insert": at}),
    };
    json!({
        "table": rule.table.name(),
        "chain": rule.chain,
        "position": position,
        "family": family,
        "matches": rule.matches.iter().map(condition).collect::<Vec<_>>(),
        "action": action(rule.action),
        "reason": reason(rule.reason),
    })
}

fn condition(condition: &Match) -> Value {
    match condition {
        Match::Protocol(Protocol::Tcp) => json!({"protocol": "tcp"}),
        Match::Protocol(Protocol::Udp) => json!({"protocol": "udp"}),
        Match::InInterface(name) => json!({"inInterface": name.as_str()}),
        Match::OutInterface(name) => json!({"outInterface": name.as_str()}),
        Match::InLoopback => json!({"inInterface": "lo"}),
        Match::OutLoopback => json!({"outInterface": "lo"}),
        Match::Source { net, negated } => json!({"source": net.to_string(), "negated": negated}),
        Match::Destination { net, negated } => json!({"destination": net.to_string(), "negated": negated}),
        Match::DestinationPorts { ports, negated } => json!({"destinationPorts": ports, "negated": negated}),
        Match::SourcePort(port) => json!({"sourcePort": port}),
        Match::Uid { id, negated } => json!({"uid": id, "negated": negated}),
        Match::Gid { group, negated } => json!({"gid": group.to_string(), "negated": negated}),
        Match::StateInvalid => json!({"states": ["INVALID"]}),
        Match::StateRelatedEstablished => json!({"states": ["RELATED", "ESTABLISHED"]}),
        Match::Mark { mark, negated } => json!({"mark": mark, "negated": negated}),
        Match::ConnMark(mark) => json!({"connectionMark": mark}),
    }
}

fn action(action: Action) -> Value {
    match action {
        Action::Jump(chain) => json!({"jump": chain}),
        Action::Return => json!("return"),
        Action::Accept => json!("accept"),
        Action::Drop => json!("drop"),
        Action::Redirect(port) => json!({"redirect": port}),
        Action::Tproxy { port, mark } => json!({"tproxy": port, "mark": mark}),
        Action::SetMark(mark) => json!({"setMark": mark}),
        Action::SaveMark => json!("save-mark"),
        Action::RestoreMark => json!("restore-mark"),
        Action::Zone(zone) => json!({"zone": zone}),
    }
}

/// Returns the stable name of a reason.
pub(crate) const fn reason(reason: RuleReason) -> &'static str {
    match reason {
        RuleReason::ExcludedInterface => "excluded-interface",
        RuleReason::ReroutedInterface => "rerouted-interface",
        RuleReason::DropInvalid => "drop-invalid",
        RuleReason::Tunnel => "tunnel",
        RuleReason::Redirect => "redirect",
        RuleReason::Hook => "hook",
        RuleReason::ExcludedInboundPort => "excluded-inbound-port",
        RuleReason::InboundPort => "inbound-port",
        RuleReason::Inbound => "inbound",
        RuleReason::ExcludedOutboundPort => "excluded-outbound-port",
        RuleReason::Passthrough => "passthrough",
        RuleReason::ProxyToSelf => "proxy-to-self",
        RuleReason::AppLoopback => "app-loopback",
        RuleReason::ProxyTraffic => "proxy-traffic",
        RuleReason::OwnerGroup => "owner-group",
        RuleReason::Dns => "dns",
        RuleReason::LoopbackDestination => "loopback-destination",
        RuleReason::ExcludedOutboundCidr => "excluded-outbound-cidr",
        RuleReason::OutboundPort => "outbound-port",
        RuleReason::OutboundCidr => "outbound-cidr",
        RuleReason::Outbound => "outbound",
        RuleReason::Tproxy => "tproxy",
    }
}
