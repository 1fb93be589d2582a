//! Objects in a cluster as `weir install`, `weir uninstall` and `weir tag` handle them: any kind that the chart has, as plain values.
//!
//! ```text
//! object ──▶ Kind (how its URL is spelt) ──▶ get, list, apply (server-side, field manager `weir`), delete ──▶ Done | Refused
//! ```

use std::fmt;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PropagationPolicy};
use kube::core::GroupVersionKind;
use serde_json::Value;

use crate::cluster::{Cluster, PAGE, causes};
use crate::failure::Failure;

/// Who applies, in the cluster's records of who has set which field.
pub(crate) const MANAGER: &str = "weir";

/// A kind of object: group, version, kind, its name in URLs, and whether its objects are in namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    group: &'static str,
    version: &'static str,
    name: &'static str,
    plural: &'static str,
    namespaced: bool,
}

const fn kind(
    group: &'static str,
    version: &'static str,
    name: &'static str,
    plural: &'static str,
    namespaced: bool,
) -> Kind {
    Kind { group, version, name, plural, namespaced }
}

/// Webhook configurations.
pub(crate) const CONFIGURATION: Kind =
    kind("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", false);
/// Namespaces.
pub(crate) const NAMESPACE: Kind = kind("", "v1", "Namespace", "namespaces", false);
/// Pods.
pub(crate) const POD: Kind = kind("", "v1", "Pod", "pods", true);
/// Secrets.
pub(crate) const SECRET: Kind = kind("", "v1", "Secret", "secrets", true);
/// Leases.
pub(crate) const LEASE: Kind = kind("coordination.k8s.io", "v1", "Lease", "leases", true);
/// Deployments.
pub(crate) const DEPLOYMENT: Kind = kind("apps", "v1", "Deployment", "deployments", true);
/// DaemonSets.
pub(crate) const DAEMON_SET: Kind = kind("apps", "v1", "DaemonSet", "daemonsets", true);
/// ConfigMaps.
pub(crate) const CONFIG_MAP: Kind = kind("", "v1", "ConfigMap", "configmaps", true);
/// ServiceAccounts.
pub(crate) const SERVICE_ACCOUNT: Kind = kind("", "v1", "ServiceAccount", "serviceaccounts", true);

/// All kinds that the chart makes, in the order in which they are taken away.
pub(crate) const ALL: [Kind; 19] = [
    CONFIGURATION,
    kind("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", true),
    DEPLOYMENT,
    DAEMON_SET,
    kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", true),
    kind("", "v1", "Service", "services", true),
    kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", true),
    kind("cert-manager.io", "v1", "Certificate", "certificates", true),
    kind("cert-manager.io", "v1", "Issuer", "issuers", true),
    kind("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition", "network-attachment-definitions", true),
    CONFIG_MAP,
    kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", true),
    kind("rbac.authorization.k8s.io", "v1", "Role", "roles", true),
    kind("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", false),
    kind("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", false),
    SERVICE_ACCOUNT,
    kind("security.openshift.io", "v1", "SecurityContextConstraints", "securitycontextconstraints", false),
    kind("", "v1", "ResourceQuota", "resourcequotas", true),
    NAMESPACE,
];

/// One object, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ref {
    /// What it is.
    pub(crate) kind: Kind,
    /// Empty where it is in none.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name.to_lowercase();
        match self.kind.group {
            "" => write!(f, "{kind}/{}", self.name),
            group => write!(f, "{kind}.{group}/{}", self.name),
        }
    }
}

impl Ref {
    /// Names an object.
    pub(crate) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced { namespace.to_owned() } else { String::new() };
        Self { kind, namespace, name: name.to_owned() }
    }

    /// The name of an object that the chart made; `None` for a kind that it does not have.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let kind =
            ALL.into_iter().find(|kind| object["kind"] == kind.name && object["apiVersion"] == kind.api_version())?;
        let metadata = &object["metadata"];
        Some(Self::new(kind, metadata["namespace"].as_str().unwrap_or_default(), metadata["name"].as_str()?))
    }
}

impl Kind {
    fn api_version(self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    fn resource(self) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(self.group, self.version, self.name), self.plural)
    }
}

/// Why the API server did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Others have set fields to something else: each as the server says it.
    Conflict(Vec<String>),
    /// The namespace is not there.
    NoNamespace,
    /// The cluster does not know the kind.
    NoKind,
    /// The server was not reached, or does not know who asks.
    Away(String),
    /// Anything else, in words.
    Other(String),
}

/// What applying came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// It was not there.
    Created,
    /// It was there, and something was changed.
    Configured,
    /// It was so already.
    Unchanged,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        })
    }
}

/// How objects are applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// The server says what would happen, and nothing does.
    pub(crate) dry_run: bool,
    /// Fields of others are taken over.
    pub(crate) force: bool,
}

impl Cluster {
    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        let resource = kind.resource();
        if kind.namespaced && !namespace.is_empty() {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    /// An object, if it is there.
    pub(crate) async fn object(&self, what: &Ref) -> Result<Option<Value>, Refused> {
        let found = self.api(what.kind, &what.namespace).get_opt(&what.name).await.map_err(refused)?;
        Ok(found.map(value))
    }

    /// All objects of a kind with the labels; in all namespaces where none is given. A kind that the cluster does not know has none.
    pub(crate) async fn objects(&self, kind: Kind, namespace: &str, labels: &str) -> Result<Vec<Value>, Refused> {
        let api = self.api(kind, namespace);
        let mut page = ListParams::default().labels(labels).limit(PAGE);
        let mut all = Vec::new();
        loop {
            let list = match api.list(&page).await.map_err(refused) {
                Err(Refused::NoKind | Refused::NoNamespace) => return Ok(all),
                other => other?,
            };
            let next = list.metadata.continue_.filter(|next| !next.is_empty());
            all.extend(list.items.into_iter().map(value).map(|mut object| {
                // Items of a list do not say it.
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
    pub(crate) async fn apply(&self, what: &Ref, object: &Value, how: How) -> Result<Done, Refused> {
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let before = self.object(what).await?.as_ref().map(version);
        let params = PatchParams { dry_run: how.dry_run, force: how.force, ..PatchParams::apply(MANAGER) };
        let api = self.api(what.kind, &what.namespace);
        let after = value(api.patch(&what.name, &params, &Patch::Apply(object)).await.map_err(refused)?);
        Ok(match before {
            None => Done::Created,
            Some(before) if before == version(&after) => Done::Unchanged,
            Some(_) => Done::Configured,
        })
    }

    /// Applies fields under another name than ours, taking them over from whoever has them.
    pub(crate) async fn apply_as(&self, manager: &str, what: &Ref, object: &Value) -> Result<(), Refused> {
        let params = PatchParams::apply(manager).force();
        let api = self.api(what.kind, &what.namespace);
        api.patch(&what.name, &params, &Patch::Apply(object)).await.map(|_| ()).map_err(refused)
    }

    /// Why something was not done to `what`.
    pub(crate) fn failure(&self, what: impl fmt::Display, refused: &Refused) -> Failure {
        let message = format!("{}: {what}: {refused}", self.server);
        // Not reached, or not let in: about the way to the cluster, not about what was asked.
        if matches!(refused, Refused::Away(_)) { Failure::usage(message) } else { Failure::refused(vec![message]) }
    }

    /// Takes an object away; `false` where it is not there.
    pub(crate) async fn delete(&self, what: &Ref) -> Result<bool, Refused> {
        let params =
            DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
        match self.api(what.kind, &what.namespace).delete(&what.name, &params).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(refused(error)),
        }
    }
}

fn value(object: DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn refused(error: kube::Error) -> Refused {
    let kube::Error::Api(status) = &error else { return Refused::Away(causes(&error)) };
    let details = status.details.as_ref();
    match status.code {
        409 => {
            let causes = details.map_or(&[][..], |details| &details.causes);
            let fields = causes.iter().filter(|cause| !cause.field.is_empty());
            let fields: Vec<String> = fields.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
            if fields.is_empty() { Refused::Other(status.message.clone()) } else { Refused::Conflict(fields) }
        }
        404 if status.message.starts_with("namespaces \"") => Refused::NoNamespace,
        404 => Refused::NoKind,
        401 => Refused::Away(format!("the cluster does not know you (401 {})", status.message)),
        _ => Refused::Other(status.message.clone()),
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(fields) => write!(f, "others have set fields to something else: {}", fields.join("; ")),
            Self::NoNamespace => f.write_str("its namespace is not there"),
            Self::NoKind => f.write_str("the cluster does not know this kind of object"),
            Self::Away(reason) | Self::Other(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::SettingsArgs;

    #[test]
    fn every_kind_of_the_chart_is_known() {
        for set in [
            &["webhook.certificates=cert-manager", "webhook.autoscaling.enabled=true", "webhook.networkPolicy=true"][..],
            &["platform=openshift", "revisionTags={a}", "config.from=istio"],
            &["platform=gke", "node.uninstall=true"],
        ] {
            for object in SettingsArgs::of(set).release().unwrap().objects().unwrap() {
                assert!(Ref::of(&object).is_some(), "{object}");
            }
        }
    }

    #[test]
    fn objects_are_called_as_kubectl_calls_them() {
        assert_eq!(Ref::new(DEPLOYMENT, "weir-system", "weir-webhook").to_string(), "deployment.apps/weir-webhook");
        assert_eq!(Ref::new(NAMESPACE, "", "weir-system").to_string(), "namespace/weir-system");
    }
}
