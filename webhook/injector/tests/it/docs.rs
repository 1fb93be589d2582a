//! docs/annotations.md names what the code reads, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

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
fn every_annotation_that_has_a_name_in_the_code_is_in_the_docs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("../../iptables-rules/src/names.rs")];
    sources(&root.join("src/inject"), &mut files);
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let docs = fs::read_to_string(root.join("../../docs/annotations.md")).unwrap();
    let quoted = |mark: char, text: &str| -> BTreeSet<String> {
        text.lines().flat_map(|line| line.split(mark).skip(1).step_by(2).map(str::to_owned)).collect()
    };
    // Where the injector writes or reads the same name without a constant, the docs are compared with any text of the code.
    let constants = text.lines().filter(|line| line.contains("const ") && line.contains("&str = \""));
    let named = constants.flat_map(|line| quoted('"', line)).filter(|text| is_key(text));
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
