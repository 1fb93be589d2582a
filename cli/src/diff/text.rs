//! Prints comparisons as text.

use std::fmt::Write as _;
use std::net::SocketAddr;

use iptables_rules::trace::{Packet, PacketOrigin, Transport};

use super::comparison::{ChangeKind, Comparison, ExplainedClass, TrafficChange, Verdict, WorkloadComparison};
use crate::html::Tone;

pub(super) fn print(comparison: &Comparison) -> String {
    let mut out = String::new();
    for compared in &comparison.workloads {
        workload(&mut out, compared);
    }
    out + &summary(comparison)
}

// Writing to a string does not fail, here and below.
fn workload(out: &mut String, compared: &WorkloadComparison) {
    let verdict = match &compared.verdict {
        Verdict::Equal => "no change: every packet is treated alike",
        Verdict::Different(_) => "traffic changes",
        Verdict::Unknown(_) => "cannot be decided",
        Verdict::Added => "added",
        Verdict::Removed => "removed",
    };
    let _ = writeln!(out, "{}: {verdict}", compared.name);
    if !matches!(compared.verdict, Verdict::Equal) {
        for (side, origin) in ["old", "new"].iter().zip(&compared.origins) {
            if let Some(origin) = origin {
                let _ = writeln!(out, "  {side}: {origin}");
            }
        }
    }
    let unknown = match &compared.verdict {
        Verdict::Different(found) => {
            found.changes.iter().for_each(|changed| change(out, changed));
            &found.unknown[..]
        }
        Verdict::Unknown(places) => places,
        _ => &[],
    };
    for place in unknown {
        let _ = writeln!(out, "  not understood: {place}");
    }
    if !compared.pod_changes.is_empty() {
        out.push_str("  the injected pod:\n");
    }
    for change in &compared.pod_changes {
        let _ = writeln!(out, "    {change}");
    }
    for note in &compared.notes {
        let _ = writeln!(out, "  note: {note}");
    }
    out.push('\n');
}

fn change(out: &mut String, change: &TrafficChange) {
    let _ = writeln!(out, "  {} ({} -> {}):", change.kind.description(), change.before, change.after);
    classes(out, &change.classes, change.is_truncated);
}

/// Prints classes with an example and the reason of each.
pub(crate) fn classes(out: &mut String, classes: &[ExplainedClass], is_truncated: bool) {
    for explained in classes {
        let _ = writeln!(out, "    {}", explained.class);
        let _ = writeln!(out, "      such as {}", packet(&explained.class.witness));
        if let Some(because) = because(explained) {
            let _ = writeln!(out, "      {because}");
        }
    }
    if is_truncated {
        out.push_str("    and more\n");
    }
}

/// Returns one line for each class, with its reason.
pub(crate) fn class_lines(classes: &[ExplainedClass], is_truncated: bool) -> Vec<String> {
    let line = |explained: &ExplainedClass| {
        let because = because(explained).map(|because| format!(" ({because})")).unwrap_or_default();
        format!("- {}{because}", explained.class)
    };
    classes.iter().map(line).chain(is_truncated.then(|| "- and more".to_owned())).collect()
}

/// Describes the rule that decides, and the setting behind it.
pub(crate) fn because(explained: &ExplainedClass) -> Option<String> {
    let setting = explained.setting.map(|setting| format!(", see {setting}")).unwrap_or_default();
    let when = if explained.is_former { "before" } else { "because" };
    explained.reason.map(|reason| format!("{when}: {}{setting}", reason.description()))
}

/// Describes a packet in the words of `weir explain`.
pub(crate) fn packet(packet: &Packet) -> String {
    let ends = [(packet.source, packet.source_port), (packet.destination, packet.destination_port)];
    let [from, to] = ends.map(|(address, port)| match packet.transport {
        Transport::Other(_) => address.to_string(),
        _ => SocketAddr::new(address, port).to_string(),
    });
    let way = match &packet.origin {
        PacketOrigin::Received { interface } => format!("arriving on {interface}"),
        PacketOrigin::Sent { interface, owner: Some(owner) } => {
            format!("of uid {}, gid {}, leaving on {interface}", owner.uid, owner.gid)
        }
        PacketOrigin::Sent { interface, owner: None } => format!("of the kernel, leaving on {interface}"),
    };
    format!("{} {from} -> {to}, {way}", packet.transport)
}

fn summary(comparison: &Comparison) -> String {
    let counts = counts(comparison);
    let words: Vec<String> =
        counts.iter().filter(|(count, ..)| *count > 0).map(|(count, what, _)| format!("{count} {what}")).collect();
    let words = if words.is_empty() { "nothing to compare".to_owned() } else { words.join(", ") };
    format!("=> {} -> {}: {words}\n", comparison.old, comparison.new)
}

/// Counts the workloads by their verdicts.
pub(super) fn counts(comparison: &Comparison) -> [(usize, &'static str, Tone); 6] {
    let all = &comparison.workloads;
    let count = |wanted: fn(&Verdict) -> bool| all.iter().filter(|workload| wanted(&workload.verdict)).count();
    [
        (count(|verdict| matches!(verdict, Verdict::Equal)), "unchanged", Tone::Good),
        (count(|verdict| matches!(verdict, Verdict::Different(_))), "changed", Tone::Neutral),
        (count(has_bypass), "with traffic that is no longer captured", Tone::Warning),
        (count(|verdict| matches!(verdict, Verdict::Unknown(_))), "undecided", Tone::Warning),
        (count(|verdict| matches!(verdict, Verdict::Added)), "added", Tone::Neutral),
        (count(|verdict| matches!(verdict, Verdict::Removed)), "removed", Tone::Neutral),
    ]
}

/// Returns whether traffic that was captured no longer is.
pub(super) fn has_bypass(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Different(found)
        if found.changes.iter().any(|change| change.kind == ChangeKind::Bypass))
}
