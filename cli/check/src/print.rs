//! Findings as text for people, as JSON, as JUnit XML, and as SARIF.

mod sarif;

use std::fmt::Write as _;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::json;

use crate::area::{Area, AreaState, is_complete};
use crate::fault::{self, Fault, Severity};
use crate::finding::Finding;

pub use sarif::sarif;

/// Objects that the text names for one fault.
const MAX_OBJECTS_PER_FAULT: usize = 5;

/// Returns a paragraph for each fault, and a last line with the number of findings. Expects sorted findings.
pub fn text(findings: &[Finding], colored: bool) -> String {
    let mut out = String::new();
    for group in findings.chunk_by(|a, b| a.fault == b.fault) {
        write_paragraph(&mut out, group, colored);
    }
    let counts = [Severity::Error, Severity::Warning, Severity::Info].map(|severity| {
        let count = findings.iter().filter(|finding| finding.fault.severity == severity).count();
        (count > 0).then(|| format!("{count} {}{}", severity.name(), if count == 1 { "" } else { "s" }))
    });
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    let last = if counts.is_empty() { "no problems found".to_owned() } else { counts.join(", ") };
    out + &last + "\n"
}

/// Returns a line for each area.
pub fn areas(areas: &[Area], colored: bool) -> String {
    let line = |area: &Area| {
        let (sign, color, note) = match area.state {
            AreaState::Passed => ("✓", "32", ""),
            AreaState::Warned => ("!", "33", ""),
            AreaState::Failed => ("✗", "31", ""),
            AreaState::Incomplete => ("?", "33", " (incomplete: not everything could be read)"),
        };
        let (on, off) = if colored { (format!("\x1b[{color}m"), "\x1b[0m") } else { (String::new(), "") };
        format!("{on}{sign}{off} {}{note}\n", area.name)
    };
    areas.iter().map(line).collect()
}

fn write_paragraph(out: &mut String, group: &[Finding], colored: bool) {
    let fault = group[0].fault;
    let (on, off) = match fault.severity {
        _ if !colored => ("", ""),
        Severity::Error => ("\x1b[1;31m", "\x1b[0m"),
        Severity::Warning => ("\x1b[1;33m", "\x1b[0m"),
        Severity::Info => ("\x1b[1m", "\x1b[0m"),
    };
    // Writing to a string does not fail.
    let _ = writeln!(out, "{on}{}{off} {} {}", fault.severity.name(), fault.code, fault.name);
    let same_fix = group.iter().all(|finding| finding.fix == group[0].fix);
    for finding in group.iter().take(MAX_OBJECTS_PER_FAULT) {
        let similar = if finding.similar > 0 { format!(" (and {} similar)", finding.similar) } else { String::new() };
        let _ = writeln!(out, "  {}", printable(&format!("{}{similar}: {}", finding.object, finding.text)));
        if !same_fix {
            let _ = writeln!(out, "    fix: {}", printable(&finding.fix));
        }
    }
    if group.len() > MAX_OBJECTS_PER_FAULT {
        let _ = writeln!(out, "  and {} more; --output json lists them", group.len() - MAX_OBJECTS_PER_FAULT);
    }
    if same_fix {
        let _ = writeln!(out, "  fix: {}", printable(&group[0].fix));
    }
    out.push('\n');
}

/// Replaces control characters with spaces: parts of a text come from the cluster, and a terminal would interpret them.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Returns one JSON document with every finding, and whether everything could be read.
pub fn json(findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            let object = &finding.object;
            json!({
                "code": finding.fault.code,
                "name": finding.fault.name,
                "severity": finding.fault.severity.name(),
                "object": {"kind": object.kind, "namespace": object.namespace, "name": object.name},
                "alike": finding.similar,
                "message": finding.text,
                "fix": finding.fix,
            })
        })
        .collect();
    // Serializing strings and numbers does not fail.
    serde_json::to_string_pretty(&json!({"complete": is_complete(findings), "findings": list})).unwrap_or_default()
        + "\n"
}

/// Returns a JUnit report with one test case for each fault, which fails from the severity `threshold` on, and one that fails if not
/// everything could be read, unless that is allowed.
///
/// # Errors
/// The XML cannot be written.
pub fn junit(
    findings: &[Finding],
    threshold: Severity,
    allow_incomplete: bool,
) -> Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new("weir check");
    for fault in fault::ALL {
        let is_failure = fault.severity >= threshold || (fault == &&fault::NOT_READ && !allow_incomplete);
        suite.add_test_case(test_case(fault, findings, is_failure));
    }
    let mut report = Report::new("weir check");
    report.add_test_suite(suite);
    report.to_string()
}

fn test_case(fault: &Fault, findings: &[Finding], is_failure: bool) -> TestCase {
    let found: Vec<String> = findings
        .iter()
        .filter(|finding| finding.fault == fault)
        .map(|finding| format!("{}: {}\nfix: {}", finding.object, finding.text, finding.fix))
        .collect();
    let status = if found.is_empty() || !is_failure {
        TestCaseStatus::success()
    } else {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
        status
            .set_type(fault.severity.name())
            .set_message(format!("{} found: {}", found.len(), fault.meaning))
            .set_description(found.join("\n"));
        status
    };
    let mut case = TestCase::new(format!("{} {}", fault.code, fault.name), status);
    case.set_classname("weir.check");
    if !is_failure && !found.is_empty() {
        case.set_system_out(found.join("\n"));
    }
    case
}
