//! Users' workloads.

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use weir_injector::decision::INJECT_LABEL;
use weir_injector::selection::INJECTION_LABEL;

use super::object::{StatusCondition, StringMap, text, timestamp};
use crate::finding::FindingObject;

/// A workload of a user that has an injection label or annotation, or whose pods cannot be created.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) object: FindingObject,
    /// Labels and annotations of the workload itself.
    pub(crate) own: InjectionKeys,
    /// Labels and annotations of its pod template.
    pub(crate) template: InjectionKeys,
    /// Messages of the conditions `ReplicaFailure`.
    pub(crate) failures: Vec<String>,
}

/// Labels, and the annotation that once requested a sidecar.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct InjectionKeys {
    pub(crate) labels: StringMap,
    annotations: StringMap,
}

impl InjectionKeys {
    pub(crate) fn inject_annotation(&self) -> Option<&str> {
        text(&self.annotations, INJECT_LABEL)
    }

    fn concern_injection(&self) -> bool {
        [&self.labels, &self.annotations]
            .iter()
            .any(|map| map.contains_key(INJECT_LABEL) || map.contains_key(INJECTION_LABEL))
    }
}

/// A workload as the API server returns it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WorkloadDocument {
    metadata: WorkloadMetadata,
    spec: WorkloadSpec,
    status: WorkloadStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorkloadMetadata {
    namespace: String,
    name: String,
    #[serde(flatten)]
    keys: InjectionKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorkloadSpec {
    template: WorkloadTemplate,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorkloadTemplate {
    metadata: InjectionKeys,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorkloadStatus {
    conditions: Vec<StatusCondition>,
}

impl WorkloadDocument {
    /// Returns the workload if there is something to analyze about it.
    pub(crate) fn into_workload(self, kind: &str) -> Option<Workload> {
        let WorkloadMetadata { namespace, name, keys: own } = self.metadata;
        let template = self.spec.template.metadata;
        let failed = |condition: &StatusCondition| condition.kind == "ReplicaFailure" && condition.status == "True";
        let conditions = self.status.conditions.into_iter().filter(failed);
        let failures: Vec<String> = conditions.filter_map(|condition| condition.message).collect();
        (own.concern_injection() || template.concern_injection() || !failures.is_empty()).then(|| Workload {
            object: FindingObject::new(kind, &namespace, &name),
            own,
            template,
            failures,
        })
    }
}

/// An event `FailedCreate`: a controller could not create a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FailedCreate {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) involved_object: InvolvedObject,
    #[serde(deserialize_with = "timestamp")]
    last_timestamp: Option<Timestamp>,
    #[serde(deserialize_with = "timestamp")]
    event_time: Option<Timestamp>,
    series: EventSeries,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct InvolvedObject {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EventSeries {
    #[serde(deserialize_with = "timestamp")]
    last_observed_time: Option<Timestamp>,
}

impl FailedCreate {
    pub(crate) fn last_seen(&self) -> Option<Timestamp> {
        [self.last_timestamp, self.event_time, self.series.last_observed_time].into_iter().flatten().max()
    }
}
