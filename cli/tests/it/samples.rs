//! Real manifests, which are not part of the project.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::run::{containers, documents, documents_of_yaml_1_1, inject, weir};

#[test]
fn samples_are_injected() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples");
    let Ok(entries) = std::fs::read_dir(&directory) else {
        return weir_lab::skip_or_fail(format_args!("no samples at {}", directory.display()));
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
        let back = weir(&["uninject", "-f", "-"], &run.stdout);
        assert_eq!(back.code, 0, "{}: {}", path.display(), back.stderr);
        assert!(!back.stderr.contains("cannot restore"), "{}: {}", path.display(), back.stderr);
        assert_eq!(back.stdout, std::fs::read_to_string(path).unwrap(), "{}: taken back", path.display());
    }
    assert!(files.len() >= 5 && deployments >= 8, "{} files, {deployments} Deployments", files.len());
}

/// Returns the manifests under a directory.
fn manifests(directory: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        let is_manifest =
            path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|e| extension == *e));
        if path.is_dir() {
            manifests(&path, found);
        } else if is_manifest {
            found.push(path);
        }
    }
}

#[test]
fn text_of_injected_manifests_is_restored() {
    let mut files = Vec::new();
    manifests(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"), &mut files);
    if files.is_empty() {
        return weir_lab::skip_or_fail("no manifests in ../shared");
    }
    let mut restored = 0;
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let run = weir(&["inject", "-f", path.to_str().unwrap()], "");
        // Invalid ones, and those that are injected already, as Istio's expected results.
        if run.code != 0 || run.stdout == text || text.contains("sidecar.istio.io/status") {
            continue;
        }
        let back = weir(&["uninject", "-f", "-"], &run.stdout);
        assert_eq!(back.code, 0, "{}", path.display());
        assert!(!back.stderr.contains("restore"), "{}: {}", path.display(), back.stderr);
        assert!(back.stdout == text, "{}:\n{}", path.display(), back.stdout);
        restored += 1;
    }
    assert!(restored >= 250, "only {restored} were injected");
}

/// Returns Kubernetes' schemas, which `manifests/validate.sh` installs; `None` without them.
fn validator() -> Option<PathBuf> {
    let binary =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/kubernetes-validate/bin/kubernetes-validate");
    if binary.exists() {
        return Some(binary);
    }
    weir_lab::skip_or_fail(format_args!("no validator at {}; manifests/validate.sh installs it", binary.display()));
    None
}

#[test]
fn injected_samples_pass_kubernetes_validation() {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/samples");
    let Some(validator) = validator() else { return };
    let Ok(entries) = std::fs::read_dir(&directory) else {
        return weir_lab::skip_or_fail(format_args!("no samples at {}", directory.display()));
    };
    let work = tempfile::tempdir().unwrap();
    let validate = |version: &str, files: &[PathBuf]| {
        let mut command = Command::new(&validator);
        let output = command.args(["--strict", "--quiet", "-k", version]).args(files).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    let files: Vec<PathBuf> =
        files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    for native in ["true", "false"] {
        let injected: Vec<PathBuf> = files
            .iter()
            .map(|path| {
                let target = work.path().join(path.file_name().unwrap());
                let arguments = ["inject", "-f", path.to_str().unwrap(), "--native-sidecars", native];
                let run = weir(&[&arguments[..], &["-o", target.to_str().unwrap()]].concat(), "");
                assert_eq!(run.code, 0, "{}", run.stderr);
                target
            })
            .collect();
        for version in ["1.27", "1.30", "1.33", "1.37"] {
            let (valid, findings) = validate(version, &injected);
            // Kubernetes 1.27 has no native sidecars, so the validator must fail.
            let runs = version != "1.27" || native == "false";
            assert_eq!(valid, runs, "native {native}, {version}: {findings}");
        }
    }
}
