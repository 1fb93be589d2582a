//! Derives the workload of an admitted pod from the pod alone.
//!
//! The pod only references its direct owner, which for a Deployment is a ReplicaSet and for a CronJob a Job. The workload
//! follows from their names.

use serde_json::Value;

/// The object that a user created for a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// For example `apps/v1`.
    pub api_version: String,
    /// For example `Deployment`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// Namespace of the object; may be empty.
    pub namespace: String,
}

/// Returns the workload of an admitted pod. `namespace` is that of the request, for pods that do not name one.
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
        resolve_top_owner(&mut workload, &metadata["labels"]);
    }
    if workload.name.is_empty() {
        workload.name = name;
    }
    workload
}

/// Replaces the direct owner by the object that the user created.
fn resolve_top_owner(workload: &mut Workload, labels: &Value) {
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

/// Returns the name of the CronJob that created the Job: it appends the scheduled time as Unix time in minutes, or in
/// seconds before Kubernetes 1.21.
fn cron_job_of(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let scheduled = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    (scheduled && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests;
