//! What the plugin's decisions lean on: how a real containerd hands over the annotations of a pod, and how it leaves a mistake in the
//! entry to us.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking; helpers outside test functions too")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weir_tests::runtime::Runtime;

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

/// The plugin behind a script that keeps what the runtime wrote to its stdin, by verb.
fn eavesdropper(folder: &Path) -> PathBuf {
    let script = folder.join("eavesdropper");
    let plugin = weir_tests::bin("weir-cni");
    let text = format!("#!/bin/sh\ntee {}/$CNI_COMMAND.json | {}\n", folder.display(), plugin.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn containerd_passes_null_for_no_annotations_and_leaves_the_capabilities_in_place() {
    if !weir_tests::privileged() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let entry = json!({ "type": "weir-cni", "capabilities": { CAPABILITY: true, "made.up": true } });
    let runtime = Runtime::start(&conflist(&entry), &eavesdropper(folder.path())).unwrap();
    for (name, annotations, passed) in [
        ("bare", vec![], Value::Null),
        ("some", vec![("team".to_owned(), "shop".to_owned())], json!({ "team": "shop" })),
    ] {
        let id = runtime.cri.run_pod_sandbox(&runtime.pod(name, annotations)).unwrap();
        let seen: Value = serde_json::from_slice(&fs::read(folder.path().join("ADD.json")).unwrap()).unwrap();
        // There is a key, and a capability that the runtime does not know has none: that is how the two are told apart.
        assert_eq!(seen["runtimeConfig"].get(CAPABILITY), Some(&passed), "{seen}");
        assert_eq!(seen["runtimeConfig"].get("made.up"), None, "{seen}");
        assert_eq!(seen["capabilities"], entry["capabilities"], "{seen}");
        runtime.cri.stop_pod_sandbox(&id).unwrap();
        runtime.cri.remove_pod_sandbox(&id).unwrap();
    }
}

#[test]
fn an_entry_without_the_capability_is_named_and_excluded_namespaces_go_on() {
    if !weir_tests::privileged() {
        return;
    }
    let plugin = weir_tests::bin("weir-cni");
    let runtime = Runtime::start(&conflist(&json!({ "type": "weir-cni" })), &plugin).unwrap();
    let refused = runtime.cri.run_pod_sandbox(&runtime.pod("web", [])).unwrap_err();
    for part in [r#"plugin type="weir-cni" failed (add)"#, "key capabilities", CAPABILITY, "docs/cni-plugin.md"] {
        assert!(refused.message().contains(part), "{part} is not in {}", refused.message());
    }
    assert_eq!(runtime.cri.sandboxes().unwrap(), Vec::<String>::new());
    drop(runtime);

    let excluded = json!({ "type": "weir-cni", "exclude_namespaces": ["shop"] });
    let runtime = Runtime::start(&conflist(&excluded), &plugin).unwrap();
    let id = runtime.cri.run_pod_sandbox(&runtime.pod("web", [])).unwrap();
    runtime.cri.stop_pod_sandbox(&id).unwrap();
    runtime.cri.remove_pod_sandbox(&id).unwrap();
}
