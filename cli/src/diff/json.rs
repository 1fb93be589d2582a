//! Prints comparisons as JSON. The format is stable: names stay, and fields are only added.

use iptables_rules::compare::{Dimension, Direction, Fate, FateAction};
use iptables_rules::restore::RestoreFamily;
use iptables_rules::trace::{Packet, PacketOrigin};
use serde_json::{Map, Value, json};

use super::comparison::{Comparison, ExplainedClass, TrafficChange, Verdict, WorkloadComparison};
use crate::rules::json::reason;

pub(super) fn print(comparison: &Comparison) -> String {
    let workloads: Vec<Value> = comparison.workloads.iter().map(workload).collect();
    let document = json!({"version": 1, "old": comparison.old, "new": comparison.new, "workloads": workloads});
    format!("{document:#}\n")
}

fn workload(compared: &WorkloadComparison) -> Value {
    let (verdict, changes, unknown) = match &compared.verdict {
        Verdict::Equal => ("equal", Vec::new(), &[][..]),
        Verdict::Different(found) => ("different", found.changes.iter().map(change).collect(), &found.unknown[..]),
        Verdict::Unknown(places) => ("unknown", Vec::new(), &places[..]),
        Verdict::Added => ("added", Vec::new(), &[][..]),
        Verdict::Removed => ("removed", Vec::new(), &[][..]),
    };
    let [old, new] = &compared.origins;
    json!({
        "name": compared.name,
        "verdict": verdict,
        "oldOrigin": old,
        "newOrigin": new,
        "changes": changes,
        "notUnderstood": unknown,
        "podChanges": compared.pod_changes,
        "notes": compared.notes,
    })
}

fn change(change: &TrafficChange) -> Value {
    json!({
        "kind": change.kind.name(),
        "before": fate(&change.before),
        "after": fate(&change.after),
        "classes": change.classes.iter().map(changed_class).collect::<Vec<_>>(),
        "truncated": change.is_truncated,
    })
}

pub(crate) fn fate(fate: &Fate) -> Value {
    let (action, port) = match fate.action {
        FateAction::Redirected { port } => ("redirected", Some(port)),
        FateAction::Tproxied { port, redirected: _ } => ("tproxied", Some(port)),
        FateAction::Dropped => ("dropped", None),
        FateAction::Passes { .. } => ("passes", None),
    };
    json!({"action": action, "port": port, "zone": fate.zone, "text": fate.to_string()})
}

fn changed_class(explained: &ExplainedClass) -> Value {
    let mut value = class(explained);
    value["reasonOf"] = if explained.is_former { "old" } else { "new" }.into();
    value
}

pub(crate) fn class(explained: &ExplainedClass) -> Value {
    let class = &explained.class;
    let names = [
        ("state", Dimension::State),
        ("interface", Dimension::Interface),
        ("protocol", Dimension::Transport),
        ("uid", Dimension::Uid),
        ("gid", Dimension::Gid),
        ("source", Dimension::Source),
        ("sourcePort", Dimension::SourcePort),
        ("destination", Dimension::Destination),
        ("destinationPort", Dimension::DestinationPort),
        ("mark", Dimension::Mark),
        ("connectionMark", Dimension::ConnectionMark),
    ];
    let conditions: Map<String, Value> = names
        .iter()
        .filter_map(|(name, dimension)| Some(((*name).to_owned(), class.values(*dimension)?.into())))
        .collect();
    json!({
        "text": class.to_string(),
        "direction": match class.direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        },
        "family": match class.family {
            RestoreFamily::V4 => "IPv4",
            RestoreFamily::V6 => "IPv6",
        },
        "conditions": conditions,
        "witness": packet(&class.witness),
        "reason": explained.reason.map(reason),
        "setting": explained.setting,
    })
}

fn packet(packet: &Packet) -> Value {
    let (interface, owner) = match &packet.origin {
        PacketOrigin::Received { interface } => (interface, None),
        PacketOrigin::Sent { interface, owner } => (interface, *owner),
    };
    json!({
        "interface": interface,
        "uid": owner.map(|owner| owner.uid),
        "gid": owner.map(|owner| owner.gid),
        "protocol": packet.transport.to_string(),
        "source": packet.source,
        "sourcePort": packet.source_port,
        "destination": packet.destination,
        "destinationPort": packet.destination_port,
        "mark": packet.mark,
        "connectionMark": packet.connection_mark,
        "state": packet.state.to_string(),
    })
}
