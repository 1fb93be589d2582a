//! What a pod belongs to, told from the pod alone.
//!
//! A manifest knows its own workload; an admitted pod only has the reference to its direct owner, which for a Deployment is
//! a ReplicaSet, and for a CronJob a Job. Their names give the rest away.

use serde_json::Value;

use super::Workload;

/// The workload of an admitted pod. `namespace` is that of the request, for pods that do not name one.
pub fn workload_of_pod(pod: &Value, namespace: Option<&str>) -> Workload {
    let metadata = &pod["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&metadata["name"]);
    let mut workload = Workload {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: name.clone(),
        namespace: match metadata["namespace"].as_str() {
            Some(own) if !own.is_empty() => own.to_owned(),
            _ => namespace.unwrap_or_default().to_owned(),
        },
    };
    let generated = metadata["generateName"].as_str().is_some_and(|prefix| !prefix.is_empty());
    let owners = metadata["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
    let controller = owners.iter().find(|owner| owner["controller"] == true);
    if let (true, Some(owner)) = (generated, controller) {
        workload.api_version = text(&owner["apiVersion"]);
        workload.kind = text(&owner["kind"]);
        workload.name = text(&owner["name"]);
        lift(&mut workload, &metadata["labels"]);
    }
    if workload.name.is_empty() {
        workload.name = name;
    }
    workload
}

/// Goes from the direct owner to the one that the user made.
fn lift(workload: &mut Workload, labels: &Value) {
    let label = |name: &str| labels[name].as_str().filter(|value| !value.is_empty());
    match workload.kind.as_str() {
        "ReplicaSet" => {
            let stem = |hash: &str| workload.name.strip_suffix(hash)?.strip_suffix('-').map(str::to_owned);
            if let Some(name) = label("pod-template-hash").and_then(stem) {
                workload.name = name;
                "Deployment".clone_into(&mut workload.kind);
            } else if let Some(name) = label("rollouts-pod-template-hash").and_then(stem) {
                workload.name = name;
                "Rollout".clone_into(&mut workload.kind);
                "v1alpha1".clone_into(&mut workload.api_version);
            }
        }
        "ReplicationController" => {
            if let Some(name) = label("deploymentconfig") {
                name.clone_into(&mut workload.name);
                "DeploymentConfig".clone_into(&mut workload.kind);
            }
        }
        "Job" => {
            if let Some(name) = cron_job_of(&workload.name) {
                name.to_owned().clone_into(&mut workload.name);
                "CronJob".clone_into(&mut workload.kind);
                "batch/v1".clone_into(&mut workload.api_version);
            }
        }
        _ => {}
    }
}

/// The name of the CronJob that made a Job of this name: it appends the scheduled time, in minutes (or, before Kubernetes
/// 1.21, in seconds) since 1970.
fn cron_job_of(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let scheduled = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    (scheduled && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
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
    fn a_pod_of_its_own_is_its_workload() {
        let workload = workload_of_pod(&json!({"metadata": {"name": "p"}}), Some("request"));
        let expected =
            Workload { api_version: "v1".into(), kind: "Pod".into(), name: "p".into(), namespace: "request".into() };
        assert_eq!(workload, expected);
        let adopted = json!({"metadata": {"name": "p", "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]}});
        assert_eq!(workload_of_pod(&adopted, Some("request")), expected);
    }

    #[test]
    fn a_replica_set_leads_to_its_deployment() {
        let labels = json!({"pod-template-hash": "7d9"});
        assert_eq!(owned("apps/v1", "ReplicaSet", "web-7d9", &labels), is("apps/v1", "Deployment", "web"));
    }

    #[test]
    fn a_replica_set_of_another_name_stays_one() {
        for labels in [json!({"pod-template-hash": "abc"}), json!({"pod-template-hash": ""}), json!({})] {
            assert_eq!(owned("apps/v1", "ReplicaSet", "web-7d9", &labels), is("apps/v1", "ReplicaSet", "web-7d9"));
        }
    }

    #[test]
    fn a_replica_set_of_argo_leads_to_its_rollout() {
        let labels = json!({"rollouts-pod-template-hash": "7d9"});
        assert_eq!(owned("apps/v1", "ReplicaSet", "web-7d9", &labels), is("v1alpha1", "Rollout", "web"));
    }

    #[test]
    fn a_replication_controller_leads_to_its_deployment_config() {
        let labels = json!({"deploymentconfig": "web"});
        assert_eq!(owned("v1", "ReplicationController", "web-3", &labels), is("v1", "DeploymentConfig", "web"));
        assert_eq!(
            owned("v1", "ReplicationController", "web-3", &json!({})),
            is("v1", "ReplicationController", "web-3")
        );
    }

    #[test]
    fn a_job_named_with_a_time_leads_to_its_cron_job() {
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
    fn other_owners_are_taken_as_they_are() {
        assert_eq!(owned("apps/v1", "StatefulSet", "db", &json!({})), is("apps/v1", "StatefulSet", "db"));
        assert_eq!(owned("example.com/v1", "Game", "g", &json!({})), is("example.com/v1", "Game", "g"));
    }

    #[test]
    fn an_owner_without_a_name_leaves_the_pods_name() {
        let pod = json!({"metadata": {"name": "p", "generateName": "p-", "ownerReferences": [{"kind": "Game", "controller": true}]}});
        let workload = workload_of_pod(&pod, None);
        assert_eq!((workload.kind.as_str(), workload.name.as_str()), ("Game", "p"));
    }
}
