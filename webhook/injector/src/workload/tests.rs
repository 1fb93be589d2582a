use serde_json::json;

use super::*;

fn owned(api_version: &str, kind: &str, name: &str, labels: &Value) -> (String, String, String) {
    let pod = json!({"metadata": {"generateName": "x-", "namespace": "ns", "labels": labels, "ownerReferences": [
        {"apiVersion": "v1", "kind": "Node", "name": "other"},
        {"apiVersion": api_version, "kind": kind, "name": name, "controller": true}]}});
    let workload = workload_of_pod(&pod, Some("ignored"));
    assert_eq!(workload.namespace, "ns");
    (workload.api_version, workload.kind, workload.name)
}

fn is(api_version: &str, kind: &str, name: &str) -> (String, String, String) {
    (api_version.to_owned(), kind.to_owned(), name.to_owned())
}

#[test]
fn pod_without_owner_is_its_own_workload() {
    let workload = workload_of_pod(&json!({"metadata": {"name": "p"}}), Some("request"));
    let expected =
        Workload { api_version: "v1".into(), kind: "Pod".into(), name: "p".into(), namespace: "request".into() };
    assert_eq!(workload, expected);
    let adopted = json!({"metadata": {"name": "p", "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]}});
    assert_eq!(workload_of_pod(&adopted, Some("request")), expected);
}

#[test]
fn replica_set_resolves_to_its_deployment() {
    let labels = json!({"pod-template-hash": "7d9"});
    assert_eq!(owned("apps/v1", "ReplicaSet", "web-7d9", &labels), is("apps/v1", "Deployment", "web"));
}

#[test]
fn replica_set_without_matching_hash_is_kept() {
    for labels in [json!({"pod-template-hash": "abc"}), json!({"pod-template-hash": ""}), json!({})] {
        assert_eq!(owned("apps/v1", "ReplicaSet", "web-7d9", &labels), is("apps/v1", "ReplicaSet", "web-7d9"));
    }
}

#[test]
fn argo_replica_set_resolves_to_its_rollout() {
    let labels = json!({"rollouts-pod-template-hash": "7d9"});
    assert_eq!(owned("apps/v1", "ReplicaSet", "web-7d9", &labels), is("v1alpha1", "Rollout", "web"));
}

#[test]
fn replication_controller_resolves_to_its_deployment_config() {
    let labels = json!({"deploymentconfig": "web"});
    assert_eq!(owned("v1", "ReplicationController", "web-3", &labels), is("v1", "DeploymentConfig", "web"));
    assert_eq!(owned("v1", "ReplicationController", "web-3", &json!({})), is("v1", "ReplicationController", "web-3"));
}

#[test]
fn job_with_scheduled_time_resolves_to_its_cron_job() {
    for (job, cron) in [("nightly-28345678", true), ("nightly-1700000000", true), ("a-b-123456789", true)] {
        let (api_version, kind, name) = owned("batch/v1beta1", "Job", job, &json!({}));
        assert_eq!((api_version.as_str(), kind.as_str()), ("batch/v1", "CronJob"));
        assert!(cron && job.starts_with(&name) && !name.ends_with('-'), "{name}");
    }
    for job in ["nightly-1234567", "nightly-12345678901", "nightly-1234567x", "12345678", "-12345678"] {
        assert_eq!(owned("batch/v1", "Job", job, &json!({})), is("batch/v1", "Job", job));
    }
}

#[test]
fn other_owners_are_kept() {
    assert_eq!(owned("apps/v1", "StatefulSet", "db", &json!({})), is("apps/v1", "StatefulSet", "db"));
    assert_eq!(owned("example.com/v1", "Game", "g", &json!({})), is("example.com/v1", "Game", "g"));
}

#[test]
fn owner_without_a_name_leaves_the_pods_name() {
    let pod = json!({"metadata": {"name": "p", "generateName": "p-", "ownerReferences": [{"kind": "Game", "controller": true}]}});
    let workload = workload_of_pod(&pod, None);
    assert_eq!((workload.kind.as_str(), workload.name.as_str()), ("Game", "p"));
}
