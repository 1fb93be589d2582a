//! Prints explanations as JSON. The format is stable: names stay, and fields are only added.

use iptables_rules::trace::{Disposition, Effect, Packet, PacketOrigin, RuleResult, RuleVisit, TableVisit, Trace};
use serde_json::{Value, json};
use weir_kernel::netns_state::Ownership;

use super::explanation::Explanation;
use super::packet::PacketQuery;
use super::summary::{Summary, SummaryItem};
use super::{sentences, text};
use crate::rules::json::reason;

pub(crate) fn print(explanations: &[Explanation]) -> String {
    let subjects: Vec<Value> = explanations.iter().map(subject).collect();
    format!("{:#}\n", json!({"version": 1, "subjects": subjects}))
}

fn subject(explained: &Explanation) -> Value {
    let mut value = json!({"name": explained.name, "origin": explained.origin});
    if let Some(report) = &explained.netns_report {
        value["namespace"] = json!({
            "standing": ownership_name(report.state.ownership()),
            "verdicts": report.sentences,
            "differences": report.differences,
            "otherTables": report.state.other_tables(),
            "unread": report.state.unreadable,
            "fine": report.is_healthy,
        });
    }
    if let Some(summary) = &explained.summary {
        value["summary"] = self::summary(summary);
    }
    if let Some((query, trace)) = &explained.packet_trace {
        value["packet"] = packet(query);
        value["trace"] = self::trace(query, trace);
    }
    value
}

const fn ownership_name(ownership: Ownership) -> &'static str {
    match ownership {
        Ownership::None => "none",
        Ownership::Ours => "ours",
        Ownership::OursDrifted => "drifted",
        Ownership::OursInIptables => "ours-in-iptables",
        Ownership::Foreign => "foreign",
        Ownership::Mixed => "both",
    }
}

fn summary(summary: &Summary) -> Value {
    let items = |items: &[SummaryItem]| -> Vec<Value> {
        let object = |item: &SummaryItem| json!({"what": item.what, "setting": item.setting, "default": item.default});
        items.iter().map(object).collect()
    };
    json!({"captured": items(&summary.captured), "notCaptured": items(&summary.excluded)})
}

fn packet(query: &PacketQuery) -> Value {
    let Packet { origin, transport, source, source_port, destination, destination_port, mark, connection_mark, state } =
        &query.packet;
    let (in_interface, out_interface, owner) = match origin {
        PacketOrigin::Received { interface } => (Some(interface), None, None),
        PacketOrigin::Sent { interface, owner } => (None, Some(interface), *owner),
    };
    json!({
        "from": sentences::sender(query.sender),
        "inInterface": in_interface,
        "outInterface": out_interface,
        "uid": owner.map(|owner| owner.uid),
        "gid": owner.map(|owner| owner.gid),
        "protocol": transport.to_string(),
        "source": source,
        "sourcePort": source_port,
        "destination": destination,
        "destinationPort": destination_port,
        "mark": mark,
        "connectionMark": connection_mark,
        "state": state.to_string(),
        "assumed": query.assumptions,
    })
}

fn trace(query: &PacketQuery, trace: &Trace) -> Value {
    let port = match &trace.disposition {
        Disposition::Redirected { port } | Disposition::Tproxied { port, redirected: _ } => Some(*port),
        Disposition::Dropped | Disposition::Passes { .. } => None,
    };
    json!({
        "outcome": text::disposition_name(&trace.disposition),
        "port": port,
        "sentence": sentences::describe_fate(query, trace),
        "decidedBy": trace.decided_by.map(|(stage, step)| json!({"stage": stage, "step": step})),
        "mark": trace.mark,
        "connectionMark": trace.connection_mark,
        "zone": trace.zone,
        "doubts": trace.uncertain_rules,
        "stages": trace.tables.iter().map(stage).collect::<Vec<_>>(),
    })
}

fn stage(stage: &TableVisit) -> Value {
    json!({
        "hook": stage.hook.name(),
        "table": stage.table,
        "skipped": stage.skip_reason,
        "steps": stage.rules.iter().map(step).collect::<Vec<_>>(),
    })
}

fn step(step: &RuleVisit) -> Value {
    let effects = match &step.result {
        RuleResult::Match(effects) => effects.iter().map(Effect::to_string).collect(),
        RuleResult::NoMatch(_) | RuleResult::Unknown(_) => Vec::new(),
    };
    json!({
        "chain": step.chain,
        "number": step.number,
        "depth": step.depth,
        "rule": step.rule,
        "reason": step.reason.map(reason),
        "matches": matches!(step.result, RuleResult::Match(_)),
        "verdict": text::describe_result(&step.result),
        "effects": effects,
    })
}
