//! Permissions: of Weir's service accounts from their RBAC bindings, of the user from access reviews.

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::json;

use super::api::{ApiReader, ApiTransport};
use crate::snapshot::InstallNamespaces;
use crate::snapshot::cluster::{PermissionRule, PolicyRule};
use crate::snapshot::object::Metadata;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A RoleBinding or ClusterRoleBinding.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BindingDocument {
    metadata: Metadata,
    subjects: Vec<Subject>,
    role_ref: RoleRef,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subject {
    kind: String,
    name: String,
    namespace: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RoleRef {
    kind: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Role {
    rules: Vec<PolicyRule>,
}

/// A binding that grants something to a service account of Weir.
struct Binding {
    /// As in [`PermissionRule::account`].
    accounts: Vec<String>,
    /// Namespace in which the rules apply.
    namespace: Option<String>,
    role: String,
    role_namespace: Option<String>,
}

/// Reads the rules that apply to the service accounts of webhook and agents.
pub(super) async fn service_account_permissions<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    namespaces: &InstallNamespaces,
) -> Option<Vec<PermissionRule>> {
    let InstallNamespaces { webhook, agent, istio } = namespaces;
    let keep = |document: BindingDocument| binding(document, namespaces);
    let mut lists = vec![reader.filter_list("ClusterRoleBindings", &format!("{RBAC}/clusterrolebindings"), keep).await];
    for namespace in [webhook, agent, istio] {
        let path = format!("{RBAC}/namespaces/{namespace}/rolebindings");
        lists.push(reader.filter_list(&format!("RoleBindings of {namespace}"), &path, keep).await);
    }
    let is_complete = lists.iter().all(Option::is_some);
    let bindings: Vec<Binding> = lists.into_iter().flatten().flatten().collect();
    let rules = join_all(bindings.iter().map(async |binding| role_rules(reader, binding).await)).await;
    let mut permissions = Vec::new();
    for (binding, rules) in bindings.iter().zip(rules) {
        let rules = rules?;
        for account in &binding.accounts {
            permissions.extend(rules.iter().map(|rule| PermissionRule {
                account: account.clone(),
                namespace: binding.namespace.clone(),
                rule: rule.clone(),
            }));
        }
    }
    is_complete.then_some(permissions)
}

/// Reads the rules of a bound role. A role that does not exist grants nothing; `None` if it cannot be read.
async fn role_rules<A: ApiTransport>(reader: &ApiReader<'_, A>, binding: &Binding) -> Option<Vec<PolicyRule>> {
    let (path, what) = match &binding.role_namespace {
        Some(namespace) => (format!("{RBAC}/namespaces/{namespace}/roles/{}", binding.role), "Roles"),
        None => (format!("{RBAC}/clusterroles/{}", binding.role), "ClusterRoles"),
    };
    match reader.send("GET", &path, None).await {
        Ok(response) if response.code == 404 => Some(Vec::new()),
        Ok(response) => {
            let role: Result<Role, String> = response.parse();
            role.map_err(|reason| reader.record_failure(what, reason)).ok().map(|role| role.rules)
        }
        Err(reason) => {
            reader.record_failure(what, reason);
            None
        }
    }
}

fn binding(document: BindingDocument, namespaces: &InstallNamespaces) -> Option<Binding> {
    let namespace = Some(document.metadata.namespace).filter(|namespace| !namespace.is_empty());
    let is_own = |name: &str| name == namespaces.webhook || name == namespaces.agent;
    let account = |subject: Subject| match subject.kind.as_str() {
        "ServiceAccount" => {
            let home = subject.namespace.or(namespace.clone())?;
            is_own(&home).then(|| format!("{home}/{}", subject.name))
        }
        "Group" if ["system:serviceaccounts", "system:authenticated"].contains(&subject.name.as_str()) => {
            Some("*/*".to_owned())
        }
        "Group" => {
            let home = subject.name.strip_prefix("system:serviceaccounts:")?;
            is_own(home).then(|| format!("{home}/*"))
        }
        _ => None,
    };
    let accounts: Vec<String> = document.subjects.into_iter().filter_map(account).collect();
    let RoleRef { kind, name: role } = document.role_ref;
    let role_namespace = namespace.clone().filter(|_| kind == "Role");
    (!accounts.is_empty()).then_some(Binding { accounts, namespace, role, role_namespace })
}

/// Resources that `weir install` creates and changes: group, resource, and whether it is namespaced.
const INSTALLED: [(&str, &str, bool); 14] = [
    ("", "namespaces", false),
    ("", "serviceaccounts", true),
    ("", "services", true),
    ("", "configmaps", true),
    ("apps", "deployments", true),
    ("apps", "daemonsets", true),
    ("policy", "poddisruptionbudgets", true),
    ("networking.k8s.io", "networkpolicies", true),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", false),
    ("coordination.k8s.io", "leases", true),
];

/// An access review, as far as its answer is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessReview {
    status: AccessReviewStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AccessReviewStatus {
    allowed: bool,
}

/// Returns the permissions of [`INSTALLED`] that the user lacks.
pub(super) async fn missing_permissions<A: ApiTransport>(
    reader: &ApiReader<'_, A>,
    namespaces: &InstallNamespaces,
) -> Vec<String> {
    let wanted = INSTALLED.iter().flat_map(|(group, resource, namespaced)| {
        let namespace = match (*namespaced, *resource) {
            (false, _) => "",
            (true, "daemonsets") => namespaces.agent.as_str(),
            (true, _) => namespaces.webhook.as_str(),
        };
        ["create", "patch"].map(|verb| (*group, *resource, namespace, verb))
    });
    let reviews = wanted.map(async |(group, resource, namespace, verb)| {
        let attributes = json!({"group": group, "resource": resource, "namespace": namespace, "verb": verb});
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        });
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let response = reader.send("POST", path, Some(&review)).await;
        let review: Result<AccessReview, String> = response.and_then(|response| response.parse());
        let review = review.map_err(|reason| reader.record_failure("your own permissions", reason)).ok()?;
        let namespace = if namespace.is_empty() { String::new() } else { format!(" in {namespace}") };
        let group = if group.is_empty() { String::new() } else { format!(".{group}") };
        (!review.status.allowed).then(|| format!("{verb} {resource}{group}{namespace}"))
    });
    join_all(reviews).await.into_iter().flatten().collect()
}
