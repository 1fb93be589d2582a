//! Findings as text for people, as JSON, and as JUnit's XML.

use std::fmt::Write as _;

use serde_json::json;

use super::fault::{self, Severity};
use super::finding::Finding;
use crate::xml::escaped;

/// Objects of one fault that are named in the text.
const TOLD: usize = 5;

/// For people: one paragraph for each fault, the worst first, and a last line with the numbers.
pub(super) fn text(findings: &[Finding], coloured: bool) -> String {
    let mut out = String::new();
    for group in findings.chunk_by(|a, b| a.fault == b.fault) {
        paragraph(&mut out, group, coloured);
    }
    let counts = [Severity::Error, Severity::Warning, Severity::Info].map(|severity| {
        let count = findings.iter().filter(|finding| finding.fault.severity == severity).count();
        (count > 0).then(|| format!("{count} {}{}", severity.name(), if count == 1 { "" } else { "s" }))
    });
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    let last = if counts.is_empty() { "nothing found".to_owned() } else { counts.join(", ") };
    out + &last + "\n"
}

fn paragraph(out: &mut String, group: &[Finding], coloured: bool) {
    let fault = group[0].fault;
    let (on, off) = match fault.severity {
        _ if !coloured => ("", ""),
        Severity::Error => ("\x1b[1;31m", "\x1b[0m"),
        Severity::Warning => ("\x1b[1;33m", "\x1b[0m"),
        Severity::Info => ("\x1b[1m", "\x1b[0m"),
    };
    // Writing to a string does not fail.
    let _ = writeln!(out, "{on}{}{off} {} {}", fault.severity.name(), fault.code, fault.name);
    let same_fix = group.iter().all(|finding| finding.fix == group[0].fix);
    for finding in group.iter().take(TOLD) {
        let alike = if finding.alike > 0 { format!(" (and {} more like it)", finding.alike) } else { String::new() };
        let _ = writeln!(out, "  {}", plain(&format!("{}{alike}: {}", finding.object, finding.text)));
        if !same_fix {
            let _ = writeln!(out, "    fix: {}", plain(&finding.fix));
        }
    }
    if group.len() > TOLD {
        let _ = writeln!(out, "  and {} more; --output json lists them", group.len() - TOLD);
    }
    if same_fix {
        let _ = writeln!(out, "  fix: {}", plain(&group[0].fix));
    }
    out.push('\n');
}

/// A text on one line, without what a terminal would follow: parts of it come from the cluster.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// One document with every finding.
pub(super) fn json(findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            json!({
                "code": finding.fault.code,
                "name": finding.fault.name,
                "severity": finding.fault.severity.name(),
                "object": {
                    "kind": finding.object.kind, "namespace": finding.object.namespace, "name": finding.object.name,
                },
                "alike": finding.alike,
                "message": finding.text,
                "fix": finding.fix,
            })
        })
        .collect();
    let document = json!({"findings": list});
    // A document of texts and numbers always has a JSON form.
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

/// One test case for each fault that is looked for; one that was found has failed, with all its findings.
pub(super) fn junit(findings: &[Finding]) -> String {
    let failed =
        |fault: &fault::Fault| findings.iter().any(|finding| finding.fault == fault && fault.severity > Severity::Info);
    let failures = fault::ALL.iter().filter(|fault| failed(fault)).count();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let total = fault::ALL.len();
    let _ = writeln!(out, "<testsuites name=\"weir check\" tests=\"{total}\" failures=\"{failures}\" errors=\"0\">");
    let _ = writeln!(
        out,
        "  <testsuite name=\"weir check\" tests=\"{total}\" failures=\"{failures}\" errors=\"0\" skipped=\"0\">"
    );
    for fault in fault::ALL {
        let found: Vec<&Finding> = findings.iter().filter(|finding| finding.fault == *fault).collect();
        let case = format!("    <testcase classname=\"weir.check\" name=\"{} {}\"", fault.code, fault.name);
        if found.is_empty() {
            let _ = writeln!(out, "{case}/>");
            continue;
        }
        let lines: Vec<String> =
            found.iter().map(|finding| format!("{}: {}\nfix: {}", finding.object, finding.text, finding.fix)).collect();
        let body = escaped(&lines.join("\n"));
        let message = escaped(&format!("{} found: {}", found.len(), fault.means));
        let element = match fault.severity {
            Severity::Info => format!("<system-out>{body}</system-out>"),
            severity => format!("<failure type=\"{}\" message=\"{message}\">{body}</failure>", severity.name()),
        };
        let _ = writeln!(out, "{case}>{element}</testcase>");
    }
    out + "  </testsuite>\n</testsuites>\n"
}
