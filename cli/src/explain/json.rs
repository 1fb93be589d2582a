//! Explanations as data. The shape is for other programs: names stay, fields are only added.

use iptables_rules::trace::{Effect, Entry, Fate, Packet, Stage, Step, Trace, Verdict};
use serde_json::{Value, json};
use weir_kernel::live::Standing;

use super::packet::Question;
use super::summary::{self, Summary};
use super::{Explanation, text, words};
use crate::rules::json::reason;

/// One document for all subjects.
pub(crate) fn print(explained: &[Explanation]) -> String {
    let subjects: Vec<Value> = explained.iter().map(subject).collect();
    format!("{:#}\n", json!({"version": 1, "subjects": subjects}))
}

fn subject(explained: &Explanation) -> Value {
    let mut value = json!({"name": explained.name, "origin": explained.origin});
    if let Some(found) = &explained.found {
        value["namespace"] = json!({
            "standing": standing(found.live.standing()),
            "verdicts": found.verdicts,
            "differences": found.differences,
            "otherTables": found.live.other_tables(),
            "unread": found.live.unread,
            "fine": found.fine,
        });
    }
    if let Some(summary) = &explained.summary {
        value["summary"] = self::summary(summary);
    }
    if let Some((question, trace)) = &explained.journey {
        value["packet"] = packet(question);
        value["trace"] = self::trace(question, trace);
    }
    value
}

const fn standing(standing: Standing) -> &'static str {
    match standing {
        Standing::None => "none",
        Standing::Ours => "ours",
        Standing::Drifted => "drifted",
        Standing::OursInIptables => "ours-in-iptables",
        Standing::Foreign => "foreign",
        Standing::Both => "both",
    }
}

fn summary(summary: &Summary) -> Value {
    let entries = |entries: &[summary::Entry]| -> Vec<Value> {
        let one =
            |entry: &summary::Entry| json!({"what": entry.what, "setting": entry.setting, "default": entry.default});
        entries.iter().map(one).collect()
    };
    json!({"captured": entries(&summary.captured), "notCaptured": entries(&summary.excluded)})
}

fn packet(question: &Question) -> Value {
    let Packet { entry, transport, source, source_port, destination, destination_port, mark, connection_mark, state } =
        &question.packet;
    let (in_interface, out_interface, owner) = match entry {
        Entry::Arrives { interface } => (Some(interface), None, None),
        Entry::Sent { interface, owner } => (None, Some(interface), *owner),
    };
    json!({
        "from": words::sender(question.sender),
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
        "assumed": question.assumed,
    })
}

fn trace(question: &Question, trace: &Trace) -> Value {
    let port = match &trace.fate {
        Fate::Redirected { port } | Fate::Tproxied { port, redirected: _ } => Some(*port),
        Fate::Dropped | Fate::Passes { .. } => None,
    };
    json!({
        "outcome": text::fate_name(&trace.fate),
        "port": port,
        "sentence": words::outcome(question, trace),
        "decidedBy": trace.decided_by.map(|(stage, step)| json!({"stage": stage, "step": step})),
        "mark": trace.mark,
        "connectionMark": trace.connection_mark,
        "zone": trace.zone,
        "doubts": trace.doubts,
        "stages": trace.stages.iter().map(stage).collect::<Vec<_>>(),
    })
}

fn stage(stage: &Stage) -> Value {
    json!({
        "hook": stage.hook.name(),
        "table": stage.table,
        "skipped": stage.skipped,
        "steps": stage.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

fn step(step: &Step) -> Value {
    let effects = match &step.verdict {
        Verdict::Match(effects) => effects.iter().map(Effect::to_string).collect(),
        Verdict::NoMatch(_) | Verdict::Unknown(_) => Vec::new(),
    };
    json!({
        "chain": step.chain,
        "number": step.number,
        "depth": step.depth,
        "rule": step.rule,
        "reason": step.reason.map(reason),
        "matches": matches!(step.verdict, Verdict::Match(_)),
        "verdict": text::verdict(&step.verdict),
        "effects": effects,
    })
}
