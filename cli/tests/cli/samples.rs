//! Real manifests. They lie beside the project and are not part of it.

use std::path::PathBuf;

use serde_json::Value;

use crate::run::{containers, documents, documents_of_yaml_1_1, inject, weir};

#[test]
fn every_sample_is_injected_with_all_its_documents() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples");
    let Ok(entries) = std::fs::read_dir(&directory) else {
        eprintln!("skipped: no samples at {}", directory.display());
        return;
    };
    let mut deployments = 0;
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    for path in &files {
        let run = weir(&["inject", "-f", path.to_str().unwrap()], "");
        assert_eq!(run.code, 0, "{}: {}", path.display(), run.stderr);
        let before = documents(&(std::fs::read_to_string(path).unwrap() + "\n---\n"));
        let after = documents(&run.stdout);
        let names = |documents: &[Value]| -> Vec<String> {
            let named = documents.iter().filter(|document| !document.is_null());
            named.map(|document| format!("{} {}", document["kind"], document["metadata"]["name"])).collect()
        };
        assert_eq!(names(&before), names(&after), "{}", path.display());
        for (before, after) in before
            .iter()
            .filter(|document| !document.is_null())
            .zip(after.iter().filter(|document| !document.is_null()))
        {
            if before["kind"] == "Deployment" {
                deployments += 1;
                assert!(containers(after, "/spec/template/spec/initContainers").contains(&"istio-proxy"), "{after:#}");
            } else {
                assert_eq!(before, after);
            }
        }
        if let Some(read) = documents_of_yaml_1_1(&run.stdout) {
            assert!(read.iter().eq(after.iter().filter(|document| !document.is_null())), "{}", path.display());
        }
        assert_eq!(inject(&[], &run.stdout).stdout, run.stdout, "{}: injected again", path.display());
    }
    assert!(files.len() >= 5 && deployments >= 8, "{} files, {deployments} Deployments", files.len());
}
