//! Bounds of the cost of one review, of the webhook as it is built for tests. Measurements of the released one are in `benches`.
//!
//! Instructions and allocations are counted: they do not depend on how busy the machine is. `review-cost.txt` has the recorded ones;
//! update it with a change that is worth its cost, or that lowers it.

#[path = "../../../benches/benches/inject/cases.rs"]
mod cases;

use std::env;
use std::fmt::Write as _;
use std::process::Command;

use weir_lab::skip_or_fail;

const RECORDED: &str = include_str!("review-cost.txt");
/// The typical pod.
const TYPICAL: &str = "sidecar 1 0";
/// Set for the process whose instructions are counted.
const COUNTED: &str = "WEIR_COUNTED_REVIEW";
/// Accepted differences in percent: hashes have random keys, and the C library has versions.
const INSTRUCTIONS_TOLERANCE: u64 = 10;
const ALLOCATIONS_TOLERANCE: u64 = 3;

/// Returns whether a count differs from the one in the line with this label, by more than the tolerance in percent; also if there is none.
fn differs(counted: u64, label: &str, tolerance: u64) -> bool {
    let recorded = RECORDED.lines().find_map(|line| line.strip_prefix(label)?.trim().parse::<u64>().ok());
    recorded.is_none_or(|recorded| counted.abs_diff(recorded) * 100 > recorded * tolerance)
}

#[test]
fn allocations_of_reviews_are_as_recorded() {
    let (mut counts, mut differing) = (String::new(), Vec::new());
    cases::each(None, |case| {
        // The first run also makes what is made once.
        drop(case.run());
        let counted = allocation_counter::measure(|| drop(case.run())).count_total;
        let _ = writeln!(counts, "{} {counted}", case.label);
        if differs(counted, &case.label, ALLOCATIONS_TOLERANCE) {
            differing.push(case.label.clone());
        }
    })
    .unwrap();
    assert!(differing.is_empty(), "{differing:?} differ from review-cost.txt:\n{counts}");
}

#[test]
fn instructions_of_a_review_are_as_recorded() {
    if env::var_os(COUNTED).is_some() {
        return cases::each(Some(TYPICAL), |case| drop(case.run())).unwrap();
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip_or_fail("valgrind is not installed");
    }
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=weir_webhook::server::review::handle")
        .arg(env::current_exe().unwrap())
        .args(["--exact", "cost::instructions_of_a_review_are_as_recorded"])
        .env(COUNTED, "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let counted = stderr.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    let counted = counted.unwrap_or_else(|| panic!("no count in {stderr}"));
    let differs = differs(counted, "instructions", INSTRUCTIONS_TOLERANCE);
    assert!(!differs, "{counted} instructions differ from review-cost.txt");
}
