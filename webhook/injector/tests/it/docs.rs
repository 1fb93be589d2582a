//! docs/annotations.md lists exactly the annotations and labels of the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Constants that look like keys: an image registry, and API versions.
const NOT_KEYS: [&str; 3] = ["docker.io/istio", "admission.k8s.io/v1", "admission.k8s.io/v1beta1"];

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn is_key(text: &str) -> bool {
    let Some((prefix, name)) = text.split_once('/') else { return false };
    let dotted = prefix.contains('.')
        && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b));
    dotted && !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

#[test]
fn docs_list_exactly_the_annotations_of_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("../../iptables-rules/src/names.rs")];
    sources(&root.join("src"), &mut files);
    // API versions and image names look like annotations.
    let with_versions = ["admission.rs", "settings/values.rs", "assertions/policy.rs"];
    files.retain(|file| !with_versions.iter().any(|name| file.ends_with(name)));
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let docs = fs::read_to_string(root.join("../../docs/annotations.md")).unwrap();
    let quoted = |mark: char, text: &str| -> BTreeSet<String> {
        text.lines().flat_map(|line| line.split(mark).skip(1).step_by(2).map(str::to_owned)).collect()
    };
    // Some names have no constant, so documented names may occur anywhere in the code.
    let constants = text.lines().filter(|line| line.contains("const ") && line.contains("&str = \""));
    let named =
        constants.flat_map(|line| quoted('"', line)).filter(|text| is_key(text) && !NOT_KEYS.contains(&text.as_str()));
    let documented: BTreeSet<String> = quoted('`', &docs).into_iter().filter(|text| is_key(text)).collect();
    let missing: Vec<String> = named.filter(|key| !documented.contains(key)).collect();
    assert!(missing.is_empty(), "not in docs/annotations.md: {missing:?}");
    let known = |key: &str| {
        text.contains(key) || (key.contains("opentelemetry") && text.contains(key.rsplit('/').next().unwrap()))
    };
    let unknown: Vec<&String> = documented.iter().filter(|key| !known(key)).collect();
    assert!(unknown.is_empty(), "in docs/annotations.md, but not in the code: {unknown:?}");
    assert!(documented.len() > 50, "{} keys", documented.len());
}
