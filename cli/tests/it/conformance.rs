//! Istio's own injector cases, run through the binary.

use std::collections::BTreeSet;

use weir_injector::yaml;
use weir_tests::conformance::{Case, Suite, difference, documents, normalized};

use crate::run::{file, weir};

/// Runs a case; returns the differences.
fn run(suite: &Suite, case: &Case) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory for the settings");
    let values = file(directory.path(), "values.json", &suite.values(case).to_string());
    let mesh = file(directory.path(), "mesh.json", &suite.mesh(case).to_string());
    let input = suite.path("input", &case.input);
    let native = if case.native_sidecar { "true" } else { "false" };
    let run = weir(
        &[
            "inject",
            "-f",
            input.to_str().expect("UTF-8"),
            "--valuesFile",
            &values,
            "--meshConfigFile",
            &mesh,
            "--native-sidecars",
            native,
            "--compliance-policy",
            &case.compliance_policy,
        ],
        "",
    );
    let mut problems = Vec::new();
    if let Some(expected) = &case.expected_error {
        if run.code != 1 || !run.stdout.is_empty() || !run.stderr.to_lowercase().contains(expected) {
            problems.push(format!("expected an error with {expected:?}, got {run:?}"));
        }
        return problems;
    }
    if run.code != 0 {
        return vec![format!("exit {}: {}", run.code, run.stderr)];
    }
    if let Some(expected) = case.expected_log.as_ref().filter(|expected| !run.stderr.contains(*expected)) {
        problems.push(format!("expected {expected:?} on standard error, got {:?}", run.stderr));
    }
    let (got, want) = (documents(&run.stdout), documents(&suite.text("want", case.name())));
    if got.len() != want.len() {
        problems.push(format!("{} documents, want {}", got.len(), want.len()));
    }
    for (got, want) in got.iter().zip(&want) {
        let [got, want] = [got, want].map(|text| yaml::from_str(text).map(normalized));
        match (got, want) {
            (Ok(got), Ok(want)) => problems.extend(difference(&got, &want)),
            (got, want) => problems.push(format!("unreadable: {:?} {:?}", got.err(), want.err())),
        }
    }
    problems
}

#[test]
fn istio_injector_cases_match() {
    let Some(suite) = Suite::load() else { return };
    let mut passed = BTreeSet::new();
    let mut failed = Vec::new();
    for (index, case) in
        suite.cases.iter().enumerate().filter(|(_, case)| !case.skip_kube_inject && case.matches_upstream())
    {
        let problems = run(&suite, case);
        if problems.is_empty() {
            passed.insert(index);
        } else {
            failed.push(format!("{}:\n{}", case.name(), problems.join("\n")));
        }
    }
    assert!(failed.is_empty(), "{} passed, {} failed\n{}", passed.len(), failed.len(), failed.join("\n"));
    assert!(passed.len() > 90, "only {} cases ran", passed.len());
    eprintln!("{} cases passed", passed.len());
}
