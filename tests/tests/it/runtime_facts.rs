//! Facts about containerd that the plugin relies on: how it passes the annotations of a pod, and what it leaves to the plugin.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weir_tests::cri_runtime::CriRuntime;

const CAPABILITY: &str = "io.kubernetes.cri.pod-annotations";

fn conflist(entry: &Value) -> String {
    json!({
        "cniVersion": "1.0.0", "name": "test", "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.78.0.0/24" }]] } },
            entry,
        ],
    })
    .to_string()
}

/// Creates a wrapper of the plugin that saves its stdin as `VERB.json` in `dir`.
fn recording_plugin(dir: &Path) -> PathBuf {
    let script = dir.join("recording-plugin");
    let plugin = weir_tests::bin("weir-cni");
    let text = format!("#!/bin/sh\ntee {}/$CNI_COMMAND.json | {}\n", dir.display(), plugin.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn containerd_passes_null_for_a_pod_without_annotations() {
    if !weir_tests::privileged() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let entry = json!({ "type": "weir-cni", "capabilities": { CAPABILITY: true, "made.up": true } });
    let runtime = CriRuntime::start(&conflist(&entry), &recording_plugin(dir.path())).unwrap();
    for (name, annotations, passed) in [
        ("bare", vec![], Value::Null),
        ("some", vec![("team".to_owned(), "shop".to_owned())], json!({ "team": "shop" })),
    ] {
        let id = runtime.cri.run_pod_sandbox(&runtime.pod(name, annotations)).unwrap();
        let seen: Value = serde_json::from_slice(&fs::read(dir.path().join("ADD.json")).unwrap()).unwrap();
        // A capability that the runtime does not know has no key at all, which tells the two apart.
        assert_eq!(seen["runtimeConfig"].get(CAPABILITY), Some(&passed), "{seen}");
        assert_eq!(seen["runtimeConfig"].get("made.up"), None, "{seen}");
        assert_eq!(seen["capabilities"], entry["capabilities"], "{seen}");
        runtime.cri.stop_pod_sandbox(&id).unwrap();
        runtime.cri.remove_pod_sandbox(&id).unwrap();
    }
}

#[test]
fn entry_without_the_capability_is_reported() {
    if !weir_tests::privileged() {
        return;
    }
    let plugin = weir_tests::bin("weir-cni");
    let runtime = CriRuntime::start(&conflist(&json!({ "type": "weir-cni" })), &plugin).unwrap();
    let refused = runtime.cri.run_pod_sandbox(&runtime.pod("web", [])).unwrap_err();
    for part in [r#"plugin type="weir-cni" failed (add)"#, "key capabilities", CAPABILITY, "docs/cni-plugin.md"] {
        assert!(refused.message().contains(part), "{part} is not in {}", refused.message());
    }
    assert_eq!(runtime.cri.sandboxes().unwrap(), Vec::<String>::new());
    drop(runtime);

    let excluded = json!({ "type": "weir-cni", "exclude_namespaces": ["shop"] });
    let runtime = CriRuntime::start(&conflist(&excluded), &plugin).unwrap();
    let id = runtime.cri.run_pod_sandbox(&runtime.pod("web", [])).unwrap();
    runtime.cri.stop_pod_sandbox(&id).unwrap();
    runtime.cri.remove_pod_sandbox(&id).unwrap();
}
