//! The known resources: Kubernetes' own, as far as tests use them, and those of stored CustomResourceDefinitions.

use serde_json::Value;

use super::store::Store;

/// One resource of one version of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    /// `v1` or `group/version`.
    pub(super) api_version: String,
    /// `pods`, `nodes`, ...
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
    /// Short names, as in `kubectl get po`.
    pub(super) short: Vec<String>,
}

/// Group and version, plural, kind, whether namespaced, short names.
type Row = (&'static str, &'static str, &'static str, bool, &'static [&'static str]);

const ADMISSION: &str = "admissionregistration.k8s.io/v1";
const RBAC: &str = "rbac.authorization.k8s.io/v1";
const AUTHORIZATION: &str = "authorization.k8s.io/v1";
const ROWS: [Row; 40] = [
    ("v1", "bindings", "Binding", true, &[]),
    ("v1", "configmaps", "ConfigMap", true, &["cm"]),
    ("v1", "endpoints", "Endpoints", true, &["ep"]),
    ("v1", "events", "Event", true, &["ev"]),
    ("v1", "limitranges", "LimitRange", true, &["limits"]),
    ("v1", "namespaces", "Namespace", false, &["ns"]),
    ("v1", "nodes", "Node", false, &["no"]),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", true, &["pvc"]),
    ("v1", "pods", "Pod", true, &["po"]),
    ("v1", "replicationcontrollers", "ReplicationController", true, &["rc"]),
    ("v1", "resourcequotas", "ResourceQuota", true, &["quota"]),
    ("v1", "secrets", "Secret", true, &[]),
    ("v1", "serviceaccounts", "ServiceAccount", true, &["sa"]),
    ("v1", "services", "Service", true, &["svc"]),
    (ADMISSION, "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false, &[]),
    (ADMISSION, "validatingadmissionpolicies", "ValidatingAdmissionPolicy", false, &[]),
    (ADMISSION, "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", false, &[]),
    (ADMISSION, "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", false, &[]),
    ("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", false, &["crd", "crds"]),
    ("apps/v1", "daemonsets", "DaemonSet", true, &["ds"]),
    ("apps/v1", "deployments", "Deployment", true, &["deploy"]),
    ("apps/v1", "replicasets", "ReplicaSet", true, &["rs"]),
    ("apps/v1", "statefulsets", "StatefulSet", true, &["sts"]),
    (AUTHORIZATION, "selfsubjectaccessreviews", "SelfSubjectAccessReview", false, &[]),
    (AUTHORIZATION, "subjectaccessreviews", "SubjectAccessReview", false, &[]),
    ("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true, &["hpa"]),
    ("batch/v1", "cronjobs", "CronJob", true, &["cj"]),
    ("batch/v1", "jobs", "Job", true, &[]),
    ("coordination.k8s.io/v1", "leases", "Lease", true, &[]),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true, &[]),
    ("events.k8s.io/v1", "events", "Event", true, &["ev"]),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", true, &["netpol"]),
    ("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", false, &[]),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", true, &["pdb"]),
    (RBAC, "clusterrolebindings", "ClusterRoleBinding", false, &[]),
    (RBAC, "clusterroles", "ClusterRole", false, &[]),
    (RBAC, "rolebindings", "RoleBinding", true, &[]),
    (RBAC, "roles", "Role", true, &[]),
    ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", false, &["pc"]),
    ("storage.k8s.io/v1", "storageclasses", "StorageClass", false, &["sc"]),
];

impl Resource {
    fn from_row(row: &Row) -> Self {
        let (api_version, name, kind, namespaced, short) = *row;
        let [api_version, name, kind] = [api_version, name, kind].map(str::to_owned);
        Self { api_version, name, kind, namespaced, short: short.iter().map(|&name| name.to_owned()).collect() }
    }

    pub(super) fn find(store: &Store, api_version: &str, name: &str) -> Option<Self> {
        let own = ROWS.iter().find(|row| row.0 == api_version && row.1 == name).map(Self::from_row);
        own.or_else(|| custom(store).find(|found| found.api_version == api_version && found.name == name))
    }

    pub(super) fn all(store: &Store) -> Vec<Self> {
        ROWS.iter().map(Self::from_row).chain(custom(store)).collect()
    }
}

/// Names a resource as messages do: `pods`, `deployments.apps`.
pub(super) fn qualified(api_version: &str, name: &str) -> String {
    api_version.split_once('/').map_or_else(|| name.to_owned(), |(group, _)| format!("{name}.{group}"))
}

/// Lists the resources of the stored CustomResourceDefinitions.
fn custom(store: &Store) -> impl Iterator<Item = Resource> {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    store.list("customresourcedefinitions").flat_map(move |definition| {
        let spec = &definition["spec"];
        let versions = spec["versions"].as_array().into_iter().flatten();
        versions.filter(|version| version["served"] == true).map(move |version| Resource {
            api_version: format!("{}/{}", text(&spec["group"]), text(&version["name"])),
            name: text(&spec["names"]["plural"]),
            kind: text(&spec["names"]["kind"]),
            namespaced: spec["scope"] == "Namespaced",
            short: texts(&spec["names"]["shortNames"]),
        })
    })
}
