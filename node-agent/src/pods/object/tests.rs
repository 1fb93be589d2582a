use serde_json::json;
use weir_protocol::decision::ConfigSource;

use super::*;

/// A pod as Istio's injector leaves it.
fn injected() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "shop", "name": "web-1", "uid": "u-1", "resourceVersion": "7",
            "annotations": {"sidecar.istio.io/status": r#"{"containers":["istio-proxy"]}"#},
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o-1"},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r-1", "controller": true}],
            "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar", "--domain"],
            "securityContext": {"runAsUser": 1500},
            "env": [{"name": "ISTIO_META_DNS_CAPTURE", "value": "true"}, {"name": "POD_NAME", "valueFrom": {"fieldRef": {}}}]}],
            "initContainers": [{"name": "istio-validation"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}],
            "containerStatuses": [{"name": "app", "containerID": "containerd://abc"}, {"name": "istio-proxy", "containerID": ""}],
            "initContainerStatuses": [{"name": "istio-validation", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 126}}}]},
    })
}

#[test]
fn facts_of_a_meshed_pod_are_kept() {
    let facts = facts(injected());
    assert_eq!((&*facts.uid, &*facts.resource_version, facts.is_terminating), ("u-1", "7", false));
    assert_eq!(facts.ips, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
    assert_eq!(facts.container_ids, ["abc"]);
    assert_eq!(facts.owner.as_ref().map(|owner| &*owner.name), Some("web"));
    assert!(facts.failed_validation);
    match &facts.decision {
        CaptureDecision::Capture(config, ConfigSource::Specification) => assert_eq!(config.proxy_uids, [1500]),
        other => panic!("not captured: {other:?}"),
    }
}

#[test]
fn decision_uses_annotations_labels_and_spec() {
    let changed = |pointer: &str, value: Value| {
        let mut pod = injected();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value;
        facts(pod)
    };
    for (pointer, value, reason) in [
        ("/spec/hostNetwork", json!(true), SkipReason::HostNetwork),
        ("/metadata/namespace", json!("kube-system"), SkipReason::ExcludedNamespace),
        ("/spec/initContainers", json!([{"name": "istio-init"}]), SkipReason::InitContainer),
        ("/spec/containers", json!([{"name": "app"}]), SkipReason::NoProxy),
        (
            "/spec/containers",
            json!([{"name": "istio-proxy", "args": ["proxy", "router"]}]),
            SkipReason::NotSidecarRole("router".into()),
        ),
    ] {
        let facts = changed(pointer, value);
        assert_eq!(facts.decision, CaptureDecision::Skip(reason));
        assert!(facts.ips.is_empty() && facts.container_ids.is_empty(), "nothing is kept of others");
    }
    // What an UPDATE can change does not hide a pod with a proxy.
    let labels = json!({"sidecar.istio.io/inject": "false"});
    let facts = changed("/metadata/labels", labels.clone());
    assert_eq!(facts.decision, CaptureDecision::Skip(SkipReason::InjectionOff));
    assert!(facts.was_capturable && !facts.ips.is_empty());
    let without_status = |labels: Value| {
        let mut pod = injected();
        pod["metadata"]["annotations"] = json!(null);
        pod["metadata"]["labels"] = labels;
        super::facts(pod)
    };
    assert!(matches!(without_status(json!(null)).decision, CaptureDecision::StatusContradicted(_)));
    let facts = without_status(labels);
    assert_eq!((facts.decision, facts.was_capturable), (CaptureDecision::Skip(SkipReason::NotInjected), true));
    assert!(changed("/status/phase", json!("Succeeded")).is_terminating);
    assert!(changed("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")).is_terminating);
    let restored = json!([{"name": "istio-validation", "state": {"terminated": {"exitCode": 0}},
        "lastState": {"terminated": {"exitCode": 126}}}]);
    assert!(!changed("/status/initContainerStatuses", restored).failed_validation);
}

#[test]
fn a_static_pod_is_found_by_the_kubelets_uid() {
    let pod = facts(json!({"metadata": {"name": "p", "uid": "mirror", "annotations": {CONFIG_HASH: "hash"}}}));
    assert!(pod.has_uid("hash") && pod.has_uid("mirror") && !pod.has_uid(""));
}
