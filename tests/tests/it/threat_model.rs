//! docs/threat-model.md names tests that exist.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Collects the names of functions and modules of all tests below a directory.
fn collect_names(dir: &Path, names: &mut HashSet<String>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with(".git") {
                collect_names(&path, names);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            names.insert(path.file_stem().unwrap().to_string_lossy().into_owned());
            let text = fs::read_to_string(&path).unwrap();
            let functions = text.lines().filter_map(|line| line.split_once("fn ")?.1.split(['(', '<']).next());
            names.extend(functions.map(str::to_owned));
        }
    }
}

#[test]
fn every_named_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/threat-model.md")).unwrap();
    let (mut names, mut missing, mut count) = (HashSet::new(), Vec::new(), 0);
    collect_names(root, &mut names);
    let mut in_tests = false;
    for line in text.lines() {
        in_tests = line.starts_with("| attack |") && line.ends_with("| test |") || in_tests && line.starts_with('|');
        let Some(cell) = line.rsplit('|').nth(1).filter(|_| in_tests) else { continue };
        let quoted = cell.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("weir-"));
        for part in quoted.flat_map(|name| name.split("::")).filter(|part| !part.is_empty()) {
            count += 1;
            if part != "iptables-rules" && !names.contains(part) {
                missing.push(part.to_owned());
            }
        }
    }
    assert!(count > 20, "the tables have no tests");
    assert!(missing.is_empty(), "{missing:?}");
}
