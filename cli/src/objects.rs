//! Gets, lists, applies and deletes objects of any kind that the chart has, as plain values.

use std::fmt;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PropagationPolicy};
use kube::core::GroupVersionKind;
use serde_json::Value;

use crate::cluster::{Cluster, PAGE_SIZE, error_chain, unauthorized};
use crate::console::print_line;
use crate::failure::Failure;

/// Field manager of server-side apply.
const FIELD_MANAGER: &str = "weir";

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResourceKind {
    group: &'static str,
    version: &'static str,
    name: &'static str,
    pub(crate) plural: &'static str,
    namespaced: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    name: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> ResourceKind {
    ResourceKind { group, version, name, plural, namespaced }
}

pub(crate) const CONFIGURATION: ResourceKind =
    kind("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", false);
pub(crate) const NAMESPACE: ResourceKind = kind("", "v1", "Namespace", "namespaces", false);
pub(crate) const POD: ResourceKind = kind("", "v1", "Pod", "pods", true);
pub(crate) const EVENT: ResourceKind = kind("", "v1", "Event", "events", true);
pub(crate) const SECRET: ResourceKind = kind("", "v1", "Secret", "secrets", true);
pub(crate) const LEASE: ResourceKind = kind("coordination.k8s.io", "v1", "Lease", "leases", true);
pub(crate) const DEPLOYMENT: ResourceKind = kind("apps", "v1", "Deployment", "deployments", true);
pub(crate) const DAEMON_SET: ResourceKind = kind("apps", "v1", "DaemonSet", "daemonsets", true);
pub(crate) const STATEFUL_SET: ResourceKind = kind("apps", "v1", "StatefulSet", "statefulsets", true);
pub(crate) const CONFIG_MAP: ResourceKind = kind("", "v1", "ConfigMap", "configmaps", true);
const SERVICE_ACCOUNT: ResourceKind = kind("", "v1", "ServiceAccount", "serviceaccounts", true);

/// Bindings and roles, in the order of deletion.
pub(crate) const RBAC: [ResourceKind; 4] = [
    kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true),
    kind("rbac.authorization.k8s.io", "v1", "Role", "roles", true),
    kind("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false),
    kind("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false),
];

/// All kinds of the chart, in the order of deletion.
pub(crate) const ALL: [ResourceKind; 24] = [
    CONFIGURATION,
    kind(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        false,
    ),
    kind("admissionregistration.k8s.io", "v1", "ValidatingAdmissionPolicy", "validatingadmissionpolicies", false),
    kind("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true),
    DEPLOYMENT,
    DAEMON_SET,
    kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true),
    kind("", "v1", "Service", "services", true),
    kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true),
    kind("cert-manager.io", "v1", "Certificate", "certificates", true),
    kind("cert-manager.io", "v1", "Issuer", "issuers", true),
    kind("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition", "network-attachment-definitions", true),
    kind("monitoring.coreos.com", "v1", "ServiceMonitor", "servicemonitors", true),
    kind("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors", true),
    kind("monitoring.coreos.com", "v1", "PrometheusRule", "prometheusrules", true),
    CONFIG_MAP,
    RBAC[0],
    RBAC[1],
    RBAC[2],
    RBAC[3],
    SERVICE_ACCOUNT,
    kind("security.openshift.io", "v1", "SecurityContextConstraints", "securitycontextconstraints", false),
    kind("", "v1", "ResourceQuota", "resourcequotas", true),
    NAMESPACE,
];

/// Reference to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectRef {
    pub(crate) kind: ResourceKind,
    /// Empty for cluster-scoped objects.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name.to_lowercase();
        match self.kind.group {
            "" => write!(f, "{kind}/{}", self.name),
            group => write!(f, "{kind}.{group}/{}", self.name),
        }
    }
}

impl ObjectRef {
    pub(crate) fn new(kind: ResourceKind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced { namespace.to_owned() } else { String::new() };
        Self { kind, namespace, name: name.to_owned() }
    }

    /// Returns the reference of an object; `None` for a kind that is not in [`ALL`].
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let kind =
            ALL.into_iter().find(|kind| object["kind"] == kind.name && object["apiVersion"] == kind.api_version())?;
        let metadata = &object["metadata"];
        Some(Self::new(kind, metadata["namespace"].as_str().unwrap_or_default(), metadata["name"].as_str()?))
    }
}

impl ResourceKind {
    fn api_version(self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    fn resource(self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(self.group, self.version, self.name), self.plural)
    }
}

/// Reason for the failure of a request about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ObjectError {
    /// Other field managers have set fields; each as the server reports it.
    Conflict(Vec<String>),
    NamespaceNotFound,
    /// The cluster does not have the kind.
    KindNotFound,
    /// No connection, or no valid credentials.
    Unreachable(String),
    /// Anything else, as the server reports it.
    Other(String),
}

/// Result of applying an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApplyResult {
    Created,
    Configured,
    Unchanged,
}

impl fmt::Display for ApplyResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ApplyOptions {
    /// Let the server validate without changing anything.
    pub(crate) dry_run: bool,
    /// Take ownership of fields of other field managers.
    pub(crate) force: bool,
}

impl Cluster {
    fn api(&self, kind: ResourceKind, namespace: &str) -> Api<DynamicObject> {
        let resource = kind.resource();
        if kind.namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    /// Gets an object; `None` if it does not exist.
    pub(crate) async fn object(&self, what: &ObjectRef) -> Result<Option<Value>, Failure> {
        self.get(what).await.map_err(|error| self.failure("get", what, &error))
    }

    async fn get(&self, what: &ObjectRef) -> Result<Option<Value>, ObjectError> {
        let found = self.api(what.kind, &what.namespace).get_opt(&what.name).await.map_err(object_error)?;
        Ok(found.map(to_value))
    }

    /// Lists the objects of a kind with these labels; in all namespaces if `namespace` is empty. None of a kind that the cluster does
    /// not have.
    pub(crate) async fn objects(
        &self,
        kind: ResourceKind,
        namespace: &str,
        labels: &str,
    ) -> Result<Vec<Value>, Failure> {
        let api = self.api(kind, namespace);
        let mut page = ListParams::default().labels(labels).limit(PAGE_SIZE);
        let mut all = Vec::new();
        loop {
            let list = match api.list(&page).await.map_err(object_error) {
                Err(ObjectError::KindNotFound | ObjectError::NamespaceNotFound) => return Ok(all),
                other => other.map_err(|error| self.failure("list", kind.plural, &error))?,
            };
            let next = list.metadata.continue_.filter(|next| !next.is_empty());
            all.extend(list.items.into_iter().map(to_value).map(|mut object| {
                // Items of a list lack both.
                object["apiVersion"] = kind.api_version().into();
                object["kind"] = kind.name.into();
                object
            }));
            match next {
                Some(next) => page = page.continue_token(&next),
                None => return Ok(all),
            }
        }
    }

    /// Applies an object, server-side.
    pub(crate) async fn apply(
        &self,
        what: &ObjectRef,
        object: &Value,
        options: ApplyOptions,
    ) -> Result<ApplyResult, Failure> {
        self.try_apply(what, object, options).await.map_err(|error| self.failure("apply", what, &error))
    }

    /// Like [`Self::apply`], with the reason of a rejection.
    pub(crate) async fn try_apply(
        &self,
        what: &ObjectRef,
        object: &Value,
        options: ApplyOptions,
    ) -> Result<ApplyResult, ObjectError> {
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let (before, after) = self.apply_and_compare(what, object, options).await?;
        Ok(match before {
            None => ApplyResult::Created,
            Some(before) if version(&before) == version(&after) => ApplyResult::Unchanged,
            Some(_) => ApplyResult::Configured,
        })
    }

    /// Like [`Self::try_apply`], and returns the object before and after.
    pub(crate) async fn apply_and_compare(
        &self,
        what: &ObjectRef,
        object: &Value,
        options: ApplyOptions,
    ) -> Result<(Option<Value>, Value), ObjectError> {
        let before = self.get(what).await?;
        let params =
            PatchParams { dry_run: options.dry_run, force: options.force, ..PatchParams::apply(FIELD_MANAGER) };
        let api = self.api(what.kind, &what.namespace);
        let after = to_value(api.patch(&what.name, &params, &Patch::Apply(object)).await.map_err(object_error)?);
        Ok((before, after))
    }

    /// Applies objects in their order, and prints the result of each.
    pub(crate) async fn apply_all(&self, objects: &[(ObjectRef, Value)], options: ApplyOptions) -> Result<(), Failure> {
        for (what, object) in objects {
            let result = self.apply(what, object, options).await?;
            let is_ambiguous = objects.iter().filter(|(other, _)| other.to_string() == what.to_string()).count() > 1;
            let place = if is_ambiguous { format!(" in {}", what.namespace) } else { String::new() };
            print_line(&format!("{what}{place} {result}"))?;
        }
        Ok(())
    }

    /// Applies fields as another field manager, and takes their ownership.
    pub(crate) async fn apply_with_manager(
        &self,
        manager: &str,
        what: &ObjectRef,
        object: &Value,
    ) -> Result<(), Failure> {
        let params = PatchParams::apply(manager).force();
        let api = self.api(what.kind, &what.namespace);
        let applied = api.patch(&what.name, &params, &Patch::Apply(object)).await;
        applied.map(|_| ()).map_err(|error| self.failure("apply", what, &object_error(error)))
    }

    /// Deletes objects in their order, and prints those that existed.
    pub(crate) async fn delete_all(&self, objects: impl IntoIterator<Item = ObjectRef>) -> Result<(), Failure> {
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        for what in objects {
            match self.api(what.kind, &what.namespace).delete(&what.name, &params).await {
                Ok(_) => print_line(&format!("{what} deleted"))?,
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(self.failure("delete", &what, &object_error(error))),
            }
        }
        Ok(())
    }

    fn failure(&self, operation: &str, what: impl fmt::Display, error: &ObjectError) -> Failure {
        let message = format!("{}: cannot {operation} {what}: {error}", self.server);
        // An unreachable cluster is wrong usage, like a kubeconfig that cannot be read.
        if matches!(error, ObjectError::Unreachable(_)) {
            Failure::usage(message)
        } else {
            Failure::findings(vec![message])
        }
    }
}

fn to_value(object: DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn object_error(error: kube::Error) -> ObjectError {
    let kube::Error::Api(status) = &error else { return ObjectError::Unreachable(error_chain(&error)) };
    let details = status.details.as_ref();
    match status.code {
        409 => {
            let causes = details.map_or(&[][..], |details| &details.causes);
            let fields = causes.iter().filter(|cause| !cause.field.is_empty());
            let fields: Vec<String> = fields.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
            if fields.is_empty() { ObjectError::Other(status.message.clone()) } else { ObjectError::Conflict(fields) }
        }
        404 if status.message.starts_with("namespaces \"") => ObjectError::NamespaceNotFound,
        404 => ObjectError::KindNotFound,
        401 => ObjectError::Unreachable(unauthorized(&status.message)),
        _ => ObjectError::Other(status.message.clone()),
    }
}

/// Pairs objects of the chart with their references.
///
/// # Errors
/// The chart has a kind that is not in [`ALL`].
pub(crate) fn with_refs(objects: Vec<Value>) -> Result<Vec<(ObjectRef, Value)>, Failure> {
    let with_ref = |object: Value| match ObjectRef::of(&object) {
        Some(what) => Ok((what, object)),
        None => Err(Failure::findings(vec![format!("the chart has an unknown kind: {}", object["kind"])])),
    };
    objects.into_iter().map(with_ref).collect()
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(fields) => write!(f, "conflict with another field manager: {}", fields.join("; ")),
            Self::NamespaceNotFound => f.write_str("namespace not found"),
            Self::KindNotFound => f.write_str("resource kind not found in the cluster"),
            Self::Unreachable(reason) | Self::Other(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::ChartArgs;

    #[test]
    fn every_kind_of_the_chart_has_a_reference() {
        for set in [
            &["webhook.certificates=cert-manager", "webhook.autoscaling.enabled=true", "webhook.networkPolicy=true"][..],
            &["platform=openshift", "revisionTags={a}", "config.from=istio"],
            &["platform=gke", "node.uninstall=true"],
            &["serviceMonitor.enabled=true", "prometheusRule.enabled=true", "dashboards.enabled=true"],
        ] {
            for object in ChartArgs::of(set).release().unwrap().objects().unwrap() {
                assert!(ObjectRef::of(&object).is_some(), "{object}");
            }
        }
    }

    #[test]
    fn references_print_as_kubectl_prints_them() {
        assert_eq!(
            ObjectRef::new(DEPLOYMENT, "weir-system", "weir-webhook").to_string(),
            "deployment.apps/weir-webhook"
        );
        assert_eq!(ObjectRef::new(NAMESPACE, "", "weir-system").to_string(), "namespace/weir-system");
    }
}
